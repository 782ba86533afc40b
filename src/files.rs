//! Small private files that are whole whenever somebody looks, also after a power cut.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Puts a file with these bytes in the place of `path`, durably, for its owner only.
///
/// # Errors
///
/// When it cannot be written; what stood there still does.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = write_draft(path, bytes)?;
    std::fs::rename(&draft, path)?;
    sync_folder(path)
}

/// The same where there is no file yet.
///
/// # Errors
///
/// [`AlreadyExists`](io::ErrorKind::AlreadyExists) when there is one, of two callers for one of them; or when it cannot be
/// written.
pub(crate) fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = write_draft(path, bytes)?;
    let linked = std::fs::hard_link(&draft, path);
    let removed = std::fs::remove_file(&draft);
    linked.and(removed)?;
    sync_folder(path)
}

/// The draft of `path`, where nothing is left of an earlier one. Whoever calls holds the lock on the data directory.
///
/// # Errors
///
/// When what is left cannot be removed.
pub(crate) fn draft(path: &Path) -> io::Result<PathBuf> {
    let draft = path.with_extension("new");
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(draft),
    }
}

fn write_draft(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let draft = draft(path)?;
    // Created, so that nothing that stands in its place is written through.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(draft)
}

/// Without this a power cut may take the name away.
fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

//! Small private files that are never seen half-written, not even after a power cut, and files that do not block.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Durably replaces the file at `path` with one that holds these bytes and that only its owner can access.
///
/// # Errors
///
/// When it cannot be written; the old file is then unchanged. If only syncing the folder fails, the new file is in
/// place, but a power cut may bring back the old one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = write_draft(path, bytes)?;
    std::fs::rename(&draft, path)?;
    sync_folder(path)
}

/// Like [`replace`], but only if there is no file at `path` yet.
///
/// # Errors
///
/// [`AlreadyExists`](io::ErrorKind::AlreadyExists) when there is one, or when the file cannot be written.
pub(crate) fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = write_draft(path, bytes)?;
    let linked = std::fs::hard_link(&draft, path);
    let removed = std::fs::remove_file(&draft);
    linked.and(removed)?;
    sync_folder(path)
}

/// The path for a draft of `path`, after removing any earlier one. The caller must hold the lock on the data directory.
///
/// # Errors
///
/// When the earlier draft cannot be removed.
pub(crate) fn draft(path: &Path) -> io::Result<PathBuf> {
    let draft = path.with_extension("new");
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(draft),
    }
}

fn write_draft(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let draft = draft(path)?;
    // `create_new`, so that a link at this path is never written through.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        // It may hold half of a secret.
        let _left_behind = std::fs::remove_file(&draft);
    }
    written.map(|()| draft)
}

/// Makes the file's name durable: without this, a power cut may lose it.
fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Opens a regular file for reading; opening or reading another, such as a pipe, could block for ever.
///
/// # Errors
///
/// If it cannot be opened, or is not a regular file.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

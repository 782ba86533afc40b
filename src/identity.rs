//! The agent's key: created on the first start, kept in one file that only its owner can read, and never
//! replaced. An agent whose key is lost or changed is a stranger to its peers.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use libp2p::identity::Keypair;

use crate::files;

/// The name of the key file in the data directory.
pub const FILE_NAME: &str = "identity.key";

/// The largest key file, in bytes. An Ed25519 key takes 68 (libp2p's protobuf encoding).
const MAX_SECRET: u64 = 4096;

/// Why the key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be used; it is left unchanged.
    #[error("cannot use the identity key {}: {problem}", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: SecretError,
    },
    /// The file does not hold an Ed25519 key; it is left unchanged.
    #[error(
        "the identity key {} is damaged: {reason}. Restore it from a backup, or move it away: the agent then creates a new \
         identity, with a new PeerId, on its next start",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file cannot be created.
    #[error("cannot create the identity key {}: {source}", .path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Why a file that holds a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Users other than its owner and the groups of this process can read or write it.
    #[error(
        "other users can read or write it (mode {mode:04o}, group {group}); make it private with: chmod 600 {}",
        .path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The id of its group.
        group: u32,
    },
    /// It is a directory or a pipe, for example.
    #[error("it is not a regular file")]
    NotAFile,
    /// It is far larger than any key.
    #[error("it has more than {MAX_SECRET} bytes, too many for a key")]
    TooLarge,
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Loads the key from `data_dir`, creating one if there is none. The caller must hold the lock on the directory.
///
/// # Errors
///
/// When the file is damaged or readable by others (it is left unchanged), or cannot be created.
pub fn load_or_create(data_dir: &Path) -> Result<Keypair, IdentityError> {
    let path = data_dir.join(FILE_NAME);
    match load(&path) {
        Err(IdentityError::Unusable { problem: SecretError::Io(error), .. })
            if error.kind() == io::ErrorKind::NotFound =>
        {
            create(&path)
        }
        loaded => loaded,
    }
}

/// Loads the key from `path`.
///
/// # Errors
///
/// When the file is missing, damaged, or readable by others.
pub fn load(path: &Path) -> Result<Keypair, IdentityError> {
    let bytes = read_secret(path).map_err(|problem| IdentityError::Unusable { path: path.to_owned(), problem })?;
    let damaged = |reason: &str| IdentityError::Damaged { path: path.to_owned(), reason: reason.into() };
    if bytes.is_empty() {
        return Err(damaged("it is empty"));
    }
    // The decoder's own message mentions key types that this build leaves out.
    let key = Keypair::from_protobuf_encoding(&bytes).map_err(|_| damaged("it does not hold an Ed25519 key"))?;
    key.clone().try_into_ed25519().map_err(|_| damaged("it holds a key of a type other than Ed25519"))?;
    Ok(key)
}

/// Writes a new key. If one exists by now, loads that one instead.
fn create(path: &Path) -> Result<Keypair, IdentityError> {
    let error = |source| IdentityError::Create { path: path.to_owned(), source };
    let key = Keypair::generate_ed25519();
    let bytes = key.to_protobuf_encoding().map_err(|e| error(io::Error::other(e)))?;
    match files::create(path, &bytes) {
        Ok(()) => Ok(key),
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => load(path),
        Err(source) => Err(error(source)),
    }
}

/// Reads a secret from a file that only its owner, the groups of this process (Kubernetes' `fsGroup`) and root's group
/// can access. Credentials from systemd ([`LoadCredential=`][1]) are accepted whatever their mode: an access control
/// list, which the mode does not show, keeps them private.
///
/// [1]: https://systemd.io/CREDENTIALS/
pub(crate) fn read_secret(path: &Path) -> Result<Vec<u8>, SecretError> {
    // Opening a pipe without a writer must not block.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(SecretError::NotAFile);
    }
    let (mode, group) = (metadata.permissions().mode() & 0o7777, metadata.gid());
    let exposed = mode & 0o007 != 0 || (mode & 0o070 != 0 && !is_own_group(group)?);
    if exposed && !is_credential(path)? {
        return Err(SecretError::Exposed { path: path.to_owned(), mode, group });
    }
    let mut bytes = Vec::new();
    file.take(MAX_SECRET + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SECRET {
        return Err(SecretError::TooLarge);
    }
    Ok(bytes)
}

/// Whether this process is in the group, or the group is root's.
fn is_own_group(group: u32) -> io::Result<bool> {
    let group = rustix::fs::Gid::from_raw(group);
    Ok(group.is_root() || group == rustix::process::getegid() || rustix::process::getgroups()?.contains(&group))
}

/// Whether the file is one of this service's systemd credentials.
fn is_credential(path: &Path) -> io::Result<bool> {
    let Some(folder) = std::env::var_os("CREDENTIALS_DIRECTORY") else { return Ok(false) };
    let Ok(folder) = Path::new(&folder).canonicalize() else { return Ok(false) };
    Ok(path.canonicalize()?.starts_with(folder))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_create(dir.path()).unwrap();
        let second = load_or_create(dir.path()).unwrap();
        assert_eq!(first.public().to_peer_id(), second.public().to_peer_id());
        let path = dir.path().join(FILE_NAME);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the draft is gone");
    }

    #[test]
    fn a_draft_left_by_a_crash_does_not_stop_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("identity.new"), b"half a k").unwrap();
        let key = load_or_create(dir.path()).unwrap();
        assert_eq!(load_or_create(dir.path()).unwrap().public(), key.public());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_others_can_access_is_refused_and_left_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path()).unwrap();
        let path = dir.path().join(FILE_NAME);
        let before = fs::read(&path).unwrap();
        for mode in [0o644, 0o604, 0o602] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = load_or_create(dir.path()).unwrap_err().to_string();
            assert!(error.contains("chmod 600") && error.contains(&format!("{mode:04o}")), "{error}");
        }
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_pipe_is_refused_without_waiting_for_a_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        let error = load_or_create(dir.path()).unwrap_err().to_string();
        assert!(error.contains("it is not a regular file"), "{error}");
    }

    #[test]
    fn a_damaged_key_is_refused_and_left_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path()).unwrap();
        let path = dir.path().join(FILE_NAME);
        let good = fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[40] ^= 1; // the secret no longer matches the public half
        let damages = [vec![], b"hello".to_vec(), good[..good.len() - 1].to_vec(), flipped, vec![0; 5000]];
        for damage in damages {
            fs::write(&path, &damage).unwrap();
            let error = load_or_create(dir.path()).unwrap_err().to_string();
            assert!(error.contains("identity.key") && !error.contains("rsa"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), damage, "{error}");
        }
    }

    #[test]
    fn the_error_for_a_missing_folder_names_the_path() {
        let error = load_or_create(Path::new("/nonexistent/peerscope")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/peerscope/identity.key"), "{error}");
    }
}

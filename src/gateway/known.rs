//! Which peers a gateway offers, kept across restarts: a peer that is away while the gateway restarts is still a
//! target, and its alert keeps firing.
//!
//! The gateway also works without the file: if it cannot be read it is ignored, and if it cannot be written the gateway
//! tries again.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::files;
use crate::network::PeerIdText;

/// The name of the file in the data directory.
const NAME: &str = "gateway.json";

/// The largest file that is read, in bytes: about a million peers.
const MAX_SIZE: u64 = 512 << 20;

/// A peer that is a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) peer: PeerIdText,
    pub(super) name: Option<String>,
    pub(super) exposed: Vec<String>,
    /// How long it was connected in total, in seconds.
    pub(super) connected_seconds: u64,
    /// When it left, in seconds since the Unix epoch; `None` if it was connected.
    pub(super) departed_at: Option<u64>,
}

impl Known {
    /// How long ago it left.
    pub(super) fn departed_for(&self) -> Duration {
        let left = self.departed_at.unwrap_or_else(now);
        Duration::from_secs(now().saturating_sub(left))
    }

    /// The `departed_at` of a peer that left this long ago.
    pub(super) fn left(ago: Duration) -> u64 {
        now().saturating_sub(ago.as_secs())
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub(super) fn file(data_dir: &Path) -> PathBuf {
    data_dir.join(NAME)
}

/// The peers that an earlier run knew; empty if there was none.
pub(super) fn load(file: &Path) -> Vec<Known> {
    let read = || {
        let mut text = Vec::new();
        File::open(file)?.take(MAX_SIZE).read_to_end(&mut text)?;
        serde_json::from_slice(&text).map_err(io::Error::other)
    };
    match read() {
        Ok(known) => known,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            tracing::warn!(
                "cannot read the known peers from {}: {error}; they become targets again when they connect",
                file.display()
            );
            Vec::new()
        }
    }
}

pub(super) fn save(file: &Path, known: &[Known]) -> io::Result<()> {
    files::replace(file, &serde_json::to_vec(known).map_err(io::Error::other)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_peers_are_loaded_again_and_a_damaged_file_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path());
        assert_eq!(load(&file), []);
        let peer = PeerIdText("12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN".parse().unwrap());
        let left = Some(Known::left(Duration::from_secs(100)));
        let known = Known {
            peer,
            name: Some("x".into()),
            exposed: vec!["node".into()],
            connected_seconds: 7,
            departed_at: left,
        };
        save(&file, std::slice::from_ref(&known)).unwrap();
        assert_eq!(load(&file), std::slice::from_ref(&known));
        assert!((100..200).contains(&known.departed_for().as_secs()));
        std::fs::write(&file, "[{\"peer\":").unwrap();
        assert_eq!(load(&file), []);
    }
}

//! The `node` section, and the default data directory.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The `node` section of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// A name for people to read; by default the host name. The agent's identity is its PeerId.
    pub name: String,
    /// The directory of the key, the embedded store and the control socket.
    pub data_dir: PathBuf,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self { name: host_name(), data_dir: default_data_dir(|name| std::env::var_os(name)) }
    }
}

fn host_name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    if name.is_empty() { "peerscope".into() } else { name.into_owned() }
}

/// `$XDG_STATE_HOME/peerscope`, else `$HOME/.local/state/peerscope`, else `./peerscope-data`.
pub(super) fn default_data_dir<T: AsRef<OsStr>>(variable: impl Fn(&str) -> Option<T>) -> PathBuf {
    // The XDG specification says to ignore relative paths, which includes an empty one.
    let absolute = |name| variable(name).map(|path| Path::new(&path).to_path_buf()).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .map(|state| state.join("peerscope"))
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state/peerscope")))
        .unwrap_or_else(|| PathBuf::from("peerscope-data"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_dir(variables: &[(&str, &str)]) -> PathBuf {
        default_data_dir(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| *value))
    }

    #[test]
    fn data_dir_follows_xdg_then_home_then_the_working_directory() {
        assert_eq!(data_dir(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]), Path::new("/s/peerscope"));
        assert_eq!(data_dir(&[("XDG_STATE_HOME", "rel"), ("HOME", "/h")]), Path::new("/h/.local/state/peerscope"));
        assert_eq!(data_dir(&[("XDG_STATE_HOME", ""), ("HOME", "/h")]), Path::new("/h/.local/state/peerscope"));
        assert_eq!(data_dir(&[]), Path::new("peerscope-data"));
    }

    #[test]
    fn the_default_name_is_the_host_name() {
        let expected = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert_eq!(NodeConfig::default().name, expected.trim());
    }
}

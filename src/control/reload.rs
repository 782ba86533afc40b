//! What the control API needs to have the configuration read again, and what it says about that.

use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

/// Reads the configuration again, and takes it over.
pub trait Reload: fmt::Debug + Send + Sync {
    /// Reads the configuration, or `text` in place of its file, and takes it over as far as that needs no restart.
    fn reload(&self, text: Option<String>) -> BoxFuture<'_, Result<Reloaded, ReloadError>>;

    /// The state of the configuration.
    fn state(&self) -> ConfigState;

    /// The agent's name as it is now.
    fn name(&self) -> String;
}

/// What a reload did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The keys whose new values count from now on.
    pub changed: Vec<String>,
    /// The keys whose new values count after a restart.
    pub restart_needed: Vec<String>,
    /// The hash of the configuration that is in use, as `agent_config_hash` shows it.
    pub hash: u64,
}

impl fmt::Display for Reloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.changed.as_slice() {
            [] if self.restart_needed.is_empty() => f.write_str("nothing has changed")?,
            [] => f.write_str("nothing has changed that counts without a restart")?,
            changed => write!(f, "changed {}", changed.join(", "))?,
        }
        match self.restart_needed.as_slice() {
            [] => Ok(()),
            keys => write!(f, "; a restart is needed for {}", keys.join(", ")),
        }
    }
}

/// Why a configuration was not taken over. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReloadError {
    /// This program has not said where the configuration is.
    #[error("this agent is embedded in another program, which does not reload configurations")]
    NoSource,
    /// It is not valid, or cannot be read; one problem a line.
    #[error("{0}")]
    Invalid(String),
    /// Reading it takes too long.
    #[error("the configuration could not be read within {0:?}: the disk hangs")]
    DiskHangs(Duration),
    /// The network's event loop does not answer.
    #[error("the network does not answer; see `peerscope status`")]
    NetworkHangs,
}

/// The state of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    /// The hash of what is in use.
    pub hash: u64,
    /// Whether the last attempt to read it was successful.
    pub last_reload_successful: bool,
    /// When it was last read successfully, in seconds since the Unix epoch.
    pub last_reload_success_seconds: u64,
    /// The keys that wait for a restart.
    pub restart_needed: Vec<String>,
}

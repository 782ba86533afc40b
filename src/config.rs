//! Turns file, environment and flags into one valid [`Config`].
//!
//! Raw input becomes valid types here and nowhere else. The file is parsed into a small tree whose nodes know where
//! they were written (`tree.rs`). Environment and flags are merged into it (`layers.rs`), serde reads the sections from
//! it (`de.rs`), and values that depend on each other are checked at the end (`check.rs`). Every [`ConfigProblem`]
//! names its origin.

mod access;
mod check;
mod de;
mod error;
mod layers;
mod log;
mod node;
mod tree;
mod web;
mod yaml;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::access::{AccessRule, PeerSelector, Permission};
pub use self::error::{ConfigError, ConfigProblem, Origin};
pub use self::log::{LogConfig, LogFormat, LogLevel};
pub use self::node::NodeConfig;
use self::tree::{Step, Value, YamlNode};
pub use self::web::{check_web_config, load_web_config};
use crate::{expose, gateway, metrics, network, storage};

/// Everything that can be configured. Each module owns its section.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The agent's name and where it keeps its files.
    pub node: NodeConfig,
    /// What it logs.
    pub log: LogConfig,
    /// The metrics endpoint.
    pub metrics: metrics::MetricsConfig,
    /// Where the data is stored.
    pub storage: storage::Config,
    /// The peer-to-peer network.
    pub network: network::Config,
    /// What peers may do on this agent. If empty, they may only `ping`.
    pub access: Vec<AccessRule>,
    /// The other exporters on this machine that peers with the permission `scrape` may fetch.
    pub expose: Vec<expose::Exposed>,
    /// Whether and how this agent lets Prometheus find and scrape its peers.
    pub gateway: gateway::Config,
}

/// Where a configuration comes from. Later fields override earlier ones.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A text that takes the place of the file, and its name in messages.
    pub text: Option<(String, String)>,
    /// Whether a file without any key is a mistake: when it is read again, it may be only half written.
    pub refuse_empty: bool,
    /// The YAML file. If `None`, the variable `PEERSCOPE_CONFIG` may name one; otherwise no file is read.
    pub file: Option<PathBuf>,
    /// The whole environment, as from `std::env::vars_os().collect()`.
    pub env: Vec<(OsString, OsString)>,
    /// The flags: the dotted key that each sets, its value, and the flag as the user knows it, such as
    /// `("metrics.port", "9100", "--metrics-port")`.
    pub flags: Vec<(&'static str, String, &'static str)>,
}

impl Config {
    /// Reads all sources and checks the result.
    ///
    /// # Errors
    ///
    /// All problems found, each with its origin.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let (tree, problems) = layers::assemble(sources)?;
        Self::decode(tree, problems)
    }

    /// The data directory alone, which may be known even if the rest is not valid.
    ///
    /// # Errors
    ///
    /// If the sources cannot be read at all.
    pub fn data_dir(sources: &Sources) -> Result<PathBuf, ConfigError> {
        let (tree, _) = layers::assemble(sources)?;
        let steps = ["node", "data_dir"].map(|key| Step::Key(key.into()));
        match steps.iter().try_fold(&tree, |node, step| node.child(step)).map(|node| &node.value) {
            Some(Value::Scalar { text, .. }) if !text.is_empty() => Ok(text.into()),
            _ => Err(ConfigProblem::new(tree.origin, "node.data_dir", "is not a path").into()),
        }
    }

    /// Reads one YAML text, without environment or flags; messages refer to it as `name`.
    ///
    /// # Errors
    ///
    /// All problems found, each with its position.
    pub fn from_yaml(name: &str, text: &str) -> Result<Self, ConfigError> {
        let (tree, problems) = tree::parse(text, &error::Source::File(name.into()))?;
        Self::decode(tree, problems)
    }

    /// The dotted keys whose values differ, in alphabetical order.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (mine, theirs) = (layers::values(self), layers::values(other));
        let keys: BTreeSet<&String> = mine.keys().chain(theirs.keys()).collect();
        let mut different: Vec<String> =
            keys.into_iter().filter(|key| mine.get(*key) != theirs.get(*key)).cloned().collect();
        // Passwords are masked in the values.
        if self.storage.redis.urls != other.storage.redis.urls {
            different.push("storage.redis.urls".into());
        }
        different.sort();
        different.dedup();
        different
    }

    /// This configuration as YAML that loads again, every secret masked.
    pub fn to_yaml_masked(&self) -> String {
        yaml::write(self)
    }

    fn decode(mut tree: YamlNode, mut problems: Vec<ConfigProblem>) -> Result<Self, ConfigError> {
        let config: Self = decode_all(&mut tree, &mut problems)?;
        let found_so_far = problems.len();
        for problem in check::check(&config, &tree, metrics::BUILT_IN) {
            // In a section with a rejected value the default takes its place, so the check could complain about
            // something that the user did not write.
            if !problems.iter().take(found_so_far).any(|earlier| earlier.section() == problem.section()) {
                problems.push(problem);
            }
        }
        if problems.is_empty() { Ok(config) } else { Err(ConfigError::new(problems)) }
    }
}

/// Decodes a tree. On a failure, records the problem, marks its node as rejected and decodes again, so that one run
/// reports all mistakes.
fn decode_all<T: for<'a> Deserialize<'a>>(
    tree: &mut YamlNode,
    problems: &mut Vec<ConfigProblem>,
) -> Result<T, ConfigError> {
    loop {
        match de::decode::<T>(tree) {
            Ok(config) => return Ok(config),
            Err(_) if problems.len() >= error::MAX_PROBLEMS => return Err(ConfigError::new(std::mem::take(problems))),
            Err(failure) => {
                let problem = failure.take_out_of(tree);
                problems.extend(problem);
            }
        }
    }
}

#[cfg(test)]
mod tests;

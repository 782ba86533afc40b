//! The `log` section.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tracing_subscriber::EnvFilter;

use crate::units::quoted;

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// The `log` section of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Which lines are logged.
    pub level: LogLevel,
    /// The format of a line.
    pub format: LogFormat,
}

/// The format of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// A level (`error`, `warn`, `info`, `debug`, `trace`, `off`), or directives such as
/// `info,peerscope=debug` as tracing-subscriber's `EnvFilter` reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLevel(String);

impl LogLevel {
    /// The filter for the subscriber. A bare level applies to this agent. Libraries log only warnings, and
    /// not those that a lone agent or any stranger can cause at will.
    pub fn filter(&self) -> EnvFilter {
        if ["warn", "info", "debug", "trace"].iter().any(|level| level.eq_ignore_ascii_case(&self.0)) {
            return EnvFilter::builder().parse_lossy(format!(
                "warn,libp2p_kad=error,libp2p_identify=error,yamux=off,libp2p_swarm=error,peerscope={}",
                self.0
            ));
        }
        // The text was parsed by the same rules when the value was created, so nothing is lost.
        EnvFilter::builder().parse_lossy(&self.0)
    }
}

impl Default for LogLevel {
    fn default() -> Self {
        Self("info".into())
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = || format!("use one of {}, or directives such as info,peerscope=debug", LEVELS.join(", "));
        if text.trim().is_empty() {
            return Err(format!("the level is empty; {}", help()));
        }
        for directive in text.split(',').map(str::trim) {
            // `EnvFilter` takes a bare word that is not a level as a target to be logged in full, so `inof` would
            // silence everything else. Here a target needs a level.
            let bare = directive.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'-'));
            if bare && !LEVELS.iter().any(|level| level.eq_ignore_ascii_case(directive)) {
                let hint = super::error::nearest(directive, LEVELS)
                    .map_or_else(help, |level| format!("did you mean `{level}`?"));
                return Err(format!("{} is not a log level; {hint}", quoted(directive)));
            }
        }
        match EnvFilter::builder().parse(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(error) => Err(format!("{} is not a valid log filter ({error}); {}", quoted(text), help())),
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for LogLevel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for LogLevel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

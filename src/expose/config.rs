//! An entry of the `expose` section, and its name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ExposedUrl;
use crate::units::quoted;

/// The longest name, in bytes.
const MAX_NAME: usize = 32;

/// One exporter that peers may fetch through this agent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Exposed {
    /// The name by which peers request it.
    pub name: ExposedName,
    /// The URL of its metrics.
    pub url: ExposedUrl,
    /// Whether it may be on another machine.
    #[serde(default)]
    pub remote: bool,
}

/// The name of an exporter: 1 to 32 characters from `a-z`, `0-9`, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExposedName(String);

impl ExposedName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ExposedName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
        if text.is_empty() || text.len() > MAX_NAME || !text.bytes().all(allowed) {
            return Err(format!(
                "{} is not a valid exporter name; use 1 to {MAX_NAME} of a-z, 0-9, _ and -, such as node",
                quoted(text)
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for ExposedName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ExposedName> for String {
    fn from(name: ExposedName) -> Self {
        name.0
    }
}

impl fmt::Display for ExposedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

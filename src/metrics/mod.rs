//! What the rest of the crate holds to record with, and the endpoint that shows it.
//!
//! [`MetricsCollector`] is cheap to clone and records without looking anything up. With the cargo
//! feature `metrics-prometheus` off, the same API is zero-sized and every call compiles to nothing
//! (`noop.rs`).
//!
//! This module imports nothing of the rest of the crate. There is no global: the node owns the
//! registry and hands it down, so that two nodes in one process never share a number.

pub mod catalogue;
mod health;
pub mod labels;

#[cfg(feature = "metrics-prometheus")]
mod collector;
#[cfg(feature = "metrics-prometheus")]
mod instruments;
#[cfg(not(feature = "metrics-prometheus"))]
mod noop;

use std::net::IpAddr;

#[cfg(feature = "metrics-prometheus")]
pub use collector::{InFlight, MetricsCollector, Timer};
pub use health::{ComponentState, Health};
#[cfg(not(feature = "metrics-prometheus"))]
pub use noop::{InFlight, MetricsCollector, Registry, Timer};
/// The registry that all families of one agent are in.
#[cfg(feature = "metrics-prometheus")]
pub use prometheus_client::registry::Registry;

/// Whether this build can serve metrics at all (the cargo feature `metrics-prometheus`).
pub const BUILT_IN: bool = cfg!(feature = "metrics-prometheus");

/// What constant text the info metrics carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentInfo {
    /// The agent's PeerId in base58.
    pub peer_id: String,
    /// The configured name.
    pub name: String,
}

/// The `metrics` section of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Whether the endpoint is served.
    pub enabled: bool,
    /// The address it listens on.
    #[serde(deserialize_with = "address")]
    pub address: IpAddr,
    /// The TCP port it listens on; 0 lets the system choose.
    pub port: u16,
    /// The path of the metrics page.
    pub path: String,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { enabled: BUILT_IN, address: IpAddr::from([127, 0, 0, 1]), port: 8080, path: "/metrics".into() }
    }
}

/// Reads an IP address; the message of serde's own reading repeats neither the text nor an example.
fn address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<IpAddr, D::Error> {
    let text = <String as serde::Deserialize>::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        let message =
            format!("`{text}` is not an IP address, such as 127.0.0.1, or 0.0.0.0 or \"::\" for all interfaces");
        serde::de::Error::custom(message)
    })
}

//! What the rest of the crate holds to record with, and the endpoint that shows it.
//!
//! [`MetricsCollector`] is cheap to clone and records without looking anything up. With the cargo
//! feature `metrics-prometheus` off, the same API is zero-sized and every call compiles to nothing
//! (`noop.rs`).
//!
//! This module imports nothing of the rest of the crate. There is no global: the node owns the
//! registry and hands it down, so that two nodes in one process never share a number.

pub mod catalogue;
mod guest;
mod health;
pub mod labels;
mod log_lines;

#[cfg(feature = "metrics-prometheus")]
mod collector;
#[cfg(feature = "metrics-prometheus")]
mod exposer;
#[cfg(feature = "metrics-prometheus")]
pub mod exposition;
#[cfg(feature = "metrics-prometheus")]
mod gateway;
#[cfg(feature = "metrics-prometheus")]
pub mod instruments;
#[cfg(not(feature = "metrics-prometheus"))]
mod noop;
#[cfg(feature = "metrics-prometheus")]
mod process;
#[cfg(feature = "metrics-prometheus")]
mod readiness;
#[cfg(feature = "metrics-prometheus")]
mod registry;
#[cfg(feature = "metrics-prometheus")]
mod server;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;

#[cfg(feature = "metrics-prometheus")]
pub use collector::MetricsCollector;
#[cfg(feature = "metrics-prometheus")]
pub use exposer::Exposer;
#[cfg(feature = "metrics-prometheus")]
pub use gateway::GatewayMetrics;
#[cfg(feature = "metrics-prometheus")]
pub(crate) use guest::joined;
pub use guest::{Broken, GuestAnswer, GuestBody, GuestPages, GuestStream};
pub(crate) use health::all_ready;
pub use health::{ComponentState, Health};
#[cfg(feature = "metrics-prometheus")]
pub use instruments::{Timer, UnderWay};
pub use log_lines::MissingLines;
#[cfg(not(feature = "metrics-prometheus"))]
pub use noop::{Exposer, MetricsCollector, MetricsServer, Registry, Timer, UnderWay};
#[cfg(feature = "metrics-prometheus")]
pub use registry::{Instrument, RegisterError, Registry};
#[cfg(feature = "metrics-prometheus")]
pub use server::{Limits, MetricsServer};

/// Whether this build can serve metrics at all (the cargo feature `metrics-prometheus`).
pub const BUILT_IN: bool = cfg!(feature = "metrics-prometheus");

/// Adds the families whose values are read at scrape time: `process_*`, `agent_component_ready` as `health` has it, and
/// `log_lines_dropped_total`. Once per registry.
#[cfg(feature = "metrics-prometheus")]
pub fn register_scrape_time(registry: &mut Registry, health: &Health, missing: &MissingLines) {
    registry.add_or_log(Box::new(process::ProcessFamilies::new()));
    registry.add_or_log(Box::new(readiness::ReadinessFamily::new(health.clone())));
    registry.add_or_log(Box::new(log_lines::LogFamily::new(missing.clone())));
}

/// Does nothing in a build without the cargo feature `metrics-prometheus`.
#[cfg(not(feature = "metrics-prometheus"))]
pub fn register_scrape_time(_: &mut Registry, _: &Health, _: &MissingLines) {}

/// Tells where the metrics page is, as soon as the endpoint could listen.
#[derive(Debug, Clone, Default)]
pub struct UrlReader {
    address: Arc<OnceLock<SocketAddr>>,
    path: String,
}

impl UrlReader {
    /// The URL of the metrics page; `None` while the endpoint does not listen, and when it is off.
    pub fn url(&self) -> Option<String> {
        self.address.get().map(|address| format!("http://{address}{}", self.path))
    }
}

/// A metrics page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposition {
    /// Its `Content-Type`.
    pub content_type: &'static str,
    /// Whether `body` is compressed by gzip.
    pub gzip: bool,
    /// The page.
    pub body: Bytes,
}

/// Why there is no metrics page.
#[derive(Debug, thiserror::Error)]
pub enum ExposeError {
    /// As many as may be made at once are being made.
    #[error("Limit of concurrent requests reached ({0}), try again later.")]
    Busy(usize),
    /// Some collector hangs. It keeps its place among those that are made.
    #[error("The answer was not made within {0:?}; some part of the agent hangs.")]
    Late(Duration),
    /// The build has no metrics.
    #[error("This agent was built without metrics (cargo feature metrics-prometheus).")]
    NotBuiltIn,
    /// Some collector failed; the log says which and why.
    #[error("The metrics could not be collected; the agent's log says why.")]
    Failed,
}

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
    /// What the native buckets of every histogram are like.
    pub native_histograms: NativeHistograms,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self {
            enabled: BUILT_IN,
            address: IpAddr::from([127, 0, 0, 1]),
            port: 8080,
            path: "/metrics".into(),
            native_histograms: NativeHistograms::default(),
        }
    }
}

/// What the native buckets of every histogram are like: the part `native_histograms` of the `metrics` section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct NativeHistograms {
    /// The resolution, 0 to 5: each power of two has 2^schema buckets. One step more doubles the memory.
    pub schema: i32,
    /// The most buckets that one histogram shows. When more of them hold something, it is shown with a
    /// coarser schema.
    pub max_buckets: u32,
}

impl Default for NativeHistograms {
    fn default() -> Self {
        // Schema 3 is what client_golang makes of its usual factor 1.1, and 160 its usual limit.
        Self { schema: 3, max_buckets: 160 }
    }
}

impl NativeHistograms {
    /// The schemas that can be recorded with.
    pub const SCHEMAS: std::ops::RangeInclusive<i32> = 0..=5;
    /// The limits on buckets that can be set. Fewer than 8 could not hold what even the coarsest schema needs.
    pub const MAX_BUCKETS: std::ops::RangeInclusive<u32> = 8..=1_000;
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

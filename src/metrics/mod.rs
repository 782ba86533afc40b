//! What the rest of the crate holds to record with, and the endpoint that shows it.
//!
//! [`MetricsCollector`] is cheap to clone and records without looking anything up. With the cargo
//! feature `metrics-prometheus` off, the same API is zero-sized and every call compiles to nothing
//! (`noop.rs`).
//!
//! This module imports nothing of the rest of the crate. There is no global: the node owns the
//! registry and hands it down, so that two nodes in one process never share a number.

pub(crate) mod accept;
pub mod catalogue;
mod guest;
mod health;
pub mod labels;
mod log_lines;

cfg_if::cfg_if! {
    if #[cfg(feature = "metrics-prometheus")] {
        mod collector;
        mod exposer;
        pub mod exposition;
        mod gateway;
        pub mod instruments;
        mod process;
        mod registry;
        mod scrape_time;
        mod server;

        pub use self::collector::MetricsCollector;
        pub use self::exposer::Exposer;
        pub use self::gateway::GatewayMetrics;
        pub use self::instruments::{Timer, UnderWay};
        pub use self::registry::{Instrument, RegisterError, Registry};
        pub use self::scrape_time::register_scrape_time;
        pub use self::server::{Limits, MetricsServer};
    } else {
        mod noop;

        pub use self::noop::{
            Exposer, GatewayMetrics, MetricsCollector, MetricsServer, Registry, Timer, UnderWay, register_scrape_time,
        };
    }
}

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderValue;

pub use self::accept::{MAX_ACCEPT, MAX_CONTENT_TYPE};
pub use self::guest::{Broken, GuestAnswer, GuestBody, GuestPages, GuestStream};
pub(crate) use self::health::all_ready;
pub use self::health::{ComponentState, Health};
pub use self::log_lines::MissingLines;

/// Whether this build can serve metrics at all (the cargo feature `metrics-prometheus`).
pub const BUILT_IN: bool = cfg!(feature = "metrics-prometheus");

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

/// A metrics page: the agent's own, an exporter's, or a peer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<B = Bytes> {
    /// Its `Content-Type`; `None` when there is none that can be passed on.
    pub content_type: Option<Cow<'static, str>>,
    /// Whether `body` is compressed with gzip.
    pub gzip: bool,
    /// Its bytes, or where they come from.
    pub body: B,
}

impl<B> Page<B> {
    /// The `Content-Type` as a header; `None` also for a text that cannot be one.
    pub(crate) fn content_type_header(&self) -> Option<HeaderValue> {
        self.content_type.as_ref().and_then(|text| HeaderValue::from_str(text).ok())
    }
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

//! Metrics: the collector that the rest of the crate records with, and the endpoint that serves them.
//!
//! [`MetricsCollector`] is cheap to clone and records without any lookup. Without the cargo feature
//! `metrics-prometheus`, the same API is zero-sized and every call compiles to nothing (`noop.rs`).
//!
//! This module imports nothing from the rest of the crate. There is no global state: the node owns the
//! registry and hands it down, so two nodes in one process never share a number.

pub(crate) mod accept;
pub mod catalogue;
mod external_url;
mod guest;
mod health;
pub mod labels;
mod log_lines;
pub mod web_config;

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
        pub use self::server::{EndpointHandle, Limits, MetricsServer, WebAccess, check_web_config};
    } else {
        mod noop;

        pub use self::noop::{
            EndpointHandle, Exposer, GatewayMetrics, MetricsCollector, MetricsServer, Registry, Timer, UnderWay, WebAccess,
            check_web_config, register_scrape_time,
        };
    }
}

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};

pub use self::accept::{MAX_ACCEPT, MAX_CONTENT_TYPE};
pub use self::external_url::ExternalUrl;
pub use self::guest::{Broken, GuestAnswer, GuestBody, GuestPages, GuestStream};
pub(crate) use self::health::all_ready;
pub use self::health::{ComponentState, Health};
pub use self::log_lines::MissingLines;
pub(crate) use self::log_lines::Seldom;
pub use self::web_config::{WebConfig, WebConfigError, WebConfigSource};

/// Whether this build can serve metrics at all (the cargo feature `metrics-prometheus`).
pub const BUILT_IN: bool = cfg!(feature = "metrics-prometheus");

/// What an endpoint has beside its own pages.
#[derive(Debug, Default)]
pub struct EndpointOptions {
    /// Further pages.
    pub guest: Option<Arc<dyn GuestPages>>,
    /// The web configuration.
    pub web: Option<WebAccess>,
    /// Where others reach it, if that is configured.
    pub external_url: Option<ExternalUrl>,
}

/// Reads the URL of the metrics page, which is known once the endpoint listens.
#[derive(Debug, Clone, Default)]
pub struct UrlReader {
    address: Arc<OnceLock<SocketAddr>>,
    /// Whether it is `https`.
    tls: Arc<AtomicBool>,
    /// Why the web configuration could not be read the last time.
    problem: Arc<parking_lot::Mutex<Option<String>>>,
    path: String,
}

impl UrlReader {
    /// The URL of the metrics page; `None` until the endpoint listens, and if it is disabled.
    pub fn url(&self) -> Option<String> {
        self.address.get().map(|address| self.at(*address))
    }

    /// Why the web configuration could not be read the last time, if it could not.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }

    fn at(&self, address: SocketAddr) -> String {
        let scheme = if self.tls.load(Ordering::Relaxed) { "https" } else { "http" };
        format!("{scheme}://{address}{}", self.path)
    }
}

/// A metrics page: the agent's own, an exporter's, or a peer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<B = Bytes> {
    /// Its `Content-Type`, if it has one that can be passed on.
    pub content_type: Option<Cow<'static, str>>,
    /// Whether `body` is compressed with gzip.
    pub gzip: bool,
    /// Its bytes, or their source.
    pub body: B,
}

impl Page {
    /// The same page compressed with gzip, if it is not yet and is long enough for that to pay.
    pub(crate) fn compressed(self) -> Self {
        if self.gzip || self.body.len() < accept::GZIP_FROM {
            return self;
        }
        match accept::gzip(&self.body) {
            Ok(body) => Self { gzip: true, body, ..self },
            Err(_) => self,
        }
    }
}

impl<B> Page<B> {
    /// What the page is, as headers of the response that carries it.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<B> {
        let content_type = self.content_type_header().map(|value| (header::CONTENT_TYPE, value));
        let encoding = self.gzip.then(|| (header::CONTENT_ENCODING, HeaderValue::from_static("gzip")));
        content_type.into_iter().chain(encoding)
    }

    /// The `Content-Type` as a header value; `None` also if the text is not a valid one.
    pub(crate) fn content_type_header(&self) -> Option<HeaderValue> {
        self.content_type.as_ref().and_then(|text| HeaderValue::from_str(text).ok())
    }
}

/// Why a metrics page was not made.
#[derive(Debug, thiserror::Error)]
pub enum ExposeError {
    /// As many pages as may be made at once are being made. The wording is client_golang's.
    #[error("Limit of concurrent requests reached ({0}), try again later.")]
    Busy(usize),
    /// A collector hangs. The page keeps its place until the collector returns.
    #[error("The metrics page was not ready within {0:?}: part of the agent is hanging.")]
    Late(Duration),
    /// The build has no metrics.
    #[error("This agent was built without metrics (cargo feature metrics-prometheus).")]
    NotBuiltIn,
    /// Making the page failed; the log says why.
    #[error("The metrics could not be collected; see the agent's log.")]
    Failed,
}

/// The label values of `agent_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentInfo {
    /// The agent's PeerId in base58.
    pub peer_id: String,
    /// The configured name.
    pub name: String,
}

impl AgentInfo {
    #[cfg(feature = "metrics-prometheus")]
    fn labels(&self) -> [(&'static str, &str); 2] {
        [("peer_id", &self.peer_id), ("name", &self.name)]
    }
}

/// The `metrics` section of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Whether the endpoint is served.
    pub enabled: bool,
    /// The addresses it listens on, at least one.
    pub address: Addresses,
    /// The TCP port it listens on; 0 lets the system choose.
    pub port: u16,
    /// The path of the metrics page.
    pub path: String,
    /// The file with TLS and users, in the format of Prometheus's exporter-toolkit; `None` for neither.
    pub web_config: Option<PathBuf>,
    /// Names under which the endpoint is reached, beside its addresses and `gateway.external_url`.
    pub host_names: Vec<String>,
    /// Whether `/live` and `/ready` need no password although other pages do.
    pub open_probes: bool,
    /// The native buckets of every histogram.
    pub native_histograms: NativeHistograms,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self {
            enabled: BUILT_IN,
            address: IpAddr::from([127, 0, 0, 1]).into(),
            port: 8080,
            path: "/metrics".into(),
            web_config: None,
            host_names: Vec::new(),
            open_probes: false,
            native_histograms: NativeHistograms::default(),
        }
    }
}

/// The native buckets of every histogram: `metrics.native_histograms` in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct NativeHistograms {
    /// The resolution, 0 to 5: 2^schema buckets for each power of two. Each step up doubles the memory.
    pub schema: i32,
    /// The most native buckets that one histogram shows. A histogram with more non-empty buckets is shown
    /// with a coarser schema.
    pub max_buckets: u32,
}

impl Default for NativeHistograms {
    fn default() -> Self {
        // client_golang's usual factor of 1.1 selects schema 3; 160 is its usual limit.
        Self { schema: 3, max_buckets: 160 }
    }
}

impl NativeHistograms {
    /// The schemas that can be configured.
    pub const SCHEMAS: std::ops::RangeInclusive<i32> = 0..=5;
    /// The bucket limits that can be configured. Even the coarsest schema can need 8 buckets.
    pub const MAX_BUCKETS: std::ops::RangeInclusive<u32> = 8..=1_000;
}

/// One IP address or several. One is written as text, several as a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses(Vec<IpAddr>);

impl Addresses {
    /// All addresses, in their order.
    pub fn iter(&self) -> std::slice::Iter<'_, IpAddr> {
        self.0.iter()
    }

    /// The first address; loopback if there is none.
    pub fn first(&self) -> IpAddr {
        self.0.first().copied().unwrap_or(IpAddr::from([127, 0, 0, 1]))
    }
}

impl From<IpAddr> for Addresses {
    fn from(address: IpAddr) -> Self {
        Self(vec![address])
    }
}

impl serde::Serialize for Addresses {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Addresses {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrSeveral;

        impl<'de> serde::de::Visitor<'de> for OneOrSeveral {
            type Value = Addresses;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an IP address, or a list of them")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Addresses, E> {
                text.parse::<IpAddr>().map(Addresses::from).map_err(|_| {
                    let help = "write one such as 127.0.0.1, or 0.0.0.0 or \"::\" for all interfaces";
                    E::custom(format!("`{text}` is not an IP address; {help}"))
                })
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Addresses, A::Error> {
                let mut addresses = Vec::new();
                while let Some(text) = seq.next_element::<String>()? {
                    addresses.extend(OneOrSeveral.visit_str::<A::Error>(&text)?.0);
                }
                Ok(Addresses(addresses))
            }
        }

        deserializer.deserialize_any(OneOrSeveral)
    }
}

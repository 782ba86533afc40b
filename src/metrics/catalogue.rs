//! Every metric family of our own; their names appear nowhere else. libp2p's families come from
//! libp2p-metrics, under its names (`libp2p_*`).
//!
//! A doc comment here is the family's help text on the page and its meaning in `docs/metrics.md`;
//! [`markdown`] writes that table, and a test keeps the file up to date.

use std::fmt::Write as _;

/// The series that Prometheus itself adds to every scrape (`scrape/scrape.go` of Prometheus 3.5). A native histogram
/// with such a name would silently be dropped in favour of Prometheus's own sample; the samples of a classic histogram
/// have other names.
pub(crate) const OF_PROMETHEUS: [&str; 8] = [
    "up",
    "scrape_duration_seconds",
    "scrape_samples_scraped",
    "scrape_samples_post_metric_relabeling",
    "scrape_series_added",
    "scrape_timeout_seconds",
    "scrape_sample_limit",
    "scrape_body_size_bytes",
];

/// What kind of metric a family is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations in buckets.
    Histogram,
    /// Constant text, in labels.
    Info,
    /// Not stated; none of our own families.
    Unknown,
}

impl Kind {
    /// The name in the exposition's `# TYPE` line (OpenMetrics).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
            Self::Unknown => "unknown",
        }
    }

    /// The name in the `# TYPE` line of the classic text, which has neither info nor unknown.
    pub fn classic(self) -> &'static str {
        match self {
            Self::Info => "gauge",
            Self::Unknown => "untyped",
            same => same.as_str(),
        }
    }
}

/// One metric family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// The full name, as queries use it, with its unit and its `_total` or `_info` suffix.
    pub name: &'static str,
    /// Counter, gauge, histogram or info.
    pub kind: Kind,
    /// The label names, in order.
    pub labels: &'static [&'static str],
    /// The help text: one sentence without a full stop.
    pub help: &'static str,
}

impl Descriptor {
    /// A family with this kind, full name, label names and help text.
    pub const fn new(kind: Kind, name: &'static str, labels: &'static [&'static str], help: &'static str) -> Self {
        Self { name, kind, labels, help }
    }

    /// The name in OpenMetrics: without `_total` or `_info`.
    pub fn openmetrics_name(&self) -> &'static str {
        let name = match self.kind {
            Kind::Counter => self.name.strip_suffix("_total"),
            Kind::Info => self.name.strip_suffix("_info"),
            Kind::Gauge | Kind::Histogram | Kind::Unknown => None,
        };
        name.unwrap_or(self.name)
    }

    /// The base unit at the end of the name, if any.
    pub fn unit(&self) -> Option<&'static str> {
        let (_, unit) = self.name.strip_suffix("_total").unwrap_or(self.name).rsplit_once('_')?;
        ["seconds", "bytes"].into_iter().find(|&known| known == unit)
    }
}

macro_rules! catalogue {
    ($(#[doc = $help:literal] $id:ident: $kind:ident $name:literal [$($label:literal),*];)+) => {
        $(
            #[doc = $help]
            pub const $id: Descriptor = Descriptor::new(Kind::$kind, $name, &[$($label),*], $help.trim_ascii());
        )+
        /// Every family, in the order of the documentation.
        pub const ALL: &[Descriptor] = &[$($id),+];
    };
}

catalogue! {
    /// CPU time used since the last sample, in percent of one core
    PROCESS_CPU_USAGE: Gauge "process_cpu_usage" [];
    /// Resident memory in bytes
    PROCESS_MEMORY: Gauge "process_memory_bytes" [];
    /// Peers with at least one live connection
    PEERS_CONNECTED: Gauge "agent_peers_connected" [];
    /// Messages from peers that were handled successfully
    MESSAGES_RECEIVED: Counter "messages_received_total" ["type"];
    /// Time from a decoded request to its encoded response
    MESSAGE_PROCESSING: Histogram "message_processing_duration_seconds" ["type"];
    /// Storage operations that completed, failed ones included
    STORAGE_OPERATIONS: Counter "storage_operations_total" ["operation", "backend"];
    /// Duration of storage operations, failed ones included
    STORAGE_DURATION: Histogram "storage_operation_duration_seconds" ["operation", "backend"];
    /// Messages from peers that could not be handled
    MESSAGES_FAILED: Counter "messages_failed_total" ["type", "reason"];
    /// Requests from this agent that a peer answered
    MESSAGES_SENT: Counter "messages_sent_total" ["type"];
    /// Time from a request by this agent to the peer's response
    MESSAGE_ROUND_TRIP: Histogram "message_round_trip_duration_seconds" ["type"];
    /// Requests from this agent that failed, including those that the peer answered with an error
    MESSAGES_SEND_FAILURES: Counter "messages_send_failures_total" ["type", "reason"];
    /// Storage operations that failed
    STORAGE_ERRORS: Counter "storage_operation_errors_total" ["operation", "backend", "reason"];
    /// Storage operations in progress
    STORAGE_IN_FLIGHT: Gauge "storage_operations_in_flight" ["backend"];
    /// Writes that the embedded store committed together
    STORAGE_LOCAL_BATCH: Histogram "storage_local_commit_batch_size" [];
    /// Reconnections to Redis after the connection was lost
    STORAGE_REDIS_RECONNECTS: Counter "storage_redis_reconnects_total" [];
    /// Redis commands that were retried
    STORAGE_REDIS_RETRIES: Counter "storage_redis_retries_total" [];
    /// User and system CPU time used since the process started
    PROCESS_CPU_SECONDS: Counter "process_cpu_seconds_total" [];
    /// Resident memory in bytes
    PROCESS_RESIDENT: Gauge "process_resident_memory_bytes" [];
    /// Virtual memory in bytes
    PROCESS_VIRTUAL: Gauge "process_virtual_memory_bytes" [];
    /// Open file descriptors
    PROCESS_OPEN_FDS: Gauge "process_open_fds" [];
    /// Maximum number of open file descriptors
    PROCESS_MAX_FDS: Gauge "process_max_fds" [];
    /// Threads of the process
    PROCESS_THREADS: Gauge "process_threads" [];
    /// When the process started, in seconds since the Unix epoch
    PROCESS_START_TIME: Gauge "process_start_time_seconds" [];
    /// The running build
    BUILD_INFO: Info "agent_build_info" ["version", "revision", "rustc", "target"];
    /// The agent's identity
    AGENT_INFO: Info "agent_info" ["peer_id", "name"];
    /// Peers that the agent stays connected to (bootstrap and mDNS), by how it stands with them
    BOOTSTRAP_PEERS: Gauge "agent_bootstrap_peers" ["state"];
    /// Connections of peers that were refused after the peer had proved who it is
    CONNECTIONS_REFUSED: Counter "agent_connections_refused_total" ["reason"];
    /// 1 if the configuration was last read without an error, 0 if the agent uses what it read before
    CONFIG_SUCCESSFUL: Gauge "agent_config_last_reload_successful" [];
    /// When the configuration was last read without an error, in seconds since the Unix epoch
    CONFIG_SUCCESS_TIME: Gauge "agent_config_last_reload_success_timestamp_seconds" [];
    /// A hash of the configuration that is in use: agents with the same one show the same number
    CONFIG_HASH: Gauge "agent_config_hash" [];
    /// 1 if the component is ready, 0 if it is not, as /ready reports it
    COMPONENT_READY: Gauge "agent_component_ready" ["component"];
    /// Log lines dropped because they could not be written, or not fast enough
    LOG_LINES_DROPPED: Counter "log_lines_dropped_total" [];
    /// HTTP requests answered by the endpoint
    HTTP_REQUESTS: Counter "http_requests_total" ["handler", "code"];
    /// HTTP requests in progress
    HTTP_IN_FLIGHT: Gauge "http_requests_in_flight" ["handler"];
    /// Time to make a metrics page
    SCRAPE_DURATION: Histogram "exposition_duration_seconds" [];
    /// Registries of other libraries whose families are missing from this page, because one of them failed
    EXPOSITION_FAILED: Gauge "exposition_failed_registries" [];
    /// 1 if the web configuration and its files were last read without an error, 0 if the endpoint uses what it read before (only with metrics.web_config)
    WEB_CONFIG_SUCCESSFUL: Gauge "web_config_last_reload_successful" [];
    /// When the web configuration and its files were last read without an error, in seconds since the Unix epoch (only with metrics.web_config)
    WEB_CONFIG_SUCCESS_TIME: Gauge "web_config_last_reload_success_timestamp_seconds" [];
    /// Connections to the endpoint that ended before TLS was established (only with metrics.web_config)
    TLS_FAILURES: Counter "http_tls_handshake_failures_total" [];
    /// Scrapes of peers through the gateway (only on a gateway)
    GATEWAY_SCRAPES: Counter "gateway_scrapes_total" ["outcome"];
    /// Peers known to the gateway (only on a gateway)
    GATEWAY_PEERS: Gauge "gateway_peers" ["state"];
    /// Time from a scraper's request to the last byte of the page, failed scrapes included (only on a gateway)
    GATEWAY_SCRAPE_DURATION: Histogram "gateway_scrape_duration_seconds" [];
    /// Size of the pages that the gateway passed on, as sent over the network (only on a gateway)
    GATEWAY_SCRAPE_BODY: Histogram "gateway_scrape_body_bytes" [];
}

/// The table of all families in `docs/metrics.md`, which `peerscope metrics --catalogue` also prints.
pub fn markdown() -> String {
    let mut out = String::from("| name | type | labels | meaning |\n| --- | --- | --- | --- |\n");
    for family in ALL {
        let labels = family.labels.iter().map(|l| format!("`{l}`")).collect::<Vec<_>>().join(", ");
        let _infallible =
            writeln!(out, "| `{}` | {} | {} | {} |", family.name, family.kind.as_str(), labels, family.help);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        for family in ALL {
            assert_eq!(family.kind == Kind::Counter, family.name.ends_with("_total"), "{}", family.name);
            assert_eq!(family.kind == Kind::Info, family.name.ends_with("_info"), "{}", family.name);
            assert!(!family.help.ends_with('.') && !family.help.contains(['\n', '\\']), "{}", family.name);
        }
    }

    #[test]
    fn openmetrics_omits_the_suffix_and_states_the_unit() {
        assert_eq!(
            (PROCESS_CPU_SECONDS.openmetrics_name(), PROCESS_CPU_SECONDS.unit()),
            ("process_cpu_seconds", Some("seconds"))
        );
        assert_eq!((BUILD_INFO.openmetrics_name(), BUILD_INFO.unit()), ("agent_build", None));
        assert_eq!(PEERS_CONNECTED.openmetrics_name(), "agent_peers_connected");
        let milliseconds = Descriptor { name: "wait_milliseconds", ..SCRAPE_DURATION };
        assert_eq!(milliseconds.unit(), None, "the unit has to be a whole word of the name");
    }
}

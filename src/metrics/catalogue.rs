//! Every metric family of our own: the only place that names one. libp2p's families come from
//! libp2p-metrics under its own names (`libp2p_*`).
//!
//! The text of a doc comment here is the family's help text in the exposition and its meaning in
//! `docs/metrics.md`; [`markdown`] writes that table and a test keeps the file in step.

use std::fmt::Write as _;

/// What Prometheus adds to every scrape (`scrape/scrape.go` of Prometheus 3.5). A native histogram of such a name would be
/// dropped without a word in favour of Prometheus's own sample; the samples of a classic one have names of their own.
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
    /// Not said. None of ours.
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

    /// The name in the `# TYPE` line of the classic text, which knows neither info nor unknown.
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
    /// The full name as a dashboard uses it, with unit and `_total` or `_info` suffix.
    pub name: &'static str,
    /// Counter, gauge, histogram or info.
    pub kind: Kind,
    /// The label names, in order.
    pub labels: &'static [&'static str],
    /// The help text: one sentence without its full stop.
    pub help: &'static str,
}

impl Descriptor {
    /// A family of this kind and full name, with its label names and its help text.
    pub const fn new(kind: Kind, name: &'static str, labels: &'static [&'static str], help: &'static str) -> Self {
        Self { name, kind, labels, help }
    }

    /// The name as OpenMetrics has it: without `_total` or `_info`.
    pub fn openmetrics_name(&self) -> &'static str {
        let name = match self.kind {
            Kind::Counter => self.name.strip_suffix("_total"),
            Kind::Info => self.name.strip_suffix("_info"),
            Kind::Gauge | Kind::Histogram | Kind::Unknown => None,
        };
        name.unwrap_or(self.name)
    }

    /// The base unit that the name ends with, if any.
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
    /// Time from a decoded request to its encoded answer
    MESSAGE_PROCESSING: Histogram "message_processing_duration_seconds" ["type"];
    /// Storage operations that completed, failed ones included
    STORAGE_OPERATIONS: Counter "storage_operations_total" ["operation", "backend"];
    /// Time that a storage operation took, failed ones included
    STORAGE_DURATION: Histogram "storage_operation_duration_seconds" ["operation", "backend"];
    /// Messages from peers that could not be handled
    MESSAGES_FAILED: Counter "messages_failed_total" ["type", "reason"];
    /// Requests of our own that a peer answered
    MESSAGES_SENT: Counter "messages_sent_total" ["type"];
    /// Time from a request of our own to the peer's answer
    MESSAGE_ROUND_TRIP: Histogram "message_round_trip_duration_seconds" ["type"];
    /// Requests of our own that failed, those that the peer answered with an error included
    MESSAGES_SEND_FAILURES: Counter "messages_send_failures_total" ["type", "reason"];
    /// Storage operations that failed
    STORAGE_ERRORS: Counter "storage_operation_errors_total" ["operation", "backend", "reason"];
    /// Storage operations under way
    STORAGE_IN_FLIGHT: Gauge "storage_operations_in_flight" ["backend"];
    /// Writes that one durable transaction of the embedded store carried
    STORAGE_LOCAL_BATCH: Histogram "storage_local_commit_batch_size" [];
    /// Connections to Redis that were made again after a loss
    STORAGE_REDIS_RECONNECTS: Counter "storage_redis_reconnects_total" [];
    /// Redis commands that were tried again
    STORAGE_REDIS_RETRIES: Counter "storage_redis_retries_total" [];
    /// CPU time used since the start, user and system
    PROCESS_CPU_SECONDS: Counter "process_cpu_seconds_total" [];
    /// Resident memory in bytes
    PROCESS_RESIDENT: Gauge "process_resident_memory_bytes" [];
    /// Virtual memory in bytes
    PROCESS_VIRTUAL: Gauge "process_virtual_memory_bytes" [];
    /// Open file descriptors
    PROCESS_OPEN_FDS: Gauge "process_open_fds" [];
    /// The limit of open file descriptors
    PROCESS_MAX_FDS: Gauge "process_max_fds" [];
    /// Threads of the process
    PROCESS_THREADS: Gauge "process_threads" [];
    /// When the process started, in seconds since the Unix epoch
    PROCESS_START_TIME: Gauge "process_start_time_seconds" [];
    /// The build that runs
    BUILD_INFO: Info "agent_build_info" ["version", "revision", "rustc", "target"];
    /// The agent's identity
    AGENT_INFO: Info "agent_info" ["peer_id", "name"];
    /// 1 when the component is ready, 0 when it is not: what /ready says
    COMPONENT_READY: Gauge "agent_component_ready" ["component"];
    /// Lines of the log that could not be written, or not as fast as they came
    LOG_LINES_DROPPED: Counter "log_lines_dropped_total" [];
    /// HTTP requests answered by the endpoint
    HTTP_REQUESTS: Counter "http_requests_total" ["handler", "code"];
    /// HTTP requests under way
    HTTP_IN_FLIGHT: Gauge "http_requests_in_flight" ["handler"];
    /// Time that one exposition took to make
    SCRAPE_DURATION: Histogram "exposition_duration_seconds" [];
    /// Scrapes of peers that the gateway answered (only on a gateway)
    GATEWAY_SCRAPES: Counter "gateway_scrapes_total" ["outcome"];
    /// Peers that the gateway knows (only on a gateway)
    GATEWAY_PEERS: Gauge "gateway_peers" ["state"];
    /// Time from a scraper's request to the last byte of the page, failed ones included (only on a gateway)
    GATEWAY_SCRAPE_DURATION: Histogram "gateway_scrape_duration_seconds" [];
    /// Size of the pages that the gateway passed on, as they crossed the network (only on a gateway)
    GATEWAY_SCRAPE_BODY: Histogram "gateway_scrape_body_bytes" [];
}

/// The table of all families, as `docs/metrics.md` has it and `peerscope metrics --catalogue` prints it.
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
    fn names_keep_the_conventions() {
        for family in ALL {
            assert_eq!(family.kind == Kind::Counter, family.name.ends_with("_total"), "{}", family.name);
            assert_eq!(family.kind == Kind::Info, family.name.ends_with("_info"), "{}", family.name);
            assert!(!family.help.ends_with('.') && !family.help.contains(['\n', '\\']), "{}", family.name);
        }
    }

    #[test]
    fn openmetrics_leaves_the_suffix_out_and_names_the_unit() {
        assert_eq!(
            (PROCESS_CPU_SECONDS.openmetrics_name(), PROCESS_CPU_SECONDS.unit()),
            ("process_cpu_seconds", Some("seconds"))
        );
        assert_eq!((BUILD_INFO.openmetrics_name(), BUILD_INFO.unit()), ("agent_build", None));
        assert_eq!(PEERS_CONNECTED.openmetrics_name(), "agent_peers_connected");
        let milliseconds = Descriptor { name: "wait_milliseconds", ..SCRAPE_DURATION };
        assert_eq!(milliseconds.unit(), None, "a reader wants the unit as a word of its own");
    }
}

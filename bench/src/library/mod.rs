//! The metrics libraries in the benchmarks `record`, `encode` and `endpoint`. One file per library: it makes a
//! registry, fills it, records an event and writes the page.

#[cfg(feature = "all-contenders")]
pub(crate) mod fastmetrics;
#[cfg(feature = "all-contenders")]
pub(crate) mod measured;
pub(crate) mod metrics;
pub(crate) mod peerscope;
pub(crate) mod prometheus;
pub(crate) mod prometheus_client;

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;

use crate::Result;
use crate::samples::Sample;

/// The families in which events are recorded.
pub(crate) const EVENTS: &str = "bench_events_total";
pub(crate) const DURATION: &str = "bench_duration_seconds";
pub(crate) const EVENTS_HELP: &str = "Events that were recorded";
pub(crate) const DURATION_HELP: &str = "How long an event took";
/// Their label, and its value for every event. The series of all four values exist from the start.
pub(crate) const TYPE: &str = "type";
pub(crate) const RECORDED: &str = "get";

/// The format of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Prometheus's text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.0, as text.
    OpenMetrics,
    /// Delimited `io.prometheus.client.MetricFamily` messages.
    Protobuf,
}

impl Format {
    pub(crate) const ALL: [Self; 3] = [Self::Text, Self::OpenMetrics, Self::Protobuf];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::OpenMetrics => "OpenMetrics",
            Self::Protobuf => "protobuf",
        }
    }
}

/// A registry that can be scraped.
pub(crate) trait Page: Send + Sync {
    /// The formats that the library itself writes.
    fn formats(&self) -> &'static [Format];
    /// The page in newly allocated memory, as a server would need it.
    fn encode(&self, format: Format) -> Result<Bytes>;
}

/// The error for a format that a library does not write.
pub(crate) fn not_written<T>(format: Format) -> Result<T> {
    Err(format!("this library does not write {}", format.name()).into())
}

/// A way of recording an event: it increments a counter and observes a duration in a histogram.
pub(crate) trait Recorder: Send + Sync {
    fn record(&self, sample: Sample);

    /// Reads the clock twice and records the elapsed time added to the sample's duration.
    #[inline]
    fn measure(&self, sample: Sample) {
        let begin = Instant::now();
        self.record(sample.plus(begin.elapsed()));
    }
}

/// The loop without recording, whose time every other figure includes.
pub(crate) struct Nothing;

impl Recorder for Nothing {
    #[inline]
    fn record(&self, sample: Sample) {
        black_box(sample.nanos);
    }
}

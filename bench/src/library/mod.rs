//! The metrics libraries, as the benchmarks `record`, `encode` and `endpoint` use them. One file a library: how it
//! makes a registry, fills it, records an event and writes its page.

pub(crate) mod fastmetrics;
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

/// The names of what one event is recorded in.
pub(crate) const EVENTS: &str = "bench_events_total";
pub(crate) const DURATION: &str = "bench_duration_seconds";
pub(crate) const EVENTS_HELP: &str = "Events that were recorded";
pub(crate) const DURATION_HELP: &str = "How long an event took";
/// Their label, and the value that every event is recorded under. All four values are there from the start.
pub(crate) const TYPE: &str = "type";
pub(crate) const RECORDED: &str = "get";

/// A format that a page is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Prometheus's text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.0, as text.
    OpenMetrics,
    /// `io.prometheus.client.MetricFamily`, delimited.
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
    /// The formats that the library writes without help.
    fn formats(&self) -> &'static [Format];
    /// The page, into memory of its own, as a server would have it made.
    fn encode(&self, format: Format) -> Result<Bytes>;
}

/// What a library does not write.
pub(crate) fn not_written<T>(format: Format) -> Result<T> {
    Err(format!("this library does not write {}", format.name()).into())
}

/// One way of recording an event: a counter goes up by one, and a histogram observes a duration.
pub(crate) trait Recorder: Send + Sync {
    fn record(&self, sample: Sample);

    /// Records a duration that was measured with two readings of the clock, on top of the sample's.
    #[inline]
    fn measure(&self, sample: Sample) {
        let begin = Instant::now();
        self.record(sample.plus(begin.elapsed()));
    }
}

/// The loop with nothing recorded in it, which every other figure includes.
pub(crate) struct Nothing;

impl Recorder for Nothing {
    #[inline]
    fn record(&self, sample: Sample) {
        black_box(sample.nanos);
    }
}

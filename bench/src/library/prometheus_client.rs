//! `prometheus-client`, the registry that libp2p's own metrics need.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use peerscope::metrics::labels::{Label, MessageType};
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder, prometheus_protobuf, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{DURATION, DURATION_HELP, EVENTS, EVENTS_HELP, Format, Page, Recorder, not_written};
use crate::Result;
use crate::samples::{BUCKETS, Sample, table};
use crate::shape::{Kind, Shape, number, observations};

#[derive(Default)]
pub(crate) struct PrometheusClient(Registry);

/// The labels of a generated series.
type Pairs = Vec<(&'static str, &'static str)>;

/// Makes histograms with these bounds.
#[derive(Clone)]
struct Bounds(Arc<[f64]>);

impl MetricConstructor<Histogram> for Bounds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

impl PrometheusClient {
    pub(crate) fn fill(&mut self, shape: &Shape) {
        let table = table();
        for family in &shape.families {
            match &family.kind {
                Kind::Counter => {
                    let counters = Family::<Pairs, Counter>::default();
                    family
                        .pairs()
                        .for_each(|(at, labels)| _ = counters.get_or_create(&labels).inc_by(number(at).into()));
                    self.0.register(family.stem(), family.help, counters);
                }
                Kind::Gauge => {
                    let gauges = Family::<Pairs, Gauge>::default();
                    family.pairs().for_each(|(at, labels)| _ = gauges.get_or_create(&labels).set(number(at).into()));
                    self.0.register(family.name, family.help, gauges);
                }
                Kind::Histogram(bounds) => {
                    let bounds = Bounds(bounds.as_slice().into());
                    let histograms = Family::<Pairs, Histogram, _>::new_with_constructor(bounds);
                    for (at, labels) in family.pairs() {
                        let histogram = histograms.get_or_create(&labels);
                        observations(&table, at).for_each(|sample| histogram.observe(sample.seconds));
                    }
                    self.0.register(family.name, family.help, histograms);
                }
            }
        }
    }

    pub(crate) fn lookup(&mut self) -> Lookup {
        let events = Family::<Labels, Counter<u64, AtomicU64>>::default();
        let duration = Family::<Labels, Histogram, _>::new_with_constructor(Bounds(BUCKETS.as_slice().into()));
        for &kind in MessageType::ALL {
            events.get_or_create_owned(&Labels { kind });
            duration.get_or_create_owned(&Labels { kind });
        }
        self.0.register(EVENTS.trim_end_matches("_total"), EVENTS_HELP, events.clone());
        self.0.register(DURATION, DURATION_HELP, duration.clone());
        Lookup { events, duration, recorded: Labels { kind: MessageType::Get } }
    }

    pub(crate) fn handles(&mut self) -> Handles {
        let Lookup { events, duration, recorded } = self.lookup();
        Handles { events: events.get_or_create_owned(&recorded), duration: duration.get_or_create_owned(&recorded) }
    }
}

impl Page for PrometheusClient {
    fn formats(&self) -> &'static [Format] {
        &[Format::OpenMetrics, Format::Protobuf]
    }

    fn encode(&self, format: Format) -> Result<Bytes> {
        match format {
            Format::OpenMetrics => {
                let mut page = String::new();
                text::encode(&mut page, &self.0)?;
                Ok(page.into())
            }
            Format::Protobuf => {
                let page = prometheus_protobuf::encode_to_vec(&self.0);
                Ok(page.map_err(|_| "the registry could not be encoded")?.into())
            }
            Format::Text => not_written(format),
        }
    }
}

/// The label set of an event: an enum, so a lookup hashes one number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Labels {
    kind: MessageType,
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> std::fmt::Result {
        [(MessageType::NAME, self.kind.as_str())].encode(encoder)
    }
}

/// The series, looked up once.
pub(crate) struct Handles {
    events: Counter<u64, AtomicU64>,
    duration: Histogram,
}

impl Recorder for Handles {
    #[inline]
    fn record(&self, sample: Sample) {
        self.events.inc();
        self.duration.observe(sample.seconds);
    }
}

/// The families, in which each event looks up its series.
pub(crate) struct Lookup {
    events: Family<Labels, Counter<u64, AtomicU64>>,
    duration: Family<Labels, Histogram, Bounds>,
    recorded: Labels,
}

impl Recorder for Lookup {
    #[inline]
    fn record(&self, sample: Sample) {
        self.events.get_or_create(&self.recorded).inc();
        self.duration.get_or_create(&self.recorded).observe(sample.seconds);
    }
}

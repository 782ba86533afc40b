//! `fastmetrics`, a recent OpenMetrics library designed for speed.

use bytes::Bytes;
use fastmetrics::encoder::{EncodeLabelSet, LabelSetEncoder};
use fastmetrics::format::protobuf::{self, ProtobufProfile};
use fastmetrics::format::text::{self, EscapingScheme, TextProfile};
use fastmetrics::metrics::counter::Counter;
use fastmetrics::metrics::family::Family;
use fastmetrics::metrics::gauge::Gauge;
use fastmetrics::metrics::histogram::Histogram;
use fastmetrics::raw::LabelSetSchema;
use fastmetrics::registry::Registry;
use peerscope::metrics::labels::{Label, MessageType};

use super::{DURATION, DURATION_HELP, EVENTS, EVENTS_HELP, Format, Page, RECORDED, Recorder, TYPE};
use crate::Result;
use crate::samples::{BUCKETS, Sample, table};
use crate::shape::{Kind, Shape, number, observations};

#[derive(Default)]
pub(crate) struct Fastmetrics(Registry);

/// The labels of a series.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Pairs(Vec<(&'static str, &'static str)>);

impl LabelSetSchema for Pairs {
    // Used only to find conflicts with constant labels, of which there are none.
    fn names() -> Option<&'static [&'static str]> {
        None
    }
}

impl EncodeLabelSet for Pairs {
    fn encode(&self, encoder: &mut dyn LabelSetEncoder) -> fastmetrics::error::Result<()> {
        self.0.encode(encoder)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Fastmetrics {
    pub(crate) fn fill(&mut self, shape: &Shape) -> Result<()> {
        let table = table();
        for family in &shape.families {
            let series = || family.pairs().map(|(at, labels)| (at, Pairs(labels)));
            match &family.kind {
                Kind::Counter => {
                    let counters = Family::<Pairs, Counter>::default();
                    series().for_each(|(at, labels)| {
                        counters.with_or_new(&labels, |counter| counter.inc_by(number(at).into()))
                    });
                    self.0.register(family.name, family.help, counters)?;
                }
                Kind::Gauge => {
                    let gauges = Family::<Pairs, Gauge>::default();
                    series().for_each(|(at, labels)| gauges.with_or_new(&labels, |gauge| gauge.set(number(at).into())));
                    self.0.register(family.name, family.help, gauges)?;
                }
                Kind::Histogram(bounds) => {
                    let bounds = bounds.clone();
                    let histograms = Family::<Pairs, Histogram>::new(move || Histogram::new(bounds.iter().copied()));
                    series().for_each(|(at, labels)| {
                        histograms.with_or_new(&labels, |histogram| {
                            observations(&table, at).for_each(|sample| histogram.observe(sample.seconds));
                        });
                    });
                    self.0.register(family.name, family.help, histograms)?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn handles(&mut self) -> Result<Handles> {
        let events = Family::<Pairs, Counter>::default();
        let duration = Family::<Pairs, Histogram>::new(|| Histogram::new(BUCKETS));
        let of = |value| {
            let labels = Pairs(vec![(TYPE, value)]);
            Handles {
                events: events.with_or_new(&labels, Clone::clone),
                duration: duration.with_or_new(&labels, Clone::clone),
            }
        };
        MessageType::ALL.iter().for_each(|kind| _ = of(kind.as_str()));
        let recorded = of(RECORDED);
        self.0.register(EVENTS, EVENTS_HELP, events)?;
        self.0.register(DURATION, DURATION_HELP, duration)?;
        Ok(recorded)
    }
}

impl Page for Fastmetrics {
    fn formats(&self) -> &'static [Format] {
        &Format::ALL
    }

    fn encode(&self, format: Format) -> Result<Bytes> {
        let profile = match format {
            Format::Text => TextProfile::PrometheusV0_0_4,
            Format::OpenMetrics => TextProfile::OpenMetricsV1_0_0 { escaping_scheme: EscapingScheme::Underscores },
            Format::Protobuf => {
                let mut page = Vec::new();
                protobuf::encode(&mut page, &self.0, ProtobufProfile::Prometheus)?;
                return Ok(page.into());
            }
        };
        let mut page = String::new();
        text::encode(&mut page, &self.0, profile)?;
        Ok(page.into())
    }
}

/// The series, looked up once.
pub(crate) struct Handles {
    events: Counter,
    duration: Histogram,
}

impl Recorder for Handles {
    #[inline]
    fn record(&self, sample: Sample) {
        self.events.inc();
        self.duration.observe(sample.seconds);
    }
}

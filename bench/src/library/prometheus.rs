//! `prometheus`, the registry that most Rust programs use.

use bytes::Bytes;
use peerscope::metrics::labels::{Label, MessageType};
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, ProtobufEncoder,
    Registry, TextEncoder,
};

use super::{DURATION, DURATION_HELP, EVENTS, EVENTS_HELP, Format, Page, RECORDED, Recorder, TYPE, not_written};
use crate::Result;
use crate::samples::{BUCKETS, Sample, table};
use crate::shape::{Kind, Shape, number, observations};

#[derive(Default)]
pub(crate) struct Prometheus(Registry);

impl Prometheus {
    pub(crate) fn fill(&self, shape: &Shape) -> Result<()> {
        let table = table();
        for family in &shape.families {
            let series = || family.series.iter().enumerate();
            match &family.kind {
                Kind::Counter => {
                    let counters = IntCounterVec::new(Opts::new(family.name, family.help), &family.labels)?;
                    series().for_each(|(at, labels)| counters.with_label_values(labels).inc_by(number(at).into()));
                    self.0.register(Box::new(counters))?;
                }
                Kind::Gauge => {
                    let gauges = IntGaugeVec::new(Opts::new(family.name, family.help), &family.labels)?;
                    series().for_each(|(at, labels)| gauges.with_label_values(labels).set(number(at).into()));
                    self.0.register(Box::new(gauges))?;
                }
                Kind::Histogram(bounds) => {
                    let options = HistogramOpts::new(family.name, family.help).buckets(bounds.clone());
                    let histograms = HistogramVec::new(options, &family.labels)?;
                    for (at, labels) in series() {
                        let histogram = histograms.with_label_values(labels);
                        observations(&table, at).for_each(|sample| histogram.observe(sample.seconds));
                    }
                    self.0.register(Box::new(histograms))?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn lookup(&self) -> Result<Lookup> {
        let events = IntCounterVec::new(Opts::new(EVENTS, EVENTS_HELP), &[TYPE])?;
        let options = HistogramOpts::new(DURATION, DURATION_HELP).buckets(BUCKETS.to_vec());
        let duration = HistogramVec::new(options, &[TYPE])?;
        for kind in MessageType::ALL {
            events.with_label_values(&[kind.as_str()]);
            duration.with_label_values(&[kind.as_str()]);
        }
        self.0.register(Box::new(events.clone()))?;
        self.0.register(Box::new(duration.clone()))?;
        Ok(Lookup { events, duration, kind: MessageType::Get })
    }

    pub(crate) fn handles(&self) -> Result<Handles> {
        let Lookup { events, duration, .. } = self.lookup()?;
        Ok(Handles { events: events.with_label_values(&[RECORDED]), duration: duration.with_label_values(&[RECORDED]) })
    }
}

impl Page for Prometheus {
    fn formats(&self) -> &'static [Format] {
        &[Format::Text, Format::Protobuf]
    }

    fn encode(&self, format: Format) -> Result<Bytes> {
        let families = self.0.gather();
        match format {
            Format::Text => Ok(TextEncoder::new().encode_to_string(&families)?.into()),
            Format::Protobuf => {
                let mut page = Vec::new();
                ProtobufEncoder::new().encode(&families, &mut page)?;
                Ok(page.into())
            }
            Format::OpenMetrics => not_written(format),
        }
    }
}

/// The series, looked up once.
pub(crate) struct Handles {
    events: IntCounter,
    duration: Histogram,
}

impl Recorder for Handles {
    #[inline]
    fn record(&self, sample: Sample) {
        self.events.inc();
        self.duration.observe(sample.seconds);
    }
}

/// The families, in which each event looks up its series by the label's text.
pub(crate) struct Lookup {
    events: IntCounterVec,
    duration: HistogramVec,
    kind: MessageType,
}

impl Recorder for Lookup {
    #[inline]
    fn record(&self, sample: Sample) {
        let labels = [self.kind.as_str()];
        self.events.with_label_values(&labels).inc();
        self.duration.with_label_values(&labels).observe(sample.seconds);
    }
}

//! `metrics` with `metrics-exporter-prometheus`: a facade, and the recorder behind it.
//!
//! Its histograms store every value and sort it into a bucket when the page is made, or every few seconds: another
//! thread later does work that the recording thread is spared.

use bytes::Bytes;
use metrics::{Counter, Histogram, Key, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use peerscope::metrics::labels::{Label, MessageType};

use super::{DURATION, DURATION_HELP, EVENTS, EVENTS_HELP, Format, Page, RECORDED, Recorder, TYPE, not_written};
use crate::Result;
use crate::samples::{BUCKETS, Sample, table};
use crate::shape::{Kind, Shape, number, observations};

const METADATA: Metadata<'_> = Metadata::new("bench", Level::INFO, None);

/// A builder with the bounds of the shape's histograms and of the events' histogram.
pub(crate) fn builder(shape: &Shape) -> Result<PrometheusBuilder> {
    let mut builder = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Full(DURATION.into()), &BUCKETS)?;
    for family in &shape.families {
        if let Kind::Histogram(bounds) = &family.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(family.name.into()), bounds)?;
        }
    }
    Ok(builder)
}

pub(crate) fn fill(recorder: &PrometheusRecorder, shape: &Shape) {
    let table = table();
    for family in &shape.families {
        let describe = match family.kind {
            Kind::Counter => PrometheusRecorder::describe_counter,
            Kind::Gauge => PrometheusRecorder::describe_gauge,
            Kind::Histogram(_) => PrometheusRecorder::describe_histogram,
        };
        describe(recorder, family.name.into(), None, family.help.into());
        for (at, labels) in family.pairs() {
            let labels: Vec<_> = labels.iter().map(|&(name, value)| metrics::Label::new(name, value)).collect();
            let key = Key::from_parts(family.name, labels);
            match family.kind {
                Kind::Counter => recorder.register_counter(&key, &METADATA).increment(number(at).into()),
                Kind::Gauge => recorder.register_gauge(&key, &METADATA).set(number(at)),
                Kind::Histogram(_) => {
                    let histogram = recorder.register_histogram(&key, &METADATA);
                    observations(&table, at).for_each(|sample| histogram.record(sample.seconds));
                }
            }
        }
    }
}

impl Handles {
    pub(crate) fn new(recorder: &PrometheusRecorder) -> Self {
        recorder.describe_counter(EVENTS.into(), None, EVENTS_HELP.into());
        recorder.describe_histogram(DURATION.into(), None, DURATION_HELP.into());
        let of = |value: &'static str| {
            let labels = vec![metrics::Label::from_static_parts(TYPE, value)];
            let events = recorder.register_counter(&Key::from_parts(EVENTS, labels.clone()), &METADATA);
            let duration = recorder.register_histogram(&Key::from_parts(DURATION, labels), &METADATA);
            Self { events, duration }
        };
        MessageType::ALL.iter().for_each(|kind| _ = of(kind.as_str()));
        of(RECORDED)
    }
}

impl Page for PrometheusHandle {
    fn formats(&self) -> &'static [Format] {
        &[Format::Text]
    }

    fn encode(&self, format: Format) -> Result<Bytes> {
        match format {
            Format::Text => Ok(self.render().into()),
            Format::OpenMetrics | Format::Protobuf => not_written(format),
        }
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
        self.events.increment(1);
        self.duration.record(sample.seconds);
    }
}

/// The macros, as in the facade's documentation: they look up the global recorder, and the series in it.
pub(crate) struct Macros {
    kind: MessageType,
}

impl Macros {
    /// Makes `recorder` the global one, which is possible only once.
    pub(crate) fn install(recorder: PrometheusRecorder) -> Result<Self> {
        Handles::new(&recorder);
        metrics::set_global_recorder(recorder).map_err(|_| "a global recorder is already installed")?;
        Ok(Self { kind: MessageType::Get })
    }
}

impl Recorder for Macros {
    #[inline]
    fn record(&self, sample: Sample) {
        let kind = self.kind.as_str();
        metrics::counter!(EVENTS, TYPE => kind).increment(1);
        metrics::histogram!(DURATION, TYPE => kind).record(sample.seconds);
    }
}

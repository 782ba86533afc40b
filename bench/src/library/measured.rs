//! `measured`, whose label sets are enums like ours. It takes part only in `record`: its families are fixed at compile
//! time, so it cannot represent arbitrary shapes.

use std::sync::Arc;

use bytes::Bytes;
use measured::label::StaticLabelSet;
use measured::metric::histogram::Thresholds;
use measured::metric::name::MetricName;
use measured::metric::{LabelId, MetricFamilyEncoding};
use measured::text::BufferedTextEncoder;
use measured::{CounterVec, FixedCardinalityLabel, HistogramVec};

use super::{DURATION, EVENTS, Format, Page, Recorder, not_written};
use crate::Result;
use crate::samples::{BUCKETS, Sample};

#[derive(Debug, Clone, Copy, PartialEq, FixedCardinalityLabel)]
#[label(singleton = "type")]
enum Type {
    Get,
    Put,
    Delete,
    Ping,
}

type Labels = StaticLabelSet<Type>;

pub(crate) struct Measured {
    events: CounterVec<Labels>,
    duration: HistogramVec<Labels, 16>,
}

/// The ids of the series in their arrays, looked up once.
pub(crate) struct Handles {
    families: Arc<Measured>,
    events: LabelId<Labels>,
    duration: LabelId<Labels>,
}

impl Measured {
    pub(crate) fn handles() -> (Arc<Self>, Handles) {
        let families = Arc::new(Self {
            events: CounterVec::dense(),
            duration: HistogramVec::dense_with_metadata(Thresholds::with_buckets(BUCKETS)),
        });
        for kind in [Type::Get, Type::Put, Type::Delete, Type::Ping] {
            families.events.with_labels(kind);
            families.duration.with_labels(kind);
        }
        let (events, duration) = (families.events.with_labels(Type::Get), families.duration.with_labels(Type::Get));
        (Arc::clone(&families), Handles { families, events, duration })
    }
}

impl Page for Measured {
    fn formats(&self) -> &'static [Format] {
        &[Format::Text]
    }

    fn encode(&self, format: Format) -> Result<Bytes> {
        if format != Format::Text {
            return not_written(format);
        }
        let mut encoder = BufferedTextEncoder::new();
        self.events.collect_family_into(MetricName::from_str(EVENTS), &mut encoder)?;
        self.duration.collect_family_into(MetricName::from_str(DURATION), &mut encoder)?;
        Ok(encoder.finish())
    }
}

impl Recorder for Handles {
    #[inline]
    fn record(&self, sample: Sample) {
        self.families.events.get_metric(self.events).inc();
        self.families.duration.get_metric(self.duration).observe(sample.seconds);
    }
}

//! The instruments as metrics of prometheus-client, so that its encoders can be held against ours.

use std::fmt;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NativeHistogram, NativeHistogramBuckets, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::metrics::instruments::{Counter, Events, Gauge, Histogram, InFlight, LabelSet, ZERO_THRESHOLD};

/// Writes the series of each combination of labels.
fn each<L: LabelSet>(
    mut encoder: MetricEncoder<'_>,
    mut write: impl FnMut(MetricEncoder<'_>, usize) -> fmt::Result,
) -> fmt::Result {
    for index in 0..L::COUNT {
        let labels = L::labels(index);
        write(encoder.encode_family(&labels)?, index)?;
    }
    Ok(())
}

impl<L: LabelSet> EncodeMetric for Counter<L> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        each::<L>(encoder, |mut encoder, index| encoder.encode_counter::<NoLabelSet, _, u64>(&self.at(index), None))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

impl<L: LabelSet> EncodeMetric for Gauge<L> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        each::<L>(encoder, |mut encoder, index| encoder.encode_gauge(&self.at(index)))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

impl<L: LabelSet> EncodeMetric for InFlight<L> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        each::<L>(encoder, |mut encoder, index| encoder.encode_gauge(&self.at(index)))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

impl<L: LabelSet> EncodeMetric for Histogram<L> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        each::<L>(encoder, |mut encoder, index| {
            let (buckets, snapshot) = (self.buckets(), self.at(index));
            let mut before = 0;
            let classic = snapshot.cumulative(buckets).map(|(bound, cumulative)| {
                let count = cumulative - std::mem::replace(&mut before, cumulative);
                (bound, count)
            });
            let classic: Vec<_> = classic.collect();
            let native = buckets.native().snapshot(&snapshot.fine);
            let (spans, deltas) = native.spans_and_deltas();
            let native = NativeHistogram {
                schema: native.schema,
                zero_threshold: ZERO_THRESHOLD,
                zero_count: native.zero_count,
                negative: NativeHistogramBuckets { spans: &[], deltas: &[] },
                positive: NativeHistogramBuckets { spans: &spans, deltas: &deltas },
                created: None,
            };
            let sum = snapshot.sum_in_base_units(buckets);
            encoder.encode_histogram_with_native::<NoLabelSet>(sum, snapshot.count, &classic, None, native)
        })
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// Encoded as the histogram of durations; its count is the counter.
impl<L: LabelSet> EncodeMetric for Events<L> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.durations().encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

//! The recording types behind the collector, and the only file that knows which library counts.
//! Handles are resolved when the collector is made: recording looks nothing up.

use std::fmt::Debug;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric, counter, gauge, histogram};
use prometheus_client::registry::{Registry, Unit};

use super::catalogue::Descriptor;
use super::labels::Label;

pub(super) type Counter = counter::Counter;
pub(super) type Gauge = gauge::Gauge;
pub(super) type Histogram = histogram::Histogram;

type Labels = Vec<(&'static str, &'static str)>;

/// The upper bounds, in seconds, of every duration histogram: 10 us to 10 s. An operation on the
/// embedded store takes microseconds, one that waits for three retries of Redis takes seconds.
pub(super) const DURATION_BUCKETS: [f64; 16] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5,
    10.0,
];

/// The upper bounds of the commit batch sizes: powers of two up to the largest batch.
pub(super) const BATCH_BUCKETS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// Something that the registry can hold and that starts at zero.
pub(super) trait Instrument: Clone + Debug + EncodeMetric + TypedMetric + Send + Sync + 'static {
    fn new(descriptor: &Descriptor) -> Self;
}

impl Instrument for Counter {
    fn new(_: &Descriptor) -> Self {
        Self::default()
    }
}

impl Instrument for Gauge {
    fn new(_: &Descriptor) -> Self {
        Self::default()
    }
}

impl Instrument for Histogram {
    fn new(descriptor: &Descriptor) -> Self {
        match descriptor.unit() {
            Some("seconds") => Self::new(DURATION_BUCKETS),
            _ => Self::new(BATCH_BUCKETS),
        }
    }
}

/// Registers one metric without labels.
pub(super) fn single<M: Instrument>(registry: &mut Registry, descriptor: &Descriptor) -> M {
    let metric = M::new(descriptor);
    register(registry, descriptor, metric.clone());
    metric
}

/// Puts `metric` into the registry under the name, unit and help of its descriptor.
pub(super) fn register(
    registry: &mut Registry,
    descriptor: &Descriptor,
    metric: impl prometheus_client::registry::Metric,
) {
    let name = descriptor.registered_name();
    match descriptor.unit() {
        Some("seconds") => registry.register_with_unit(name, descriptor.help, Unit::Seconds, metric),
        Some("bytes") => registry.register_with_unit(name, descriptor.help, Unit::Bytes, metric),
        _ => registry.register(name, descriptor.help, metric),
    }
}

/// A family over closed label sets: a cell for every combination, all there from the start and always
/// in the same order. `L` is a label or a tuple of labels.
#[derive(Debug)]
pub(super) struct By<L, M> {
    cells: std::sync::Arc<[M]>,
    label: std::marker::PhantomData<fn(L)>,
}

// Derived, it would ask `L` to be `Clone`.
impl<L, M> Clone for By<L, M> {
    fn clone(&self) -> Self {
        Self { cells: self.cells.clone(), label: std::marker::PhantomData }
    }
}

impl<L: LabelSet, M: Instrument> By<L, M> {
    pub(super) fn new(registry: &mut Registry, descriptor: &Descriptor) -> Self {
        let cells = (0..L::COUNT).map(|_| M::new(descriptor)).collect();
        let family = Self { cells, label: std::marker::PhantomData };
        register(registry, descriptor, family.clone());
        family
    }

    #[inline]
    #[allow(clippy::indexing_slicing, reason = "a label set's index is below its count, and there are as many cells")]
    pub(super) fn of(&self, labels: L) -> &M {
        &self.cells[labels.index()]
    }
}

impl<L: LabelSet, M: Instrument> EncodeMetric for By<L, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (index, cell) in self.cells.iter().enumerate() {
            let labels = L::labels(index);
            cell.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}

/// One label, or several together.
pub(super) trait LabelSet: Debug + 'static {
    /// How many combinations there are.
    const COUNT: usize;

    /// The position of this combination, below [`LabelSet::COUNT`].
    fn index(&self) -> usize;
    /// Names and values of the combination at `index`.
    fn labels(index: usize) -> Labels;
}

impl<A: Label> LabelSet for A {
    const COUNT: usize = A::ALL.len();

    #[inline]
    fn index(&self) -> usize {
        Label::index(*self)
    }

    fn labels(index: usize) -> Labels {
        A::ALL.get(index).map(|a| (A::NAME, a.as_str())).into_iter().collect()
    }
}

impl<A: Label, B: Label> LabelSet for (A, B) {
    const COUNT: usize = A::ALL.len() * B::ALL.len();

    #[inline]
    fn index(&self) -> usize {
        Label::index(self.0) * B::ALL.len() + Label::index(self.1)
    }

    fn labels(index: usize) -> Labels {
        [A::labels(index / B::ALL.len()), B::labels(index % B::ALL.len())].concat()
    }
}

impl<A: Label, B: Label, C: Label> LabelSet for (A, B, C) {
    const COUNT: usize = A::ALL.len() * <(B, C)>::COUNT;

    #[inline]
    fn index(&self) -> usize {
        Label::index(self.0) * <(B, C)>::COUNT + LabelSet::index(&(self.1, self.2))
    }

    fn labels(index: usize) -> Labels {
        [A::labels(index / <(B, C)>::COUNT), <(B, C)>::labels(index % <(B, C)>::COUNT)].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::labels::{Backend, Operation, StorageErrorReason};

    #[test]
    fn every_combination_has_a_place_of_its_own_and_finds_its_labels() {
        let mut seen = Vec::new();
        for &operation in Operation::ALL {
            for &backend in Backend::ALL {
                for &reason in StorageErrorReason::ALL {
                    let set = (operation, backend, reason);
                    let index = LabelSet::index(&set);
                    let expected = vec![
                        ("operation", operation.as_str()),
                        ("backend", backend.as_str()),
                        ("reason", reason.as_str()),
                    ];
                    assert_eq!(<(Operation, Backend, StorageErrorReason)>::labels(index), expected);
                    seen.push(index);
                }
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..<(Operation, Backend, StorageErrorReason)>::COUNT).collect::<Vec<_>>());
    }
}

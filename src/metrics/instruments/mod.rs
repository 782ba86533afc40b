//! The recording types behind the collector, and the only file that knows which library counts.
//! Handles are resolved when the collector is made: recording looks nothing up.

use std::fmt::Debug;

use prometheus_client::metrics::{counter, family::Family, gauge, histogram};
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
pub(super) trait Instrument:
    Clone
    + Debug
    + prometheus_client::encoding::EncodeMetric
    + prometheus_client::metrics::TypedMetric
    + Send
    + Sync
    + 'static
{
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

/// A family over one closed label set: every series exists from the start.
#[derive(Debug, Clone)]
pub(super) struct By<A, M> {
    cells: Box<[M]>,
    label: std::marker::PhantomData<fn(A)>,
}

impl<A: Label, M: Instrument> By<A, M> {
    pub(super) fn new(registry: &mut Registry, descriptor: &'static Descriptor) -> Self {
        let rows = A::ALL.iter().map(|a| vec![(A::NAME, a.as_str())]);
        Self { cells: cells(registry, descriptor, rows), label: std::marker::PhantomData }
    }

    #[inline]
    pub(super) fn of(&self, a: A) -> &M {
        at(&self.cells, a.index())
    }
}

/// A family over two closed label sets.
#[derive(Debug, Clone)]
pub(super) struct By2<A, B, M> {
    cells: Box<[M]>,
    labels: std::marker::PhantomData<fn(A, B)>,
}

impl<A: Label, B: Label, M: Instrument> By2<A, B, M> {
    pub(super) fn new(registry: &mut Registry, descriptor: &'static Descriptor) -> Self {
        let rows =
            A::ALL.iter().flat_map(|a| B::ALL.iter().map(|b| vec![(A::NAME, a.as_str()), (B::NAME, b.as_str())]));
        Self { cells: cells(registry, descriptor, rows), labels: std::marker::PhantomData }
    }

    #[inline]
    pub(super) fn of(&self, a: A, b: B) -> &M {
        at(&self.cells, a.index() * B::ALL.len() + b.index())
    }
}

/// A family over three closed label sets.
#[derive(Debug, Clone)]
pub(super) struct By3<A, B, C, M> {
    cells: Box<[M]>,
    labels: std::marker::PhantomData<fn(A, B, C)>,
}

impl<A: Label, B: Label, C: Label, M: Instrument> By3<A, B, C, M> {
    pub(super) fn new(registry: &mut Registry, descriptor: &'static Descriptor) -> Self {
        let rows = A::ALL.iter().flat_map(|a| {
            B::ALL.iter().flat_map(|b| {
                C::ALL.iter().map(|c| vec![(A::NAME, a.as_str()), (B::NAME, b.as_str()), (C::NAME, c.as_str())])
            })
        });
        Self { cells: cells(registry, descriptor, rows), labels: std::marker::PhantomData }
    }

    #[inline]
    pub(super) fn of(&self, a: A, b: B, c: C) -> &M {
        at(&self.cells, (a.index() * B::ALL.len() + b.index()) * C::ALL.len() + c.index())
    }
}

fn cells<M: Instrument>(
    registry: &mut Registry,
    descriptor: &'static Descriptor,
    rows: impl Iterator<Item = Labels>,
) -> Box<[M]> {
    let family = Family::<Labels, M, Maker>::new_with_constructor(Maker(descriptor));
    register(registry, descriptor, family.clone());
    rows.map(|row| family.get_or_create_owned(&row)).collect()
}

/// Makes a family's metrics as its descriptor asks.
#[derive(Debug, Clone)]
struct Maker(&'static Descriptor);

impl<M: Instrument> prometheus_client::metrics::family::MetricConstructor<M> for Maker {
    fn new_metric(&self) -> M {
        M::new(self.0)
    }
}

#[inline]
#[allow(
    clippy::indexing_slicing,
    reason = "the indices come from closed enums, and the array was built from those same enums"
)]
fn at<M>(cells: &[M], index: usize) -> &M {
    &cells[index]
}

//! Everything that one agent shows.

use std::collections::HashSet;
use std::fmt::Debug;

use prometheus_client::registry::Registry as Others;

use super::catalogue::{Descriptor, Kind};
use super::exposition::{FamilyWriter, Metadata, Number, Page, Series};
use super::instruments::{Counter, Events, Gauge, Histogram, InFlight, LabelSet, NativeHistograms};

/// The families of one agent: those of our own instruments, and those that others, such as libp2p, keep in a
/// registry of prometheus-client.
///
/// There is no global one: two agents in one process have one each.
#[derive(Debug, Default)]
pub struct Registry {
    own: Vec<Box<dyn Expose>>,
    /// Every name that a family of our own has taken.
    names: HashSet<String>,
    others: Others,
    native: NativeHistograms,
}

/// Families that can be written on a page.
pub(crate) trait Expose: Debug + Send + Sync {
    /// What they are called.
    fn families(&self) -> Vec<&Metadata>;
    /// Writes what they say now.
    fn expose(&self, page: &mut Page<'_>);
}

/// Two families want the same name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the metric name {0} is taken by another family of this registry")]
pub struct NameTaken(pub String);

impl Registry {
    /// An empty registry whose histograms have native buckets like this.
    pub fn new(native: NativeHistograms) -> Self {
        Self { native, ..Self::default() }
    }

    /// What native buckets its histograms have.
    pub fn native_histograms(&self) -> NativeHistograms {
        self.native
    }

    /// The registry for the metrics of others. What is registered there comes behind the families of our own,
    /// and only where it takes no name of theirs. Exemplars are shown in OpenMetrics, native buckets of its
    /// histograms not at all: its text has none.
    pub fn others_mut(&mut self) -> &mut Others {
        &mut self.others
    }

    pub(crate) fn others(&self) -> &Others {
        &self.others
    }

    pub(crate) fn names(&self) -> &HashSet<String> {
        &self.names
    }

    pub(crate) fn expose(&self, page: &mut Page<'_>) {
        for families in &self.own {
            families.expose(page);
        }
    }

    /// Adds families that write themselves.
    ///
    /// # Errors
    ///
    /// When one of their names is taken; then nothing is added.
    pub(crate) fn add(&mut self, families: Box<dyn Expose>) -> Result<(), NameTaken> {
        let mut names = HashSet::new();
        for name in families.families().into_iter().flat_map(Metadata::names) {
            if self.names.contains(&name) || !names.insert(name.clone()) {
                return Err(NameTaken(name));
            }
        }
        self.names.extend(names);
        self.own.push(families);
        Ok(())
    }

    /// As [`Registry::add`]; when a name is taken, the log says so.
    pub(crate) fn add_or_log(&mut self, families: Box<dyn Expose>) {
        shown(self.add(families));
    }

    /// Adds an instrument as the family that `descriptor` describes.
    ///
    /// # Errors
    ///
    /// When the name is taken; then nothing is added.
    pub fn register<I: Instrument>(&mut self, descriptor: &Descriptor, instrument: &I) -> Result<(), NameTaken> {
        let families =
            Registered { family: metadata(descriptor), series: series::<I::Labels>(), instrument: instrument.clone() };
        self.add(Box::new(families))
    }

    /// Adds events as two families: how many there were, and how long they took.
    ///
    /// # Errors
    ///
    /// When a name is taken; then nothing is added.
    pub fn register_events<L: LabelSet>(
        &mut self,
        counter: &Descriptor,
        histogram: &Descriptor,
        events: &Events<L>,
    ) -> Result<(), NameTaken> {
        let families = RegisteredEvents {
            counter: metadata(counter),
            histogram: metadata(histogram),
            series: series::<L>(),
            events: events.clone(),
        };
        self.add(Box::new(families))
    }
}

/// Says in the log what nobody will see.
pub(crate) fn shown(registered: Result<(), NameTaken>) {
    if let Err(error) = registered {
        tracing::error!("{error}: what this one has to say is not shown");
    }
}

/// An instrument that can be registered: a [`Counter`], a [`Gauge`], an [`InFlight`] or a [`Histogram`].
pub trait Instrument: Clone + Debug + Send + Sync + 'static + sealed::Write {}

mod sealed {
    use super::{Debug, FamilyWriter, LabelSet, Series};

    pub trait Write {
        type Labels: LabelSet + Debug;
        #[allow(private_interfaces, reason = "sealed: nobody else calls or implements it")]
        fn write(&self, out: &mut FamilyWriter<'_, '_>, series: &Series, index: usize);
    }
}
use sealed::Write;

impl<L: LabelSet> Instrument for Counter<L> {}
impl<L: LabelSet> Instrument for Gauge<L> {}
impl<L: LabelSet> Instrument for InFlight<L> {}
impl<L: LabelSet> Instrument for Histogram<L> {}

impl<L: LabelSet> Write for Counter<L> {
    type Labels = L;
    #[allow(private_interfaces, reason = "as above")]
    fn write(&self, out: &mut FamilyWriter<'_, '_>, series: &Series, index: usize) {
        out.number(series, Number::Unsigned(self.at(index)));
    }
}

impl<L: LabelSet> Write for Gauge<L> {
    type Labels = L;
    #[allow(private_interfaces, reason = "as above")]
    fn write(&self, out: &mut FamilyWriter<'_, '_>, series: &Series, index: usize) {
        out.number(series, Number::Signed(self.at(index)));
    }
}

impl<L: LabelSet> Write for InFlight<L> {
    type Labels = L;
    #[allow(private_interfaces, reason = "as above")]
    fn write(&self, out: &mut FamilyWriter<'_, '_>, series: &Series, index: usize) {
        out.number(series, Number::Unsigned(self.at(index)));
    }
}

impl<L: LabelSet> Write for Histogram<L> {
    type Labels = L;
    #[allow(private_interfaces, reason = "as above")]
    fn write(&self, out: &mut FamilyWriter<'_, '_>, series: &Series, index: usize) {
        out.histogram(series, &self.at(index), self.buckets());
    }
}

#[derive(Debug)]
struct Registered<I> {
    family: Metadata,
    series: Box<[Series]>,
    instrument: I,
}

impl<I: Instrument> Expose for Registered<I> {
    fn families(&self) -> Vec<&Metadata> {
        vec![&self.family]
    }

    fn expose(&self, page: &mut Page<'_>) {
        let Some(mut out) = page.family(&self.family) else { return };
        for (index, series) in self.series.iter().enumerate() {
            self.instrument.write(&mut out, series, index);
        }
    }
}

#[derive(Debug)]
struct RegisteredEvents<L> {
    counter: Metadata,
    histogram: Metadata,
    series: Box<[Series]>,
    events: Events<L>,
}

impl<L: LabelSet> Expose for RegisteredEvents<L> {
    fn families(&self) -> Vec<&Metadata> {
        vec![&self.counter, &self.histogram]
    }

    fn expose(&self, page: &mut Page<'_>) {
        // Read once, so that both families speak of the same events.
        let durations = self.events.durations();
        let snapshots: Vec<_> = (0..L::COUNT).map(|index| durations.at(index)).collect();
        if let Some(mut out) = page.family(&self.counter) {
            for (series, snapshot) in self.series.iter().zip(&snapshots) {
                out.number(series, Number::Unsigned(snapshot.count));
            }
        }
        if let Some(mut out) = page.family(&self.histogram) {
            for (series, snapshot) in self.series.iter().zip(&snapshots) {
                out.histogram(series, snapshot, durations.buckets());
            }
        }
    }
}

/// Constant text in labels.
#[derive(Debug)]
pub(crate) struct Info {
    family: Metadata,
    series: Series,
}

impl Info {
    pub(crate) fn new(descriptor: &Descriptor, labels: &[(&str, &str)]) -> Self {
        Self { family: metadata(descriptor), series: Series::new(labels) }
    }
}

impl Expose for Info {
    fn families(&self) -> Vec<&Metadata> {
        vec![&self.family]
    }

    fn expose(&self, page: &mut Page<'_>) {
        if let Some(mut out) = page.family(&self.family) {
            out.number(&self.series, Number::Unsigned(1));
        }
    }
}

/// What is known of the family that `descriptor` describes. As prometheus-client has it, a help text ends with
/// a full stop.
pub(crate) fn metadata(descriptor: &Descriptor) -> Metadata {
    let help = format!("{}.", descriptor.help);
    debug_assert!(descriptor.kind != Kind::Unknown, "{descriptor:?}");
    Metadata::new(descriptor.kind, descriptor.openmetrics_name(), descriptor.unit(), &help)
}

fn series<L: LabelSet>() -> Box<[Series]> {
    (0..L::COUNT).map(|index| Series::new(&L::labels(index))).collect()
}

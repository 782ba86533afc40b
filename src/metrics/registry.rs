//! Everything that one agent shows.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;

use super::catalogue::{Descriptor, Kind};
use super::exposition::{FamilyWriter, ForeignRegistry, Metadata, Number, PageWriter, Series, is_label_name, is_name};
use super::instruments::{Counter, Events, Gauge, Histogram, InFlight, LabelSet, NativeHistograms};
use parking_lot::Mutex;

/// The families of one agent: those of our own instruments, and those that others, such as libp2p, keep in
/// registries of prometheus-client.
///
/// There is no global one: two agents in one process have one each. Families can be added at any time; a page that is
/// being made meanwhile does not have them yet.
#[derive(Debug, Default)]
pub struct Registry {
    registered: Mutex<Arc<Registered>>,
    native: NativeHistograms,
}

/// What a page is made from.
#[derive(Debug, Default, Clone)]
pub(crate) struct Registered {
    own: Vec<Arc<dyn Expose>>,
    /// Every name that a family of our own has taken.
    names: HashSet<String>,
    foreign: Vec<Arc<ForeignRegistry>>,
}

/// Families that can be written on a page.
pub(crate) trait Expose: Debug + Send + Sync {
    /// What they are called.
    fn families(&self) -> Vec<&Metadata>;
    /// Writes what they say now.
    fn expose(&self, page: &mut PageWriter<'_>);
}

/// Why families cannot be registered: a reader would refuse the whole page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// Two families want the same name.
    #[error("the metric name {0} is taken by another family of this registry")]
    NameTaken(String),
    /// It is not of the form `[a-zA-Z_:][a-zA-Z0-9_:]*`.
    #[error("`{0}` is no name of a metric")]
    Name(String),
    /// It is not of the form `[a-zA-Z_][a-zA-Z0-9_]*`, or begins with two underscores.
    #[error("`{label}` of {family} is no name of a label")]
    Label {
        /// The family.
        family: String,
        /// What is no name.
        label: String,
    },
    /// A label that comes twice in a series, or two values with one text.
    #[error("two series of {0} have the same labels, or one of them the same label twice")]
    SameSeries(String),
    /// The descriptor says another kind than the instrument is.
    #[error("{family} is described as {described} and recorded as {recorded}")]
    Kind {
        /// The family.
        family: String,
        /// What the descriptor says.
        described: &'static str,
        /// What the instrument is.
        recorded: &'static str,
    },
}

impl Registry {
    /// An empty registry whose histograms have native buckets like this.
    pub fn new(native: NativeHistograms) -> Self {
        Self { native, ..Self::default() }
    }

    /// What native buckets its histograms have.
    pub fn native_histograms(&self) -> NativeHistograms {
        self.native
    }

    /// Adds the families that somebody else keeps in a registry of prometheus-client. They come behind the families of our
    /// own, in the order in which their registries were added, and only where they take no name of an earlier family.
    /// Exemplars are shown in OpenMetrics, native buckets of their histograms not at all: prometheus-client's text has none.
    ///
    /// When one of its metrics cannot be encoded (a histogram with native buckets alone, for instance) or panics, this
    /// registry's families are missing from the page, and the log says so under `name`; give each collector that may fail a
    /// registry of its own. One that hangs keeps the page from being made.
    pub fn add_foreign(&self, name: impl Into<String>, registry: prometheus_client::registry::Registry) {
        let foreign = Arc::new(ForeignRegistry::new(name.into(), registry));
        self.change(|registered| registered.foreign.push(foreign));
    }

    /// What is registered now. Nobody is kept from registering while a page is made of it.
    pub(crate) fn registered(&self) -> Arc<Registered> {
        Arc::clone(&self.registered.lock())
    }

    fn change<T>(&self, change: impl FnOnce(&mut Registered) -> T) -> T {
        let mut registered = self.registered.lock();
        change(Arc::make_mut(&mut registered))
    }

    /// Adds families that write themselves.
    ///
    /// # Errors
    ///
    /// When one of their names is taken; then nothing is added.
    pub(crate) fn add(&self, families: Arc<dyn Expose>) -> Result<(), RegisterError> {
        self.change(|registered| {
            let mut names = HashSet::new();
            for name in families.families().into_iter().flat_map(Metadata::names) {
                if registered.names.contains(&name) || !names.insert(name.clone()) {
                    return Err(RegisterError::NameTaken(name));
                }
            }
            registered.names.extend(names);
            registered.own.push(Arc::clone(&families));
            Ok(())
        })
    }

    /// As [`Registry::add`]; when a name is taken, the log says so.
    pub(crate) fn add_or_log(&self, families: impl Expose + 'static) {
        log_if_refused(self.add(Arc::new(families)));
    }

    /// Adds an instrument as the family that `descriptor` describes.
    ///
    /// # Errors
    ///
    /// When the name is taken, or something does not fit; then nothing is added.
    pub fn register<I: Instrument>(&self, descriptor: &Descriptor, instrument: &I) -> Result<(), RegisterError> {
        let families = Family {
            family: checked(descriptor, I::KIND)?,
            series: series::<I::Labels>(descriptor)?,
            instrument: instrument.clone(),
        };
        self.add(Arc::new(families))
    }

    /// Adds events as two families: how many there were, and how long they took.
    ///
    /// # Errors
    ///
    /// When a name is taken, or something does not fit; then nothing is added.
    pub fn register_events<L: LabelSet>(
        &self,
        counter: &Descriptor,
        histogram: &Descriptor,
        events: &Events<L>,
    ) -> Result<(), RegisterError> {
        let families = EventFamilies {
            counter: checked(counter, Kind::Counter)?,
            histogram: checked(histogram, Kind::Histogram)?,
            series: series::<L>(counter)?,
            events: events.clone(),
        };
        self.add(Arc::new(families))
    }
}

impl Registered {
    /// Writes everything on a page.
    pub(crate) fn expose(&self, page: &mut PageWriter<'_>) {
        for families in &self.own {
            families.expose(page);
        }
        let mut taken = self.names.clone();
        for foreign in &self.foreign {
            foreign.expose(&mut taken, page);
        }
    }
}

/// Says in the log which families will not be seen.
pub(crate) fn log_if_refused(registered: Result<(), RegisterError>) {
    if let Err(error) = registered {
        tracing::error!("{error}; the second one is recorded, but not shown");
    }
}

/// An instrument that can be registered: a [`Counter`], a [`Gauge`], an [`InFlight`] or a [`Histogram`].
pub trait Instrument: Clone + Debug + Send + Sync + 'static + sealed::Write {}

mod sealed {
    use super::{Debug, FamilyWriter, Kind, LabelSet, Series};

    pub trait Write {
        type Labels: LabelSet + Debug;
        const KIND: Kind;
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
    const KIND: Kind = Kind::Counter;
    #[allow(private_interfaces, reason = "as above")]
    fn write(&self, out: &mut FamilyWriter<'_, '_>, series: &Series, index: usize) {
        out.number(series, Number::Unsigned(self.at(index)));
    }
}

impl<L: LabelSet> Write for Gauge<L> {
    type Labels = L;
    const KIND: Kind = Kind::Gauge;
    #[allow(private_interfaces, reason = "as above")]
    fn write(&self, out: &mut FamilyWriter<'_, '_>, series: &Series, index: usize) {
        out.number(series, Number::Signed(self.at(index)));
    }
}

impl<L: LabelSet> Write for InFlight<L> {
    type Labels = L;
    const KIND: Kind = Kind::Gauge;
    #[allow(private_interfaces, reason = "as above")]
    fn write(&self, out: &mut FamilyWriter<'_, '_>, series: &Series, index: usize) {
        out.number(series, Number::Unsigned(self.at(index)));
    }
}

impl<L: LabelSet> Write for Histogram<L> {
    type Labels = L;
    const KIND: Kind = Kind::Histogram;
    #[allow(private_interfaces, reason = "as above")]
    fn write(&self, out: &mut FamilyWriter<'_, '_>, series: &Series, index: usize) {
        out.histogram(series, &self.at(index), self.buckets());
    }
}

#[derive(Debug)]
struct Family<I> {
    family: Metadata,
    series: Box<[Series]>,
    instrument: I,
}

impl<I: Instrument> Expose for Family<I> {
    fn families(&self) -> Vec<&Metadata> {
        vec![&self.family]
    }

    fn expose(&self, page: &mut PageWriter<'_>) {
        let Some(mut out) = page.family(&self.family) else { return };
        for (index, series) in self.series.iter().enumerate() {
            self.instrument.write(&mut out, series, index);
        }
    }
}

#[derive(Debug)]
struct EventFamilies<L> {
    counter: Metadata,
    histogram: Metadata,
    series: Box<[Series]>,
    events: Events<L>,
}

impl<L: LabelSet> Expose for EventFamilies<L> {
    fn families(&self) -> Vec<&Metadata> {
        vec![&self.counter, &self.histogram]
    }

    fn expose(&self, page: &mut PageWriter<'_>) {
        if !page.wants([&self.counter, &self.histogram]) {
            return;
        }
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

    fn expose(&self, page: &mut PageWriter<'_>) {
        if let Some(mut out) = page.family(&self.family) {
            out.number(&self.series, Number::Unsigned(1));
        }
    }
}

/// What is known of the family that `descriptor` describes. As prometheus-client has it, a help text ends with
/// a full stop.
pub(crate) fn metadata(descriptor: &Descriptor) -> Metadata {
    let help = format!("{}.", descriptor.help);
    Metadata::new(descriptor.kind, descriptor.openmetrics_name(), descriptor.unit(), &help)
}

/// The same, when the descriptor fits what is recorded.
fn checked(descriptor: &Descriptor, recorded: Kind) -> Result<Metadata, RegisterError> {
    let family = || descriptor.name.to_owned();
    if !is_name(descriptor.name) {
        return Err(RegisterError::Name(family()));
    }
    if descriptor.kind != recorded {
        let (described, recorded) = (descriptor.kind.as_str(), recorded.as_str());
        return Err(RegisterError::Kind { family: family(), described, recorded });
    }
    Ok(metadata(descriptor))
}

/// The series of every combination of labels.
fn series<L: LabelSet>(descriptor: &Descriptor) -> Result<Box<[Series]>, RegisterError> {
    let family = || descriptor.name.to_owned();
    let mut seen = HashSet::new();
    (0..L::COUNT)
        .map(|index| {
            let labels = L::labels(index);
            if let Some((label, _)) = labels.iter().find(|(label, _)| !is_label_name(label)) {
                return Err(RegisterError::Label { family: family(), label: (*label).to_owned() });
            }
            let names: HashSet<_> = labels.iter().map(|(label, _)| label).collect();
            let series = Series::new(&labels);
            if names.len() < labels.len() || !seen.insert(labels) {
                return Err(RegisterError::SameSeries(family()));
            }
            Ok(series)
        })
        .collect()
}

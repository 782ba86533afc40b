//! The registry: everything that one agent shows.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::catalogue::{Descriptor, Kind};
use super::exposition::{
    FamilyFilter, FamilyWriter, ForeignRegistry, Format, Metadata, Number, PageWriter, Series, is_label_name, is_name,
    write_foreign,
};
use super::instruments::{Counter, Events, Gauge, Histogram, InFlight, LabelSet, NativeHistograms};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

/// The families of one agent: those of our own instruments, and those that others, such as libp2p, keep in
/// registries of prometheus-client.
///
/// There is no global registry: two agents in one process have one each. Families can be added at any time; a page
/// that is already being made does not include them.
#[derive(Debug, Default)]
pub struct Registry {
    registered: Mutex<Arc<Registered>>,
    native: NativeHistograms,
}

/// A snapshot of the registry, from which a page is made.
#[derive(Debug, Default, Clone)]
struct Registered {
    own: Vec<Arc<dyn Expose>>,
    /// Every name taken by a family of our own.
    names: HashSet<String>,
    foreign: Vec<Arc<ForeignRegistry>>,
    /// How many of them failed for the last page.
    failed_foreign: Arc<AtomicU64>,
}

/// Families that can be written to a page.
pub(crate) trait Expose: Debug + Send + Sync {
    /// The metadata of each family.
    fn families(&self) -> Vec<&Metadata>;
    /// Writes their current values.
    fn expose(&self, page: &mut PageWriter<'_>);
}

/// Why families cannot be registered: with them, a scraper would reject the whole page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// Another family already has this name.
    #[error("the metric name {0} is already used by another family of this registry")]
    NameTaken(String),
    /// The name does not match `[a-zA-Z_:][a-zA-Z0-9_:]*`.
    #[error("`{0}` is not a valid metric name")]
    Name(String),
    /// The label name does not match `[a-zA-Z_][a-zA-Z0-9_]*`, or begins with two underscores.
    #[error("{family}: `{label}` is not a valid label name")]
    Label {
        /// The family.
        family: String,
        /// The invalid name.
        label: String,
    },
    /// A series has the same label twice, or two label values have the same text.
    #[error("two series of {0} have the same labels, or one series has the same label twice")]
    SameSeries(String),
    /// The descriptor states a different kind from the instrument's.
    #[error("{family} is described as {described} but recorded as {recorded}")]
    Kind {
        /// The family.
        family: String,
        /// The kind that the descriptor states.
        described: &'static str,
        /// The kind of the instrument.
        recorded: &'static str,
    },
}

impl Registry {
    /// An empty registry. `native` describes the native buckets of its histograms.
    pub fn new(native: NativeHistograms) -> Self {
        Self { native, ..Self::default() }
    }

    /// The native buckets of its histograms.
    pub fn native_histograms(&self) -> NativeHistograms {
        self.native
    }

    /// Adds the families that somebody else keeps in a prometheus-client registry. They come after our own families, in
    /// the order in which their registries were added. Families of the same name and type are joined; other families with
    /// a name that is taken are left out. Exemplars are shown in OpenMetrics. Native buckets are not shown:
    /// prometheus-client's text has none.
    ///
    /// If one of its metrics cannot be encoded (a histogram with native buckets only, for example) or panics, all
    /// families of this registry are missing from the page, the log reports it under `name`, and
    /// `exposition_failed_registries` counts it. Give each collector that may fail a registry of its own. A collector that
    /// hangs blocks the whole page.
    pub fn add_foreign(&self, name: impl Into<String>, registry: prometheus_client::registry::Registry) {
        let foreign = Arc::new(ForeignRegistry::new(name.into(), registry));
        self.change(|registered| registered.foreign.push(foreign));
    }

    /// The page with the families of this registry that `filter` includes.
    ///
    /// Whatever is registered, no family or sample appears twice, and no family appears without samples.
    pub fn render(&self, format: Format, filter: &FamilyFilter) -> Bytes {
        let mut page = PageWriter::new(format, filter);
        self.registered().expose(&mut page);
        page.finish()
    }

    /// How many foreign registries failed for the last page.
    pub(crate) fn failed_foreign(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.registered().failed_foreign)
    }

    /// What is registered now. Families can still be added while a page is made from it.
    fn registered(&self) -> Arc<Registered> {
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
    /// If one of their names is taken. Then nothing is added.
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

    /// Like [`Registry::add`], but logs an error instead of returning it.
    pub(crate) fn add_or_log(&self, families: impl Expose + 'static) {
        log_if_refused(self.add(Arc::new(families)));
    }

    /// Adds an instrument as the family that `descriptor` describes.
    ///
    /// # Errors
    ///
    /// See [`RegisterError`]. Nothing is added then.
    pub fn register<I: Instrument>(&self, descriptor: &Descriptor, instrument: &I) -> Result<(), RegisterError> {
        let families = Family {
            family: checked(descriptor, I::KIND)?,
            series: series::<I::Labels>(descriptor)?,
            instrument: instrument.clone(),
        };
        self.add(Arc::new(families))
    }

    /// Adds events as two families: their number and their durations.
    ///
    /// # Errors
    ///
    /// See [`RegisterError`]. Nothing is added then.
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
    /// Writes everything to a page.
    fn expose(&self, page: &mut PageWriter<'_>) {
        let foreign: Vec<String> = self.foreign.iter().filter_map(|foreign| foreign.encode()).collect();
        self.failed_foreign.store((self.foreign.len() - foreign.len()) as u64, Ordering::Relaxed);
        for families in &self.own {
            families.expose(page);
        }
        write_foreign(&foreign, &self.names, page);
    }
}

/// Logs why a family will not be shown.
pub(crate) fn log_if_refused(registered: Result<(), RegisterError>) {
    if let Err(error) = registered {
        tracing::error!("{error}; this family is recorded but not shown");
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
        // Read once, so that both families show the same events.
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

/// Text in labels, which rarely changes.
#[derive(Debug)]
pub(crate) struct Info {
    family: Metadata,
    series: RwLock<Series>,
}

impl Info {
    pub(crate) fn new(descriptor: &Descriptor, labels: &[(&str, &str)]) -> Self {
        Self { family: metadata(descriptor), series: RwLock::new(Series::new(labels)) }
    }

    /// Shows other values of the labels.
    pub(crate) fn set(&self, labels: &[(&str, &str)]) {
        *self.series.write() = Series::new(labels);
    }
}

impl Expose for Info {
    fn families(&self) -> Vec<&Metadata> {
        vec![&self.family]
    }

    fn expose(&self, page: &mut PageWriter<'_>) {
        if let Some(mut out) = page.family(&self.family) {
            out.number(&self.series.read(), Number::Unsigned(1));
        }
    }
}

/// The metadata of the family that `descriptor` describes. As in prometheus-client, the help text ends with a
/// full stop.
pub(crate) fn metadata(descriptor: &Descriptor) -> Metadata {
    let help = format!("{}.", descriptor.help);
    Metadata::new(descriptor.kind, descriptor.openmetrics_name(), descriptor.unit(), &help)
}

/// Like [`metadata`], but checks the name, and that the kind is the recorded one.
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

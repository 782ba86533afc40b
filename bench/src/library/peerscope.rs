//! Peerscope's own library.

mod labels;

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use peerscope::metrics::catalogue::{Descriptor, Kind as DescribedAs};
use peerscope::metrics::exposition::{self, FamilyFilter};
use peerscope::metrics::instruments::{Buckets, Counter, Events, Histogram, NativeHistograms};
use peerscope::metrics::labels::{Component, Label, MessageType};
use peerscope::metrics::{AgentInfo, Health, MetricsCollector, MissingLines, Registry, Timer, register_scrape_time};

use self::labels::{Outcome, Shard, every};
use super::{DURATION, DURATION_HELP, EVENTS, EVENTS_HELP, Format, Page, Recorder, TYPE};
use crate::Result;
use crate::samples::{BUCKETS, Sample, table};
use crate::shape::{Family, Kind, Shape, number, observations};

/// A registry, and the buckets of its histograms, which have native buckets like the agent's.
pub(crate) struct Peerscope {
    pub(crate) registry: Registry,
    buckets: Arc<Buckets>,
}

/// The labels of an agent's info metrics.
pub(crate) fn agent_info() -> AgentInfo {
    AgentInfo { peer_id: "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp".into(), name: "bench".into() }
}

impl Peerscope {
    pub(crate) fn new() -> Result<Self> {
        let native = NativeHistograms::default();
        let buckets = Arc::new(Buckets::durations(&BUCKETS, native)?);
        Ok(Self { registry: Registry::new(native), buckets })
    }

    /// Adds an agent's own families.
    pub(crate) fn add_agent(&mut self) -> MetricsCollector {
        let health = Health::default();
        Component::ALL.iter().for_each(|&component| health.ready(component));
        register_scrape_time(&self.registry, &health, &MissingLines::default());
        self.add_collector()
    }

    /// Adds an agent's own families without those that are read at scrape time.
    pub(crate) fn add_collector(&mut self) -> MetricsCollector {
        MetricsCollector::new(&self.registry, &agent_info())
    }

    /// Fills the registry with generated families. Their labels are enums, because an agent's labels are known at
    /// compile time.
    pub(crate) fn fill(&mut self, shape: &Shape) -> Result<()> {
        let table = table();
        for family in &shape.families {
            match &family.kind {
                Kind::Counter => {
                    let counters = Counter::<(Shard, Outcome)>::new();
                    let labels =
                        every::<Shard>().flat_map(|shard| every::<Outcome>().map(move |outcome| (shard, outcome)));
                    labels.enumerate().for_each(|(at, labels)| counters.add(labels, number(at).into()));
                    self.registry.register(&described(family, DescribedAs::Counter)?, &counters)?;
                }
                Kind::Histogram(_) => {
                    let histograms = Histogram::<Shard>::new(&self.buckets);
                    for (at, shard) in every::<Shard>().enumerate() {
                        observations(&table, at).for_each(|sample| histograms.observe(shard, sample.nanos));
                    }
                    self.registry.register(&described(family, DescribedAs::Histogram)?, &histograms)?;
                }
                Kind::Gauge => return Err("no generated family is a gauge".into()),
            }
        }
        Ok(())
    }

    pub(crate) fn together(&mut self) -> Result<Together> {
        let events = Events::new(&self.buckets);
        self.registry.register_events(&COUNTED, &TIMED, &events)?;
        Ok(Together { events, kind: MessageType::Get })
    }

    pub(crate) fn separate(&mut self) -> Result<Separate> {
        let (events, duration) = (Counter::new(), Histogram::new(&self.buckets));
        self.registry.register(&COUNTED, &events)?;
        self.registry.register(&TIMED, &duration)?;
        Ok(Separate { events, duration, kind: MessageType::Get })
    }
}

/// The page of an agent's own families, in the text format 0.0.4.
pub(crate) fn agent_page() -> Result<String> {
    let mut peerscope = Peerscope::new()?;
    peerscope.add_agent();
    Ok(String::from_utf8(peerscope.encode(Format::Text)?.into())?)
}

const COUNTED: Descriptor = Descriptor { name: EVENTS, kind: DescribedAs::Counter, labels: &[TYPE], help: EVENTS_HELP };
const TIMED: Descriptor =
    Descriptor { name: DURATION, kind: DescribedAs::Histogram, labels: &[TYPE], help: DURATION_HELP };

fn described(family: &Family, kind: DescribedAs) -> Result<Descriptor> {
    let labels: &[&str] = if kind == DescribedAs::Counter { &[Shard::NAME, Outcome::NAME] } else { &[Shard::NAME] };
    if family.labels != labels {
        return Err(format!("{} does not have the labels {labels:?}", family.name).into());
    }
    Ok(Descriptor { name: family.name, kind, labels, help: family.help })
}

impl Page for Peerscope {
    fn formats(&self) -> &'static [Format] {
        &Format::ALL
    }

    fn encode(&self, format: Format) -> Result<Bytes> {
        let format = match format {
            Format::Text => exposition::Format::Text,
            Format::OpenMetrics => exposition::Format::OpenMetrics,
            Format::Protobuf => exposition::Format::Protobuf,
        };
        Ok(self.registry.render(format, &FamilyFilter::all()))
    }
}

/// Adds a duration measured by the agent's own clock to the sample's.
#[inline]
fn timed(sample: Sample) -> Sample {
    let timer = Timer::start();
    Sample { nanos: sample.nanos + timer.nanos(), ..sample }
}

/// Counter and histogram as one event.
pub(crate) struct Together {
    events: Events<MessageType>,
    kind: MessageType,
}

impl Recorder for Together {
    #[inline]
    fn record(&self, sample: Sample) {
        self.events.record(self.kind, sample.nanos);
    }

    #[inline]
    fn measure(&self, sample: Sample) {
        self.record(timed(sample));
    }
}

/// Counter and histogram as two instruments.
pub(crate) struct Separate {
    events: Counter<MessageType>,
    duration: Histogram<MessageType>,
    kind: MessageType,
}

impl Recorder for Separate {
    #[inline]
    fn record(&self, sample: Sample) {
        self.events.inc(self.kind);
        self.duration.observe(self.kind, sample.nanos);
    }

    #[inline]
    fn measure(&self, sample: Sample) {
        self.record(timed(sample));
    }
}

/// The loop without recording, with the agent's own clock.
pub(crate) struct OwnClock;

impl Recorder for OwnClock {
    #[inline]
    fn record(&self, sample: Sample) {
        black_box(sample.nanos);
    }

    #[inline]
    fn measure(&self, sample: Sample) {
        self.record(timed(sample));
    }
}

//! Which families a page has shown so far.
//!
//! A family is known by a hash of its name, so that a name costs no allocation. The hash is keyed anew for every
//! page: nobody can look for two names with one, and by accident the families of the largest page meet once in four
//! billion pages. Then the page is refused, which the next scrape makes good.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hasher, RandomState};

use super::invalid::{Excerpt, Problem};
use super::{MAX_FAMILIES, keep};

/// Room for the families of a usual page, so that the table rarely grows.
const USUAL: usize = 448;

/// Room for a name that is kept for the next one.
const USUAL_NAME: usize = 256;

/// What Prometheus adds to every scrape (`scrape/scrape.go`): a page with such a sample would speak for it.
const RESERVED: [&[u8]; 8] = [
    b"up",
    b"scrape_duration_seconds",
    b"scrape_samples_scraped",
    b"scrape_samples_post_metric_relabeling",
    b"scrape_series_added",
    b"scrape_timeout_seconds",
    b"scrape_sample_limit",
    b"scrape_body_size_bytes",
];

/// Whether Prometheus itself writes series of this name.
fn is_reserved(name: &[u8]) -> bool {
    (name == b"up" || name.starts_with(b"scrape_")) && RESERVED.contains(&name)
}

/// Whether a family may not have this name. Without samples of its bare name it would not speak for Prometheus, but
/// `convert_classic_histograms_to_nhcb` makes a series of that name of a classic histogram. Our own agents have one.
pub(super) fn is_refused(name: &[u8], is_histogram: bool) -> bool {
    is_reserved(name) && !(is_histogram && name == b"scrape_duration_seconds")
}

/// The type of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Kind {
    Counter,
    /// Also what has no samples with suffixes: states, and what is unknown.
    #[default]
    Gauge,
    Histogram,
    GaugeHistogram,
    Summary,
    Info,
}

/// Every suffix that a sample can have behind its family's name.
const SUFFIXES: [&[u8]; 8] = [b"_total", b"_created", b"_bucket", b"_sum", b"_count", b"_gsum", b"_gcount", b"_info"];

impl Kind {
    /// Whether samples of such a family have this behind its name.
    fn has(self, suffix: &[u8]) -> bool {
        match suffix {
            b"" => true,
            b"_total" => self == Self::Counter,
            b"_created" => matches!(self, Self::Counter | Self::Histogram | Self::GaugeHistogram | Self::Summary),
            b"_bucket" => matches!(self, Self::Histogram | Self::GaugeHistogram),
            b"_sum" | b"_count" => matches!(self, Self::Histogram | Self::GaugeHistogram | Self::Summary),
            b"_gsum" | b"_gcount" => self == Self::GaugeHistogram,
            b"_info" => self == Self::Info,
            _ => false,
        }
    }
}

/// What is said of a family in a line of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metadata {
    Help,
    Type(Kind),
    Unit,
}

/// What has come of a family.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    kind: Kind,
    help: bool,
    typed: bool,
    unit: bool,
    samples: bool,
}

/// The families of one page.
#[derive(Debug)]
pub(super) struct Families {
    known: HashMap<u64, Seen, BuildHasherDefault<AlreadyHashed>>,
    keys: [u64; 2],
    /// The name of the family whose lines come now; empty before the first.
    name: Vec<u8>,
    /// It was written in quotes.
    quoted: bool,
    key: u64,
    seen: Seen,
}

/// A name as it is written, without the quotes that it may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name<'a> {
    pub(super) text: &'a [u8],
    pub(super) quoted: bool,
}

impl Families {
    pub(super) fn new() -> Self {
        let random = RandomState::new();
        let keys = [random.hash_one(0), random.hash_one(1)];
        let known = HashMap::with_capacity_and_hasher(USUAL, BuildHasherDefault::default());
        Self { known, keys, name: Vec::new(), quoted: false, key: 0, seen: Seen::default() }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.name.capacity()
    }

    /// How many bytes of `text` are the name of the family whose lines come now; 0 when it starts otherwise, or when
    /// that name could not stand there without quotes. What this says need not be looked at byte by byte.
    pub(super) fn known_name(&self, text: &[u8]) -> usize {
        if !self.quoted && text.starts_with(&self.name) { self.name.len() } else { 0 }
    }

    /// A family that comes in one piece.
    pub(super) fn whole(&mut self, name: &[u8]) -> Result<(), Problem> {
        match self.known.insert(self.hash(name), Seen::default()) {
            Some(_) => Err(Problem::DuplicateFamily(Excerpt::new(name))),
            None if self.known.len() > MAX_FAMILIES => Err(Problem::TooManyFamilies),
            None => Ok(()),
        }
    }

    /// A line about the family of this name. `late` says whether a help text may come behind samples.
    pub(super) fn metadata(&mut self, name: Name<'_>, metadata: Metadata, late: bool) -> Result<(), Problem> {
        // What is said before the type may be said of a histogram.
        let is_histogram = !matches!(metadata, Metadata::Type(kind) if kind != Kind::Histogram);
        if is_refused(name.text, is_histogram) {
            return Err(Problem::Reserved(Excerpt::new(name.text)));
        }
        let resumed = self.name != name.text;
        if resumed {
            self.enter(name, self.hash(name.text))?;
        }
        let seen = &mut self.seen;
        let behind = seen.samples && (resumed || !late || metadata != Metadata::Help);
        let again = match metadata {
            Metadata::Help => std::mem::replace(&mut seen.help, true),
            Metadata::Unit => std::mem::replace(&mut seen.unit, true),
            Metadata::Type(kind) => {
                seen.kind = kind;
                std::mem::replace(&mut seen.typed, true)
            }
        };
        if again || behind { Err(Problem::DuplicateFamily(Excerpt::new(name.text))) } else { Ok(()) }
    }

    /// A sample of this name, which is not the name of the sample before it.
    pub(super) fn sample(&mut self, written: Name<'_>) -> Result<(), Problem> {
        let Name { text: name, quoted } = written;
        if is_reserved(name) {
            return Err(Problem::Reserved(Excerpt::new(name)));
        }
        if !self.name.is_empty() && name.strip_prefix(self.name.as_slice()).is_some_and(|end| self.seen.kind.has(end)) {
            self.seen.samples = true;
            return Ok(());
        }
        let key = self.hash(name);
        if let Some(seen) = self.known.get(&key) {
            let samples = seen.samples;
            return self.first_sample(written, key, samples);
        }
        for suffix in SUFFIXES {
            let Some(family) = name.strip_suffix(suffix) else { continue };
            let key = self.hash(family);
            if let Some(seen) = self.known.get(&key).filter(|seen| seen.kind.has(suffix)) {
                let samples = seen.samples;
                return self.first_sample(Name { text: family, quoted }, key, samples);
            }
        }
        // Of a histogram that nobody declared: its samples come in turns, and what they belong to cannot be told.
        let histogram =
            [b"_bucket".as_slice(), b"_sum", b"_count"].iter().find_map(|suffix| name.strip_suffix(*suffix));
        match histogram {
            Some(histogram) if is_reserved(histogram) => return Err(Problem::Reserved(Excerpt::new(histogram))),
            Some(_) => return Ok(()),
            None => {}
        }
        self.first_sample(written, key, false)
    }

    fn first_sample(&mut self, family: Name<'_>, key: u64, samples: bool) -> Result<(), Problem> {
        if samples {
            return Err(Problem::DuplicateFamily(Excerpt::new(family.text)));
        }
        self.enter(family, key)?;
        self.seen.samples = true;
        Ok(())
    }

    /// Makes this the family whose lines come now.
    fn enter(&mut self, name: Name<'_>, key: u64) -> Result<(), Problem> {
        if !self.name.is_empty() {
            self.known.insert(self.key, self.seen);
        }
        self.seen = *self.known.entry(key).or_default();
        if self.known.len() > MAX_FAMILIES {
            return Err(Problem::TooManyFamilies);
        }
        self.key = key;
        if self.name.capacity() > USUAL_NAME {
            self.name = Vec::new();
        }
        self.name.clear();
        keep(&mut self.name, name.text, name.text.len());
        self.quoted = name.quoted;
        Ok(())
    }

    /// Eight bytes at a time, each multiplied by a number that nobody knows.
    fn hash(&self, name: &[u8]) -> u64 {
        let [first, second] = self.keys;
        let (words, rest) = name.as_chunks::<8>();
        let mut state = first ^ name.len() as u64;
        for word in words {
            state = multiply(state ^ u64::from_le_bytes(*word), second | 1);
        }
        let rest = rest.iter().fold(0, |rest, byte| rest << 8 | u64::from(*byte));
        multiply(multiply(state ^ rest, second | 1), first | 1)
    }
}

/// Both halves of the product, so that every bit of the result depends on every bit of the factor.
#[allow(clippy::cast_possible_truncation, reason = "the halves of a product")]
fn multiply(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// The table's keys are hashes.
#[derive(Debug, Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    /// Nothing but `u64` is hashed here.
    fn write(&mut self, _: &[u8]) {}
}

//! The families of others, read from the OpenMetrics text that prometheus-client's encoder writes.
//!
//! That encoder writes what it was given: a family that was registered twice comes twice, one without
//! series comes as metadata alone, help texts are not escaped, and names are not checked. One bad line
//! costs a scraper the whole scrape. So what is written on is only what every reader takes:
//!
//! - families of one name and type are joined; one whose name a family before it has taken is left out;
//! - samples that are no samples (a name or a label name that is none, the same label twice, a value that
//!   is no number), and those that came already, are left out;
//! - a family without samples is left out.

mod parse;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::registry::Registry;

use self::parse::{Items, Sample, unescaped};
use super::Format;
use super::family::{Metadata, Series, is_name};
use super::page::{FamilyWriter, Number, PageWriter};
use crate::metrics::catalogue::Kind;
use crate::metrics::instruments::le;

/// A family with all samples of its name.
struct Family<'a> {
    name: &'a str,
    kind: Kind,
    help: &'a str,
    unit: Option<&'a str>,
    samples: Vec<Sample<'a>>,
}

/// A registry of prometheus-client, and what it is called in the log.
#[derive(Debug)]
pub(crate) struct ForeignRegistry {
    name: String,
    registry: Registry,
    /// Whether its last page could not be made.
    is_failing: AtomicBool,
}

impl ForeignRegistry {
    pub(crate) fn new(name: String, registry: Registry) -> Self {
        Self { name, registry, is_failing: AtomicBool::new(false) }
    }

    /// Writes the families whose names are not among `taken`, and adds them there.
    pub(crate) fn expose(&self, taken: &mut HashSet<String>, page: &mut PageWriter<'_>) {
        let encoded = catch_unwind(AssertUnwindSafe(|| {
            let mut text = String::new();
            encode_registry(&mut text, &self.registry).map(|()| text)
        }));
        let was_failing = self.is_failing.swap(!matches!(encoded, Ok(Ok(_))), Ordering::Relaxed);
        match encoded {
            Ok(Ok(text)) => write(&text, taken, page),
            // The panic hook has logged a panic.
            _ if !was_failing => {
                tracing::error!("the metrics of `{}` are not shown: one of them cannot be encoded", self.name);
            }
            _ => {}
        }
    }
}

fn write(text: &str, taken: &mut HashSet<String>, page: &mut PageWriter<'_>) {
    for family in families(text) {
        let metadata = Metadata::new(family.kind, family.name, family.unit, family.help);
        let names = metadata.names();
        if family.samples.is_empty() || names.iter().any(|name| taken.contains(name)) {
            continue;
        }
        taken.extend(names);
        let format = page.format();
        let Some(mut out) = page.family(&metadata) else { continue };
        match format {
            Format::Protobuf => protobuf(&mut out, &family),
            Format::Text | Format::OpenMetrics | Format::OpenMetricsDraft => lines(&mut out, &family, format),
        }
    }
}

/// All families, each once, in the order in which they come first.
fn families(text: &str) -> Vec<Family<'_>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    let mut positions = HashMap::new();
    let mut items = Items::new(text);
    while let Some(head) = items.next() {
        let position = *positions.entry((head.name, head.kind)).or_insert(families.len());
        if position == families.len() {
            let (name, kind, help, unit) = (head.name, head.kind, head.help, head.unit);
            families.push(Family { name, kind, help, unit, samples: Vec::new() });
        }
        if let Some(family) = families.get_mut(position) {
            family.samples.extend(items.samples(head.name, head.kind));
        }
    }
    for family in &mut families {
        family.leave_out_repeated();
    }
    // What is no name of a family has no samples either.
    families.retain(|family| is_name(family.name));
    families
}

impl Family<'_> {
    /// Two samples are the same when they have the same labels, in whatever order, and bounds that are the same number.
    fn leave_out_repeated(&mut self) {
        let mut seen = HashSet::with_capacity(self.samples.len());
        let bounded = self.kind == Kind::Histogram;
        self.samples.retain(|sample| seen.insert((sample.suffix, sorted(sample, bounded))));
    }
}

/// The labels in an order that does not depend on who wrote them.
fn sorted<'a>(sample: &Sample<'a>, bounded: bool) -> Vec<(&'a str, Cow<'a, str>)> {
    let labels = sample.labels().map(|(name, value)| match value.parse() {
        Ok(bound) if bounded && name == "le" => (name, le(bound).into()),
        _ => (name, value.into()),
    });
    let mut labels: Vec<_> = labels.collect();
    labels.sort_unstable();
    labels
}

/// The samples as they came, in one of the text formats.
fn lines(out: &mut FamilyWriter<'_, '_>, family: &Family<'_>, format: Format) {
    for sample in &family.samples {
        let value = match sample.value {
            "inf" => "+Inf",
            "-inf" => "-Inf",
            value => value,
        };
        let labels = with_usual_bound(sample, family.kind);
        let (open, close) = if labels.is_empty() { ("", "") } else { ("{", "}") };
        // The classic format has no exemplars.
        let (mark, exemplar) = match sample.exemplar {
            Some(exemplar) if format != Format::Text => (" # ", exemplar),
            _ => ("", ""),
        };
        out.line(&[family.name, sample.suffix, open, &labels, close, " ", value, mark, exemplar]);
    }
}

/// The labels, with the bound of a bucket written as ours are. prometheus-client has a form of its own.
fn with_usual_bound<'a>(sample: &Sample<'a>, kind: Kind) -> Cow<'a, str> {
    if kind != Kind::Histogram || sample.suffix != "_bucket" {
        return sample.labels.into();
    }
    let labels = sample.labels().map(|(name, value)| match value.parse() {
        Ok(bound) if name == "le" => format!("le=\"{}\"", le(bound)),
        _ => format!("{name}=\"{value}\""),
    });
    labels.collect::<Vec<_>>().join(",").into()
}

/// The samples as messages.
fn protobuf(out: &mut FamilyWriter<'_, '_>, family: &Family<'_>) {
    if out.kind() == Kind::Histogram {
        return histograms(out, family);
    }
    for sample in &family.samples {
        out.number(&series(sample.labels()), Number::Float(sample.float()));
    }
}

/// The series with these labels, whose values are still escaped.
fn series<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>) -> Series {
    let labels: Vec<_> = labels.map(|(name, value)| (name, unescaped(value))).collect();
    let labels: Vec<_> = labels.iter().map(|(name, value)| (*name, &**value)).collect();
    Series::new(&labels)
}

/// One histogram of a family.
#[derive(Default)]
struct Histogram {
    count: u64,
    sum: f64,
    classic: Vec<(f64, u64)>,
}

fn histograms(out: &mut FamilyWriter<'_, '_>, family: &Family<'_>) {
    // By labels without `le`, in the order in which they come first.
    let mut positions = HashMap::new();
    let mut histograms: Vec<(Vec<(&str, &str)>, Histogram)> = Vec::new();
    for sample in &family.samples {
        let (bound, mut labels): (Vec<_>, Vec<_>) = sample.labels().partition(|(name, _)| *name == "le");
        labels.sort_unstable();
        let position = *positions.entry(labels.clone()).or_insert(histograms.len());
        if position == histograms.len() {
            histograms.push((labels, Histogram::default()));
        }
        let Some((_, histogram)) = histograms.get_mut(position) else { continue };
        match (sample.suffix, bound.first()) {
            ("_sum", None) => histogram.sum = sample.float(),
            ("_count", None) => histogram.count = sample.count(),
            ("_bucket", Some((_, bound))) => {
                histogram.classic.push((bound.parse().unwrap_or(f64::NAN), sample.count()));
            }
            _ => {}
        }
    }
    for (labels, mut histogram) in histograms {
        histogram.classic.sort_by(|a, b| a.0.total_cmp(&b.0));
        out.foreign_histogram(&series(labels.into_iter()), histogram.count, histogram.sum, &histogram.classic);
    }
}

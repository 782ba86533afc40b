//! The families of others, parsed from the OpenMetrics text that prometheus-client's encoder writes.
//!
//! That encoder writes whatever it is given: a family that was registered twice appears twice, one without
//! series appears as metadata alone, help texts are not escaped, and names are not checked. One bad line
//! costs a scraper the whole scrape. So only what every scraper accepts is passed on:
//!
//! - families with the same name and type are joined; a family with a name that is already taken is left out;
//! - invalid samples (an invalid name or label name, the same label twice, a value that is not a number) and
//!   repeated samples are left out;
//! - a family without samples is left out.

mod parse;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::registry::Registry;

use self::parse::{Items, Sample, unescaped};
use super::Format;
use super::family::{Metadata, Series, is_name};
use super::number::Number;
use super::page::{FamilyWriter, PageWriter};
use crate::metrics::catalogue::Kind;
use crate::metrics::instruments::le;
use crate::panics;

/// A family with all samples of its name.
struct Family<'a> {
    name: &'a str,
    kind: Kind,
    help: &'a str,
    unit: Option<&'a str>,
    samples: Vec<Sample<'a>>,
}

/// A registry of prometheus-client, and its name in the log.
#[derive(Debug)]
pub(crate) struct ForeignRegistry {
    name: String,
    registry: Registry,
    /// Whether encoding it failed the last time.
    is_failing: AtomicBool,
}

impl ForeignRegistry {
    pub(crate) fn new(name: String, registry: Registry) -> Self {
        Self { name, registry, is_failing: AtomicBool::new(false) }
    }

    /// Its families as text; `None` if it fails, which is logged when it begins and when it ends.
    pub(crate) fn encode(&self) -> Option<String> {
        let encoded = panics::caught(|| {
            let mut text = String::new();
            encode_registry(&mut text, &self.registry).map(|()| text)
        });
        let encoded = match encoded {
            Ok(encoded) => encoded.map_err(|_| "one of them cannot be encoded".to_owned()),
            Err(panic) => Err(panics::text(&*panic)),
        };
        let was_failing = self.is_failing.swap(encoded.is_err(), Ordering::Relaxed);
        match &encoded {
            Ok(_) if was_failing => tracing::info!("the metrics of `{}` are on the page again", self.name),
            Err(reason) if !was_failing => {
                tracing::error!("the metrics of `{}` are missing from the page: {reason}", self.name);
            }
            _ => {}
        }
        encoded.ok()
    }
}

/// Writes the families of `texts` with names that are not in `taken`.
pub(crate) fn write(texts: &[String], taken: &HashSet<String>, page: &mut PageWriter<'_>) {
    let mut taken_here = HashSet::new();
    for family in families(texts) {
        let metadata = Metadata::new(family.kind, family.name, family.unit, family.help);
        let names = metadata.names();
        if family.samples.is_empty() || names.iter().any(|name| taken.contains(name) || taken_here.contains(name)) {
            continue;
        }
        taken_here.extend(names);
        let format = page.format();
        let Some(mut out) = page.family(&metadata) else { continue };
        match format {
            Format::Protobuf => protobuf(&mut out, &family),
            Format::Text | Format::OpenMetrics | Format::OpenMetricsDraft => lines(&mut out, &family, format),
        }
    }
}

/// All families, each once, in the order of their first appearance.
fn families(texts: &[String]) -> Vec<Family<'_>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    let mut positions = HashMap::new();
    for text in texts {
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
    }
    for family in &mut families {
        family.leave_out_repeated();
    }
    // A family with an invalid name is left out together with its samples.
    families.retain(|family| is_name(family.name));
    families
}

impl Family<'_> {
    /// Two samples are the same if they have the same labels, in any order, and bounds that are the same number.
    fn leave_out_repeated(&mut self) {
        let mut seen = HashSet::with_capacity(self.samples.len());
        let bounded = self.kind == Kind::Histogram;
        self.samples.retain(|sample| seen.insert((sample.suffix, sorted(sample, bounded))));
    }
}

/// The labels in a fixed order, whatever the order in which they were written.
fn sorted<'a>(sample: &Sample<'a>, bounded: bool) -> Vec<(&'a str, Cow<'a, str>)> {
    let labels = sample.labels().map(|(name, value)| match value.parse() {
        Ok(bound) if bounded && name == "le" => (name, le(bound).into()),
        _ => (name, value.into()),
    });
    let mut labels: Vec<_> = labels.collect();
    labels.sort_unstable();
    labels
}

/// Writes the samples in one of the text formats.
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

/// The labels, with the bound of a bucket written like ours; prometheus-client writes it differently.
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

/// Writes the samples as messages.
fn protobuf(out: &mut FamilyWriter<'_, '_>, family: &Family<'_>) {
    if out.kind() == Kind::Histogram {
        return histograms(out, family);
    }
    for sample in &family.samples {
        out.number(&series(sample.labels()), Number::Float(sample.float()));
    }
}

/// The series with these labels; their values are still escaped.
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
    // By labels without `le`, in the order of their first appearance.
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

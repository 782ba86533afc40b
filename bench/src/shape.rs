//! The content of a registry, the same for every contender: families, label names and values, and numbers.

use peerscope::metrics::labels::{Label, MessageType};

use crate::exposition::{Line, samples};
use crate::library::{DURATION, DURATION_HELP, EVENTS, EVENTS_HELP, TYPE};
use crate::samples::{BUCKETS, Sample};
use crate::{Error, Result};

/// The two labels of the generated families. All values of a label have the same length, so that the lines of a page
/// are equally long.
pub(crate) const SHARD: &str = "shard";
pub(crate) const SHARDS: [&str; 10] =
    ["shard-0", "shard-1", "shard-2", "shard-3", "shard-4", "shard-5", "shard-6", "shard-7", "shard-8", "shard-9"];
pub(crate) const OUTCOME: &str = "outcome";
pub(crate) const OUTCOMES: [&str; 10] = [
    "answered", "rejected", "declined", "canceled", "deferred", "replaced", "repeated", "expanded", "finished",
    "returned",
];

/// Observations in each generated histogram.
const OBSERVED: usize = 100;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    /// With its upper bounds, without the infinite one.
    Histogram(Vec<f64>),
}

/// One family. Its strings are `'static`, as most libraries require.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Family {
    /// As on the page: a counter's name ends with `_total`.
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) kind: Kind,
    pub(crate) labels: Vec<&'static str>,
    /// The label values of each series.
    pub(crate) series: Vec<Vec<&'static str>>,
}

impl Family {
    /// The name, for libraries that append `_total` themselves.
    pub(crate) fn stem(&self) -> &'static str {
        self.name.strip_suffix("_total").unwrap_or(self.name)
    }

    /// The labels of each series as pairs, with its index in the family.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (usize, Vec<(&'static str, &'static str)>)> {
        let names = &self.labels;
        self.series.iter().map(|values| names.iter().copied().zip(values.iter().copied()).collect()).enumerate()
    }
}

/// The value of a counter or gauge: a number of one to six digits.
pub(crate) fn number(place: usize) -> u32 {
    (place as u32).wrapping_mul(7919) % 1_000_000
}

/// The observations of a histogram.
pub(crate) fn observations(table: &[Sample], place: usize) -> impl Iterator<Item = Sample> {
    table.iter().cycle().skip(place).step_by(7).take(OBSERVED).copied()
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Shape {
    pub(crate) families: Vec<Family>,
}

impl Shape {
    /// `counters` counters, 100 per family with two labels, and one histogram for every 20 counters, 10 per family with
    /// one label.
    pub(crate) fn generated(counters: usize) -> Self {
        let pairs: Vec<_> = SHARDS.iter().flat_map(|&shard| OUTCOMES.map(|outcome| vec![shard, outcome])).collect();
        let counters_of = (0..counters / pairs.len()).map(|number| Family {
            name: format!("bench_requests_{number:03}_total").leak(),
            help: format!("Requests of kind {number:03} that were done with").leak(),
            kind: Kind::Counter,
            labels: vec![SHARD, OUTCOME],
            series: pairs.clone(),
        });
        let histograms_of = (0..counters / 20 / SHARDS.len()).map(|number| Family {
            name: format!("bench_duration_{number:03}_seconds").leak(),
            help: format!("Time that requests of kind {number:03} took").leak(),
            kind: Kind::Histogram(BUCKETS.to_vec()),
            labels: vec![SHARD],
            series: SHARDS.map(|shard| vec![shard]).to_vec(),
        });
        Self { families: counters_of.chain(histograms_of).collect() }
    }

    /// The families of a page in the text format 0.0.4.
    pub(crate) fn of_page(page: &str) -> Result<Self> {
        let mut families: Vec<Family> = Vec::new();
        let mut help = "";
        for line in page.lines() {
            if let Some((_, text)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                help = text;
            } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                let kind = match kind {
                    "counter" => Kind::Counter,
                    "gauge" => Kind::Gauge,
                    "histogram" => Kind::Histogram(Vec::new()),
                    other => return Err(format!("{name} is of an unexpected kind: {other}").into()),
                };
                let (name, help) = (leak(name), leak(help));
                families.push(Family { name, help, kind, labels: Vec::new(), series: Vec::new() });
            }
        }
        for line in samples(page) {
            let line = line?;
            let family = families.iter_mut().find(|family| of(family, line.name));
            family.ok_or_else(|| Error::from(format!("{} has no TYPE", line.name)))?.take(&line);
        }
        Ok(Self { families })
    }

    /// Adds the families in which events are recorded.
    pub(crate) fn and_events(mut self) -> Self {
        let series: Vec<_> = MessageType::ALL.iter().map(|kind| vec![kind.as_str()]).collect();
        for (name, help, kind) in
            [(EVENTS, EVENTS_HELP, Kind::Counter), (DURATION, DURATION_HELP, Kind::Histogram(BUCKETS.to_vec()))]
        {
            self.families.push(Family { name, help, kind, labels: vec![TYPE], series: series.clone() });
        }
        self
    }

    /// The number of samples on its page.
    pub(crate) fn samples(&self) -> usize {
        let of = |family: &Family| match &family.kind {
            // The finite bounds, the infinite one, sum and count.
            Kind::Histogram(bounds) => family.series.len() * (bounds.len() + 3),
            Kind::Counter | Kind::Gauge => family.series.len(),
        };
        self.families.iter().map(of).sum()
    }
}

fn leak(text: &str) -> &'static str {
    text.to_owned().leak()
}

/// Whether a sample with this name belongs to the family.
fn of(family: &Family, sample: &str) -> bool {
    match &family.kind {
        Kind::Histogram(_) => {
            sample.strip_prefix(family.name).is_some_and(|rest| matches!(rest, "_bucket" | "_sum" | "_count"))
        }
        Kind::Counter | Kind::Gauge => sample == family.name,
    }
}

impl Family {
    /// Adds the series of a sample, and a histogram's bound.
    fn take(&mut self, line: &Line<'_>) {
        if let (Kind::Histogram(bounds), Some(Ok(bound))) = (&mut self.kind, line.label("le").map(str::parse::<f64>))
            && bound.is_finite()
            && !bounds.contains(&bound)
        {
            bounds.push(bound);
        }
        let labels = || line.labels.iter().filter(|(name, _)| *name != "le");
        if self.labels.is_empty() {
            self.labels = labels().map(|(name, _)| leak(name)).collect();
        }
        let values: Vec<_> = labels().map(|(_, value)| leak(value)).collect();
        if !self.series.contains(&values) {
            self.series.push(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_shape_has_the_requested_number_of_series() {
        let shape = Shape::generated(1000);
        let series = |histogram: bool| {
            let of = shape.families.iter().filter(|family| matches!(family.kind, Kind::Histogram(_)) == histogram);
            of.map(|family| family.series.len()).sum::<usize>()
        };
        assert_eq!((series(false), series(true), shape.samples()), (1000, 50, 1000 + 50 * 19));
        assert!(SHARDS.iter().all(|value| value.len() == SHARDS[0].len()));
        assert!(OUTCOMES.iter().all(|value| value.len() == OUTCOMES[0].len()));
    }

    #[test]
    fn families_are_read_from_a_page() {
        let page = "# HELP a_total Help of a\n# TYPE a_total counter\na_total{x=\"1\"} 3\na_total{x=\"2\"} 4\n\
                    # HELP h Help\n# TYPE h histogram\nh_bucket{le=\"0.5\"} 1\nh_bucket{le=\"+Inf\"} 1\nh_sum 0.1\nh_count 1\n";
        let shape = Shape::of_page(page).unwrap();
        assert_eq!(shape.families[0].series, [["1"], ["2"]]);
        assert_eq!(shape.families[1].kind, Kind::Histogram(vec![0.5]));
        assert_eq!(shape.samples(), 2 + 4);
    }
}

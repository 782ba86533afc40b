//! Collects the figures of all rounds and prints their medians as a table or as JSON lines.

use std::io::Write;

use serde::Serialize;

use crate::Result;
use crate::measure::median;

/// The contender that ratios compare with the others.
pub(crate) const OURS: &str = "peerscope";

/// The unit of a figure, which also tells whether more or less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    PerSecond,
    Microseconds,
    Milliseconds,
    /// Per operation.
    Nanoseconds,
    NanosecondsPerByte,
    Bytes,
    /// Per operation.
    Instructions,
    /// How much more time the build with metrics takes than the one without.
    PercentOfTime,
    /// The same in instructions.
    PercentOfInstructions,
    /// Of processor time.
    PercentOfACore,
    KiB,
    MiB,
    Count,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::PerSecond => "1/s",
            Self::Microseconds => "us",
            Self::Milliseconds => "ms",
            Self::Nanoseconds => "ns",
            Self::NanosecondsPerByte => "ns/byte",
            Self::Bytes => "bytes",
            Self::Instructions => "instructions",
            Self::PercentOfTime => "% of time",
            Self::PercentOfInstructions => "% of instructions",
            Self::PercentOfACore => "% of a core",
            Self::KiB => "KiB",
            Self::MiB => "MiB",
            Self::Count => "",
        }
    }

    /// Above 1 always means that Peerscope is ahead.
    fn ratio(self, ours: f64, theirs: f64) -> f64 {
        match self {
            Self::PerSecond => ours / theirs,
            _ => theirs / ours,
        }
    }
}

struct Figure {
    case: String,
    who: String,
    unit: Unit,
    values: Vec<f64>,
}

/// The figures of one benchmark.
pub(crate) struct Report {
    bench: &'static str,
    figures: Vec<Figure>,
}

#[derive(Serialize)]
struct Row<'a> {
    bench: &'a str,
    case: &'a str,
    who: &'a str,
    median: f64,
    unit: &'a str,
    /// `None` without a contender to compare with.
    ratio: Option<f64>,
}

impl Report {
    pub(crate) fn new(bench: &'static str) -> Self {
        Self { bench, figures: Vec::new() }
    }

    /// Adds one round's value. Cases are printed in the order in which they first appear.
    pub(crate) fn add(&mut self, case: &str, who: &str, unit: Unit, value: f64) {
        let same = |figure: &&mut Figure| figure.case == case && figure.who == who && figure.unit == unit;
        match self.figures.iter_mut().find(same) {
            Some(figure) => figure.values.push(value),
            None => self.figures.push(Figure { case: case.into(), who: who.into(), unit, values: vec![value] }),
        }
    }

    pub(crate) fn print(&self, json: bool) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if !json {
            let (bench, case, who, median, unit, ratio) = ("bench", "case", "who", "median", "unit", "ratio");
            writeln!(out, "{bench:<9} {case:<40} {who:<26} {median:>12} {unit:<17} {ratio:>7}")?;
        }
        for row in self.rows() {
            if json {
                serde_json::to_writer(&mut out, &row)?;
                writeln!(out)?;
            } else {
                let ratio = row.ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
                writeln!(
                    out,
                    "{:<9} {:<40} {:<26} {:>12.2} {:<17} {ratio:>7}",
                    row.bench, row.case, row.who, row.median, row.unit
                )?;
            }
        }
        Ok(())
    }

    fn rows(&self) -> Vec<Row<'_>> {
        let mut cases: Vec<(&str, Unit)> = Vec::new();
        for figure in &self.figures {
            if !cases.contains(&(&figure.case, figure.unit)) {
                cases.push((&figure.case, figure.unit));
            }
        }
        let mut rows = Vec::with_capacity(self.figures.len());
        for (case, unit) in cases {
            let of_case = || self.figures.iter().filter(|figure| figure.case == case && figure.unit == unit);
            let ours = of_case().find(|figure| figure.who == OURS).map(|figure| median(&figure.values));
            let ours = ours.filter(|_| of_case().count() > 1);
            for figure in of_case() {
                let theirs = median(&figure.values);
                rows.push(Row {
                    bench: self.bench,
                    case,
                    who: &figure.who,
                    median: theirs,
                    unit: unit.name(),
                    ratio: ours.map(|ours| unit.ratio(ours, theirs)),
                });
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(report: &Report) -> Vec<String> {
        report.rows().iter().map(|row| serde_json::to_string(row).unwrap()).collect()
    }

    #[test]
    fn a_ratio_above_one_means_ahead_for_every_unit() {
        let mut report = Report::new("messages");
        for value in [90.0, 100.0, 300.0] {
            report.add("ping", OURS, Unit::PerSecond, value);
        }
        report.add("ping", "nats", Unit::PerSecond, 50.0);
        report.add("ping", OURS, Unit::Microseconds, 10.0);
        report.add("ping", "nats", Unit::Microseconds, 20.0);
        assert_eq!(
            json(&report),
            [
                r#"{"bench":"messages","case":"ping","who":"peerscope","median":100.0,"unit":"1/s","ratio":1.0}"#,
                r#"{"bench":"messages","case":"ping","who":"nats","median":50.0,"unit":"1/s","ratio":2.0}"#,
                r#"{"bench":"messages","case":"ping","who":"peerscope","median":10.0,"unit":"us","ratio":1.0}"#,
                r#"{"bench":"messages","case":"ping","who":"nats","median":20.0,"unit":"us","ratio":2.0}"#,
            ]
        );
    }

    #[test]
    fn a_single_contender_has_no_ratio() {
        let mut report = Report::new("footprint");
        report.add("size", OURS, Unit::MiB, 17.5);
        let line = r#"{"bench":"footprint","case":"size","who":"peerscope","median":17.5,"unit":"MiB","ratio":null}"#;
        assert_eq!(json(&report), [line]);
    }
}

//! Parses prometheus-client's text. Nothing is copied, and malformed parts are skipped.

use std::borrow::Cow;

use crate::metrics::catalogue::Kind;
use crate::metrics::exposition::is_label_name;

/// The rest of the text, read family by family.
pub(super) struct Items<'a>(&'a str);

/// The metadata before the samples of a family.
pub(super) struct Head<'a> {
    pub(super) name: &'a str,
    pub(super) kind: Kind,
    pub(super) help: &'a str,
    pub(super) unit: Option<&'a str>,
}

/// One sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample<'a> {
    /// The part of its name after the family's name.
    pub(super) suffix: &'a str,
    /// The text between the braces.
    pub(super) labels: &'a str,
    pub(super) value: &'a str,
    /// From its opening brace on.
    pub(super) exemplar: Option<&'a str>,
}

impl<'a> Items<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self(text)
    }

    fn line(&mut self) -> &'a str {
        let (line, rest) = self.0.split_once('\n').unwrap_or((self.0, ""));
        self.0 = rest;
        line
    }

    /// The next family. Lines before it that belong to no family are skipped.
    pub(super) fn next(&mut self) -> Option<Head<'a>> {
        while !self.0.is_empty() {
            if let Some(head) = self.head() {
                return Some(head);
            }
            self.line();
        }
        None
    }

    /// prometheus-client does not escape help texts, not even line breaks, so a help text ends where the same family's
    /// type begins, not at the end of its line.
    fn head(&mut self) -> Option<Head<'a>> {
        let (name, rest) = self.0.strip_prefix("# HELP ")?.split_once(' ')?;
        let mut searched = 0;
        let (help, after) = loop {
            let end = searched + rest.get(searched..)?.find("\n# TYPE ")?;
            let (help, after) = (rest.get(..end)?, rest.get(end + "\n# TYPE ".len()..)?);
            match after.strip_prefix(name).and_then(|after| after.strip_prefix(' ')) {
                Some(after) => break (help, after),
                None => searched = end + 1,
            }
        };
        self.0 = after;
        let kind = match self.line() {
            "counter" => Kind::Counter,
            "gauge" => Kind::Gauge,
            "histogram" => Kind::Histogram,
            "info" => Kind::Info,
            _ => Kind::Unknown,
        };
        let unit = self.0.strip_prefix("# UNIT ").map(|_| self.line()).and_then(|line| line.rsplit(' ').next());
        // OpenMetrics wants the unit at the end of the name.
        let unit = unit.filter(|unit| name.strip_suffix(unit).is_some_and(|name| name.ends_with('_')));
        Some(Head { name, kind, help, unit })
    }

    /// The valid samples up to the next family.
    pub(super) fn samples(&mut self, family: &'a str, kind: Kind) -> Vec<Sample<'a>> {
        let mut samples = Vec::new();
        while !self.0.is_empty() && !self.0.starts_with('#') {
            samples.extend(Sample::parse(self.line(), family).filter(|sample| sample.is_of(kind)));
        }
        samples
    }
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str, family: &str) -> Option<Self> {
        let rest = line.strip_prefix(family)?;
        let (suffix, rest) = rest.split_at(rest.find(['{', ' '])?);
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => {
                let end = labels_end(rest)?;
                (rest.get(..end)?, rest.get(end + 1..)?)
            }
            None => ("", rest),
        };
        let rest = rest.strip_prefix(' ')?;
        let (value, exemplar) = match rest.split_once(" # ") {
            Some((value, exemplar)) => (value, Some(exemplar)),
            None => (rest, None),
        };
        let sample = Self { suffix, labels, value, exemplar };
        (value.parse::<f64>().is_ok() && sample.labels_are_good()).then_some(sample)
    }

    /// Whether a family of this kind has such samples. None of our formats has `_created`.
    fn is_of(&self, kind: Kind) -> bool {
        match kind {
            Kind::Counter => self.suffix == "_total",
            Kind::Info => self.suffix == "_info",
            Kind::Gauge | Kind::Unknown => self.suffix.is_empty(),
            Kind::Histogram => ["_bucket", "_sum", "_count"].contains(&self.suffix),
        }
    }

    /// Whether every label has a valid name, and no two have the same one.
    fn labels_are_good(&self) -> bool {
        let mut names = self.labels();
        while let Some((name, _)) = names.next() {
            if !is_label_name(name) || names.clone().any(|(other, _)| other == name) {
                return false;
            }
        }
        names.rest.is_empty()
    }

    /// Names and values, which are still escaped.
    pub(super) fn labels(&self) -> LabelPairs<'a> {
        LabelPairs { rest: self.labels }
    }

    pub(super) fn float(&self) -> f64 {
        self.value.parse().unwrap_or(f64::NAN)
    }

    pub(super) fn count(&self) -> u64 {
        self.value.parse().unwrap_or(0)
    }
}

#[derive(Clone)]
pub(super) struct LabelPairs<'a> {
    /// Empty at the end; not empty if the text is not a valid list of labels.
    rest: &'a str,
}

impl<'a> Iterator for LabelPairs<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<(&'a str, &'a str)> {
        let (name, rest) = self.rest.split_once("=\"")?;
        let end = value_end(rest)?;
        let (value, rest) = (rest.get(..end)?, rest.get(end + 1..)?);
        self.rest = match rest.strip_prefix(',') {
            Some("") => return None,
            Some(rest) => rest,
            None if rest.is_empty() => rest,
            None => return None,
        };
        Some((name, value))
    }
}

/// The position of the brace that ends a label set.
fn labels_end(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    text.bytes().position(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return true,
            _ => {}
        }
        false
    })
}

/// The position of the quote that ends a label's value.
fn value_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| match byte {
        _ if escaped => {
            escaped = false;
            false
        }
        b'\\' => {
            escaped = true;
            false
        }
        byte => byte == b'"',
    })
}

/// `text` without its escapes.
pub(super) fn unescaped(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return text.into();
    }
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('n') => out.push('\n'),
                Some(other) => out.push(other),
                None => {}
            },
            other => out.push(other),
        }
    }
    out.into()
}

//! Lines of both text formats: framing, UTF-8, and the lines that are no samples.
//!
//! Lines that lie whole in a piece are looked at where they are. Only the one that is cut is copied.
//!
//! Sources: the exposition formats page of Prometheus's documentation, OpenMetrics 1.0.0, and, where they differ
//! from them, the lexers and parsers of Prometheus 3 (`model/textparse`).

use memchr::{memchr, memrchr};

use super::families::{Families, Kind, Metadata, Name};
use super::invalid::{Excerpt, Invalid, Place, Problem};
use super::sample::{self, Shape};
use super::{MAX_LINE, keep};

/// A page in one of the text formats.
#[derive(Debug)]
pub(super) struct Text {
    openmetrics: bool,
    families: Families,
    /// How many lines were looked at, the one that is looked at now among them.
    line: u64,
    /// What has come of the line that is not whole yet.
    partial: Vec<u8>,
    /// `# EOF` has come.
    ended: bool,
    shape: Shape,
}

impl Text {
    pub(super) fn new(openmetrics: bool) -> Self {
        let (families, shape) = (Families::new(), Shape::default());
        Self { openmetrics, families, line: 0, partial: Vec::new(), ended: false, shape }
    }

    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Invalid> {
        if !self.partial.is_empty() {
            let Some(end) = memchr(b'\n', bytes) else { return self.keep(bytes) };
            let (head, rest) = bytes.split_at(end);
            self.keep(head)?;
            // It is not kept for the next one: most connections wait, and one long line is not to cost until the end.
            let mut line = std::mem::take(&mut self.partial);
            keep(&mut line, b"\n", MAX_LINE + 1);
            self.block(&line)?;
            bytes = rest.get(1..).unwrap_or_default();
        }
        let (lines, rest) = bytes.split_at(memrchr(b'\n', bytes).map_or(0, |end| end + 1));
        self.block(lines)?;
        self.keep(rest)
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.partial.capacity() + self.families.held()
    }

    pub(super) fn finish(mut self) -> Result<(), Invalid> {
        self.line += 1;
        // OpenMetrics asks for no line feed behind its last line, which says by itself that the page is whole.
        if self.openmetrics && !self.ended && self.partial == b"# EOF" {
            return Ok(());
        }
        if !self.partial.is_empty() {
            return Err(self.invalid(Problem::LineCutOff));
        }
        if self.openmetrics && !self.ended {
            return Err(self.invalid(Problem::NoEof));
        }
        Ok(())
    }

    /// Keeps the start of a line until the rest of it comes.
    fn keep(&mut self, bytes: &[u8]) -> Result<(), Invalid> {
        if self.partial.len() + bytes.len() > MAX_LINE {
            self.line += 1;
            return Err(self.invalid(Problem::LineTooLong));
        }
        keep(&mut self.partial, bytes, MAX_LINE + 1);
        Ok(())
    }

    /// Whole lines. Those before bytes that are not UTF-8 are looked at first: the first bad line is the one to name.
    fn block(&mut self, block: &[u8]) -> Result<(), Invalid> {
        let Err(error) = std::str::from_utf8(block) else { return self.lines(block) };
        let valid = block.get(..error.valid_up_to()).unwrap_or_default();
        let (lines, _) = block.split_at(memrchr(b'\n', valid).map_or(0, |end| end + 1));
        self.lines(lines)?;
        self.line += 1;
        let bad = block.get(lines.len()..).unwrap_or_default();
        Err(self.invalid(if is_too_long(bad) { Problem::LineTooLong } else { Problem::NotUtf8 }))
    }

    /// Whole lines of UTF-8.
    fn lines(&mut self, block: &[u8]) -> Result<(), Invalid> {
        let mut rest = block;
        let mut before = block;
        self.shape.forget();
        while !rest.is_empty() {
            self.line += 1;
            match self.next(before, rest) {
                Ok(length) if length <= MAX_LINE => {
                    before = rest;
                    rest = rest.get(length + 1..).unwrap_or_default();
                }
                // Whatever else is wrong with a long line: cut into pieces it would have been refused for its length.
                Err(problem) if !is_too_long(rest) => return Err(self.invalid(problem)),
                Ok(_) | Err(_) => return Err(self.invalid(Problem::LineTooLong)),
            }
        }
        Ok(())
    }

    /// The length of the line that `rest` starts with, when nothing is wrong with it. `before` starts with the line
    /// before it, of which `shape` knows something only when it was a sample.
    fn next(&mut self, before: &[u8], rest: &[u8]) -> Result<usize, Problem> {
        if self.openmetrics {
            return match rest.first() {
                _ if self.ended => Err(Problem::BehindEof),
                Some(b'#') => self.openmetrics_comment(line(rest)),
                Some(b'\n') => Err(Problem::EmptyLine),
                _ => sample::check::<true>(before, rest, 0, &mut self.shape, &mut self.families),
            };
        }
        let start = blanks(rest);
        match rest.get(start) {
            Some(b'#') => {
                self.shape.forget();
                let line = line(rest);
                self.classic_comment(line, line.get(start..).unwrap_or_default())
            }
            Some(b'\n') => {
                self.shape.forget();
                Ok(start)
            }
            _ => sample::check::<false>(before, rest, start, &mut self.shape, &mut self.families),
        }
    }

    fn classic_comment(&mut self, line: &[u8], comment: &[u8]) -> Result<usize, Problem> {
        let text = comment.get(1..).unwrap_or_default();
        let word = trimmed(text);
        // Without a blank behind `#`, HELP and TYPE, too, are words of a comment.
        let behind = |keyword: &[u8]| {
            let rest = word.strip_prefix(keyword)?;
            (word.len() < text.len() && blanks(rest) > 0).then(|| trimmed(rest))
        };
        if let Some(rest) = behind(b"HELP") {
            let (name, rest) = self.name(rest)?;
            if !rest.is_empty() && blanks(rest) == 0 {
                return Err(Problem::Name(Excerpt::word(trimmed(line))));
            }
            self.metadata(name, Metadata::Help)?;
        } else if let Some(rest) = behind(b"TYPE") {
            let (name, rest) = self.name(rest)?;
            // Prometheus takes one blank away, and all of the rest for the type.
            let kind = match rest.get(1..).ok_or(Problem::NoText)? {
                b"counter" => Kind::Counter,
                b"gauge" | b"untyped" => Kind::Gauge,
                b"histogram" => Kind::Histogram,
                b"summary" => Kind::Summary,
                other => return Err(Problem::Type(Excerpt::new(other))),
            };
            self.metadata(name, Metadata::Type(kind))?;
        } else if memchr(0, comment).is_some() {
            return Err(Problem::Nul);
        }
        Ok(line.len())
    }

    fn openmetrics_comment(&mut self, line: &[u8]) -> Result<usize, Problem> {
        let text = |rest: &'_ [u8]| rest.first() == Some(&b' ');
        if let Some(rest) = line.strip_prefix(b"# HELP ") {
            let (name, rest) = self.name(rest)?;
            if !text(rest) {
                return Err(Problem::NoText);
            }
            self.metadata(name, Metadata::Help)?;
        } else if let Some(rest) = line.strip_prefix(b"# TYPE ") {
            let (name, rest) = self.name(rest)?;
            let kind = match rest.strip_prefix(b" ").ok_or(Problem::NoText)? {
                b"counter" => Kind::Counter,
                b"gauge" | b"stateset" | b"unknown" => Kind::Gauge,
                b"histogram" => Kind::Histogram,
                b"gaugehistogram" => Kind::GaugeHistogram,
                b"summary" => Kind::Summary,
                b"info" => Kind::Info,
                other => return Err(Problem::Type(Excerpt::new(other))),
            };
            self.metadata(name, Metadata::Type(kind))?;
        } else if let Some(rest) = line.strip_prefix(b"# UNIT ") {
            let (name, rest) = self.name(rest)?;
            let unit = rest.strip_prefix(b" ").ok_or(Problem::NoText)?;
            if !ends_with_unit(name.text, unit) {
                return Err(Problem::Unit(Excerpt::new(unit)));
            }
            self.metadata(name, Metadata::Unit)?;
        } else if line == b"# EOF" {
            self.ended = true;
        } else {
            return Err(Problem::Comment);
        }
        Ok(line.len())
    }

    /// The name that a line about a family has, and what stands behind it.
    fn name<'a>(&self, text: &'a [u8]) -> Result<(Name<'a>, &'a [u8]), Problem> {
        let bad = || Problem::Name(Excerpt::word(text));
        if text.first() == Some(&b'"') {
            let end = sample::quoted_name(text, 1)?;
            let name = text.get(1..end).filter(|name| !name.is_empty()).ok_or_else(bad)?;
            return Ok((Name { text: name, quoted: true }, text.get(end + 1..).unwrap_or_default()));
        }
        let (name, rest) = text.split_at(sample::metric_name(text, &self.families));
        if name.is_empty() || !matches!(rest.first(), None | Some(b' ' | b'\t')) {
            return Err(bad());
        }
        Ok((Name { text: name, quoted: false }, rest))
    }

    /// A sample behind such a line starts anew: it may belong to another family than one of its name before it.
    fn metadata(&mut self, name: Name<'_>, metadata: Metadata) -> Result<(), Problem> {
        self.shape.forget();
        self.families.metadata(name, metadata, !self.openmetrics)
    }

    fn invalid(&self, problem: Problem) -> Invalid {
        Invalid { place: Place::Line(self.line), problem }
    }
}

/// Whether the unit is empty, or stands at the end of the name behind an underscore.
pub(super) fn ends_with_unit(name: &[u8], unit: &[u8]) -> bool {
    unit.is_empty() || name.strip_suffix(unit).is_some_and(|name| name.ends_with(b"_"))
}

/// The line that stands first, without its end.
fn line(rest: &[u8]) -> &[u8] {
    memchr(b'\n', rest).and_then(|end| rest.get(..end)).unwrap_or(rest)
}

fn is_too_long(rest: &[u8]) -> bool {
    line(rest).len() > MAX_LINE
}

/// How many blanks and tabs stand first.
fn blanks(text: &[u8]) -> usize {
    text.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count()
}

fn trimmed(text: &[u8]) -> &[u8] {
    text.get(blanks(text)..).unwrap_or_default()
}

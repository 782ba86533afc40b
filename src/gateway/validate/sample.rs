//! One sample: `name{label="value",...} value timestamp # {exemplar's labels} value timestamp`.
//!
//! Most samples start as the one before them does: the same name, the same first labels. What is the same to the byte
//! was looked at already, so a line is read from its first label that differs.

use super::MAX_LABELS;
use super::families::{Families, Name};
use super::invalid::{Excerpt, Problem};
use super::labels::{Label, distinct};
use super::number;

/// What is known of the sample before, in the positions of its line.
#[derive(Debug, Default)]
pub(super) struct Shape {
    /// Behind the name and the brace or blank behind it; 0 when nothing is known.
    named: usize,
    /// It has a brace behind its name.
    braces: bool,
    labels: Vec<Label>,
}

impl Shape {
    pub(super) fn forget(&mut self) {
        self.named = 0;
        self.labels.clear();
    }

    /// The last place that can be read on from.
    fn last(&self) -> usize {
        self.labels.last().map_or(self.named, |label| label.value)
    }
}

/// The length of the line that `rest` starts with, when it is a sample. The sample starts at `start`, and what
/// `shape` knows is of the line that `before` starts with.
pub(super) fn check<const OPENMETRICS: bool>(
    before: &[u8],
    rest: &[u8],
    start: usize,
    shape: &mut Shape,
    families: &mut Families,
) -> Result<usize, Problem> {
    let (mut at, half) = resume(before, rest, shape);
    // The names that are as before differ from each other as before.
    let known = shape.labels.len() + usize::from(half.is_some());
    let mut name = None;
    if at == 0 {
        let end = start + metric_name(rest.get(start..).unwrap_or_default(), families);
        let mut next = end;
        if !OPENMETRICS {
            next += blanks(rest, next);
        }
        shape.braces = rest.get(next) == Some(&b'{');
        if end > start {
            families.sample(Name { text: named::<OPENMETRICS>(rest, start, end)?, quoted: false })?;
            name = Some((start, end));
            at = if shape.braces { next + 1 } else { end + 1 };
            shape.named = at;
        } else if shape.braces {
            at = next + 1;
        } else {
            return Err(Problem::Name(Excerpt::word(rest.get(start..).unwrap_or_default())));
        }
    }
    // Behind a name without braces, `at` is behind the blank.
    let mut separated = true;
    if shape.braces {
        let in_front = name.is_some() || shape.named > 0;
        let inside;
        (at, inside) = braces::<OPENMETRICS>(rest, at, &mut shape.labels, 0, half)?;
        distinct(rest, &mut shape.labels, known)?;
        match inside {
            Some(_) if in_front => return Err(Problem::TwoNames),
            Some((start, end)) => {
                families.sample(Name { text: rest.get(start..end).unwrap_or_default(), quoted: true })?;
                // Not worth remembering: such names are rare.
                shape.forget();
            }
            None if !in_front => return Err(Problem::NoName),
            None => {}
        }
        separated = rest.get(at) == Some(&b' ');
        at += usize::from(OPENMETRICS && separated);
    }
    if OPENMETRICS && !separated {
        return Err(Problem::Value(Excerpt::word(rest.get(at..).unwrap_or_default())));
    }
    let end = if OPENMETRICS { openmetrics_end(rest, at, shape) } else { classic_end(rest, at) };
    end.inspect_err(|_| shape.forget())
}

/// Where to read on: behind what is as in the line before, which may be the first half of a label. 0 when not even the
/// name is.
fn resume(before: &[u8], rest: &[u8], shape: &mut Shape) -> (usize, Option<Label>) {
    let same = if shape.named == 0 { 0 } else { same(before.get(..shape.last()).unwrap_or_default(), rest) };
    // In the classic format a brace may stand behind blanks, which were all that was behind the other name.
    let brace = || !shape.braces && rest.get(shape.named + blanks(rest, shape.named)) == Some(&b'{');
    if same < shape.named || same == 0 || brace() {
        shape.forget();
        return (0, None);
    }
    let known = shape.labels.iter().take_while(|label| label.next <= same).count();
    let half = shape.labels.get(known).copied().filter(|label| label.value <= same);
    shape.labels.truncate(known);
    (shape.labels.last().map_or(shape.named, |label| label.next), half)
}

/// How many bytes are the same from the start on.
fn same(a: &[u8], b: &[u8]) -> usize {
    let mut length = 0;
    let (a_words, b_words) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0);
    for (a, b) in a_words.iter().zip(b_words) {
        let differ = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
        if differ != 0 {
            return length + differ.trailing_zeros() as usize / 8;
        }
        length += 8;
    }
    let (a, b) = (a.get(length..).unwrap_or_default(), b.get(length..).unwrap_or_default());
    length + a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The name between these positions, when what follows it may follow a name.
fn named<const OPENMETRICS: bool>(rest: &[u8], start: usize, end: usize) -> Result<&[u8], Problem> {
    let ends = match rest.get(end) {
        Some(b'{' | b' ') => true,
        Some(b'\t') => !OPENMETRICS,
        Some(b'\n') => return Err(Problem::Value(Excerpt::new(b""))),
        _ => false,
    };
    let name = rest.get(start..end).filter(|_| ends);
    name.ok_or_else(|| Problem::Name(Excerpt::word(rest.get(start..).unwrap_or_default())))
}

/// What stands at a place where a label may start.
enum Part {
    /// A label, up to and with the quote before its value.
    Label(Label),
    /// The name of the metric, between these positions.
    Name(usize, usize),
    /// The closing brace, which is before this position.
    End(usize),
}

/// The labels from `at`, behind their brace or one of their commas, up to and with the closing brace; when there is a
/// `half` one, from its value on. Gives where that is, and the positions of a metric's name among them. Those from
/// `first` on are the labels of this set.
fn braces<const OPENMETRICS: bool>(
    rest: &[u8],
    mut at: usize,
    labels: &mut Vec<Label>,
    first: usize,
    mut half: Option<Label>,
) -> Result<(usize, Option<(usize, usize)>), Problem> {
    let mut name = None;
    let mut comma = labels.len() > first;
    loop {
        let part = match half.take() {
            Some(label) => Part::Label(label),
            None => part::<OPENMETRICS>(rest, at)?,
        };
        let is_label = matches!(part, Part::Label(_));
        at = match part {
            Part::End(_) if comma && OPENMETRICS => return Err(Problem::TrailingComma),
            Part::End(at) => return Ok((at, name)),
            Part::Name(start, end) if name.replace((start, end)).is_none() => end + 1,
            Part::Name(..) => return Err(Problem::TwoNames),
            Part::Label(_) if labels.len() - first >= MAX_LABELS => return Err(Problem::TooManyLabels),
            Part::Label(label) => {
                labels.push(Label { next: usize::MAX, ..label });
                closing_quote(rest, label.value)? + 1
            }
        };
        if !OPENMETRICS {
            at += blanks(rest, at);
        }
        match rest.get(at) {
            Some(b',') => at += 1,
            Some(b'}') => return Ok((at + 1, name)),
            _ => return Err(Problem::LabelEnd(Excerpt::word(rest.get(at..).unwrap_or_default()))),
        }
        comma = true;
        if let Some(label) = labels.last_mut().filter(|_| is_label) {
            label.next = at;
        }
    }
}

fn part<const OPENMETRICS: bool>(rest: &[u8], mut at: usize) -> Result<Part, Problem> {
    let word = |at: usize| Excerpt::word(rest.get(at..).unwrap_or_default());
    let blanks = |at: usize| if OPENMETRICS { 0 } else { blanks(rest, at) };
    at += blanks(at);
    let (start, end, quoted) = match rest.get(at) {
        Some(b'}') => return Ok(Part::End(at + 1)),
        Some(b'"') => (at + 1, quoted_name(rest, at + 1)?, true),
        _ => (at, at + label_name(rest.get(at..).unwrap_or_default()), false),
    };
    if start == end {
        return Err(if quoted { Problem::Name(word(at)) } else { Problem::Label(word(at)) });
    }
    at = end + usize::from(quoted);
    at += blanks(at);
    match rest.get(at) {
        Some(b'=') if rest.get(start..end) == Some(b"__name__") => return Err(Problem::NameLabel),
        Some(b'=') => {}
        Some(b',' | b'}') if quoted => return Ok(Part::Name(start, end)),
        // `a-b="c"`: with no blank in between it is the name that is wrong.
        Some(next) if !quoted && at == end && !b" \t\n\",}".contains(next) => return Err(Problem::Label(word(start))),
        _ => return Err(Problem::NoLabelValue(word(at))),
    }
    at += 1;
    at += blanks(at);
    if rest.get(at) != Some(&b'"') {
        return Err(Problem::NoLabelValue(word(at)));
    }
    Ok(Part::Label(Label { start, end, value: at + 1, next: usize::MAX }))
}

/// A value from `at` on and perhaps a timestamp in milliseconds, with any blanks. Gives the line's length.
fn classic_end(rest: &[u8], mut at: usize) -> Result<usize, Problem> {
    let word = |at: usize| Excerpt::word(rest.get(at..).unwrap_or_default());
    at += blanks(rest, at);
    at += number::float(rest.get(at..).unwrap_or_default()).ok_or_else(|| Problem::Value(word(at)))?;
    at += blanks(rest, at);
    if rest.get(at) == Some(&b'\n') {
        return Ok(at);
    }
    at += number::integer(rest.get(at..).unwrap_or_default()).ok_or_else(|| Problem::Timestamp(word(at)))?;
    at += blanks(rest, at);
    if rest.get(at) == Some(&b'\n') { Ok(at) } else { Err(Problem::Rest(word(at))) }
}

/// A value from `at` on, perhaps a timestamp in seconds, perhaps an exemplar, each behind one blank.
fn openmetrics_end(rest: &[u8], at: usize, shape: &mut Shape) -> Result<usize, Problem> {
    let at = value_and_timestamp(rest, at)?;
    let Some(exemplar) = rest.get(at..).and_then(|rest| rest.strip_prefix(b" # {")) else { return end(rest, at) };
    let first = shape.labels.len();
    let start = rest.len() - exemplar.len();
    let (at, name) = braces::<true>(rest, start, &mut shape.labels, first, None)?;
    // In the values of samples a NUL is good, in those of exemplars it is not.
    if rest.get(start..at).is_some_and(|exemplar| exemplar.contains(&0)) {
        return Err(Problem::Nul);
    }
    distinct(rest, shape.labels.get_mut(first..).unwrap_or_default(), 0)?;
    shape.labels.truncate(first);
    if name.is_some() {
        return Err(Problem::TwoNames);
    }
    let word = || Excerpt::word(rest.get(at..).unwrap_or_default());
    if rest.get(at) != Some(&b' ') {
        return Err(Problem::Value(word()));
    }
    end(rest, value_and_timestamp(rest, at + 1)?)
}

fn value_and_timestamp(rest: &[u8], mut at: usize) -> Result<usize, Problem> {
    let word = |at: usize| Excerpt::word(rest.get(at..).unwrap_or_default());
    at += number::float(rest.get(at..).unwrap_or_default()).ok_or_else(|| Problem::Value(word(at)))?;
    if rest.get(at) == Some(&b' ') && rest.get(at + 1) != Some(&b'#') {
        at += 1;
        at += number::finite(rest.get(at..).unwrap_or_default()).ok_or_else(|| Problem::Timestamp(word(at)))?;
    }
    Ok(at)
}

fn end(rest: &[u8], at: usize) -> Result<usize, Problem> {
    if rest.get(at) == Some(&b'\n') {
        return Ok(at);
    }
    let rest = rest.get(at..).unwrap_or_default();
    Err(Problem::Rest(Excerpt::word(rest.strip_prefix(b" ").unwrap_or(rest))))
}

/// How many blanks and tabs stand from `at` on.
fn blanks(rest: &[u8], at: usize) -> usize {
    let rest = rest.get(at..).unwrap_or_default();
    rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count()
}

/// The position of the quote that closes the name which starts at `at`. A NUL is good in values alone: in a name
/// Prometheus stops at it.
pub(super) fn quoted_name(rest: &[u8], at: usize) -> Result<usize, Problem> {
    let end = closing_quote(rest, at)?;
    let name = rest.get(at..end).unwrap_or_default();
    if name.contains(&0) { Err(Problem::Name(Excerpt::new(name))) } else { Ok(end) }
}

/// The position of the quote that closes the text which starts at `at`.
fn closing_quote(rest: &[u8], mut at: usize) -> Result<usize, Problem> {
    loop {
        at += plain(rest.get(at..).unwrap_or_default());
        match (rest.get(at), rest.get(at + 1)) {
            (Some(b'"'), _) => return Ok(at),
            (Some(b'\\'), Some(b'\\' | b'"' | b'n')) => at += 2,
            (Some(b'\\'), Some(next)) if *next != b'\n' => {
                return Err(Problem::Escape(Excerpt::new(character(rest, at))));
            }
            _ => return Err(Problem::Unquoted),
        }
    }
}

/// The backslash at `at` and the character behind it, which may have several bytes.
fn character(rest: &[u8], at: usize) -> &[u8] {
    let more = rest.get(at + 2..).unwrap_or_default().iter().take_while(|byte| **byte & 0xc0 == 0x80).count();
    rest.get(at..at + 2 + more).unwrap_or_default()
}

/// How many bytes come before a quote, a backslash or the line's end, looked at by eights.
fn plain(text: &[u8]) -> usize {
    let (words, rest) = text.as_chunks::<8>();
    let mut length = 0;
    for word in words {
        let word = u64::from_le_bytes(*word);
        let found = has(word, b'"') | has(word, b'\\') | has(word, b'\n');
        if found != 0 {
            return length + found.trailing_zeros() as usize / 8;
        }
        length += 8;
    }
    length + rest.iter().take_while(|byte| !matches!(byte, b'"' | b'\\' | b'\n')).count()
}

/// The high bit of every byte that is `byte`; above the first of them, others may be set, too.
fn has(word: u64, byte: u8) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    let zero = word ^ (ONES * byte as u64);
    zero.wrapping_sub(ONES) & !zero & (ONES << 7)
}

/// How many bytes are a name of the form `[a-zA-Z_:][a-zA-Z0-9_:]*`. Most often it starts as the family's before it.
pub(super) fn metric_name(text: &[u8], families: &Families) -> usize {
    let known = families.known_name(text);
    if known == 0 && text.first().is_some_and(u8::is_ascii_digit) {
        return 0;
    }
    known + text.iter().skip(known).take_while(|byte| class(**byte) != 0).count()
}

/// How many bytes are a name of the form `[a-zA-Z_][a-zA-Z0-9_]*`.
fn label_name(text: &[u8]) -> usize {
    if text.first().is_some_and(u8::is_ascii_digit) {
        return 0;
    }
    text.iter().take_while(|byte| class(**byte) == 1).count()
}

/// 1 for what names have, 2 for what only those of metrics have.
fn class(byte: u8) -> u8 {
    const CLASSES: [u8; 256] = classes();
    CLASSES.get(usize::from(byte)).copied().unwrap_or(0)
}

#[allow(clippy::indexing_slicing, reason = "worked out by the compiler, below the length")]
const fn classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        if byte.is_ascii_alphanumeric() || byte == b'_' {
            classes[byte as usize] = 1;
        }
        byte += 1;
    }
    classes[b':' as usize] = 2;
    classes
}

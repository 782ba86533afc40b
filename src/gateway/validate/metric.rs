//! One `Metric` of a family: its labels, and the value that the family's type says.

use super::MAX_LABELS;
use super::invalid::Problem;
use super::labels::{Label, distinct};
use super::wire::{Fields, Malformed, Span, Value, varint};

/// Which field of a `Metric` holds the value of a family of this type; `None` for no type.
pub(super) fn field_of(kind: u64) -> Option<u64> {
    match kind {
        0 => Some(3),
        1 => Some(2),
        2 => Some(4),
        3 => Some(5),
        4 | 5 => Some(7),
        _ => None,
    }
}

/// Checks a metric whose value is in `field`, and says whether one of its series has the family's bare name.
pub(super) fn check(bytes: &[u8], metric: Span, field: u64, labels: &mut Vec<Label>) -> Result<bool, Problem> {
    labels.clear();
    let mut bare = None;
    let mut fields = Fields::new(bytes, metric);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Bytes(_)) if labels.len() >= MAX_LABELS => return Err(Problem::TooManyLabels),
            (1, Value::Bytes(span)) => labels.push(label(bytes, span)?),
            (6, Value::Varint(_)) => {}
            (2..=5 | 7, Value::Bytes(span)) => {
                let is_bare = match number {
                    4 => summary(bytes, span)?,
                    7 => histogram(bytes, span)?,
                    _ => number_value(bytes, span)?,
                };
                if number == field && bare.replace(is_bare).is_some() {
                    return Err(Problem::Twice("value"));
                }
            }
            (1..=7, _) => return Err(Problem::Wire("metric")),
            _ => {}
        }
    }
    distinct(bytes, labels, 0)?;
    bare.ok_or(Problem::NoValue(match field {
        2 => "gauge",
        3 => "counter",
        4 => "summary",
        5 => "untyped value",
        _ => "histogram",
    }))
}

fn label(bytes: &[u8], span: Span) -> Result<Label, Problem> {
    let (mut name, mut valued) = (None, false);
    let mut fields = Fields::new(bytes, span);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1 | 2, Value::Bytes(text)) => {
                if std::str::from_utf8(text.of(bytes)).is_err() {
                    return Err(Problem::StringNotUtf8("label"));
                }
                let again =
                    if number == 1 { name.replace(text).is_some() } else { std::mem::replace(&mut valued, true) };
                if again {
                    return Err(Problem::Twice("label's name or value"));
                }
            }
            (1 | 2, _) => return Err(Problem::Wire("label")),
            _ => {}
        }
    }
    let Some(Span { start, end }) = name.filter(|name| name.start < name.end) else {
        return Err(Problem::LabelWithoutName);
    };
    if bytes.get(start..end) == Some(b"__name__") {
        return Err(Problem::NameLabel);
    }
    Ok(Label { start, end, value: end, next: usize::MAX })
}

/// A `Gauge`, a `Counter` or an `Untyped`. Its series always has the bare name.
fn number_value(bytes: &[u8], span: Span) -> Result<bool, Problem> {
    let mut fields = Fields::new(bytes, span);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Fixed64(_)) => {}
            (2, Value::Bytes(exemplar_span)) => exemplar(bytes, exemplar_span)?,
            (3, Value::Bytes(timestamp_span)) => timestamp(bytes, timestamp_span)?,
            (1..=3, _) => return Err(Problem::Wire("value")),
            _ => {}
        }
    }
    Ok(true)
}

/// Of a summary only the quantiles have the bare name.
fn summary(bytes: &[u8], span: Span) -> Result<bool, Problem> {
    let mut quantiles = false;
    let mut fields = Fields::new(bytes, span);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Varint(_)) | (2, Value::Fixed64(_)) => {}
            (3, Value::Bytes(quantile)) => {
                quantiles = true;
                shaped(bytes, quantile, &[1, 2], &[])?;
            }
            (4, Value::Bytes(created)) => timestamp(bytes, created)?,
            (1..=4, _) => return Err(Problem::Wire("summary")),
            _ => {}
        }
    }
    Ok(quantiles)
}

/// One side of a native histogram. Prometheus refuses the scrape when the spans do not speak of the buckets that
/// there are.
#[derive(Default)]
struct Side {
    spanned: u64,
    deltas: u64,
    counts: u64,
}

/// Of a histogram only the native buckets have the bare name.
fn histogram(bytes: &[u8], span: Span) -> Result<bool, Problem> {
    let (mut native, mut float) = (false, false);
    let (mut negative, mut positive) = (Side::default(), Side::default());
    let mut fields = Fields::new(bytes, span);
    while let Some((number, value)) = fields.next()? {
        native |= (5..=14).contains(&number);
        let side = if number < 12 { &mut negative } else { &mut positive };
        match (number, value) {
            (3, Value::Bytes(classic)) if is_plain_bucket(classic.of(bytes)) => {}
            (3, Value::Bytes(classic)) => bucket(bytes, classic)?,
            (1 | 5 | 7, Value::Varint(_)) | (2 | 6, Value::Fixed64(_)) => {}
            // A count that is a float and above zero makes all of them floats.
            (4 | 8, Value::Fixed64(count)) => float |= f64::from_bits(count) > 0.0,
            (9 | 12, Value::Bytes(buckets)) => side.spanned = side.spanned.saturating_add(buckets_of(bytes, buckets)?),
            (10 | 13, Value::Varint(_)) => side.deltas += 1,
            (10 | 13, Value::Bytes(packed)) => side.deltas += varints(packed.of(bytes))?,
            (11 | 14, Value::Fixed64(_)) => side.counts += 1,
            (11 | 14, Value::Bytes(packed)) => side.counts += doubles(packed.of(bytes))?,
            (15, Value::Bytes(created)) => timestamp(bytes, created)?,
            (16, Value::Bytes(native_exemplar)) => exemplar(bytes, native_exemplar)?,
            (1..=16, _) => return Err(Problem::Wire("histogram")),
            _ => {}
        }
    }
    let buckets = |side: &Side| if float { side.counts } else { side.deltas };
    if [negative, positive].iter().any(|side| side.spanned != buckets(side)) {
        return Err(Problem::Spans);
    }
    Ok(native)
}

/// A count below 128 and a bound: most buckets are that, and need not be read field by field.
fn is_plain_bucket(bucket: &[u8]) -> bool {
    matches!(bucket, [0x08, ..=0x7f, 0x11, bound @ ..] if bound.len() == 8)
}

fn bucket(bytes: &[u8], span: Span) -> Result<(), Problem> {
    let mut fields = Fields::new(bytes, span);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Varint(_)) | (2 | 4, Value::Fixed64(_)) => {}
            (3, Value::Bytes(span)) => exemplar(bytes, span)?,
            (1..=4, _) => return Err(Problem::Wire("bucket")),
            _ => {}
        }
    }
    Ok(())
}

/// How many buckets a `BucketSpan` speaks of.
fn buckets_of(bytes: &[u8], span: Span) -> Result<u64, Problem> {
    let mut length = 0;
    let mut fields = Fields::new(bytes, span);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Varint(_)) => {}
            // As a reader that keeps 32 bits of it understands it.
            (2, Value::Varint(given)) => length = given & u64::from(u32::MAX),
            (1 | 2, _) => return Err(Problem::Wire("span")),
            _ => {}
        }
    }
    Ok(length)
}

fn exemplar(bytes: &[u8], span: Span) -> Result<(), Problem> {
    let mut fields = Fields::new(bytes, span);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Bytes(pair)) => {
                label(bytes, pair)?;
            }
            (2, Value::Fixed64(_)) => {}
            (3, Value::Bytes(when)) => timestamp(bytes, when)?,
            (1..=3, _) => return Err(Problem::Wire("exemplar")),
            _ => {}
        }
    }
    Ok(())
}

fn timestamp(bytes: &[u8], span: Span) -> Result<(), Problem> {
    shaped(bytes, span, &[], &[1, 2])
}

/// A message that has these fields as doubles and those as varints.
fn shaped(bytes: &[u8], span: Span, doubles: &[u64], varints: &[u64]) -> Result<(), Problem> {
    let mut fields = Fields::new(bytes, span);
    while let Some((number, value)) = fields.next()? {
        let is_double = matches!(value, Value::Fixed64(_));
        let is_varint = matches!(value, Value::Varint(_));
        if doubles.contains(&number) && !is_double || varints.contains(&number) && !is_varint {
            return Err(Problem::Wire("value"));
        }
    }
    Ok(())
}

/// How many varints are packed here.
fn varints(mut packed: &[u8]) -> Result<u64, Problem> {
    let mut count = 0;
    while !packed.is_empty() {
        let (_, length) = varint(packed)?.ok_or(Malformed)?;
        packed = packed.get(length..).unwrap_or_default();
        count += 1;
    }
    Ok(count)
}

/// How many doubles are packed here.
fn doubles(packed: &[u8]) -> Result<u64, Problem> {
    if packed.len().is_multiple_of(8) { Ok(packed.len() as u64 / 8) } else { Err(Problem::Wire("histogram")) }
}

impl From<Malformed> for Problem {
    fn from(_: Malformed) -> Self {
        Self::Wire("message")
    }
}

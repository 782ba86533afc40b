//! The messages of `io.prometheus.client` (`metrics.proto` of Prometheus's client_model), written field by field:
//! there are few of them, and this takes a quarter of the time of building them as structures first (`encode` in
//! `bench/README.md`).

use super::number::Number;
use crate::metrics::catalogue::Kind;
use crate::metrics::instruments::{NativeSnapshot, ZERO_THRESHOLD};

/// The tag of a field: its number and its wire type.
const fn tag(field: u8, wire: u8) -> u8 {
    field << 3 | wire
}

const VARINT: u8 = 0;
const FIXED: u8 = 1;
const BYTES: u8 = 2;

/// Writes one `MetricFamily`, preceded by its length.
pub(super) fn family(out: &mut Vec<u8>, metadata: &[u8], metrics: &[u8]) {
    varint(out, (metadata.len() + metrics.len()) as u64);
    out.extend_from_slice(metadata);
    out.extend_from_slice(metrics);
}

/// The fields of `MetricFamily` except its metrics.
pub(super) fn metadata(name: &str, kind: Kind, unit: Option<&str>, help: &str) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(&mut out, 1, name.as_bytes());
    bytes(&mut out, 2, help.as_bytes());
    out.push(tag(3, VARINT));
    out.push(match kind {
        Kind::Counter => 0,
        Kind::Gauge | Kind::Info => 1,
        Kind::Unknown => 3,
        Kind::Histogram => 4,
    });
    if let Some(unit) = unit {
        bytes(&mut out, 5, unit.as_bytes());
    }
    out
}

/// Writes a `LabelPair` of a `Metric`.
pub(super) fn label(out: &mut Vec<u8>, name: &str, value: &str) {
    message(out, 1, |out| {
        bytes(out, 1, name.as_bytes());
        bytes(out, 2, value.as_bytes());
    });
}

/// Writes the `Metric` of a counter, gauge, info or unknown family.
pub(super) fn number(out: &mut Vec<u8>, kind: Kind, labels: &[u8], value: Number) {
    let field = match kind {
        Kind::Gauge | Kind::Info => 2,
        Kind::Counter => 3,
        Kind::Unknown | Kind::Histogram => 5,
    };
    // The length of a message with one float: a tag and eight bytes. Its own tag and length come before it.
    const VALUE: u8 = 9;
    out.push(tag(4, BYTES));
    varint(out, labels.len() as u64 + 2 + u64::from(VALUE));
    out.extend_from_slice(labels);
    out.push(tag(field, BYTES));
    out.push(VALUE);
    double(out, 1, value.float());
}

/// Writes the `Metric` of a histogram. `classic` is cumulative and ends with +Inf.
pub(super) fn histogram(
    out: &mut Vec<u8>,
    labels: &[u8],
    count: u64,
    sum: f64,
    classic: impl Iterator<Item = (f64, u64)>,
    native: Option<&NativeSnapshot>,
) {
    message(out, 4, |out| {
        out.extend_from_slice(labels);
        message(out, 7, |out| {
            unsigned(out, 1, count);
            double(out, 2, sum);
            for (bound, count) in classic {
                // A tag and a number, a tag and eight bytes.
                out.push(tag(3, BYTES));
                out.push(1 + varint_length(count) + 9);
                unsigned(out, 1, count);
                double(out, 2, bound);
            }
            if let Some(native) = native {
                native_buckets(out, native);
            }
        });
    });
}

fn native_buckets(out: &mut Vec<u8>, native: &NativeSnapshot) {
    let (spans, deltas) = native.spans_and_deltas();
    unsigned(out, 5, zigzag(native.schema.into()));
    // This tells a reader that the histogram is native, even before its first observation.
    double(out, 6, ZERO_THRESHOLD);
    unsigned(out, 7, native.zero_count);
    for &(offset, length) in &spans {
        message(out, 12, |out| {
            unsigned(out, 1, zigzag(offset.into()));
            unsigned(out, 2, length.into());
        });
    }
    if !deltas.is_empty() {
        message(out, 13, |out| deltas.iter().for_each(|&delta| varint(out, zigzag(delta))));
    }
}

/// Writes a field whose length is known only afterwards.
fn message(out: &mut Vec<u8>, field: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag(field, BYTES));
    let start = out.len();
    // Room for the length of a short message; a longer one is moved to make more.
    out.push(0);
    write(out);
    let mut length = (out.len() - start - 1) as u64;
    let digits = usize::from(varint_length(length));
    let mut prefix = [0_u8; MAX_VARINT];
    for (digit, position) in prefix.iter_mut().zip(1..=digits) {
        *digit = low_seven(length) | if position < digits { 0x80 } else { 0 };
        length >>= 7;
    }
    out.splice(start..=start, prefix.into_iter().take(digits));
}

fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(tag(field, BYTES));
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn unsigned(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(tag(field, VARINT));
    varint(out, value);
}

fn double(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(tag(field, FIXED));
    out.extend_from_slice(&value.to_le_bytes());
}

/// The length of the longest varint of 64 bits.
const MAX_VARINT: usize = 10;

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(low_seven(value) | 0x80);
        value >>= 7;
    }
    out.push(low_seven(value));
}

#[allow(clippy::cast_possible_truncation, reason = "seven bits are kept")]
fn low_seven(value: u64) -> u8 {
    value as u8 & 0x7f
}

#[allow(clippy::cast_possible_truncation, reason = "at most ten")]
fn varint_length(value: u64) -> u8 {
    (64 - (value | 1).leading_zeros()).div_ceil(7) as u8
}

/// A signed number, encoded so that numbers close to zero are small whatever their sign.
#[allow(clippy::cast_sign_loss, reason = "only the bits matter")]
fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

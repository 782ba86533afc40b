//! The two text formats. Their samples are the same, so that a series keeps its identity (`le="1.0"`
//! included) whichever one a scraper asks for; what differs is the metadata, which `family.rs` writes.
//!
//! Sources: the exposition formats page of Prometheus's documentation, and OpenMetrics 1.0.0.

use super::number::Number;
use crate::metrics::instruments::{Buckets, Snapshot};

pub(super) fn number(out: &mut Vec<u8>, name: &str, labels: &str, value: Number) {
    push_series(out, name, "", labels, None);
    match value {
        Number::Unsigned(value) => push(out, itoa::Buffer::new().format(value)),
        Number::Signed(value) => push(out, itoa::Buffer::new().format(value)),
        Number::Float(value) => push(out, &float(value)),
    }
    out.push(b'\n');
}

pub(super) fn histogram(out: &mut Vec<u8>, name: &str, labels: &str, snapshot: &Snapshot, buckets: &Buckets) {
    let mut digits = itoa::Buffer::new();
    let bounds = buckets.classic().iter().map(|classic| &*classic.text).chain(["+Inf"]);
    for (le, (_, count)) in bounds.zip(snapshot.cumulative(buckets)) {
        push_series(out, name, "_bucket", labels, Some(le));
        push(out, digits.format(count));
        out.push(b'\n');
    }
    push_series(out, name, "_sum", labels, None);
    push(out, &snapshot.decimal(buckets));
    out.push(b'\n');
    push_series(out, name, "_count", labels, None);
    push(out, digits.format(snapshot.count));
    out.push(b'\n');
}

/// Everything of a sample before its value.
fn push_series(out: &mut Vec<u8>, name: &str, suffix: &str, labels: &str, le: Option<&str>) {
    push(out, name);
    push(out, suffix);
    match (labels, le) {
        ("", None) => {}
        ("", Some(le)) => [r#"{le=""#, le, r#""}"#].iter().for_each(|part| push(out, part)),
        (labels, None) => ["{", labels, "}"].iter().for_each(|part| push(out, part)),
        (labels, Some(le)) => ["{", labels, r#",le=""#, le, r#""}"#].iter().for_each(|part| push(out, part)),
    }
    out.push(b' ');
}

fn push(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

/// A float in the shortest form that parses back to the same value.
fn float(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".into(),
        f64::INFINITY => "+Inf".into(),
        f64::NEG_INFINITY => "-Inf".into(),
        value => format!("{value:?}"),
    }
}

/// Appends a help text or a label value. Backslashes and line breaks are escaped everywhere, quotes everywhere except
/// in the help texts of the classic format.
pub(super) fn push_escaped(out: &mut String, text: &str, quotes: bool) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_in_their_shortest_form() {
        for (value, text) in [
            (0.25, "0.25"),
            (3.0, "3.0"),
            (-0.0, "-0.0"),
            (1e-9, "1e-9"),
            (1e300, "1e300"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(float(value), text);
        }
    }
}

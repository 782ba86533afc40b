//! Reads single series from a page, so that a test can compare values before and after.

use std::collections::BTreeMap;

use peerscope::metrics::Registry;
use peerscope::metrics::exposition::{FamilyFilter, Format};

type Labels = Vec<(String, String)>;

/// A page of everything in `registry`, as OpenMetrics text.
pub(crate) fn encode(registry: &Registry) -> String {
    let page = registry.render(Format::OpenMetrics, &FamilyFilter::all());
    String::from_utf8(page.into()).expect("the format is UTF-8")
}

/// The value of the series `name` with exactly `labels`, in any order; `None` if it is not there.
pub(crate) fn find(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let (found_name, found_labels, value) = parse(line)?;
        let same = found_labels.len() == labels.len()
            && labels.iter().all(|(key, value)| found_labels.iter().any(|(k, v)| k == key && v == value));
        (found_name == name && same).then_some(value)
    })
}

/// Like [`find`], for a series that must be there.
pub(crate) fn value(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    find(text, name, labels).unwrap_or_else(|| panic!("no series {name} with the labels {labels:?} in:\n{text}"))
}

/// A series: its name, and its labels.
pub(crate) type Series = (String, BTreeMap<String, String>);

/// Every series of a page, with its value.
pub(crate) fn samples(text: &str) -> BTreeMap<Series, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.map(|line| parse(line).unwrap_or_else(|| panic!("{line}")));
    samples.map(|(name, labels, value)| (series(name, labels), value)).collect()
}

/// A series of a page or of a server. A bucket bound that a server formats differently makes a different series.
pub(crate) fn series(name: &str, labels: impl IntoIterator<Item = (String, String)>) -> Series {
    (name.to_owned(), labels.into_iter().collect())
}

/// Every series of the families with one of these `prefixes` whose value differs in `after`, and by how much. Of a
/// histogram only `_count` is compared, since sums and buckets depend on timing.
pub(crate) fn moved(before: &str, after: &str, prefixes: &[&str]) -> BTreeMap<String, f64> {
    let samples = |text: &str| -> BTreeMap<String, f64> {
        let lines = text.lines().filter(|line| prefixes.iter().any(|prefix| line.starts_with(prefix)));
        let samples = lines.map(|line| line.rsplit_once(' ').unwrap());
        let samples = samples.map(|(series, value)| (series.to_owned(), value.parse().unwrap()));
        samples.filter(|(series, _)| !series.contains("_bucket{") && !series.contains("_sum")).collect()
    };
    let (before, after) = (samples(before), samples(after));
    assert!(!before.is_empty() && before.keys().eq(after.keys()), "the series are the same from the start");
    let differences = after.into_iter().map(|(series, value)| (value - before[&series], series));
    differences.filter(|(by, _)| *by != 0.0).map(|(by, series)| (series, by)).collect()
}

/// Parses one sample line. What is read here is the same in the classic text format and in OpenMetrics; a timestamp or
/// an exemplar after the value is ignored.
fn parse(line: &str) -> Option<(&str, Labels, f64)> {
    let name_end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(name_end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => parse_labels(rest)?,
        None => (Labels::new(), rest),
    };
    let value = rest.split_whitespace().next()?;
    Some((name, labels, value.parse().ok()?))
}

/// Reads `name="value",...}` and returns what follows the brace. `\\`, `\"` and `\n` are the escapes.
fn parse_labels(mut rest: &str) -> Option<(Labels, &str)> {
    let mut labels = Labels::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (key, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = after.char_indices();
        loop {
            match characters.next()? {
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    escaped => value.push(escaped),
                },
                (end, '"') => {
                    rest = &after[end + 1..];
                    break;
                }
                (_, character) => value.push(character),
            }
        }
        labels.push((key.trim().to_owned(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_may_be_in_any_order_and_escaped() {
        let text = "# TYPE a counter\na_total{x=\"1\",y=\"q\\\"},\\\\ \\n{\"} 7 # {t=\"1\"} 3.0\na_total{x=\"2\"} 1e3 123\nb 0.5\n# EOF\n";
        assert_eq!(find(text, "a_total", &[("y", "q\"},\\ \n{"), ("x", "1")]), Some(7.0));
        assert_eq!(find(text, "a_total", &[("x", "2")]), Some(1000.0));
        assert_eq!(find(text, "a_total", &[("x", "1")]), None, "a series with more labels is a different series");
        assert_eq!(find(text, "b", &[]), Some(0.5));
        assert_eq!(find(text, "c", &[]), None);
    }
}

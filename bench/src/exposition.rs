//! Parses the contenders' pages, to verify their work and to give one contender the families of another. Supports only
//! what these pages contain: no exemplars and no timestamps.

use crate::Result;

/// One sample of a text exposition, classic or OpenMetrics.
#[derive(Debug, PartialEq)]
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    /// As written, escapes included.
    pub(crate) labels: Vec<(&'a str, &'a str)>,
    pub(crate) value: f64,
}

impl<'a> Line<'a> {
    pub(crate) fn parse(line: &'a str) -> Result<Self> {
        Self::parts(line).ok_or_else(|| format!("not a sample: {line}").into())
    }

    fn parts(line: &'a str) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, mut rest) = series.split_once('{').unwrap_or((series, ""));
        let mut labels = Vec::new();
        while let Some((label, after)) = rest.split_once("=\"") {
            let end = closing_quote(after)?;
            labels.push((label.trim_start_matches(','), after.get(..end)?));
            rest = after.get(end + 1..)?;
        }
        Some(Self { name, labels, value: value.parse().ok()? })
    }

    pub(crate) fn label(&self, name: &str) -> Option<&'a str> {
        self.labels.iter().find(|(label, _)| *label == name).map(|(_, value)| *value)
    }
}

/// The first quote that is not escaped by a backslash.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.find(|char| {
        let closes = char == '"' && !escaped;
        escaped = char == '\\' && !escaped;
        closes
    })
}

/// All samples of a page.
pub(crate) fn samples(page: &str) -> impl Iterator<Item = Result<Line<'_>>> {
    page.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(Line::parse)
}

/// The number of messages in a delimited protobuf page; an error if the lengths do not add up.
pub(crate) fn messages(mut bytes: &[u8]) -> Result<usize> {
    let mut count = 0;
    while !bytes.is_empty() {
        let mut length = 0_usize;
        let mut shift = 0;
        loop {
            let (&byte, rest) = bytes.split_first().ok_or("truncated length prefix")?;
            bytes = rest;
            length |= usize::from(byte & 0x7f).checked_shl(shift).ok_or("overlong length prefix")?;
            shift += 7;
            if byte < 0x80 {
                break;
            }
        }
        bytes = bytes.get(length..).ok_or("truncated message")?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_and_without_labels() {
        let page = "# TYPE a counter\na_total{x=\"1\",y=\"q\\\",\"} 3\nb 1.5e3\n# EOF\n";
        let lines: Vec<_> = samples(page).map(Result::unwrap).collect();
        assert_eq!(lines[0], Line { name: "a_total", labels: vec![("x", "1"), ("y", "q\\\",")], value: 3.0 });
        assert_eq!(lines[0].label("y"), Some("q\\\","));
        assert_eq!(lines[1], Line { name: "b", labels: vec![], value: 1500.0 });
        assert!(Line::parse("no-value").is_err());
    }

    #[test]
    fn delimited_messages_are_counted() {
        let long = [&[2, 7, 7, 0x80, 0x01][..], &[9; 128]].concat();
        assert_eq!(messages(&long).unwrap(), 2);
        assert_eq!(messages(&[]).unwrap(), 0);
        assert!(messages(&[3, 1]).is_err());
    }
}

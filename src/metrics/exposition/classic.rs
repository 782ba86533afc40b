//! The text format 0.0.4, made of the OpenMetrics text that prometheus-client writes.
//!
//! Samples stay as they are, so that a series keeps its identity (`le="1.0"` included) whichever format
//! a scraper asks for. What differs is the metadata: a counter's bears `_total`, an info's `_info`, there
//! is no `# UNIT` and no `# EOF`; and samples lose their exemplars.
//!
//! Sources: the exposition formats page of Prometheus's documentation, and OpenMetrics 1.0.0.

/// One thing in the text, in the order in which it stands there.
enum Item<'a> {
    Family { name: &'a str, help: &'a str, kind: &'a str },
    Unit(&'a str),
    Sample(&'a str),
}

/// Reads prometheus-client's text from its start to `# EOF`.
struct Items<'a>(&'a str);

impl<'a> Items<'a> {
    fn line(&mut self) -> &'a str {
        let (line, rest) = self.0.split_once('\n').unwrap_or((self.0, ""));
        self.0 = rest;
        line
    }

    /// A family's `# HELP` and `# TYPE`. prometheus-client writes help texts as they are, line breaks
    /// included, so a help text ends where the same family's type begins, not where its line does.
    fn family(&mut self) -> Option<Item<'a>> {
        let (name, rest) = self.0.strip_prefix("# HELP ")?.split_once(' ')?;
        let mut searched = 0;
        loop {
            let end = searched + rest.get(searched..)?.find("\n# TYPE ")?;
            let (help, after) = (rest.get(..end)?, rest.get(end + "\n# TYPE ".len()..)?);
            let kind = after.strip_prefix(name).and_then(|after| after.strip_prefix(' '));
            let Some(kind) = kind else {
                searched = end + 1;
                continue;
            };
            self.0 = kind;
            return Some(Item::Family { name, help, kind: self.line() });
        }
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        if !self.0.starts_with('#') {
            return (!self.0.is_empty()).then(|| Item::Sample(self.line()));
        }
        if let Some(family) = self.family() {
            return Some(family);
        }
        let line = self.line();
        line.starts_with("# UNIT ").then_some(Item::Unit(line))
    }
}

/// The classic text of an OpenMetrics text.
pub(super) fn from_openmetrics(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut family = Family { name: "", kind: "unknown" };
    for item in Items(text) {
        match item {
            Item::Family { name, help, kind } => {
                family = Family { name, kind };
                family.write_metadata(&mut out, help);
            }
            Item::Unit(_) => {}
            Item::Sample(line) => family.write_sample(&mut out, line),
        }
    }
    out
}

/// The same OpenMetrics text with its help texts escaped, which prometheus-client leaves to its users.
pub(super) fn escape_help(text: String) -> String {
    let special = |c| matches!(c, '\\' | '"' | '\n');
    if !Items(&text).any(|item| matches!(item, Item::Family { help, .. } if help.contains(special))) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 64);
    for item in Items(&text) {
        match item {
            Item::Family { name, help, kind } => {
                push(&mut out, &["# HELP ", name, " "]);
                push_escaped(&mut out, help, true);
                push(&mut out, &["\n# TYPE ", name, " ", kind, "\n"]);
            }
            Item::Unit(line) | Item::Sample(line) => push(&mut out, &[line, "\n"]),
        }
    }
    out.push_str("# EOF\n");
    out
}

/// The family whose samples are being read.
struct Family<'a> {
    name: &'a str,
    kind: &'a str,
}

impl Family<'_> {
    fn write_metadata(&self, out: &mut String, help: &str) {
        let (suffix, kind) = match self.kind {
            "counter" => ("_total", "counter"),
            "info" => ("_info", "gauge"),
            "stateset" => ("", "gauge"),
            // Its samples have the shape of a histogram; `write_sample` gives them the names of one.
            "gaugehistogram" => ("", "histogram"),
            "unknown" => ("", "untyped"),
            same => ("", same),
        };
        push(out, &["# HELP ", self.name, suffix, " "]);
        push_escaped(out, help, false);
        push(out, &["\n# TYPE ", self.name, suffix, " ", kind, "\n"]);
    }

    fn write_sample(&self, out: &mut String, line: &str) {
        let suffix = line.strip_prefix(self.name).unwrap_or("");
        let suffix = suffix.find(['{', ' ']).and_then(|end| suffix.get(..end)).unwrap_or("");
        let line = without_exemplar(line);
        match (self.kind, suffix) {
            // When a series was created is not in this format; a gauge may well be named `_created`.
            ("counter" | "histogram" | "gaugehistogram" | "summary", "_created") => {}
            ("gaugehistogram", "_gcount" | "_gsum") => {
                let rest = line.get(self.name.len() + "_g".len()..).unwrap_or("");
                push(out, &[self.name, "_", rest, "\n"]);
            }
            _ => push(out, &[line, "\n"]),
        }
    }
}

/// The sample up to its exemplar (` # {`), which is looked for only behind the labels: their values may
/// hold any text.
fn without_exemplar(line: &str) -> &str {
    if !line.contains('#') {
        return line;
    }
    let labels_end = labels_end(line);
    let value = line.get(labels_end..).unwrap_or("");
    value.find(" # {").and_then(|at| line.get(..labels_end + at)).unwrap_or(line)
}

/// The position behind the label set's closing brace, 0 when there is no label set.
fn labels_end(line: &str) -> usize {
    let Some((start, '{')) = line.char_indices().find(|(_, c)| matches!(c, '{' | ' ')) else { return 0 };
    let mut quoted = false;
    let mut escaped = false;
    for (position, byte) in line.bytes().enumerate().skip(start) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return position + 1,
            _ => {}
        }
    }
    0
}

fn push(out: &mut String, parts: &[&str]) {
    for part in parts {
        out.push_str(part);
    }
}

/// A help text: the classic format escapes backslashes and line breaks, OpenMetrics quotes as well.
fn push_escaped(out: &mut String, help: &str, quotes: bool) {
    for c in help.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            c => out.push(c),
        }
    }
}

//! The `Content-Type` of a page (RFC 9110, 8.3), read as strictly as Go's `mime.ParseMediaType`, by which Prometheus
//! reads it: what that one refuses costs the scrape.

use super::BodyFormat;

/// The format of a page with this `Content-Type`.
pub(super) fn format(value: &str) -> Option<BodyFormat> {
    let (media_type, rest) = value.split_once(';').unwrap_or((value, ""));
    let mut wanted = Parameters::default();
    let mut rest = rest.trim_start();
    while !rest.is_empty() {
        rest = wanted.take(rest)?;
    }
    let is = |name: &str| media_type.trim().eq_ignore_ascii_case(name);
    if is("text/plain") {
        return wanted.is_text(&["0.0.4", "1.0.0"]).then_some(BodyFormat::Text);
    }
    if is("application/openmetrics-text") {
        return wanted.is_text(&["0.0.1", "1.0.0"]).then_some(BodyFormat::OpenMetrics);
    }
    (is("application/vnd.google.protobuf") && wanted.is_delimited()).then_some(BodyFormat::Protobuf)
}

/// The parameters that say something about the format; all others may be there.
#[derive(Default)]
struct Parameters {
    version: Option<String>,
    charset: Option<String>,
    proto: Option<String>,
    encoding: Option<String>,
}

impl Parameters {
    /// Takes one parameter, and gives what stands behind its semicolon.
    fn take<'a>(&mut self, text: &'a str) -> Option<&'a str> {
        let (name, text) = text.split_once('=')?;
        let name = name.trim();
        if name.is_empty() || !name.bytes().all(is_token) {
            return None;
        }
        let (value, rest) = match text.strip_prefix('"') {
            Some(text) => quoted(text)?,
            None => {
                let (value, rest) = text.split_at(text.find([';', ' ', '\t']).unwrap_or(text.len()));
                if value.is_empty() || !value.bytes().all(is_token) {
                    return None;
                }
                (value.to_owned(), rest)
            }
        };
        let slot = match name.to_ascii_lowercase().as_str() {
            "version" => Some(&mut self.version),
            "charset" => Some(&mut self.charset),
            "proto" => Some(&mut self.proto),
            "encoding" => Some(&mut self.encoding),
            _ => None,
        };
        // Twice: one reader would take the first, another one the last.
        if slot.is_some_and(|slot| slot.replace(value).is_some()) {
            return None;
        }
        let rest = rest.trim_start();
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix(';').map(str::trim_start) }
    }

    fn is_text(&self, versions: &[&str]) -> bool {
        let version = self.version.as_deref().is_none_or(|version| versions.contains(&version));
        version && self.charset.as_deref().is_none_or(|charset| charset.eq_ignore_ascii_case("utf-8"))
    }

    fn is_delimited(&self) -> bool {
        let is = |value: &Option<String>, wanted: &str| {
            value.as_deref().is_some_and(|value| value.eq_ignore_ascii_case(wanted))
        };
        is(&self.proto, "io.prometheus.client.MetricFamily") && is(&self.encoding, "delimited")
    }
}

/// What stands before the closing quote, without its escapes, and what stands behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.chars();
    loop {
        match characters.next()? {
            '"' => return Some((value, characters.as_str())),
            '\\' => value.push(characters.next()?),
            other => value.push(other),
        }
    }
}

/// RFC 9110, 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

//! `Accept` and `Accept-Encoding`, with q-values. Whatever a client sends, there is an answer: a part
//! that cannot be understood is passed over.

use super::Format;

/// One part of `Accept` or `Accept-Encoding`.
struct Choice<'a> {
    /// The media type or the coding, as it was sent.
    name: &'a str,
    /// The parameters after it, as they were sent.
    parameters: &'a str,
    /// From 0 (never) to 1000; what is no number counts as 1000, as client_golang has it.
    quality: u16,
}

impl<'a> Choice<'a> {
    fn parse(part: &'a str) -> Self {
        let (name, parameters) = part.split_once(';').unwrap_or((part, ""));
        let quality = parameter(parameters, "q").map_or(1000, quality);
        Self { name: name.trim(), parameters, quality }
    }

    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// The format for a client with this `Accept`, chosen as client_golang does: the highest q first, the
/// first that we speak wins, and the text format when there is none. `q=0` excludes.
pub fn negotiate(accept: &str) -> Format {
    let mut choices: Vec<_> = split(accept, ',').map(Choice::parse).filter(|choice| choice.quality > 0).collect();
    // A stable sort: among equals the client's own order decides.
    choices.sort_by_key(|choice| std::cmp::Reverse(choice.quality));
    choices.iter().find_map(format).unwrap_or(Format::Text)
}

/// Whether gzip is at least as welcome as the plain bytes (RFC 9110, 12.5.3).
pub fn accepts_gzip(accept_encoding: &str) -> bool {
    let (mut gzip, mut identity, mut any) = (None, None, None);
    for choice in split(accept_encoding, ',').map(Choice::parse) {
        if choice.is("gzip") || choice.is("x-gzip") {
            gzip = Some(choice.quality);
        } else if choice.is("identity") {
            identity = Some(choice.quality);
        } else if choice.is("*") {
            any = Some(choice.quality);
        }
    }
    // Plain bytes that nobody mentioned are acceptable but not asked for.
    let (gzip, identity) = (gzip.or(any).unwrap_or(0), identity.or(any).unwrap_or(0));
    gzip > 0 && gzip >= identity
}

/// Whether a client names JSON and likes it at least as much as plain text.
pub fn prefers_json(accept: &str) -> bool {
    let best = |names: [&str; 2]| {
        let choices = split(accept, ',').map(Choice::parse).filter(|c| names.iter().any(|name| c.is(name)));
        choices.map(|choice| choice.quality).max().unwrap_or(0)
    };
    let json = best(["application/json", "application/*"]);
    json > 0 && json >= best(["text/plain", "text/*"])
}

fn format(choice: &Choice<'_>) -> Option<Format> {
    if choice.is("application/vnd.google.protobuf") {
        let is = |name, value: &str| parameter(choice.parameters, name).is_some_and(|given| given == value);
        let delimited = is("proto", "io.prometheus.client.MetricFamily") && is("encoding", "delimited");
        return delimited.then_some(Format::Protobuf);
    }
    let version = parameter(choice.parameters, "version");
    if choice.is("text/plain") {
        return matches!(version, None | Some("" | "0.0.4")).then_some(Format::Text);
    }
    if choice.is("application/openmetrics-text") {
        return match version {
            Some("1.0.0") => Some(Format::OpenMetrics),
            None | Some("" | "0.0.1") => Some(Format::OpenMetricsDraft),
            Some(_) => None,
        };
    }
    None
}

/// The value of a parameter, without its quotes.
fn parameter<'a>(parameters: &'a str, name: &str) -> Option<&'a str> {
    split(parameters, ';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        let value = value.trim();
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        key.trim().eq_ignore_ascii_case(name).then_some(value)
    })
}

fn quality(text: &str) -> u16 {
    match text.parse::<f32>() {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=1000")]
        Ok(q) if q.is_finite() => (q.clamp(0.0, 1.0) * 1000.0).round() as u16,
        _ => 1000,
    }
}

/// The parts of `text` between separators that stand outside quotes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let mut escaped = false;
    text.split(move |c| {
        if escaped {
            escaped = false;
        } else if quoted && c == '\\' {
            escaped = true;
        } else if c == '"' {
            quoted = !quoted;
        }
        !quoted && c == separator
    })
}

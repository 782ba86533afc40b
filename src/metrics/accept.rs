//! What a client accepts: `Accept` and `Accept-Encoding` with their q-values, and gzip. Parts that cannot be parsed
//! are ignored: a header never causes an error.

use std::io::Write as _;

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName};

/// The longest `Accept` that is passed on, in bytes. Prometheus 3 sends about 300.
pub const MAX_ACCEPT: usize = 1024;

/// The longest `Content-Type` that is passed on, in bytes. The longest that Prometheus knows takes 117.
pub const MAX_CONTENT_TYPE: usize = 256;

/// All values of a header as one list. Values that are not ASCII are ignored.
pub(crate) fn joined(headers: &HeaderMap, name: &HeaderName) -> String {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join(",")
}

/// One part of `Accept` or `Accept-Encoding`.
pub(super) struct Choice<'a> {
    /// The media type or the coding, as it was sent.
    pub(super) name: &'a str,
    /// The parameters after it, as they were sent.
    #[cfg_attr(not(feature = "metrics-prometheus"), allow(dead_code, reason = "only the formats need them"))]
    pub(super) parameters: &'a str,
    /// From 0 (never) to 1000. A value that is not a number counts as 1000, as in client_golang.
    pub(super) quality: u16,
}

impl<'a> Choice<'a> {
    pub(super) fn parse(part: &'a str) -> Self {
        let (name, parameters) = part.split_once(';').unwrap_or((part, ""));
        let quality = parameter(parameters, "q").map_or(1000, quality);
        Self { name: name.trim(), parameters, quality }
    }

    pub(super) fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// Whether the client prefers gzip to plain bytes, or accepts both equally (RFC 9110, 12.5.3).
pub(crate) fn accepts_gzip(accept_encoding: &str) -> bool {
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
    // Plain bytes are acceptable but not preferred unless the header mentions them.
    let (gzip, identity) = (gzip.or(any).unwrap_or(0), identity.or(any).unwrap_or(0));
    gzip > 0 && gzip >= identity
}

/// The smallest body worth compressing, in bytes: one that fits into a single packet arrives no sooner when smaller.
pub(crate) const GZIP_FROM: usize = 1_400;

/// `body` as a gzip stream.
///
/// Level 1: on an agent's page it takes a fifth of the default level's time (71 us for 39 KB, where level 6 takes
/// 386 us), and the result is a third larger (4.9 KB, not 3.8).
///
/// # Errors
///
/// None in practice: writing to memory does not fail. The signature is the encoder's.
pub(crate) fn gzip(body: &[u8]) -> std::io::Result<Bytes> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(body.len() / 8), flate2::Compression::fast());
    encoder.write_all(body)?;
    Ok(encoder.finish()?.into())
}

/// The value of a parameter, without its quotes.
pub(super) fn parameter<'a>(parameters: &'a str, name: &str) -> Option<&'a str> {
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

/// The parts of `text` between separators outside quotes.
pub(super) fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
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

//! Which parts of an exporter's answer are passed on.

use std::borrow::Cow;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, TRANSFER_ENCODING};
use hyper::http::response::Parts;

use super::FetchCause;
use crate::metrics::MAX_CONTENT_TYPE;

/// The content type, and whether the body is compressed with gzip.
pub(super) fn head(head: &Parts, gzip_wanted: bool) -> Result<(Option<Cow<'static, str>>, bool), FetchCause> {
    if head.status.is_redirection() {
        // It may lead anywhere, and only configured URLs are fetched.
        return Err(FetchCause::Redirect(head.status));
    }
    if head.status != StatusCode::OK {
        return Err(FetchCause::Status(head.status));
    }
    let gzip = gzip(&head.headers)?;
    if gzip && !gzip_wanted {
        return Err(FetchCause::Encoding);
    }
    Ok((content_type(&head.headers), gzip))
}

fn gzip(headers: &HeaderMap) -> Result<bool, FetchCause> {
    // hyper decodes `chunked` only. No other transfer coding was asked for.
    if headers.get_all(TRANSFER_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err(FetchCause::Encoding);
    }
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    let coding = codings.next().map(|coding| coding.as_bytes().to_ascii_lowercase());
    match (coding.as_deref(), codings.next()) {
        (None | Some(b"" | b"identity"), None) => Ok(false),
        // The two are the same (RFC 9110, section 8.4.1.3).
        (Some(b"gzip" | b"x-gzip"), None) => Ok(true),
        _ => Err(FetchCause::Encoding),
    }
}

fn is_visible(byte: u8) -> bool {
    matches!(byte, b' '..=b'~')
}

/// The content type; `None` unless there is exactly one and it is valid in a header. Prometheus handles a missing one
/// (`fallback_scrape_protocol`) and a wrong one.
fn content_type(headers: &HeaderMap) -> Option<Cow<'static, str>> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let one = types.next().filter(|_| types.next().is_none()).and_then(|one| one.to_str().ok());
    let one = one.filter(|one| (1..=MAX_CONTENT_TYPE).contains(&one.len()) && one.bytes().all(is_visible));
    one.map(|one| one.to_owned().into())
}

pub(super) async fn body(mut body: Incoming, max: usize) -> Result<Bytes, FetchCause> {
    let told = body.size_hint().lower();
    let told = usize::try_from(told).ok().filter(|told| *told <= max).ok_or(FetchCause::TooLarge(max))?;
    let mut read = Vec::with_capacity(told);
    while let Some(frame) = body.frame().await {
        // Trailers are not part of the page.
        let Ok(data) = frame.map_err(FetchCause::of)?.into_data() else { continue };
        if data.len() > max.saturating_sub(read.len()) {
            return Err(FetchCause::TooLarge(max));
        }
        read.extend_from_slice(&data);
    }
    Ok(read.into())
}

/// Checks that any headers of an exporter's answer are either rejected or safe to pass on.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    let mut answer = hyper::Response::new(()).into_parts().0;
    for line in data.split(|&byte| byte == b'\n') {
        let Some((&which, value)) = line.split_first() else { continue };
        let name = match which % 4 {
            0 => CONTENT_TYPE,
            1 => CONTENT_ENCODING,
            2 => TRANSFER_ENCODING,
            _ => hyper::header::CONTENT_LENGTH,
        };
        if let Ok(value) = hyper::header::HeaderValue::from_bytes(value) {
            answer.headers.append(name, value);
        }
    }
    for gzip_wanted in [false, true] {
        if let Ok((content_type, gzip)) = head(&answer, gzip_wanted) {
            assert!(content_type.is_none_or(|text| text.len() <= MAX_CONTENT_TYPE && text.bytes().all(is_visible)));
            assert!(gzip_wanted || !gzip);
        }
    }
}

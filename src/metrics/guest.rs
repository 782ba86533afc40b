//! Pages that another part of the agent adds to the endpoint.

use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::labels::HttpCode;

/// Another part's pages on the endpoint. They are asked for after the endpoint's own.
pub trait GuestPages: std::fmt::Debug + Send + Sync + 'static {
    /// Whether this path is one of these pages.
    fn has(&self, path: &str) -> bool;

    /// Answers a GET or HEAD, within bounded time: the endpoint sets none here. The future is dropped when the
    /// client goes away.
    fn answer<'a>(&'a self, path: &'a str, headers: &'a HeaderMap) -> BoxFuture<'a, GuestAnswer>;

    /// How many clients may wait for these pages at once, at most.
    fn clients(&self) -> usize;

    /// Path and description of the pages that have a fixed place.
    fn links(&self) -> Vec<(&'static str, &'static str)>;
}

/// What a page answers.
#[derive(Debug)]
pub struct GuestAnswer {
    /// The status.
    pub code: HttpCode,
    /// One sentence in the status line in place of the usual words. Prometheus shows the status line, and not
    /// the body, of what it could not scrape. What is no visible ASCII is left out.
    pub reason: Option<String>,
    /// The headers that belong to the body.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: Bytes,
}

/// All values of a header as one list. What is not ASCII is passed over.
#[cfg(feature = "metrics-prometheus")]
pub(crate) fn joined(headers: &HeaderMap, name: &HeaderName) -> String {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join(",")
}

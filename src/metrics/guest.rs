//! Pages that another part of the agent adds to the endpoint.

use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
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
    pub body: GuestBody,
}

/// The body of an answer.
#[derive(Debug)]
pub enum GuestBody {
    /// It is there.
    Whole(Bytes),
    /// It comes.
    Stream(GuestStream),
}

/// A body that comes.
pub struct GuestStream {
    /// How many bytes, exactly: that is said in front of it.
    pub len: u64,
    /// When it ends at the latest, with an error then.
    pub until: Instant,
    /// The bytes. After an error the connection is broken off.
    pub chunks: BoxStream<'static, Result<Bytes, Broken>>,
}

/// Why the rest of a body does not come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);

impl std::fmt::Debug for GuestStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestStream").field("len", &self.len).finish_non_exhaustive()
    }
}

impl GuestBody {
    /// All of it.
    ///
    /// # Errors
    ///
    /// When the rest of it does not come.
    pub async fn collect(self) -> Result<Bytes, Broken> {
        match self {
            Self::Whole(bytes) => Ok(bytes),
            Self::Stream(mut stream) => {
                let mut body = Vec::with_capacity(usize::try_from(stream.len).unwrap_or(0));
                while let Some(chunk) = stream.chunks.next().await {
                    body.extend_from_slice(&chunk?);
                }
                Ok(body.into())
            }
        }
    }
}

//! Pages that another part of the agent adds to the endpoint.

use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::labels::HttpCode;

/// Another part's pages on the endpoint. The endpoint's own pages take precedence.
pub trait GuestPages: std::fmt::Debug + Send + Sync + 'static {
    /// Whether this path is one of these pages.
    fn has(&self, path: &str) -> bool;

    /// Answers a GET or HEAD. This has to take bounded time, because the endpoint sets no limit here. The future is
    /// dropped if the client disconnects.
    fn answer<'a>(&'a self, path: &'a str, headers: &'a HeaderMap) -> BoxFuture<'a, GuestAnswer>;

    /// The most clients that may wait for these pages at once.
    fn clients(&self) -> usize;

    /// The path and the description of each page with a fixed path.
    fn links(&self) -> Vec<(&'static str, &'static str)>;
}

/// The response of a page.
#[derive(Debug)]
pub struct GuestAnswer {
    /// The status.
    pub code: HttpCode,
    /// A sentence for the status line instead of the usual reason phrase. When a scrape fails, Prometheus shows the
    /// status line but not the body. Characters other than visible ASCII and spaces are left out.
    pub reason: Option<String>,
    /// The headers that belong to the body.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: GuestBody,
}

/// The body of a response.
#[derive(Debug)]
pub enum GuestBody {
    /// The complete body.
    Whole(Bytes),
    /// A body that is still arriving.
    Stream(GuestStream),
}

/// A body that is still arriving.
pub struct GuestStream {
    /// Its exact length in bytes, which is sent ahead of it.
    pub len: u64,
    /// When it has to be complete; otherwise it ends with an error then.
    pub until: Instant,
    /// The bytes. After an error the connection is closed.
    pub chunks: BoxStream<'static, Result<Bytes, Broken>>,
}

/// Why the rest of a body does not arrive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);

impl std::fmt::Debug for GuestStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestStream").field("len", &self.len).finish_non_exhaustive()
    }
}

impl GuestBody {
    /// The whole body.
    ///
    /// # Errors
    ///
    /// If the rest of it does not arrive.
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

//! Why an exporter's page could not be fetched, in words that a remote peer may read.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use hyper::StatusCode;

use super::{Exposed, ExposedName};

/// Why a fetch failed. Its `Display` is one sentence that names the exporter and reveals nothing else about it;
/// [`detail`](Self::detail) is for the log of this machine.
#[derive(Debug, thiserror::Error)]
#[error("the exporter `{name}` {cause}")]
pub struct FetchError {
    name: ExposedName,
    /// The URL without its query, which may hold a token.
    at: String,
    cause: FetchCause,
}

/// What went wrong, as the rest of a sentence that begins with the exporter.
#[derive(Debug, thiserror::Error)]
pub enum FetchCause {
    /// No connection could be made.
    #[error("cannot be reached: {}", .0.kind())]
    Unreachable(io::Error),
    /// The resolver found no address.
    #[error("cannot be reached: no address found for its host name")]
    Unresolved(io::Error),
    /// It is on another machine, which its entry does not allow.
    #[error("is not on this machine, and its entry does not set `remote: true`")]
    NotLocal,
    /// It took longer than it was allowed.
    #[error("did not send a complete answer within {0:?}")]
    Deadline(Duration),
    /// The connection ended, or was lost, before the answer was complete.
    #[error("closed the connection before its answer was complete")]
    Closed(#[source] hyper::Error),
    /// The answer violates the protocol.
    #[error("did not answer with valid HTTP/1.1")]
    NotHttp(#[source] hyper::Error),
    /// The head is longer than 64 KiB, has more than 100 fields, or announces a length beyond hyper's limit.
    #[error("answered with headers that are too large")]
    Head,
    /// A 3xx status.
    #[error("answered with a redirect ({0}), which is not followed")]
    Redirect(StatusCode),
    /// Any other status except 200.
    #[error("answered with {0}")]
    Status(StatusCode),
    /// An encoding other than gzip, or gzip although it was not accepted.
    #[error("answered with an encoding that was not requested")]
    Encoding,
    /// The body is longer than this many bytes.
    #[error("answered with more than the {0} bytes that are allowed")]
    TooLarge(usize),
    /// The scraper's `Accept` cannot be sent.
    #[error("was not asked: the scrape's Accept header is too long or not valid")]
    Accept,
}

impl FetchError {
    pub(super) fn new(target: &Exposed, cause: FetchCause) -> Self {
        Self { name: target.name.clone(), at: target.url.without_query().to_owned(), cause }
    }

    /// What went wrong.
    pub fn cause(&self) -> &FetchCause {
        &self.cause
    }

    /// The same with the URL and the cause, for this machine's log only.
    pub fn detail(&self) -> String {
        let mut detail = format!("{self} ({}", self.at);
        let mut below = match &self.cause {
            FetchCause::Unreachable(error) | FetchCause::Unresolved(error) => Some(error as &dyn std::error::Error),
            cause => cause.source(),
        };
        while let Some(error) = below {
            detail += &format!(": {error}");
            below = error.source();
        }
        detail + ")"
    }
}

impl FetchCause {
    pub(super) fn of(error: hyper::Error) -> Self {
        use io::ErrorKind::{InvalidData, InvalidInput};
        if error.is_parse_too_large() {
            return Self::Head;
        }
        // hyper reports malformed chunks as connection errors of these two kinds.
        let kind = error.source().and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
        match kind {
            Some(InvalidData | InvalidInput) => Self::NotHttp(error),
            _ if error.is_parse() => Self::NotHttp(error),
            _ => Self::Closed(error),
        }
    }
}

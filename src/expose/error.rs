//! Why an exporter's page is not there, in words that a remote peer may read.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use hyper::StatusCode;

use super::{Exposed, ExposedName};

/// Why a fetch failed. Its `Display` is one sentence that names the exporter and nothing that a peer need not
/// know; [`detail`](Self::detail) is for the log of this machine.
#[derive(Debug, thiserror::Error)]
#[error("the exporter `{name}` {cause}")]
pub struct FetchError {
    name: ExposedName,
    /// The URL without its query, which may hold a token.
    at: String,
    cause: FetchCause,
}

/// What went wrong, as the end of a sentence that begins with the exporter.
#[derive(Debug, thiserror::Error)]
pub enum FetchCause {
    /// No connection came about.
    #[error("cannot be reached: {}", .0.kind())]
    Unreachable(io::Error),
    /// The resolver knows no address.
    #[error("cannot be reached: no address is known for its host")]
    Unresolved(io::Error),
    /// It is on another machine, which its entry does not allow.
    #[error("is not on this machine, and its entry does not say `remote: true`")]
    NotLocal,
    /// The time that it had is over.
    #[error("did not answer completely within {0:?}")]
    Deadline(Duration),
    /// The connection ended, or was lost, in the middle.
    #[error("closed the connection before its answer was complete")]
    Closed(#[source] hyper::Error),
    /// The answer breaks the protocol.
    #[error("did not answer in valid HTTP/1.1")]
    NotHttp(#[source] hyper::Error),
    /// The head is longer than 64 KiB, has more than 100 fields, or says a length that no number holds.
    #[error("answered with too large a head")]
    Head,
    /// A status of 3xx.
    #[error("answered with the redirect {0}, and redirects are not followed")]
    Redirect(StatusCode),
    /// Any other status than 200.
    #[error("answered {0}")]
    Status(StatusCode),
    /// A coding other than gzip, or gzip where it was not options.
    #[error("answered in an encoding that it was not asked for")]
    Encoding,
    /// The body is longer than so many bytes.
    #[error("answered with more than {0} bytes, the most that is passed on")]
    TooLarge(usize),
    /// The scraper's `Accept` cannot be sent.
    #[error("was not asked: the Accept header of the scrape is too long or not valid")]
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

    /// The same with where and why, for this machine's log only.
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
        // hyper reports broken chunks as errors of the connection, of these two kinds.
        let kind = error.source().and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
        match kind {
            Some(InvalidData | InvalidInput) => Self::NotHttp(error),
            _ if error.is_parse() => Self::NotHttp(error),
            _ => Self::Closed(error),
        }
    }
}

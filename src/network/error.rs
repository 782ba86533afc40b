//! Why a request to a peer failed, or the network could not be started.

use std::path::PathBuf;
use std::time::Duration;

use libp2p::{Multiaddr, PeerId};

use super::ScrapeError;
use super::protocol::{self, RemoteError};
use crate::metrics::labels::SendFailure;

/// Why a request to a peer failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The peer is not connected and could not be reached.
    #[error("peer {peer} is not connected and cannot be reached: {reason}")]
    Unreachable {
        /// The peer.
        peer: PeerId,
        /// Why it could not be reached.
        reason: String,
    },
    /// The peer is connected but does not support the link protocol.
    #[error("peer {0} is connected but does not speak {protocol}", protocol = protocol::PROTOCOL)]
    Unsupported(PeerId),
    /// Too many requests to this peer are waiting.
    #[error("too many requests to this peer are waiting (network.max_in_flight); try again later")]
    Busy,
    /// The peer did not answer in time.
    #[error("the peer did not answer within {0:?} (network.request_timeout)")]
    Timeout(Duration),
    /// The link was lost before the answer arrived: the peer may or may not have carried out the request.
    #[error("the connection was lost before the answer arrived; the peer may or may not have carried out the request")]
    LinkLost,
    /// The request is larger than the peer accepts.
    #[error("the request has {len} bytes; the peer accepts at most {max}")]
    TooLarge {
        /// The length of its key and value, in bytes.
        len: usize,
        /// The peer's limit, in bytes.
        max: usize,
    },
    /// The peer answered with an error.
    #[error("the peer refused: {0}")]
    Remote(RemoteError),
    /// The peer sent an answer that does not match the request.
    #[error("the peer's answer does not match the request")]
    Unexpected,
}

impl RequestError {
    pub(super) fn reason(&self) -> SendFailure {
        match self {
            Self::Unreachable { .. } | Self::Unsupported(_) => SendFailure::Unreachable,
            Self::Busy => SendFailure::Busy,
            Self::Timeout(_) => SendFailure::Timeout,
            Self::LinkLost => SendFailure::LinkLost,
            Self::TooLarge { .. } => SendFailure::TooLarge,
            Self::Remote(_) | Self::Unexpected => SendFailure::Remote,
        }
    }
}

impl ScrapeError {
    pub(super) fn reason(&self) -> SendFailure {
        match self {
            Self::NotConnected | Self::Unsupported => SendFailure::Unreachable,
            Self::Busy => SendFailure::Busy,
            Self::Timeout => SendFailure::Timeout,
            Self::Lost(_) => SendFailure::LinkLost,
            Self::Malformed(_) | Self::Remote(_) => SendFailure::Remote,
        }
    }
}

/// Why the network could not be started.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A listener could not be opened.
    #[error("cannot listen for peers on {address} (network.listen, --listen): {reason}")]
    Listen {
        /// The configured address.
        address: Multiaddr,
        /// The system's error.
        reason: String,
    },
    /// The pre-shared key cannot be used.
    #[error("cannot use the pre-shared key {} (network.psk_file): {reason}", .path.display())]
    PreSharedKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it. Never the key.
        reason: String,
    },
    /// The transport or a behaviour could not be built.
    #[error("cannot build the network: {0}")]
    Build(String),
}

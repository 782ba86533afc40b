//! The wire format of a substream for scrapes.
//!
//! The asking side opens the substream and sends an [`Ask`]; the other side answers with a [`Head`]. Each is a Protocol
//! Buffers message preceded by its length as a varint. A head with [`HeadBody::Page`] is followed by exactly as many
//! bytes as it announces. Only then may the next `Ask` follow. There are no ids: a side that no longer wants the answer
//! drops the substream, and either side may close it between two scrapes.

use libp2p::StreamProtocol;

use super::ErrorBody;

/// The name under which the substream is negotiated. A change that older agents cannot read needs a new name.
pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/peerscope/scrape/1");

/// The longest [`Ask`] or [`Head`], in bytes, without the length in front.
pub const MAX_HEAD: usize = 2 * 1024;

pub use crate::metrics::{MAX_ACCEPT, MAX_CONTENT_TYPE};

/// The question. Nothing else of a scraper's request reaches the peer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Ask {
    /// How long the asking side waits for all of the answer, in milliseconds.
    #[prost(uint64, tag = "1")]
    pub timeout_ms: u64,
    /// The scraper's `Accept`.
    #[prost(string, tag = "2")]
    pub accept: String,
    /// Whether the scraper accepts gzip.
    #[prost(bool, tag = "3")]
    pub gzip: bool,
    /// The exposed exporter that is scraped; empty for the agent itself.
    #[prost(string, tag = "4")]
    pub exposed: String,
}

/// The beginning of the answer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Head {
    /// `None` if it is of a type that this version does not know.
    #[prost(oneof = "HeadBody", tags = "1, 2")]
    pub body: Option<HeadBody>,
}

/// The body of a [`Head`].
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum HeadBody {
    /// A page follows.
    #[prost(message, tag = "1")]
    Page(PageHead),
    /// There is no page.
    #[prost(message, tag = "2")]
    Error(ErrorBody),
}

/// Describes the page that follows.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PageHead {
    /// Its `Content-Type`; empty if it has none.
    #[prost(string, tag = "1")]
    pub content_type: String,
    /// Whether it is compressed with gzip.
    #[prost(bool, tag = "2")]
    pub gzip: bool,
    /// How many bytes follow.
    #[prost(uint64, tag = "3")]
    pub len: u64,
}

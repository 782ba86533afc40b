//! What stands on the substream of one scrape.
//!
//! The asking side opens the substream and sends an [`Ask`], the other side answers with a [`Head`]; each is a
//! Protocol Buffers message behind its length as a varint. Behind a head that says [`HeadBody::Page`] come exactly
//! as many bytes as it announces, and then the next `Ask` may follow, but not before. There is no id: whoever does
//! not want the answer any more drops the substream, and either side may end it between two scrapes.

use libp2p::StreamProtocol;

use super::ErrorBody;

/// The name under which the substream is negotiated. A change that an older agent cannot read gets a new one.
pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/peerscope/scrape/1");

/// The longest [`Ask`] or [`Head`], in bytes, without the length in front.
pub const MAX_HEAD: usize = 2 * 1024;

pub use crate::metrics::{MAX_ACCEPT, MAX_CONTENT_TYPE};

/// What is asked. Nothing else of a scraper's request reaches the peer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Ask {
    /// How long the asking side waits for all of the answer, in milliseconds.
    #[prost(uint64, tag = "1")]
    pub timeout_ms: u64,
    /// The scraper's `Accept`.
    #[prost(string, tag = "2")]
    pub accept: String,
    /// Whether the scraper takes gzip.
    #[prost(bool, tag = "3")]
    pub gzip: bool,
    /// The exporter behind the agent that is asked for; empty for the agent itself.
    #[prost(string, tag = "4")]
    pub exposed: String,
}

/// What comes first of the answer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Head {
    /// `None` when it is of a kind that this version does not know.
    #[prost(oneof = "HeadBody", tags = "1, 2")]
    pub body: Option<HeadBody>,
}

/// The body of a [`Head`].
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum HeadBody {
    /// A page follows.
    #[prost(message, tag = "1")]
    Page(PageHead),
    /// There is none.
    #[prost(message, tag = "2")]
    Error(ErrorBody),
}

/// What is said of the page that follows.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PageHead {
    /// Its `Content-Type`; empty when there is none.
    #[prost(string, tag = "1")]
    pub content_type: String,
    /// Whether it is compressed by gzip.
    #[prost(bool, tag = "2")]
    pub gzip: bool,
    /// How many bytes follow.
    #[prost(uint64, tag = "3")]
    pub len: u64,
}

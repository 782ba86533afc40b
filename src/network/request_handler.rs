//! What the network asks the rest of the agent: the answers to its peers.

use futures::future::BoxFuture;
use libp2p::PeerId;

use super::protocol::{Introduction, RemoteError, Request, Response};
use super::{PeerInfo, Receipt, ScrapeAnswer, ScrapeRequest};

/// Answers the requests of peers, and hears who comes and goes. The one implementation is the node's.
pub trait RequestHandler: Send + Sync + 'static {
    /// Does what `peer` asks, within bounded time. The first poll happens at once, in the connection's
    /// task; the future is run to its end even when the peer goes away.
    fn handle(&self, peer: PeerId, request: Request) -> BoxFuture<'static, MessageAnswer>;

    /// Makes the page that `peer` asks for. The future is dropped when the peer does not want it any more.
    fn scrape(&self, peer: PeerId, request: ScrapeRequest) -> BoxFuture<'static, ScrapeAnswer>;

    /// Whether any rule allows `peer` anything. What one without may make this agent hold is bounded more tightly.
    fn has_permission(&self, _: &PeerId) -> bool {
        false
    }

    /// Whether this agent asks its peers for pages, which are bounded where they are asked for.
    fn scrapes(&self) -> bool {
        false
    }

    /// What is said of this agent to `peer`; `None` for one that may not scrape it.
    fn introduction(&self, _: &PeerId) -> Option<Introduction> {
        None
    }

    /// Peers for whom there is always room, besides those that the network's configuration names.
    fn expected(&self) -> Vec<PeerId> {
        Vec::new()
    }

    /// A link to a peer is up, or something is known of it that was not. Called in the event loop: it must not
    /// wait for anything.
    fn peer_up(&self, _: &PeerInfo) {}

    /// The last connection to a peer is gone. Called like [`RequestHandler::peer_up`].
    fn peer_down(&self, _: &PeerId, _: &str) {}
}

/// What a [`RequestHandler`] gives back.
#[derive(Debug)]
pub struct MessageAnswer {
    /// The answer for the peer.
    pub result: Result<Response, RemoteError>,
    /// Completed when the answer is encoded.
    pub receipt: Receipt,
}

//! What the network needs from the rest of the agent: answers to its peers' requests.

use futures::future::BoxFuture;
use libp2p::PeerId;

use super::protocol::{Introduction, RemoteError, Request, Response};
use super::{PeerInfo, Receipt, ScrapeAnswer, ScrapeRequest};

/// Answers peers' requests, and is notified when peers connect and disconnect. Outside tests, only the node implements
/// it.
pub trait RequestHandler: Send + Sync + 'static {
    /// Carries out a request of `peer`, in bounded time. Called in the connection's task, so it must not block.
    fn handle(&self, peer: PeerId, request: Request) -> Handling;

    /// Makes the page that `peer` asks for. The future is dropped if the peer no longer wants the page.
    fn scrape(&self, peer: PeerId, request: ScrapeRequest) -> BoxFuture<'static, ScrapeAnswer>;

    /// Whether any access rule allows `peer` anything. What a peer without a permission may make this agent hold is
    /// bounded more tightly.
    fn has_permission(&self, _: &PeerId) -> bool {
        false
    }

    /// Whether this agent scrapes its peers. The pages that it asks for are bounded where it asks for them.
    fn scrapes(&self) -> bool {
        false
    }

    /// How this agent introduces itself to `peer`; `None` if `peer` may not scrape it.
    fn introduction(&self, _: &PeerId) -> Option<Introduction> {
        None
    }

    /// Peers for which there is always room, in addition to those that the network's configuration names.
    fn expected(&self) -> Vec<PeerId> {
        Vec::new()
    }

    /// A link to a peer is up, or something new is known about the peer. Called in the event loop, so it must not
    /// block.
    fn peer_up(&self, _: &PeerInfo) {}

    /// The last connection to a peer was closed, and why. Called in the event loop, so it must not block.
    fn peer_down(&self, _: &PeerId, _: &str) {}
}

/// How a [`RequestHandler`] carries out a request.
pub enum Handling {
    /// It is done. Most requests are, and then need no allocation.
    Done(MessageAnswer),
    /// It takes a while. Run to completion even if the peer disconnects.
    Pending(BoxFuture<'static, MessageAnswer>),
}

/// What a [`RequestHandler`] returns for a request.
#[derive(Debug)]
pub struct MessageAnswer {
    /// The answer for the peer.
    pub result: Result<Response, RemoteError>,
    /// Completed when the answer is encoded.
    pub receipt: Receipt,
}

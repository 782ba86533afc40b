//! The libp2p connection handler of scrapes: one on each connection, polled in that connection's own task.

use std::pin::Pin;
use std::task::Poll;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{AsyncRead as _, FutureExt as _, StreamExt as _};
use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::swarm::handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, StreamProtocol, StreamUpgradeError, SubstreamProtocol};
use libp2p::{PeerId, Stream};
use tokio::sync::{mpsc, oneshot};

use super::Context;
use super::serving::serve;
use crate::network::protocol::scrape::PROTOCOL;

/// How many substreams for scrapes are served at once on one connection. On as many more, scrapes are refused, and any
/// beyond that are dropped. A gateway may ask for the agent and up to 16 exporters, each for a few Prometheus servers.
const MAX_SERVING: usize = 32;

/// Why there is no substream.
#[derive(Debug)]
pub(crate) enum NoStream {
    /// The peer does not speak the protocol.
    Unsupported,
    /// It could not be opened.
    Failed(String),
}

/// A caller that needs a substream.
#[derive(Debug)]
pub(crate) struct Open {
    pub(super) caller: oneshot::Sender<Result<Opened, NoStream>>,
    /// Whether it has to be a new one.
    pub(super) fresh: bool,
}

/// A substream on which a scrape can be asked for.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(super) stream: Stream,
    /// Whether it was kept from an earlier scrape. Then the peer may just have closed it.
    pub(super) kept: bool,
    /// Takes it back once the whole page has arrived.
    pub(super) back: oneshot::Sender<Stream>,
}

pub(crate) struct ScrapeHandler {
    peer: PeerId,
    context: Context,
    opens: mpsc::Receiver<Open>,
    /// The substream of an earlier scrape. Opening one costs a round trip, a timer and most of the packets of a scrape.
    /// One is enough, since scrapes of one peer follow each other.
    kept: Option<Stream>,
    /// Returns the substream that was lent last; others are dropped after their scrape.
    lent: Option<oneshot::Receiver<Stream>>,
    serving: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl ScrapeHandler {
    pub(super) fn new(peer: PeerId, opens: mpsc::Receiver<Open>, context: Context) -> Self {
        Self { peer, context, opens, kept: None, lent: None, serving: FuturesUnordered::new() }
    }

    fn lend(&mut self, stream: Stream, kept: bool) -> Opened {
        let (back, lent) = oneshot::channel();
        self.lent = Some(lent);
        Opened { stream, kept, back }
    }

    /// Takes back the substream of a complete scrape. Drops one that the peer has closed, or on which it has sent
    /// something unasked. This is checked whenever the connection is polled, so also before every scrape.
    fn poll_kept(&mut self, cx: &mut std::task::Context<'_>) {
        if let Some(lent) = &mut self.lent
            && let Poll::Ready(returned) = lent.poll_unpin(cx)
        {
            self.lent = None;
            // A failed scrape does not give it back.
            if let Ok(stream) = returned {
                self.kept = Some(stream);
            }
        }
        if let Some(stream) = &mut self.kept
            && Pin::new(stream).poll_read(cx, &mut [0]).is_ready()
        {
            self.kept = None;
        }
    }
}

impl ConnectionHandler for ScrapeHandler {
    type FromBehaviour = std::convert::Infallible;
    type ToBehaviour = std::convert::Infallible;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    /// The caller that the substream is for. If new substreams went to the caller that has waited the longest, one that
    /// the peer never accepts would make the callers behind it fail, too.
    type OutboundOpenInfo = Open;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    fn poll(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Open, Self::ToBehaviour>> {
        while let Poll::Ready(Some(())) = self.serving.poll_next_unpin(cx) {}
        self.poll_kept(cx);
        while let Poll::Ready(Some(open)) = self.opens.poll_recv(cx) {
            if open.caller.is_closed() {
                continue;
            }
            if !open.fresh
                && let Some(stream) = self.kept.take()
            {
                let _caller_gone = open.caller.send(Ok(self.lend(stream, true)));
                continue;
            }
            let protocol = SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), open);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol, (), Open>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: stream, .. })
                if self.serving.len() < 2 * MAX_SERVING =>
            {
                let busy = self.serving.len() >= MAX_SERVING;
                self.serving.push(serve(stream, self.peer, self.context.clone(), busy));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: stream, info: open }) => {
                // If the caller is gone, the substream is dropped.
                let _caller_gone = open.caller.send(Ok(self.lend(stream, false)));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: open, error }) => {
                let _caller_gone = open.caller.send(Err(match error {
                    StreamUpgradeError::NegotiationFailed => NoStream::Unsupported,
                    StreamUpgradeError::Io(error) => NoStream::Failed(error.to_string()),
                    StreamUpgradeError::Timeout => NoStream::Failed("the peer did not accept the substream".into()),
                    StreamUpgradeError::Apply(never) => match never {},
                }));
            }
            _ => {}
        }
    }
}

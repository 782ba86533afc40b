//! Scrapes: on substreams of their own, so that a large page never delays a message. Each connection keeps one such
//! substream from scrape to scrape.
//!
//! A behaviour next to the links: it opens a substream when a caller asks for one, and answers scrapes on those that
//! peers open. Callers find the connection in the [`ScrapeTable`] and hand their request to it directly, without the
//! event loop.

mod asking;
mod handler;
mod serving;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::Poll;
use std::time::Duration;

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::behaviour::FromSwarm;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use parking_lot::RwLock;
use tokio::sync::mpsc;

pub use self::asking::PageBody;
pub(crate) use self::asking::ask;
use self::handler::ScrapeHandler;
pub(crate) use self::handler::{NoStream, Open, Opened};
use super::protocol::RemoteError;
use super::{Receipt, RequestHandler};
use crate::metrics::{MetricsCollector, Page};

/// How many substreams may wait to be opened on one connection.
const MAX_OPENING: usize = 32;

/// What a scraper asks a peer for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrapeRequest {
    /// The exposed exporter; `None` for the agent itself.
    pub exposed: Option<String>,
    /// The scraper's `Accept`.
    pub accept: String,
    /// Whether the scraper accepts gzip.
    pub gzip: bool,
    /// How long the asking side waits for all of the answer.
    pub timeout: Duration,
}

/// What a [`RequestHandler`] returns for a scrape.
#[derive(Debug)]
pub struct ScrapeAnswer {
    /// The page, or why there is none.
    pub result: Result<Page, RemoteError>,
    /// Completed when the answer is encoded.
    pub receipt: Receipt,
}

/// Why a peer could not be scraped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScrapeError {
    /// There is no connection to the peer; a scrape does not make one.
    #[error("the peer is not connected")]
    NotConnected,
    /// Too many scrapes of this peer wait for a substream.
    #[error("too many scrapes of this peer are waiting")]
    Busy,
    /// The peer does not support the protocol for scrapes.
    #[error("the peer does not speak {protocol}", protocol = super::protocol::scrape::PROTOCOL)]
    Unsupported,
    /// The connection or the substream was lost.
    #[error("the connection was lost before the answer was complete: {0}")]
    Lost(String),
    /// The peer sent something that is not a valid answer.
    #[error("the answer is malformed: {0}")]
    Malformed(String),
    /// The peer answered with an error.
    #[error("{0}")]
    Remote(RemoteError),
    /// The peer did not answer in time.
    #[error("the peer did not answer in time")]
    Timeout,
}

/// The connections over which peers can be scraped.
#[derive(Debug, Clone, Default)]
pub(crate) struct ScrapeTable {
    // A blocking lock: held for a lookup, never across an await.
    connections: Arc<RwLock<HashMap<PeerId, Vec<Entry>>>>,
    /// How many bytes have arrived on this side's own streams and not been read yet, on a gateway.
    pub(super) unread: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Entry {
    connection: ConnectionId,
    opens: mpsc::Sender<Open>,
}

impl ScrapeTable {
    /// The newest connection to `peer`: the one least likely to be dead.
    pub(crate) fn connection(&self, peer: &PeerId) -> Option<mpsc::Sender<Open>> {
        let table = self.connections.read();
        Some(table.get(peer)?.last()?.opens.clone())
    }

    fn add(&self, peer: PeerId, connection: ConnectionId, opens: mpsc::Sender<Open>) {
        let mut table = self.connections.write();
        table.entry(peer).or_default().push(Entry { connection, opens });
    }

    fn remove(&self, peer: &PeerId, connection: ConnectionId) {
        let mut table = self.connections.write();
        if let Some(entries) = table.get_mut(peer) {
            entries.retain(|entry| entry.connection != connection);
            if entries.is_empty() {
                table.remove(peer);
            }
        }
    }
}

/// What answers peers' scrapes, and what counts malformed ones.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) requests: Arc<dyn RequestHandler>,
    pub(crate) metrics: MetricsCollector,
}

/// The behaviour that makes scrapes possible on every connection.
pub(crate) struct Scrapes {
    context: Context,
    table: ScrapeTable,
    /// The caller's end of each connection's queue, until the connection is established.
    opens: HashMap<ConnectionId, mpsc::Sender<Open>>,
}

impl Scrapes {
    pub(crate) fn new(context: Context, table: ScrapeTable) -> Self {
        Self { context, table, opens: HashMap::new() }
    }

    fn handler(&mut self, connection: ConnectionId, peer: PeerId) -> ScrapeHandler {
        let (sender, opens) = mpsc::channel(MAX_OPENING);
        self.opens.insert(connection, sender);
        ScrapeHandler::new(peer, opens, self.context.clone())
    }
}

impl NetworkBehaviour for Scrapes {
    type ConnectionHandler = ScrapeHandler;
    type ToSwarm = std::convert::Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(connection, peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(connection, peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => {
                if let Some(opens) = self.opens.remove(&event.connection_id) {
                    self.table.add(event.peer_id, event.connection_id, opens);
                }
            }
            FromSwarm::ConnectionClosed(event) => self.table.remove(&event.peer_id, event.connection_id),
            // Another behaviour denied the connection after this one had made its queue.
            FromSwarm::DialFailure(event) => drop(self.opens.remove(&event.connection_id)),
            FromSwarm::ListenFailure(event) => drop(self.opens.remove(&event.connection_id)),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut std::task::Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

//! The framed link to each peer, and the table through which callers find it.
//!
//! Each side of a connection opens one long-lived substream for its own requests; the other side
//! answers on it. There are two substreams so that two busy peers cannot block each other: a side that
//! waits for its peer to read answers can stop reading that peer's requests, and still reads the answers
//! to its own.
//!
//! libp2p's request-response opens a substream per request, which costs most of the throughput, and
//! libp2p-stream drops inbound streams when its queue is full. Hence this handler.

mod framed;
mod handler;
mod places;
mod requester;
mod responder;
#[cfg(test)]
#[path = "../../tests/simulation/link.rs"]
mod simulation;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::behaviour::{ConnectionClosed, FromSwarm};
use libp2p::swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, NetworkBehaviour, NotifyHandler, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use parking_lot::RwLock;
use tokio::sync::{mpsc, watch};

use self::handler::{Command, LinkHandler};
pub(crate) use self::places::Denied;
use self::places::Places;
pub(crate) use self::requester::Outgoing;
use super::RequestHandler;
use super::muxer::Budget;
use super::protocol::{FrameError, Introduction, RemoteError};
use crate::metrics::MetricsCollector;
use crate::metrics::labels::FailureReason;

/// How many frames one poll of a link handles before other tasks get their turn.
const FRAMES_PER_TURN: usize = 256;

/// What all links share.
pub(crate) struct LinkContext {
    pub(crate) handler: Arc<dyn RequestHandler>,
    pub(crate) metrics: MetricsCollector,
    pub(crate) table: LinkTable,
    pub(crate) limits: Limits,
    /// Named peers, for which there is always room: strangers cannot shut them out.
    pub(crate) reserved: HashSet<PeerId>,
    /// Bounds what peers without a permission may make this agent hold.
    pub(crate) budget: Arc<Budget>,
}

/// The bounds of one link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The longest frame that is read, in bytes.
    pub(crate) max_frame: usize,
    /// The most requests in flight in each direction.
    pub(crate) max_in_flight: u32,
    /// How long a request may take in total.
    pub(crate) request_timeout: Duration,
    /// The most peers connected at once.
    pub(crate) max_peers: usize,
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the peer closed the link")]
    Closed,
    #[error("the link broke: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the peer gave up on the link: {0}")]
    GaveUp(RemoteError),
    #[error(
        "the peer did not read the data queued for it in time ({:?}, longer if there is much of it)",
        framed::PATIENCE
    )]
    NotReading,
    #[error("the peer did not accept the link in time")]
    NotOpened,
}

impl LinkError {
    /// The label value under which the metrics count what the peer sent; `None` if it sent nothing wrong.
    fn reason(&self) -> Option<FailureReason> {
        match self {
            Self::Frame(FrameError::TooLarge { .. }) => Some(FailureReason::TooLarge),
            Self::Frame(FrameError::Malformed(_)) => Some(FailureReason::Malformed),
            Self::Closed | Self::Io(_) | Self::GaveUp(_) | Self::NotReading | Self::NotOpened => None,
        }
    }
}

/// The links that are up. Callers get a link's queue from here and send to it directly.
#[derive(Debug, Clone)]
pub(crate) struct LinkTable {
    // A blocking lock: held for a lookup, never across an await.
    links: Arc<RwLock<Table>>,
    /// Changes whenever a link comes up, is lost, or turns out to be unsupported.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Table {
    up: HashMap<PeerId, Vec<Entry>>,
    /// Connections to peers that do not support the link protocol.
    unsupported: HashSet<(PeerId, ConnectionId)>,
}

#[derive(Debug)]
struct Entry {
    connection: ConnectionId,
    queue: mpsc::Sender<Outgoing>,
}

impl Default for LinkTable {
    fn default() -> Self {
        Self { links: Arc::default(), changes: watch::Sender::new(0) }
    }
}

impl LinkTable {
    /// The queue of the newest link to `peer`: the one whose connection is least likely to be dead.
    pub(crate) fn queue(&self, peer: &PeerId) -> Option<mpsc::Sender<Outgoing>> {
        Some(self.read().up.get(peer)?.last()?.queue.clone())
    }

    pub(crate) fn is_up(&self, peer: &PeerId) -> bool {
        self.read().up.contains_key(peer)
    }

    /// Whether `peer` is connected but does not support the link protocol.
    pub(crate) fn is_unsupported(&self, peer: &PeerId) -> bool {
        let table = self.read();
        !table.up.contains_key(peer) && table.unsupported.iter().any(|(unsupported, _)| unsupported == peer)
    }

    /// Notifies of every change of the table.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn add(&self, peer: PeerId, connection: ConnectionId, queue: mpsc::Sender<Outgoing>) {
        self.change(|table| table.up.entry(peer).or_default().push(Entry { connection, queue }));
    }

    fn set_unsupported(&self, peer: PeerId, connection: ConnectionId) {
        self.change(|table| {
            table.unsupported.insert((peer, connection));
        });
    }

    fn remove(&self, peer: &PeerId, connection: ConnectionId) {
        self.change(|table| {
            table.unsupported.remove(&(*peer, connection));
            if let Some(entries) = table.up.get_mut(peer) {
                entries.retain(|entry| entry.connection != connection);
                if entries.is_empty() {
                    table.up.remove(peer);
                }
            }
        });
    }

    fn read(&self) -> parking_lot::RwLockReadGuard<'_, Table> {
        self.links.read()
    }

    fn change(&self, change: impl FnOnce(&mut Table)) {
        change(&mut self.links.write());
        self.changes.send_modify(|version| *version = version.wrapping_add(1));
    }
}

/// What the links report to the event loop.
#[derive(Debug)]
pub(crate) enum Event {
    /// A link to the peer is up.
    Up(PeerId),
    /// The peer has introduced itself, which it does only to agents that may scrape it.
    Introduced(PeerId, Introduction),
    /// A link ended; its connection is being closed.
    Lost(PeerId, LinkError),
    /// The peer does not support the link protocol.
    Unsupported(PeerId),
    /// Every link that existed when draining began is idle.
    Drained,
}

/// The behaviour that puts a link on every connection and enforces `max_peers`.
pub(crate) struct Links {
    context: Arc<LinkContext>,
    /// The caller's end of each connection's queue, until the link is up.
    queues: HashMap<ConnectionId, mpsc::Sender<Outgoing>>,
    places: Places,
    /// How many requests each peer has in flight over all of its connections, including those that have been closed.
    in_flight: HashMap<PeerId, Weak<AtomicU32>>,
    /// Connections whose links have not yet reported that they are drained.
    draining: Option<HashSet<ConnectionId>>,
    events: VecDeque<ToSwarm<Event, Command>>,
}

impl Links {
    pub(crate) fn new(context: Arc<LinkContext>, max_connections: usize) -> Self {
        let places = Places::new(context.limits.max_peers, max_connections, context.reserved.clone());
        Self {
            context,
            queues: HashMap::new(),
            places,
            in_flight: HashMap::new(),
            draining: None,
            events: VecDeque::new(),
        }
    }

    /// The handler, which is notified when peers connect and disconnect.
    pub(crate) fn requests(&self) -> &dyn RequestHandler {
        &*self.context.handler
    }

    pub(crate) fn table(&self) -> &LinkTable {
        &self.context.table
    }

    /// Reserves places for these peers instead of those before.
    pub(crate) fn reserve(&mut self, named: HashSet<PeerId>) {
        self.places.name(named);
    }

    /// Tells these peers again who this agent is and what they may do.
    pub(crate) fn introduce(&mut self, peers: &HashSet<PeerId>) {
        for (peer_id, connection) in self.places.connections().filter(|(peer, _)| peers.contains(peer)) {
            let handler = NotifyHandler::One(connection);
            self.events.push_back(ToSwarm::NotifyHandler { peer_id, handler, event: Command::Introduce });
        }
    }

    /// Lets every link finish its requests in flight; [`Event::Drained`] follows.
    pub(crate) fn drain(&mut self) {
        let mut all = HashSet::new();
        for (peer_id, connection) in self.places.connections() {
            all.insert(connection);
            let handler = NotifyHandler::One(connection);
            self.events.push_back(ToSwarm::NotifyHandler { peer_id, handler, event: Command::Drain });
        }
        self.draining = Some(all);
        self.report_drained();
    }

    fn drained(&mut self, connection: ConnectionId) {
        if let Some(draining) = &mut self.draining
            && draining.remove(&connection)
        {
            self.report_drained();
        }
    }

    fn report_drained(&mut self) {
        if self.draining.as_ref().is_some_and(HashSet::is_empty) {
            self.events.push_back(ToSwarm::GenerateEvent(Event::Drained));
        }
    }

    fn check_room(&self, peer: &PeerId) -> Result<(), ConnectionDenied> {
        if self.draining.is_some() {
            return Err(ConnectionDenied::new(Denied::ShuttingDown));
        }
        self.places.check(peer).map_err(ConnectionDenied::new)
    }

    fn in_flight(&mut self, peer: PeerId) -> Arc<AtomicU32> {
        if self.in_flight.len() > 2 * self.context.limits.max_peers {
            self.in_flight.retain(|_, count| count.strong_count() > 0);
        }
        let count = self.in_flight.entry(peer).or_default();
        count.upgrade().unwrap_or_else(|| {
            let new = Arc::default();
            *count = Arc::downgrade(&new);
            new
        })
    }

    fn handler(&mut self, connection: ConnectionId, peer: PeerId) -> LinkHandler {
        let (sender, queue) = mpsc::channel(self.context.limits.max_in_flight as usize);
        self.queues.insert(connection, sender);
        LinkHandler::new(peer, connection, queue, self.in_flight(peer), Arc::clone(&self.context))
    }
}

impl NetworkBehaviour for Links {
    type ConnectionHandler = LinkHandler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.check_room(&peer)?;
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
        self.check_room(&peer)?;
        Ok(self.handler(connection, peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => {
                let peer_id = event.peer_id;
                if let Some(oldest) = self.places.take(peer_id, event.connection_id) {
                    tracing::debug!(peer = %peer_id, connection = %oldest, "closed for a newer connection of the same peer");
                    let connection = CloseConnection::One(oldest);
                    self.events.push_back(ToSwarm::CloseConnection { peer_id, connection });
                }
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, .. }) => {
                self.places.give_back(&peer_id, connection_id);
                self.queues.remove(&connection_id);
                self.context.table.remove(&peer_id, connection_id);
                self.drained(connection_id);
            }
            // Another behaviour denied the connection after this one had made its queue.
            FromSwarm::DialFailure(event) => drop(self.queues.remove(&event.connection_id)),
            FromSwarm::ListenFailure(event) => drop(self.queues.remove(&event.connection_id)),
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer_id: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        let event = match event {
            handler::Event::Up => {
                if let Some(queue) = self.queues.remove(&connection) {
                    self.context.table.add(peer_id, connection, queue);
                }
                Event::Up(peer_id)
            }
            handler::Event::Introduced(introduction) => Event::Introduced(peer_id, introduction),
            handler::Event::Lost(error) => {
                let connection = CloseConnection::One(connection);
                self.events.push_back(ToSwarm::CloseConnection { peer_id, connection });
                Event::Lost(peer_id, error)
            }
            handler::Event::Unsupported => {
                self.queues.remove(&connection);
                self.context.table.set_unsupported(peer_id, connection);
                Event::Unsupported(peer_id)
            }
            handler::Event::Drained => return self.drained(connection),
        };
        self.events.push_back(ToSwarm::GenerateEvent(event));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        // Only calls from the swarm add events, and the swarm polls after those, so no waker is needed.
        self.events.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

//! The libp2p swarm and the framed link to each peer.
//!
//! [`Network::bind`] opens the listeners; [`Driver::run`] serves until [`Network::shutdown`]. The network knows nothing
//! about storage: every request of a peer is answered by the [`RequestHandler`].

mod addresses;
mod behaviour;
mod boxed;
mod comings;
mod config;
mod contact;
mod error;
mod event_loop;
mod filter;
mod link;
mod muxer;
mod names;
mod peers;
pub mod protocol;
mod receipt;
mod refusals;
mod request_handler;
mod scrape;
mod silence;
#[cfg_attr(not(feature = "metrics-prometheus"), path = "network/telemetry/noop.rs")]
mod telemetry;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use libp2p::{Multiaddr, PeerId, identity};
use parking_lot::RwLock;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

pub use self::config::{BootstrapAddr, Config, ListenAddr, PeerIdText};
pub use self::contact::{PeerContact, Problem};
pub use self::error::{NetworkError, RequestError};
pub use self::event_loop::Driver;
use self::filter::DialFilter;
pub use self::filter::DialPrivate;
use self::link::{Limits, LinkTable, Outgoing};
#[cfg(any(test, fuzzing))]
pub use self::muxer::fuzz as fuzz_muxer;
pub use self::peers::{Direction, PeerInfo};
use self::protocol::{FRAME_OVERHEAD, Request, Response};
pub use self::receipt::Receipt;
pub use self::request_handler::{Handling, MessageAnswer, RequestHandler};
use self::scrape::ScrapeTable;
pub use self::scrape::{PageBody, ScrapeAnswer, ScrapeError, ScrapeRequest};
use crate::metrics::labels::MessageType;
use crate::metrics::{Health, MetricsCollector, Page, Registry, Timer};

/// How many file descriptors handshakes in progress need, in both directions together.
pub(crate) const HANDSHAKES: u32 = 2 * behaviour::FIRST_PENDING;

/// How long a caller waits for a place in the queue to a peer before it gets [`RequestError::Busy`].
const BUSY_AFTER: Duration = Duration::from_secs(1);

/// How long a caller waits for a peer that is not connected yet.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How many commands may wait for the event loop.
const COMMAND_QUEUE: usize = 256;

/// Whether something has changed for a peer.
pub type Affects = Box<dyn Fn(&PeerId) -> bool + Send + Sync>;

/// What a reload can change.
#[derive(Default)]
pub struct Reconfigured {
    /// `network.bootstrap`
    pub bootstrap: Vec<BootstrapAddr>,
    /// `network.allow_peers`
    pub allow_peers: Option<Vec<PeerIdText>>,
    /// Whether something has changed for a peer, so that this agent has to introduce itself anew.
    pub affected: Option<Affects>,
}

impl std::fmt::Debug for Reconfigured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reconfigured").field("bootstrap", &self.bootstrap).finish_non_exhaustive()
    }
}

impl Reconfigured {
    /// The peers that have a place whoever else is connected.
    fn named(&self) -> impl Iterator<Item = PeerId> {
        let bootstrap = self.bootstrap.iter().map(|target| target.peer);
        bootstrap.chain(self.allow_peers.iter().flatten().map(|peer| peer.0))
    }
}

/// A handle on the network. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Network {
    shared: Arc<NetworkState>,
}

#[derive(Debug)]
struct NetworkState {
    table: LinkTable,
    scrapes: ScrapeTable,
    commands: mpsc::Sender<event_loop::Command>,
    metrics: MetricsCollector,
    request_timeout: Duration,
    listen_addresses: Arc<RwLock<Vec<Multiaddr>>>,
}

impl Network {
    /// Opens the listeners. `max_payload` is the most bytes that a key and its value may have together in a frame.
    /// Nothing is served before [`Driver::run`].
    ///
    /// # Errors
    ///
    /// See [`NetworkError`].
    pub async fn bind(
        config: &Config,
        keypair: identity::Keypair,
        max_payload: usize,
        handler: Arc<dyn RequestHandler>,
        metrics: MetricsCollector,
        registry: &Registry,
        health: Health,
    ) -> Result<(Self, Driver), NetworkError> {
        let limits = Limits {
            max_frame: max_payload + FRAME_OVERHEAD,
            max_in_flight: config.max_in_flight,
            request_timeout: config.request_timeout,
            max_peers: config.max_peers as usize,
        };
        let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
        let table = LinkTable::default();
        let peers = Reconfigured {
            bootstrap: config.bootstrap.clone(),
            allow_peers: config.allow_peers.clone(),
            ..Reconfigured::default()
        };
        let reserved = peers.named().chain(handler.expected()).collect();
        let budget = Arc::default();
        let context =
            link::LinkContext { handler, metrics: metrics.clone(), table: table.clone(), limits, reserved, budget };
        let scrapes = ScrapeTable::default();
        let filter = Arc::new(DialFilter::new(config.dial_private));
        let (swarm, telemetry) =
            behaviour::build(config, keypair, Arc::new(context), scrapes.clone(), Arc::clone(&filter), registry)?;
        let driver = Driver::bind(swarm, telemetry, config, filter, queue, metrics.clone(), health).await?;
        let shared = NetworkState {
            table,
            scrapes,
            commands,
            metrics,
            request_timeout: config.request_timeout,
            listen_addresses: driver.listen_addresses(),
        };
        Ok((Self { shared: Arc::new(shared) }, driver))
    }

    /// Takes over what a reload has changed. Completes when it counts.
    pub async fn reconfigure(&self, peers: Reconfigured) {
        let (reply, done) = oneshot::channel();
        if self.shared.commands.send(event_loop::Command::Reconfigure { peers, reply }).await.is_ok() {
            let _ended = done.await;
        }
    }

    /// The addresses on which it listens now: they come and go with those of the machine.
    pub fn listen_addresses(&self) -> Vec<Multiaddr> {
        self.shared.listen_addresses.read().clone()
    }

    /// Sends a request to `peer`, connecting first if one of its addresses is known.
    ///
    /// # Errors
    ///
    /// See [`RequestError`]. Nothing is retried.
    pub async fn request(&self, peer: PeerId, request: Request) -> Result<Response, RequestError> {
        let timer = Timer::start();
        let kind = request.message_type();
        let result = match self.exchange(peer, request).await {
            Ok(response) if !response.answers(kind) => Err(RequestError::Unexpected),
            result => result,
        };
        if matches!(result, Ok(_) | Err(RequestError::Remote(_))) {
            self.shared.metrics.message_sent(kind, timer);
        }
        if let Err(error) = &result {
            self.shared.metrics.send_failed(kind, error.reason());
        }
        result
    }

    /// Asks `peer` for a metrics page over an existing connection. The timeout of `request` is enforced here until the
    /// page begins; from then on, the caller has to enforce it.
    ///
    /// # Errors
    ///
    /// See [`ScrapeError`]. Nothing is retried, except on a new substream if the peer has closed the one that was kept.
    pub async fn scrape(&self, peer: PeerId, request: &ScrapeRequest) -> Result<Page<PageBody>, ScrapeError> {
        let timer = Timer::start();
        let result = match self.shared.scrapes.connection(&peer) {
            Some(connection) => match tokio::time::timeout(request.timeout, scrape::ask(&connection, request)).await {
                Ok(result) => result,
                Err(_) => Err(ScrapeError::Timeout),
            },
            None => Err(ScrapeError::NotConnected),
        };
        if matches!(result, Ok(_) | Err(ScrapeError::Remote(_))) {
            self.shared.metrics.message_sent(MessageType::Scrape, timer);
        }
        if let Err(error) = &result {
            self.shared.metrics.send_failed(MessageType::Scrape, error.reason());
        }
        result
    }

    /// On a gateway, how many bytes of pages have arrived and not been read yet.
    pub fn unread_pages(&self) -> usize {
        self.shared.scrapes.unread.load(Ordering::Relaxed)
    }

    /// The connected peers.
    pub async fn peers(&self) -> Vec<PeerInfo> {
        let (reply, answer) = oneshot::channel();
        if self.shared.commands.send(event_loop::Command::Peers { reply }).await.is_err() {
            return Vec::new(); // stopped: no peer is connected
        }
        answer.await.unwrap_or_default()
    }

    /// How it stands with the peers that this agent stays connected to, in no order.
    pub async fn contacts(&self) -> Vec<PeerContact> {
        let (reply, answer) = oneshot::channel();
        if self.shared.commands.send(event_loop::Command::Contacts { reply }).await.is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    /// Completes when the event loop has completed a turn, or has ended.
    pub async fn turn(&self) {
        let (reply, done) = oneshot::channel();
        if self.shared.commands.send(event_loop::Command::Turn { reply }).await.is_ok() {
            let _ended = done.await;
        }
    }

    /// Shuts down: accepts no new connections, gives links up to `grace` to finish the requests in flight, then closes
    /// all connections. [`Driver::run`] returns.
    pub async fn shutdown(&self, grace: Duration) {
        let (reply, done) = oneshot::channel();
        if self.shared.commands.send(event_loop::Command::Shutdown { grace, reply }).await.is_ok() {
            let _stopped = done.await;
        }
    }

    /// Begins to shut down: accepts no new connections and answers peers' new requests with `shutting down`. This
    /// agent's own requests still work over links that are up, until [`Network::shutdown`].
    pub async fn drain(&self) {
        // If the event loop has ended, there is nothing to drain.
        let _ended = self.shared.commands.send(event_loop::Command::Drain).await;
    }

    async fn exchange(&self, peer: PeerId, request: Request) -> Result<Response, RequestError> {
        let deadline = Instant::now() + self.shared.request_timeout;
        let queue = match self.shared.table.queue(&peer) {
            Some(queue) => queue,
            None => self.connect(peer).await?,
        };
        let (reply, answer) = oneshot::channel();
        let patience = BUSY_AFTER.min(self.shared.request_timeout);
        match queue.try_send(Outgoing { request: Box::new(request), reply, deadline }) {
            Ok(()) => {}
            Err(TrySendError::Closed(_)) => return Err(RequestError::LinkLost),
            Err(TrySendError::Full(outgoing)) => match tokio::time::timeout(patience, queue.send(outgoing)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(RequestError::LinkLost),
                Err(_) => return Err(RequestError::Busy),
            },
        }
        drop(queue);
        // The link enforces the deadline, and drops `reply` when it ends.
        answer.await.unwrap_or(Err(RequestError::LinkLost))
    }

    async fn connect(&self, peer: PeerId) -> Result<mpsc::Sender<Outgoing>, RequestError> {
        let unreachable = |reason: &str| RequestError::Unreachable { peer, reason: reason.into() };
        let mut changes = self.shared.table.watch();
        let (reply, dialed) = oneshot::channel();
        let command = event_loop::Command::Connect { peer, reply };
        self.shared.commands.send(command).await.map_err(|_| unreachable("this agent is shutting down"))?;
        let attempt = async {
            dialed.await.map_err(|_| unreachable("this agent is shutting down"))??;
            loop {
                if let Some(queue) = self.shared.table.queue(&peer) {
                    return Ok(queue);
                }
                if self.shared.table.is_unsupported(&peer) {
                    return Err(RequestError::Unsupported(peer));
                }
                if changes.changed().await.is_err() {
                    return Err(unreachable("this agent is shutting down"));
                }
            }
        };
        let patience = CONNECT_TIMEOUT.min(self.shared.request_timeout);
        let late = || unreachable(&format!("no link was established within {patience:?}"));
        tokio::time::timeout(patience, attempt).await.unwrap_or_else(|_| Err(late()))
    }
}

//! The libp2p swarm and the framed link to each peer.
//!
//! [`Network::bind`] opens the listeners; [`Driver::run`] serves until it is told to stop. The network
//! knows no storage: each request of a peer goes to the [`RequestHandler`] it was given, which answers.

mod addresses;
mod behaviour;
mod comings;
mod config;
mod event_loop;
mod link;
mod muxer;
mod peers;
pub mod protocol;
mod scrape;
#[cfg(feature = "metrics-prometheus")]
mod telemetry;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::BoxFuture;
use libp2p::{Multiaddr, PeerId, identity};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

pub use self::config::{BootstrapAddr, Config, ListenAddr, PeerIdText};
pub use self::event_loop::Driver;
use self::link::{Limits, LinkTable, Outgoing};
#[cfg(any(test, fuzzing))]
pub use self::muxer::fuzz as fuzz_muxer;
pub use self::peers::{Direction, PeerInfo};
use self::protocol::{ErrorCode, FRAME_OVERHEAD, Introduction, RemoteError, Request, Response};
use self::scrape::ScrapeTable;
pub use self::scrape::{IncomingPage, PageBody, ScrapeAnswer, ScrapeError, ScrapePage, ScrapeRequest};
use crate::metrics::labels::{FailedMessage, FailureReason, MessageType, SendFailure};
use crate::metrics::{Health, MetricsCollector, Registry, Timer};

/// How many descriptors the handshakes under way may take, of both directions.
pub(crate) const HANDSHAKES: u32 = 2 * behaviour::MAX_PENDING;

/// How long a caller waits for a place in the queue to a peer before it is told `busy`.
const BUSY_AFTER: Duration = Duration::from_secs(1);

/// How long a caller waits for a peer that is not connected yet.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Commands that may wait for the event loop.
const COMMAND_QUEUE: usize = 256;

/// Answers the requests of peers, and hears who comes and goes. The one implementation is the node's.
pub trait RequestHandler: Send + Sync + 'static {
    /// Does what `peer` asks, within bounded time. The first poll happens at once, in the connection's
    /// task; the future is run to its end even when the peer goes away.
    fn handle(&self, peer: PeerId, request: Request) -> BoxFuture<'static, Answer>;

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
pub struct Answer {
    /// The answer for the peer.
    pub result: Result<Response, RemoteError>,
    /// Completed when the answer is encoded.
    pub receipt: Receipt,
}

/// Measures one message from decoded request to encoded answer. Dropped before that, it counts the
/// message as cancelled: none is ever lost from the metrics.
#[derive(Debug)]
#[must_use]
pub struct Receipt {
    metrics: MetricsCollector,
    /// `None` for a request of a type that this version does not know.
    kind: Option<MessageType>,
    timer: Timer,
    completed: bool,
}

impl Receipt {
    /// A request was decoded.
    #[inline]
    pub fn begin(metrics: MetricsCollector, kind: MessageType) -> Self {
        Self { metrics, kind: Some(kind), timer: Timer::start(), completed: false }
    }

    /// A request of a type that this version does not know was decoded.
    pub(crate) fn begin_unknown(metrics: MetricsCollector) -> Self {
        Self { metrics, kind: None, timer: Timer::start(), completed: false }
    }

    /// Its answer is encoded.
    #[inline]
    pub fn complete(mut self, outcome: Result<(), ErrorCode>) {
        self.completed = true;
        match (outcome, self.kind) {
            (Ok(()), Some(kind)) => self.metrics.message_handled(kind, self.timer),
            (Ok(()), None) => {} // what is not known is never done
            (Err(code), _) => self.fail(failure_reason(code)),
        }
    }

    fn fail(&self, reason: FailureReason) {
        self.metrics.message_failed(self.kind.map_or(FailedMessage::Unknown, FailedMessage::from), reason);
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.completed {
            self.fail(FailureReason::Cancelled);
        }
    }
}

fn failure_reason(code: ErrorCode) -> FailureReason {
    match code {
        ErrorCode::Refused => FailureReason::Refused,
        ErrorCode::Unspecified | ErrorCode::Malformed | ErrorCode::Unsupported => FailureReason::Malformed,
        ErrorCode::TooLarge => FailureReason::TooLarge,
        ErrorCode::Busy => FailureReason::Busy,
        ErrorCode::Timeout => FailureReason::Timeout,
        ErrorCode::Storage => FailureReason::Storage,
        ErrorCode::Failed => FailureReason::Failed,
        ErrorCode::ShuttingDown => FailureReason::Cancelled,
    }
}

/// Why a request to a peer failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The peer is not connected, and it could not be reached.
    #[error("peer {peer} is not connected and cannot be reached: {reason}")]
    Unreachable {
        /// Who.
        peer: PeerId,
        /// What was tried.
        reason: String,
    },
    /// The peer is connected but is no Peerscope agent.
    #[error("peer {0} is connected but does not speak {protocol}", protocol = protocol::PROTOCOL)]
    Unsupported(PeerId),
    /// Too many requests to this peer are waiting.
    #[error("too many requests to this peer are waiting (network.max_in_flight); try again later")]
    Busy,
    /// The peer did not answer in time.
    #[error("the peer did not answer within {0:?} (network.request_timeout)")]
    Timeout(Duration),
    /// The link was lost before the answer came: whether the request was done is not known.
    #[error("the connection was lost before the answer came; whether the peer did it is not known")]
    LinkLost,
    /// The request is larger than the peer takes.
    #[error("the request has {len} bytes; the peer takes at most {max}")]
    TooLarge {
        /// Its key and value, in bytes.
        len: usize,
        /// What the peer takes, in bytes.
        max: usize,
    },
    /// The peer answered with an error.
    #[error("the peer refused: {0}")]
    Remote(RemoteError),
    /// The peer answered something that does not fit the request.
    #[error("the peer's answer does not fit the request")]
    Unexpected,
}

impl RequestError {
    fn reason(&self) -> SendFailure {
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
    fn reason(&self) -> SendFailure {
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
pub enum Error {
    /// A listener could not be opened.
    #[error("cannot listen for peers on {address} (network.listen, --listen): {reason}")]
    Listen {
        /// The configured address.
        address: Multiaddr,
        /// What the system said.
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

/// A handle on the network. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    table: LinkTable,
    scrapes: ScrapeTable,
    commands: mpsc::Sender<event_loop::Command>,
    metrics: MetricsCollector,
    request_timeout: Duration,
    listen_addresses: Vec<Multiaddr>,
}

impl Network {
    /// Opens the listeners. `max_payload` is the longest key and value together that a frame may
    /// carry, in bytes. Nothing is served before [`Driver::run`].
    ///
    /// # Errors
    ///
    /// When an address cannot be listened on or the pre-shared key cannot be used.
    pub async fn bind(
        config: &Config,
        keypair: identity::Keypair,
        max_payload: usize,
        handler: Arc<dyn RequestHandler>,
        metrics: MetricsCollector,
        registry: &mut Registry,
        health: Health,
    ) -> Result<(Self, Driver), Error> {
        let limits = Limits {
            max_frame: max_payload + FRAME_OVERHEAD,
            max_in_flight: config.max_in_flight,
            request_timeout: config.request_timeout,
            max_peers: config.max_peers as usize,
        };
        let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
        let table = LinkTable::default();
        let named = config.allow_peers.iter().flatten().map(|peer| peer.0);
        let reserved =
            config.bootstrap.iter().map(|target| target.peer).chain(named).chain(handler.expected()).collect();
        let budget = Arc::default();
        let context =
            link::LinkContext { handler, metrics: metrics.clone(), table: table.clone(), limits, reserved, budget };
        let scrapes = ScrapeTable::default();
        let swarm = behaviour::build(config, keypair, Arc::new(context), scrapes.clone(), registry)?;
        let driver = Driver::bind(swarm, config, queue, metrics.clone(), registry, health).await?;
        let shared = Shared {
            table,
            scrapes,
            commands,
            metrics,
            request_timeout: config.request_timeout,
            listen_addresses: driver.listen_addresses().to_vec(),
        };
        Ok((Self { shared: Arc::new(shared) }, driver))
    }

    /// The addresses that the listeners got at the start.
    pub fn listen_addresses(&self) -> &[Multiaddr] {
        &self.shared.listen_addresses
    }

    /// Asks `peer`, connecting to it first when one of its addresses is known.
    ///
    /// # Errors
    ///
    /// See [`RequestError`]. Nothing is tried twice.
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

    /// Asks `peer` for a metrics page, over a connection that there is. The time that `request` gives is kept
    /// until the page begins; the caller keeps it from there on.
    ///
    /// # Errors
    ///
    /// See [`ScrapeError`]. Nothing is tried twice.
    pub async fn scrape(&self, peer: PeerId, request: &ScrapeRequest) -> Result<IncomingPage, ScrapeError> {
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

    /// How many bytes of pages have come that nobody has read yet, on a gateway.
    pub fn unread_pages(&self) -> usize {
        self.shared.scrapes.unread.load(Ordering::Relaxed)
    }

    /// The peers that are connected now.
    pub async fn peers(&self) -> Vec<PeerInfo> {
        let (reply, answer) = oneshot::channel();
        if self.shared.commands.send(event_loop::Command::Peers { reply }).await.is_err() {
            return Vec::new(); // stopped: nobody is connected
        }
        answer.await.unwrap_or_default()
    }

    /// Completes when the event loop has come round, or has ended.
    pub async fn turn(&self) {
        let (reply, done) = oneshot::channel();
        if self.shared.commands.send(event_loop::Command::Turn { reply }).await.is_ok() {
            let _ended = done.await;
        }
    }

    /// Stops: no new connections, links finish what they have begun within `grace`, connections are
    /// closed. [`Driver::run`] returns.
    pub async fn shutdown(&self, grace: Duration) {
        let (reply, done) = oneshot::channel();
        if self.shared.commands.send(event_loop::Command::Shutdown { grace, reply }).await.is_ok() {
            let _stopped = done.await;
        }
    }

    /// Begins to stop: no new connections, peers' new requests are answered with `shutting down`. Our own
    /// requests over links that are up still work, until [`Network::shutdown`].
    pub async fn drain(&self) {
        // When the event loop has ended there is nothing to drain.
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
        match queue.try_send(Outgoing { request, reply, deadline }) {
            Ok(()) => {}
            Err(TrySendError::Closed(_)) => return Err(RequestError::LinkLost),
            Err(TrySendError::Full(outgoing)) => match tokio::time::timeout(patience, queue.send(outgoing)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(RequestError::LinkLost),
                Err(_) => return Err(RequestError::Busy),
            },
        }
        drop(queue);
        // The link keeps the deadline; it drops the reply when it ends.
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
        let late = || unreachable(&format!("no link came up within {patience:?}"));
        tokio::time::timeout(patience, attempt).await.unwrap_or_else(|_| Err(late()))
    }
}

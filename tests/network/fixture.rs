//! Agents without a store: a network whose handler a test can hold and release, and its metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId, identity};
use peerscope::metrics::labels::MessageType;
use peerscope::metrics::{Health, MetricsCollector, Registry};
use peerscope::network::protocol::{ErrorCode, RemoteError};
use peerscope::network::protocol::{FRAME_OVERHEAD, Request, Response};
use peerscope::network::{
    self, BootstrapAddr, Config, Handling, MessageAnswer, Network, Receipt, RequestError, RequestHandler, ScrapeAnswer,
    ScrapeRequest,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::support::raw_peer::Listening;
use crate::support::{agent_info, metrics};

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The most bytes of key and value together that the agents of these tests accept, unless a test sets another limit.
pub(crate) const MAX_PAYLOAD: usize = 1024 * 1024 + 1024;

/// The frame limit that follows from [`MAX_PAYLOAD`].
pub(crate) const MAX_FRAME: usize = MAX_PAYLOAD + FRAME_OVERHEAD;

/// One network in this process.
pub(crate) struct Agent {
    pub(crate) peer: PeerId,
    pub(crate) network: Network,
    pub(crate) handler: Arc<Handler>,
    registry: Arc<Registry>,
    driver: JoinHandle<()>,
}

impl Agent {
    pub(crate) async fn start(config: Config) -> Self {
        Self::try_start(config, MAX_PAYLOAD, identity::Keypair::generate_ed25519()).await.unwrap()
    }

    pub(crate) async fn try_start(
        config: Config,
        max_payload: usize,
        key: identity::Keypair,
    ) -> Result<Self, network::NetworkError> {
        let registry = Registry::default();
        let collector = MetricsCollector::new(&registry, &agent_info());
        let peer = key.public().to_peer_id();
        let handler = Arc::new(Handler::new(collector.clone()));
        let requests = Arc::clone(&handler) as Arc<dyn RequestHandler>;
        let (network, driver) =
            Network::bind(&config, key, max_payload, requests, collector, &registry, Health::default()).await?;
        let driver = tokio::spawn(driver.run());
        Ok(Self { peer, network, handler, registry: Arc::new(registry), driver })
    }

    /// The address that it listens on, without its PeerId.
    pub(crate) fn address(&self) -> Multiaddr {
        self.network.listen_addresses()[0].clone()
    }

    pub(crate) fn port(&self) -> u16 {
        port(&self.address())
    }

    /// What another agent puts under `bootstrap` to reach this one.
    pub(crate) fn as_bootstrap(&self) -> BootstrapAddr {
        BootstrapAddr { peer: self.peer, address: self.address() }
    }

    /// The whole exposition.
    pub(crate) fn exposition(&self) -> String {
        metrics::encode(&self.registry)
    }

    /// The current value of one series.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        metrics::value(&self.exposition(), name, labels)
    }

    pub(crate) fn peers_connected(&self) -> f64 {
        self.value("agent_peers_connected", &[])
    }

    /// How many of peers' messages could not be handled, by type and reason.
    pub(crate) fn failed(&self, kind: &str, reason: &str) -> f64 {
        self.value("messages_failed_total", &[("type", kind), ("reason", reason)])
    }

    /// How many of peers' messages could not be handled in total.
    pub(crate) fn failed_in_all(&self) -> f64 {
        self.sum("messages_failed_total{")
    }

    /// The sum of all series that begin with `beginning`; 0 if there are none.
    pub(crate) fn sum(&self, beginning: &str) -> f64 {
        let text = self.exposition();
        let lines = text.lines().filter(|line| line.starts_with(beginning));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    pub(crate) async fn ping(&self, to: PeerId) -> Result<Response, RequestError> {
        self.network.request(to, ping(b"x")).await
    }

    pub(crate) async fn get(&self, from: PeerId, key: &str) -> Result<Response, RequestError> {
        self.network.request(from, get(key)).await
    }

    /// Waits until exactly `count` peers are connected, and as many links are up.
    pub(crate) async fn connected(&self, count: usize) {
        let describe = format!("{count} peers with links");
        eventually(&describe, || async {
            let peers = self.network.peers().await;
            peers.len() == count && peers.iter().all(|peer| peer.link) && self.peers_connected() == count as f64
        })
        .await;
    }

    /// Stops it and waits until it has stopped.
    pub(crate) async fn stop(self) {
        self.network.shutdown(Duration::from_secs(5)).await;
        timeout(PATIENCE, self.driver).await.expect("the driver ends").unwrap();
    }

    /// Ends it as a crash would, as far as that is possible within one process: nothing is finished, sockets close.
    pub(crate) async fn crash(self) {
        self.driver.abort();
        let _aborted = self.driver.await;
    }

    /// Asserts that the driver has neither ended nor panicked.
    pub(crate) fn assert_alive(&self) {
        assert!(!self.driver.is_finished(), "the driver has ended");
    }
}

impl Listening for Agent {
    fn address(&self) -> Multiaddr {
        self.address()
    }
}

/// A configuration that listens on a free port of the loopback interface and knows no peers.
pub(crate) fn config() -> Config {
    Config { listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()], ..Config::default() }
}

/// One that stays connected to `to`.
pub(crate) fn joining(to: &Agent) -> Config {
    Config { bootstrap: vec![to.as_bootstrap()], ..config() }
}

/// Two agents with a link in both directions; the second has dialed the first.
pub(crate) async fn pair() -> (Agent, Agent) {
    pair_of(config(), config()).await
}

pub(crate) async fn pair_of(first: Config, second: Config) -> (Agent, Agent) {
    let first = Agent::start(first).await;
    let second = Agent::start(Config { bootstrap: vec![first.as_bootstrap()], ..second }).await;
    first.connected(1).await;
    second.connected(1).await;
    (first, second)
}

pub(crate) fn port(address: &Multiaddr) -> u16 {
    let port = address.iter().find_map(|part| match part {
        Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
        _ => None,
    });
    port.unwrap()
}

pub(crate) fn get(key: &str) -> Request {
    Request::Get { key: Bytes::copy_from_slice(key.as_bytes()) }
}

pub(crate) fn ping(payload: &[u8]) -> Request {
    Request::Ping { payload: Bytes::copy_from_slice(payload) }
}

pub(crate) fn pong(payload: &[u8]) -> Response {
    Response::Pong(Bytes::copy_from_slice(payload))
}

/// Polls `condition` until it holds, and fails with `what` if it does not in time.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl FnMut() -> F) {
    within(PATIENCE, what, condition).await;
}

pub(crate) async fn within<F: Future<Output = bool>>(limit: Duration, what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + limit;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Answers according to the key of the request: `hold:N` once [`Handler::release`] has reached N, `never` never,
/// `big:N` with N bytes, anything else with no value. Pings are answered at once; puts are not stored.
pub(crate) struct Handler {
    metrics: MetricsCollector,
    released: watch::Sender<u32>,
    begun: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
}

impl Handler {
    fn new(metrics: MetricsCollector) -> Self {
        Self { metrics, released: watch::Sender::new(0), begun: Arc::default(), ended: Arc::default() }
    }

    /// Answers every request for `hold:N` with N up to `level`.
    pub(crate) fn release(&self, level: u32) {
        self.released.send_replace(level);
    }

    /// How many requests it has received.
    pub(crate) fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    /// How many of them it has finished.
    pub(crate) fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }
}

impl RequestHandler for Handler {
    fn has_permission(&self, _: &PeerId) -> bool {
        true
    }

    fn handle(&self, _: PeerId, request: Request) -> Handling {
        let receipt = Receipt::begin(self.metrics.clone(), request.message_type());
        self.begun.fetch_add(1, Ordering::SeqCst);
        let (ended, mut released) = (Arc::clone(&self.ended), self.released.subscribe());
        let work = async move {
            let response = match request {
                Request::Get { key } => {
                    let key = String::from_utf8(key.to_vec()).unwrap();
                    match key.split_once(':') {
                        Some(("hold", level)) => {
                            let level: u32 = level.parse().unwrap();
                            if released.wait_for(|released| *released >= level).await.is_err() {
                                std::future::pending::<()>().await;
                            }
                            Response::Value(Some(Bytes::from(key)))
                        }
                        Some(("big", len)) => Response::Value(Some(Bytes::from(vec![b'v'; len.parse().unwrap()]))),
                        _ if key == "never" => std::future::pending().await,
                        _ => Response::Value(None),
                    }
                }
                Request::Put { .. } => Response::Stored,
                Request::Delete { .. } => Response::Deleted(false),
                Request::Ping { payload } => Response::Pong(payload),
            };
            ended.fetch_add(1, Ordering::SeqCst);
            MessageAnswer { result: Ok(response), receipt }
        };
        Handling::Pending(work.boxed())
    }

    fn scrape(&self, _: PeerId, _: ScrapeRequest) -> BoxFuture<'static, ScrapeAnswer> {
        let receipt = Receipt::begin(self.metrics.clone(), MessageType::Scrape);
        let error = RemoteError::new(ErrorCode::Refused, "this handler answers no scrapes");
        std::future::ready(ScrapeAnswer { result: Err(error), receipt }).boxed()
    }
}

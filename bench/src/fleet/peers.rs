//! The peers: the networks of many agents in one process. Each has its own key, swarm and link to the gateway; they
//! share the runtime and the page.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use libp2p::PeerId;
use libp2p::identity::Keypair;
use peerscope::metrics::Page;
use peerscope::metrics::labels::MessageType;
use peerscope::metrics::{Health, MetricsCollector, Registry};
use peerscope::network::protocol::{ErrorCode, Introduction, RemoteError, Request};
use peerscope::network::{
    BootstrapAddr, Config, Driver, Handling, MessageAnswer, Network, Receipt, RequestHandler, ScrapeAnswer,
    ScrapeRequest,
};
use tokio::task::JoinHandle;

use super::page::{CONTENT_TYPE, page};
use super::raise_descriptors;
use crate::library::peerscope::agent_info;
use crate::process::announce_and_answer;
use crate::{Error, Result};

/// How long a peer of a churning fleet is away, and the pause after its return.
const PAUSE: Duration = Duration::from_millis(20);
/// The number of peers that come and go at the same time.
const CHURNERS: usize = 2;

/// The key of the peer with this number. The bench needs the PeerIds before it starts the peers.
pub(super) fn key(number: usize) -> Result<Keypair> {
    let mut secret = [0x5a; 32];
    secret.iter_mut().zip(number.to_be_bytes()).for_each(|(byte, of_number)| *byte = of_number);
    Ok(Keypair::ed25519_from_bytes(secret)?)
}

pub(super) fn ids(count: usize) -> Result<Vec<PeerId>> {
    (0..count).map(|number| Ok(key(number)?.public().to_peer_id())).collect()
}

/// Answers every scrape with the same page.
struct Fixed {
    number: usize,
    shared: Arc<Shared>,
}

struct Shared {
    gateway: BootstrapAddr,
    page: Bytes,
    metrics: MetricsCollector,
}

impl RequestHandler for Fixed {
    fn handle(&self, _: PeerId, request: Request) -> Handling {
        let receipt = Receipt::begin(self.shared.metrics.clone(), request.message_type());
        let result = Err(RemoteError::new(ErrorCode::Refused, "this peer can only be scraped"));
        Handling::Done(MessageAnswer { result, receipt })
    }

    fn scrape(&self, _: PeerId, _: ScrapeRequest) -> BoxFuture<'static, ScrapeAnswer> {
        let receipt = Receipt::begin(self.shared.metrics.clone(), MessageType::Scrape);
        let result = Ok(Page { content_type: Some(CONTENT_TYPE.into()), gzip: false, body: self.shared.page.clone() });
        std::future::ready(ScrapeAnswer { result, receipt }).boxed()
    }

    fn introduction(&self, _: &PeerId) -> Option<Introduction> {
        Some(Introduction { name: format!("peer-{}", self.number), exposed: Vec::new(), withdrawn: false })
    }
}

/// A running peer. It leaves when its network's driver ends.
struct Peer {
    network: Network,
    driver: JoinHandle<()>,
}

async fn bind(number: usize, shared: &Arc<Shared>) -> Result<(Network, Driver)> {
    let config = Config { listen: Vec::new(), bootstrap: vec![shared.gateway.clone()], ..Config::default() };
    let handler = Arc::new(Fixed { number, shared: Arc::clone(shared) });
    // libp2p's metrics need a separate registry for each swarm. It is never read.
    let registry = Registry::default();
    let (metrics, health) = (shared.metrics.clone(), Health::default());
    Ok(Network::bind(&config, key(number)?, 1 << 20, handler, metrics, &registry, health).await?)
}

/// Runs COUNT peers of the gateway at ADDRESS, where `at` is `COUNT ADDRESS`. On `dial` they dial it. From `churn` to
/// `calm` they come and go; the answer to `calm` is the number of departures.
pub(super) fn serve(at: &str) -> Result<()> {
    raise_descriptors()?;
    let (count, gateway) = at.split_once(' ').ok_or("peers need COUNT ADDRESS")?;
    let count = count.parse()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let metrics = MetricsCollector::new(&Registry::default(), &agent_info());
    let shared = Arc::new(Shared { gateway: gateway.parse()?, page: page().into(), metrics });
    let mut bound = runtime.block_on(async {
        let mut bound = Vec::with_capacity(count);
        for number in 0..count {
            bound.push(bind(number, &shared).await?);
        }
        Ok::<_, Error>(bound)
    })?;
    let peers: Arc<Vec<Mutex<Option<Peer>>>> = Arc::new((0..count).map(|_| Mutex::new(None)).collect());
    let mut churning: Option<Churn> = None;
    announce_and_answer("bound", |question| {
        match question {
            "dial" => {
                let _guard = runtime.enter();
                for (slot, (network, driver)) in peers.iter().zip(bound.drain(..)) {
                    put(slot, Peer { network, driver: tokio::spawn(driver.run()) });
                }
            }
            "churn" => churning = Some(Churn::start(&runtime, &peers, &shared)),
            "calm" => {
                let churn = churning.take().ok_or("`calm` without `churn`")?;
                return runtime.block_on(churn.stop()).map(|left| left.to_string());
            }
            _ => return Err(format!("peers do not know the question `{question}`").into()),
        }
        Ok("0".into())
    })
}

/// Peers come and go.
struct Churn {
    stop: Arc<AtomicBool>,
    left: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Result<()>>>,
}

impl Churn {
    fn start(runtime: &tokio::runtime::Runtime, peers: &Arc<Vec<Mutex<Option<Peer>>>>, shared: &Arc<Shared>) -> Self {
        let (stop, left) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..CHURNERS).map(|churner| {
            let (peers, shared) = (Arc::clone(peers), Arc::clone(shared));
            let (stop, left) = (Arc::clone(&stop), Arc::clone(&left));
            runtime.spawn(async move {
                for turn in 0.. {
                    // Each churner has its own peers and takes them in turn.
                    let number = (churner + turn * CHURNERS) % peers.len();
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let slot = peers.get(number).ok_or("no such peer")?;
                    leave(take(slot).ok_or("the peer is not there")?, turn % 2 == 0).await;
                    left.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(PAUSE).await;
                    let (network, driver) = bind(number, &shared).await?;
                    put(slot, Peer { network, driver: tokio::spawn(driver.run()) });
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(())
            })
        });
        let tasks = tasks.collect();
        Self { stop, left, tasks }
    }

    /// Stops once all peers are back, and returns the number of departures.
    async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await??;
        }
        Ok(self.left.load(Ordering::Relaxed))
    }
}

/// Leaves in an orderly way, or as a killed process, whose sockets the kernel closes.
async fn leave(peer: Peer, in_order: bool) {
    if in_order {
        peer.network.shutdown(Duration::ZERO).await;
    }
    peer.driver.abort();
}

fn put(slot: &Mutex<Option<Peer>>, peer: Peer) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(peer);
}

fn take(slot: &Mutex<Option<Peer>>) -> Option<Peer> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_has_its_own_key() {
        let mut ids = ids(300).unwrap();
        assert_eq!(ids, super::ids(300).unwrap());
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 300);
    }
}

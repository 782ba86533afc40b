//! The one entry point of a peer's message: authorise, do, answer. Messages are measured here.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use libp2p::PeerId;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::{AccessRule, Config, PeerSelector, Permission};
use crate::expose::{self, Exposed, FetchCause};
use crate::gateway::Fleet;
use crate::metrics::accept;
use crate::metrics::labels::MessageType;
use crate::metrics::{ExposeError, Exposer, MetricsCollector, Page};
use crate::network::PeerInfo;
use crate::network::protocol::{ErrorCode, Introduction, RemoteError, Request, Response};
use crate::network::{MessageAnswer, Receipt, RequestHandler, ScrapeAnswer, ScrapeRequest};
use crate::storage::{Storage, StorageError};

/// How much longer one request may take than the store needs to fail by its own bounds: the limit is only
/// met when a backend hangs, and what the store has to say of a failure is heard first.
const MARGIN: Duration = Duration::from_secs(3);

/// Pages of exporters that are held for peers at once: fetched, or not yet taken by a slow peer.
const MAX_FETCHES: usize = 16;

/// How long before its time is up a peer is told that an exporter does not answer.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Who may do what. Nobody may do anything that no rule allows; `ping` needs no rule.
#[derive(Debug, Clone)]
pub struct Access {
    peers: HashMap<PeerId, Allowed>,
    anyone: Allowed,
}

#[derive(Debug, Clone, Copy, Default)]
struct Allowed {
    get: bool,
    put: bool,
    delete: bool,
    scrape: bool,
}

impl Access {
    /// The rules of the configuration. A peer's own rule holds in place of the one for any peer.
    pub fn new(rules: &[AccessRule]) -> Self {
        let mut access = Self { peers: HashMap::new(), anyone: Allowed::default() };
        for rule in rules {
            let allowed = Allowed {
                get: rule.allow.contains(&Permission::Get),
                put: rule.allow.contains(&Permission::Put),
                delete: rule.allow.contains(&Permission::Delete),
                scrape: rule.allow.contains(&Permission::Scrape),
            };
            match rule.peer {
                PeerSelector::Any => access.anyone = allowed,
                PeerSelector::Peer(peer) => drop(access.peers.insert(peer, allowed)),
            }
        }
        access
    }

    fn allows(&self, peer: &PeerId, kind: MessageType) -> bool {
        let allowed = self.peers.get(peer).unwrap_or(&self.anyone);
        match kind {
            MessageType::Get => allowed.get,
            MessageType::Put => allowed.put,
            MessageType::Delete => allowed.delete,
            MessageType::Scrape => allowed.scrape,
            MessageType::Ping => true,
        }
    }

    fn has_permission(&self, peer: &PeerId) -> bool {
        let Allowed { get, put, delete, scrape } = self.peers.get(peer).unwrap_or(&self.anyone);
        *get || *put || *delete || *scrape
    }
}

/// Answers peers from the store, as far as the access rules let them.
#[derive(Debug)]
pub struct Handler {
    access: Access,
    storage: Storage,
    metrics: MetricsCollector,
    sources: ScrapeSources,
}

/// What peers that may scrape this agent can have.
#[derive(Debug, Clone)]
pub struct ScrapeSources {
    /// What the operator calls this agent.
    pub name: String,
    /// Makes the agent's own page.
    pub exposer: Exposer,
    /// The exporters beside it.
    pub exposed: Arc<[Exposed]>,
    /// The most bytes that the page of one of them may have.
    pub max_body: usize,
    /// The exporters whose last page could not be fetched.
    pub failing: Arc<Mutex<HashSet<String>>>,
    /// A permit for each page of an exporter that is fetched or on its way to a peer.
    pub fetches: Arc<Semaphore>,
    /// The gateway's peers, when this agent is a gateway.
    pub fleet: Option<Arc<Fleet>>,
}

impl Handler {
    /// A handler over one store.
    pub fn new(access: Access, storage: Storage, metrics: MetricsCollector, sources: ScrapeSources) -> Self {
        Self { access, storage, metrics, sources }
    }

    fn refused(&self, peer: &PeerId, kind: MessageType) -> Option<RemoteError> {
        let text = || format!("{peer} is not allowed to {kind} here");
        (!self.access.allows(peer, kind)).then(|| RemoteError::new(ErrorCode::Refused, text()))
    }
}

impl RequestHandler for Handler {
    fn has_permission(&self, peer: &PeerId) -> bool {
        self.access.has_permission(peer)
    }

    fn scrapes(&self) -> bool {
        self.sources.fleet.is_some()
    }

    fn handle(&self, peer: PeerId, request: Request) -> BoxFuture<'static, MessageAnswer> {
        let kind = request.message_type();
        let receipt = Receipt::begin(self.metrics.clone(), kind);
        if let Some(error) = self.refused(&peer, kind) {
            return std::future::ready(MessageAnswer { result: Err(error), receipt }).boxed();
        }
        let storage = self.storage.clone();
        async move {
            let result = execute(&storage, request).await;
            MessageAnswer { result, receipt }
        }
        .boxed()
    }

    fn scrape(&self, peer: PeerId, request: ScrapeRequest) -> BoxFuture<'static, ScrapeAnswer> {
        let receipt = Receipt::begin(self.metrics.clone(), MessageType::Scrape);
        if let Some(error) = self.refused(&peer, MessageType::Scrape) {
            return std::future::ready(ScrapeAnswer { result: Err(error), receipt }).boxed();
        }
        let sources = self.sources.clone();
        async move { ScrapeAnswer { result: sources.page(request).await, receipt } }.boxed()
    }

    fn introduction(&self, peer: &PeerId) -> Option<Introduction> {
        let may = self.access.allows(peer, MessageType::Scrape);
        may.then(|| Introduction {
            name: self.sources.name.clone(),
            exposed: self.sources.exposed.iter().map(|exporter| exporter.name.to_string()).collect(),
        })
    }

    fn expected(&self) -> Vec<PeerId> {
        self.sources.fleet.as_ref().map(|fleet| fleet.named()).unwrap_or_default()
    }

    fn peer_up(&self, peer: &PeerInfo) {
        if let Some(fleet) = &self.sources.fleet {
            fleet.up(peer);
        }
    }

    fn peer_down(&self, peer: &PeerId, cause: &str) {
        if let Some(fleet) = &self.sources.fleet {
            fleet.down(peer, cause);
        }
    }
}

impl ScrapeSources {
    /// What the configuration says, the agent's own page from `exposer`, and `fleet` when it is a gateway.
    pub fn new(config: &Config, exposer: Exposer, fleet: Option<Arc<Fleet>>) -> Self {
        Self {
            name: config.node.name.clone(),
            exposed: config.expose.clone().into(),
            max_body: config.gateway.max_body_size,
            failing: Arc::default(),
            fetches: Arc::new(Semaphore::new(MAX_FETCHES)),
            exposer,
            fleet,
        }
    }

    async fn page(&self, request: ScrapeRequest) -> Result<Page, RemoteError> {
        let ScrapeRequest { exposed, accept, gzip, timeout } = request;
        if let Some(name) = exposed {
            return self.fetch(&name, expose::FetchOptions { accept: &accept, gzip, timeout }).await;
        }
        match self.exposer.expose(&accept, None, gzip, timeout).await {
            Ok(page) => Ok(page),
            Err(error) => {
                let code = match error {
                    ExposeError::Busy(_) => ErrorCode::Busy,
                    ExposeError::Late(_) => ErrorCode::Timeout,
                    ExposeError::NotBuiltIn => ErrorCode::Unsupported,
                    ExposeError::Failed => ErrorCode::Failed,
                };
                Err(RemoteError::new(code, error.to_string()))
            }
        }
    }

    async fn fetch(&self, name: &str, options: expose::FetchOptions<'_>) -> Result<Page, RemoteError> {
        let Some(exporter) = self.exposed.iter().find(|exporter| exporter.name.as_str() == name) else {
            // Not repeated: it is the peer's text, not one of ours.
            return Err(RemoteError::new(ErrorCode::Unsupported, "this agent exposes no exporter of that name"));
        };
        let Ok(permit) = Arc::clone(&self.fetches).try_acquire_owned() else {
            return Err(RemoteError::new(ErrorCode::Busy, "this agent fetches from too many exporters already"));
        };
        // A little earlier than the peer stops to wait, so that it hears why.
        let timeout = options.timeout - LAST_WORDS.min(options.timeout / 10);
        match expose::fetch(exporter, expose::FetchOptions { timeout, ..options }, self.max_body).await {
            Ok(Page { content_type, mut gzip, mut body }) => {
                if options.gzip && !gzip && body.len() >= accept::GZIP_FROM {
                    // Not on the runtime: a page of megabytes takes a tenth of a second.
                    let plain = body.clone();
                    let compressed = tokio::task::spawn_blocking(move || accept::gzip(&plain));
                    if let Ok(Ok(compressed)) = compressed.await {
                        (gzip, body) = (true, compressed);
                    }
                }
                if self.failing.lock().remove(name) {
                    tracing::info!("the exporter `{name}` answers again");
                }
                let body = Bytes::from_owner(Held { body, _permit: permit });
                Ok(Page { content_type, gzip, body })
            }
            Err(error) => {
                // Where it is and what it said is for this agent's operator alone. Said when it begins to fail.
                if self.failing.lock().insert(name.to_owned()) {
                    tracing::warn!("{}", error.detail());
                }
                let code = match error.cause() {
                    FetchCause::Deadline(_) => ErrorCode::Timeout,
                    FetchCause::TooLarge { .. } => ErrorCode::TooLarge,
                    _ => ErrorCode::Failed,
                };
                Err(RemoteError::new(code, error.to_string()))
            }
        }
    }
}

/// A page that gives its permit back when nobody holds it any more.
struct Held {
    body: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

async fn execute(storage: &Storage, request: Request) -> Result<Response, RemoteError> {
    let mut work = std::pin::pin!(async {
        match request {
            Request::Get { key } => storage.get(&key).await.map(Response::Value),
            Request::Put { key, value } => storage.put(key, value).await.map(|()| Response::Stored),
            Request::Delete { key } => storage.delete(key).await.map(Response::Deleted),
            Request::Ping { payload } => Ok(Response::Pong(payload)),
        }
        .map_err(|error| remote_error(&error))
    });
    // Most requests are done at the first poll; those need no timer.
    if let Poll::Ready(result) = futures::poll!(work.as_mut()) {
        return result;
    }
    let limit = storage.patience() + MARGIN;
    let late = |_| Err(RemoteError::new(ErrorCode::Timeout, format!("the store did not answer within {limit:?}")));
    tokio::time::timeout(limit, work).await.unwrap_or_else(late)
}

/// What a peer is told of a storage error: enough to act on, nothing of this machine's paths or servers.
fn remote_error(error: &StorageError) -> RemoteError {
    use StorageError as E;
    match error {
        E::KeyEmpty => RemoteError::new(ErrorCode::Malformed, error.to_string()),
        E::KeyTooLarge { .. } | E::ValueTooLarge { .. } => RemoteError::new(ErrorCode::TooLarge, error.to_string()),
        E::Busy(_) => RemoteError::new(ErrorCode::Busy, "the peer's store is busy; try again later"),
        E::Timeout(_) => RemoteError::new(ErrorCode::Timeout, "the peer's store did not answer in time"),
        E::Hangs { may_happen: true, .. } => {
            RemoteError::new(ErrorCode::Timeout, "the peer's disk does not answer; this write may still happen")
        }
        E::Hangs { .. } => RemoteError::new(ErrorCode::Timeout, "the peer's disk does not answer"),
        E::Starting(_) => RemoteError::new(ErrorCode::Busy, "the peer is starting; try again later"),
        E::Damaged(_) => RemoteError::new(ErrorCode::Storage, "the peer's disk has damaged the value"),
        E::DiskFull(_) => RemoteError::new(ErrorCode::Storage, "the peer's disk is full"),
        E::Uncertain { .. } => {
            RemoteError::new(ErrorCode::Storage, "the peer's disk failed; this write may still happen")
        }
        E::Unavailable(_) => RemoteError::new(ErrorCode::Storage, "the peer's store is not available"),
        E::Backend(_) => RemoteError::new(ErrorCode::Storage, "the peer's store failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_may_do_anything_until_a_rule_says_so() {
        let access = Access::new(&[]);
        let peer = PeerId::random();
        for kind in [MessageType::Get, MessageType::Put, MessageType::Delete] {
            assert!(!access.allows(&peer, kind), "{kind}");
        }
        assert!(access.allows(&peer, MessageType::Ping));
    }

    #[test]
    fn a_peers_own_rule_holds_in_place_of_the_one_for_any() {
        let (reader, banned, stranger) = (PeerId::random(), PeerId::random(), PeerId::random());
        let rule = |peer, allow: &[Permission]| AccessRule { peer, allow: allow.to_vec() };
        let access = Access::new(&[
            rule(PeerSelector::Peer(reader), &[Permission::Get]),
            rule(PeerSelector::Any, &[Permission::Put, Permission::Delete]),
            rule(PeerSelector::Peer(banned), &[]),
        ]);
        let may =
            |peer| [MessageType::Get, MessageType::Put, MessageType::Delete].map(|kind| access.allows(peer, kind));
        assert_eq!(may(&reader), [true, false, false]);
        assert_eq!(may(&banned), [false, false, false]);
        assert_eq!(may(&stranger), [false, true, true]);
    }

    #[test]
    fn a_peer_learns_no_paths_and_no_servers() {
        use StorageError as E;
        let secret = "/var/lib/secret";
        for error in [E::DiskFull(secret.into()), E::Unavailable(secret.into()), E::Backend(secret.into())] {
            assert!(!remote_error(&error).message.contains("secret"));
        }
    }
}

//! The single entry point for peers' messages: authorise, execute, answer. Messages are measured here.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use libp2p::PeerId;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::{AccessRule, Config, PeerSelector, Permission};
use crate::expose::{self, Exposed, FetchCause};
use crate::gateway::Fleet;
use crate::metrics::labels::MessageType;
use crate::metrics::{ExposeError, Exposer, MetricsCollector, Page};
use crate::network::PeerInfo;
use crate::network::protocol::{ErrorCode, Introduction, RemoteError, Request, Response};
use crate::network::{Handling, MessageAnswer, Receipt, RequestHandler, ScrapeAnswer, ScrapeRequest};
use crate::storage::{Storage, StorageError};

/// How much longer a request may take than the store needs to fail by its own time limits. The timeout is reached only
/// if a backend hangs; in all other cases the store's own error comes first.
const MARGIN: Duration = Duration::from_secs(3);

/// How many pages of exporters are held for peers at once, while they are fetched or until a slow peer has read them.
const MAX_FETCHES: usize = 16;

/// How long before its deadline a peer gets the error that an exporter does not answer.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Who may do what. Anything that no rule allows is denied, except `ping`, which needs no rule.
#[derive(Debug, Clone)]
struct Access {
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
    /// The rules of the configuration. A peer's own rule replaces the one for any peer.
    fn new(rules: &[AccessRule]) -> Self {
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

/// What peers are answered with, as far as a reload can change it.
#[derive(Debug)]
pub struct Policy {
    access: Access,
    /// The configured name of this agent.
    name: String,
    /// The exposed exporters.
    exposed: Vec<Exposed>,
    /// The size limit of an exporter's page, in bytes.
    max_body: usize,
}

impl Policy {
    /// What the configuration says.
    pub fn new(config: &Config) -> Self {
        Self {
            access: Access::new(&config.access),
            name: config.node.name.clone(),
            exposed: config.expose.clone(),
            max_body: config.gateway.max_body_size,
        }
    }

    /// Whether `peer` has to be told something else than by `other`, or may use more or less.
    pub(super) fn differs_for(&self, other: &Self, peer: &PeerId) -> bool {
        self.introduction(peer) != other.introduction(peer)
            || self.access.has_permission(peer) != other.access.has_permission(peer)
    }

    /// How the agent introduces itself to `peer`; `None` if that may not scrape it.
    fn introduction(&self, peer: &PeerId) -> Option<Introduction> {
        self.access.allows(peer, MessageType::Scrape).then(|| Introduction {
            name: self.name.clone(),
            exposed: self.exposed.iter().map(|exporter| exporter.name.to_string()).collect(),
            withdrawn: false,
        })
    }
}

/// Answers peers, as far as the access rules allow.
#[derive(Debug)]
pub struct Handler {
    policy: Arc<ArcSwap<Policy>>,
    storage: Storage,
    metrics: MetricsCollector,
    sources: ScrapeSources,
}

/// The pages that peers with the permission `scrape` can fetch.
#[derive(Debug, Clone)]
pub struct ScrapeSources {
    /// Makes the agent's own page.
    exposer: Exposer,
    /// The exporters whose last page could not be fetched.
    failing: Arc<Mutex<HashSet<String>>>,
    /// One permit for each page of an exporter that is being fetched or sent to a peer.
    fetches: Arc<Semaphore>,
    /// The gateway's peers, if this agent is a gateway.
    fleet: Option<Arc<Fleet>>,
}

impl Handler {
    /// Combines the access rules with what they give access to.
    pub fn new(policy: Policy, storage: Storage, metrics: MetricsCollector, sources: ScrapeSources) -> Self {
        Self { policy: Arc::new(ArcSwap::from_pointee(policy)), storage, metrics, sources }
    }

    /// The policy, which counts from the next request on.
    pub(super) fn policy(&self) -> Arc<ArcSwap<Policy>> {
        Arc::clone(&self.policy)
    }

    fn refused(&self, peer: &PeerId, kind: MessageType) -> Option<RemoteError> {
        let text = || format!("{peer} is not allowed to {kind} here");
        (!self.policy.load().access.allows(peer, kind)).then(|| RemoteError::new(ErrorCode::Refused, text()))
    }
}

impl RequestHandler for Handler {
    fn has_permission(&self, peer: &PeerId) -> bool {
        self.policy.load().access.has_permission(peer)
    }

    fn scrapes(&self) -> bool {
        self.sources.fleet.is_some()
    }

    fn handle(&self, peer: PeerId, request: Request) -> Handling {
        let kind = request.message_type();
        let receipt = Receipt::begin(self.metrics.clone(), kind);
        if let Some(error) = self.refused(&peer, kind) {
            return Handling::Done(MessageAnswer { result: Err(error), receipt });
        }
        let done = match &request {
            Request::Ping { payload } => Some(Ok(Response::Pong(payload.clone()))),
            Request::Get { key } => self.storage.get_at_once(key).map(|value| value.map(Response::Value)),
            Request::Put { .. } | Request::Delete { .. } => None,
        };
        if let Some(result) = done {
            return Handling::Done(MessageAnswer { result: result.map_err(|error| remote_error(&error)), receipt });
        }
        let storage = self.storage.clone();
        let work = async move {
            let result = execute(&storage, request).await;
            MessageAnswer { result, receipt }
        };
        Handling::Pending(work.boxed())
    }

    fn scrape(&self, peer: PeerId, request: ScrapeRequest) -> BoxFuture<'static, ScrapeAnswer> {
        let receipt = Receipt::begin(self.metrics.clone(), MessageType::Scrape);
        if let Some(error) = self.refused(&peer, MessageType::Scrape) {
            return std::future::ready(ScrapeAnswer { result: Err(error), receipt }).boxed();
        }
        let (sources, policy) = (self.sources.clone(), self.policy.load_full());
        async move { ScrapeAnswer { result: sources.page(&policy, request).await, receipt } }.boxed()
    }

    fn introduction(&self, peer: &PeerId) -> Option<Introduction> {
        self.policy.load().introduction(peer)
    }

    fn expected(&self) -> Vec<PeerId> {
        let mut expected = self.sources.fleet.as_ref().map(|fleet| fleet.named()).unwrap_or_default();
        expected.extend(self.policy.load().access.peers.keys());
        expected
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
    /// The agent's own page from `exposer`, and `fleet` if it is a gateway.
    pub fn new(exposer: Exposer, fleet: Option<Arc<Fleet>>) -> Self {
        Self { failing: Arc::default(), fetches: Arc::new(Semaphore::new(MAX_FETCHES)), exposer, fleet }
    }

    async fn page(&self, policy: &Policy, request: ScrapeRequest) -> Result<Page, RemoteError> {
        let ScrapeRequest { exposed, accept, gzip, timeout } = request;
        if let Some(name) = exposed {
            return self.fetch(policy, &name, expose::FetchOptions { accept: &accept, gzip, timeout }).await;
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

    async fn fetch(&self, policy: &Policy, name: &str, options: expose::FetchOptions<'_>) -> Result<Page, RemoteError> {
        let Some(exporter) = policy.exposed.iter().find(|exporter| exporter.name.as_str() == name) else {
            // The name is not repeated, because it is the peer's text.
            return Err(RemoteError::new(ErrorCode::Unsupported, "this agent exposes no exporter with that name"));
        };
        let Ok(permit) = Arc::clone(&self.fetches).try_acquire_owned() else {
            let text = "this agent is fetching from too many exporters; try again later";
            return Err(RemoteError::new(ErrorCode::Busy, text));
        };
        // A little before the peer stops waiting, so that it gets the reason.
        let timeout = options.timeout - LAST_WORDS.min(options.timeout / 10);
        match expose::fetch(exporter, expose::FetchOptions { timeout, ..options }, policy.max_body).await {
            Ok(mut page) => {
                if options.gzip {
                    // Not on the runtime: compressing megabytes takes a tenth of a second.
                    let plain = page.clone();
                    page = tokio::task::spawn_blocking(move || plain.compressed()).await.unwrap_or(page);
                }
                if self.failing.lock().remove(name) {
                    tracing::info!("the exporter `{name}` answers again");
                }
                let body = Bytes::from_owner(Held { body: page.body, _permit: permit });
                Ok(Page { body, ..page })
            }
            Err(error) => {
                // The URL and the cause are for this agent's operator only. Logged once, when it starts to fail.
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

/// A page that returns its permit when the last reference to it is dropped.
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
    // Most requests complete at the first poll and need no timer.
    if let Poll::Ready(result) = futures::poll!(work.as_mut()) {
        return result;
    }
    let limit = storage.patience() + MARGIN;
    let late = |_| Err(RemoteError::new(ErrorCode::Timeout, format!("the store did not answer within {limit:?}")));
    tokio::time::timeout(limit, work).await.unwrap_or_else(late)
}

/// What a peer learns about a storage error: enough to act on, but nothing about this machine's paths or servers.
fn remote_error(error: &StorageError) -> RemoteError {
    use StorageError as E;
    match error {
        E::KeyEmpty => RemoteError::new(ErrorCode::Malformed, error.to_string()),
        E::KeyTooLarge { .. } | E::ValueTooLarge { .. } => RemoteError::new(ErrorCode::TooLarge, error.to_string()),
        E::Busy(_) => RemoteError::new(ErrorCode::Busy, "the peer's store is busy; try again later"),
        E::Timeout(_) => RemoteError::new(ErrorCode::Timeout, "the peer's store did not answer in time"),
        E::Hangs { may_happen: true, .. } => {
            RemoteError::new(ErrorCode::Timeout, "the peer's disk does not answer; this write may still take effect")
        }
        E::Hangs { .. } => RemoteError::new(ErrorCode::Timeout, "the peer's disk does not answer"),
        E::Starting(_) => RemoteError::new(ErrorCode::Busy, "the peer is starting; try again later"),
        E::Damaged(_) => RemoteError::new(ErrorCode::Storage, "the value is damaged on the peer's disk"),
        E::DiskFull(_) => RemoteError::new(ErrorCode::Storage, "the peer's disk is full"),
        E::Uncertain { .. } => {
            RemoteError::new(ErrorCode::Storage, "the peer's disk failed; this write may still take effect")
        }
        E::Unavailable(_) => RemoteError::new(ErrorCode::Storage, "the peer's store is not available"),
        E::Backend(_) => RemoteError::new(ErrorCode::Storage, "the peer's store failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_rule_only_ping_is_allowed() {
        let access = Access::new(&[]);
        let peer = PeerId::random();
        for kind in [MessageType::Get, MessageType::Put, MessageType::Delete] {
            assert!(!access.allows(&peer, kind), "{kind}");
        }
        assert!(access.allows(&peer, MessageType::Ping));
    }

    #[test]
    fn a_peers_own_rule_replaces_the_one_for_any_peer() {
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
    fn storage_errors_reveal_no_paths_or_servers_to_peers() {
        use StorageError as E;
        let secret = "/var/lib/secret";
        for error in [E::DiskFull(secret.into()), E::Unavailable(secret.into()), E::Backend(secret.into())] {
            assert!(!remote_error(&error).message.contains("secret"));
        }
    }
}

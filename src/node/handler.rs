//! The one entry point of a peer's message: authorise, do, answer. Messages are measured here.

use std::collections::HashMap;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use libp2p::PeerId;

use crate::config::{AccessRule, PeerSelector, Permission};
use crate::metrics::MetricsCollector;
use crate::metrics::labels::MessageType;
use crate::network::protocol::{ErrorCode, RemoteError, Request, Response};
use crate::network::{Answer, Receipt, RequestHandler};
use crate::storage::{self, Storage};

/// How much longer one request may take than the store needs to fail by its own bounds: the limit is only
/// met when a backend hangs, and what the store has to say of a failure is heard first.
const MARGIN: Duration = Duration::from_secs(3);

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
            MessageType::Ping => true,
        }
    }
}

/// Answers peers from the store, as far as the access rules let them.
#[derive(Debug)]
pub struct Handler {
    access: Access,
    storage: Storage,
    metrics: MetricsCollector,
}

impl Handler {
    /// A handler over one store.
    pub fn new(access: Access, storage: Storage, metrics: MetricsCollector) -> Self {
        Self { access, storage, metrics }
    }
}

impl RequestHandler for Handler {
    fn handle(&self, peer: PeerId, request: Request) -> BoxFuture<'static, Answer> {
        let kind = request.message_type();
        let receipt = Receipt::begin(self.metrics.clone(), kind);
        if !self.access.allows(&peer, kind) {
            let error = RemoteError::new(ErrorCode::Refused, format!("{peer} is not allowed to {kind} here"));
            return std::future::ready(Answer { result: Err(error), receipt }).boxed();
        }
        let storage = self.storage.clone();
        async move {
            let result = execute(&storage, request).await;
            Answer { result, receipt }
        }
        .boxed()
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
fn remote_error(error: &storage::Error) -> RemoteError {
    use storage::Error as E;
    match error {
        E::KeyEmpty => RemoteError::new(ErrorCode::Malformed, error.to_string()),
        E::KeyTooLarge { .. } | E::ValueTooLarge { .. } => RemoteError::new(ErrorCode::TooLarge, error.to_string()),
        E::Busy(_) => RemoteError::new(ErrorCode::Busy, "the peer's store is busy; try again later"),
        E::Timeout(_) => RemoteError::new(ErrorCode::Timeout, "the peer's store did not answer in time"),
        E::DiskFull(_) => RemoteError::new(ErrorCode::Storage, "the peer's disk is full"),
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
        use storage::Error as E;
        let secret = "/var/lib/secret";
        for error in [E::DiskFull(secret.into()), E::Unavailable(secret.into()), E::Backend(secret.into())] {
            assert!(!remote_error(&error).message.contains("secret"));
        }
    }
}

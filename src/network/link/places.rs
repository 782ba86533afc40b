//! Which peers may be connected, and over how many connections.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use tokio::time::Instant;

/// The most connections to one peer. More than one, since two peers may dial each other at the same time, and
/// then each has to keep what the other opened.
const MAX_CONNECTIONS_PER_PEER: usize = 4;

/// The places reserved for each named peer: for a connection, and for the one that replaces it.
const OWN_PLACES: usize = 2;

/// Why a connection is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    #[error("{0} peers are already connected (network.max_peers)")]
    TooManyPeers(usize),
    #[error("there are already {0} connections")]
    TooManyConnections(usize),
    #[error("this agent is shutting down")]
    ShuttingDown,
}

/// The open connections. Each named peer has [`OWN_PLACES`] that nobody else can take, and no right to more.
#[derive(Debug)]
pub(super) struct Places {
    max_peers: usize,
    max_connections: usize,
    named: HashSet<PeerId>,
    peers: HashMap<PeerId, HashSet<ConnectionId>>,
    heard: HashMap<ConnectionId, Heard>,
    /// Connections that are being closed, which the other side can delay.
    closing: HashSet<ConnectionId>,
    connections: usize,
    /// How many connections are on a place reserved for their peer.
    on_own_place: usize,
}

/// When something was last heard on a connection. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    began: Instant,
    /// Milliseconds since `began`.
    after: Arc<AtomicU64>,
}

impl Heard {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, after: Arc::default() }
    }

    pub(super) fn set(&self, now: Instant) {
        let after = now.saturating_duration_since(self.began).as_millis();
        self.after.store(u64::try_from(after).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn at(&self) -> Instant {
        self.began + std::time::Duration::from_millis(self.after.load(Ordering::Relaxed))
    }
}

impl Places {
    pub(super) fn new(max_peers: usize, max_connections: usize, named: HashSet<PeerId>) -> Self {
        Self {
            max_peers,
            max_connections,
            named,
            peers: HashMap::new(),
            heard: HashMap::new(),
            closing: HashSet::new(),
            connections: 0,
            on_own_place: 0,
        }
    }

    /// Checks that there is room for one more connection of `peer`.
    pub(super) fn check(&self, peer: &PeerId) -> Result<(), Denied> {
        let (open, closing) = self.of(peer);
        if closing >= MAX_CONNECTIONS_PER_PEER {
            return Err(Denied::TooManyConnections(self.connections));
        }
        if self.named.contains(peer) {
            // If there is no room, the new connection takes the place of an old one.
            return Ok(());
        }
        if self.peers.len() >= self.max_peers && !self.peers.contains_key(peer) {
            return Err(Denied::TooManyPeers(self.peers.len()));
        }
        // A peer that already has as many as it may gives one up.
        if self.is_full() && (open < MAX_CONNECTIONS_PER_PEER || closing > 0) {
            return Err(Denied::TooManyConnections(self.connections));
        }
        Ok(())
    }

    /// A connection is about to be established, or to fail.
    pub(super) fn prepare(&mut self, connection: ConnectionId) -> Heard {
        let heard = Heard::new(Instant::now());
        self.heard.insert(connection, heard.clone());
        heard
    }

    /// The connection has failed.
    pub(super) fn forget(&mut self, connection: ConnectionId) {
        self.heard.remove(&connection);
    }

    /// The connection is established. Returns the connection of the same peer that is to be closed for it, if any: the
    /// one that has been silent for the longest.
    pub(super) fn take(&mut self, peer: PeerId, connection: ConnectionId) -> Option<ConnectionId> {
        let was_full = self.is_full();
        let connections = self.peers.entry(peer).or_default();
        let others = connections.iter().filter(|other| !self.closing.contains(other));
        let open = others.clone().count() + 1;
        let silent = others.min_by_key(|other| self.heard.get(other).map(Heard::at)).copied();
        connections.insert(connection);
        self.connections += 1;
        if connections.len() <= OWN_PLACES && self.named.contains(&peer) {
            self.on_own_place += 1;
            return None;
        }
        let silent = silent.filter(|_| open > MAX_CONNECTIONS_PER_PEER || was_full);
        self.closing.extend(silent);
        silent
    }

    /// The connection is closed.
    pub(super) fn give_back(&mut self, peer: &PeerId, connection: ConnectionId) {
        self.heard.remove(&connection);
        self.closing.remove(&connection);
        let Some(connections) = self.peers.get_mut(peer) else { return };
        if !connections.remove(&connection) {
            return;
        }
        self.connections -= 1;
        if connections.len() < OWN_PLACES && self.named.contains(peer) {
            self.on_own_place -= 1;
        }
        if connections.is_empty() {
            self.peers.remove(peer);
        }
    }

    pub(super) fn connections(&self) -> impl Iterator<Item = (PeerId, ConnectionId)> {
        self.peers.iter().flat_map(|(peer, connections)| connections.iter().map(|connection| (*peer, *connection)))
    }

    /// How many connections of a peer are open, and how many are being closed.
    fn of(&self, peer: &PeerId) -> (usize, usize) {
        let Some(connections) = self.peers.get(peer) else { return (0, 0) };
        let closing = connections.iter().filter(|connection| self.closing.contains(connection)).count();
        (connections.len() - closing, closing)
    }

    fn is_full(&self) -> bool {
        self.connections - self.on_own_place >= self.max_connections
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn id(number: usize) -> ConnectionId {
        ConnectionId::new_unchecked(number)
    }

    fn establish(places: &mut Places, peer: PeerId, number: usize) -> Result<Option<ConnectionId>, Denied> {
        places.check(&peer)?;
        places.prepare(id(number));
        let silent = places.take(peer, id(number));
        if let Some(silent) = silent {
            places.give_back(&peer, silent);
        }
        Ok(silent)
    }

    #[test]
    fn the_connection_that_was_silent_for_the_longest_is_closed() {
        let (peer, named) = (PeerId::random(), PeerId::random());
        for who in [peer, named] {
            let mut places = Places::new(10, 100, HashSet::from([named]));
            for number in 0..4 {
                assert_eq!(establish(&mut places, who, number), Ok(None));
            }
            let now = Instant::now();
            for (number, silent_for) in [(0, 1), (1, 3), (2, 2), (3, 0)] {
                places.heard[&id(number)].set(now + Duration::from_secs(10 - silent_for));
            }
            assert_eq!(establish(&mut places, who, 4), Ok(Some(id(4 - 3))));
            assert_eq!(places.of(&who), (4, 0));
        }
    }

    #[test]
    fn a_peer_gets_no_more_places_by_closing_slowly() {
        let (peer, named) = (PeerId::random(), PeerId::random());
        for who in [peer, named] {
            let mut places = Places::new(10, 100, HashSet::from([named]));
            let mut told = HashSet::new();
            let mut number = 0;
            while places.check(&who).is_ok() {
                places.prepare(id(number));
                told.extend(places.take(who, id(number)));
                number += 1;
            }
            assert_eq!((number, told.len()), (8, 4), "each is closed once");
            for closed in told {
                places.give_back(&who, closed);
            }
            assert_eq!(places.of(&who), (4, 0));
        }
    }

    #[test]
    fn named_peers_have_a_place_each_and_no_right_to_more() {
        let (first, second, stranger, late) = (PeerId::random(), PeerId::random(), PeerId::random(), PeerId::random());
        let mut places = Places::new(2, 2, HashSet::from([first, second]));
        assert_eq!(establish(&mut places, stranger, 0), Ok(None));
        assert_eq!(establish(&mut places, stranger, 1), Ok(None));
        assert_eq!(establish(&mut places, late, 2), Err(Denied::TooManyConnections(2)));
        assert_eq!(establish(&mut places, stranger, 3), Err(Denied::TooManyConnections(2)));
        // Strangers have taken every place that is not reserved.
        assert_eq!(establish(&mut places, first, 4), Ok(None));
        assert_eq!(establish(&mut places, second, 5), Ok(None));
        // After a restart the peer is let in, and after another one too: its oldest connection is closed.
        assert_eq!(establish(&mut places, first, 6), Ok(None));
        places.heard[&id(6)].set(Instant::now() + Duration::from_secs(1));
        assert_eq!(establish(&mut places, first, 7), Ok(Some(id(4))));
        places.give_back(&stranger, id(0));
        places.give_back(&first, id(6));
        places.give_back(&first, id(7));
        places.give_back(&second, id(5));
        places.give_back(&stranger, id(1));
        assert_eq!((places.connections, places.on_own_place), (0, 0));
        assert!(places.peers.is_empty() && places.heard.is_empty() && places.closing.is_empty());
        assert_eq!(establish(&mut places, stranger, 9), Ok(None));
        assert_eq!(establish(&mut places, late, 10), Ok(None));
    }
}

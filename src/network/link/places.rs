//! Which peers may be connected, and over how many connections.

use std::collections::{BTreeSet, HashMap, HashSet};

use libp2p::PeerId;
use libp2p::swarm::ConnectionId;

/// The most connections to one peer. More than one, since two peers may dial each other at the same time, and
/// then each has to keep what the other opened.
const MAX_CONNECTIONS_PER_PEER: usize = 4;

/// The places reserved for each named peer: for a connection, and for the one that replaces it.
const OWN_PLACES: usize = 2;

/// Why a connection is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
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
    /// The connections of each peer, in the order in which they were begun.
    peers: HashMap<PeerId, BTreeSet<ConnectionId>>,
    /// Connections that are being closed, which the other side can delay.
    closing: HashSet<ConnectionId>,
    connections: usize,
    /// How many connections are on a place reserved for their peer.
    on_own_place: usize,
}

impl Places {
    pub(super) fn new(max_peers: usize, max_connections: usize, named: HashSet<PeerId>) -> Self {
        Self {
            max_peers,
            max_connections,
            named,
            peers: HashMap::new(),
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

    /// The connection is established. Returns the connection of the same peer that is to be closed for it, if any: the
    /// oldest, which is the most likely one to be dead.
    pub(super) fn take(&mut self, peer: PeerId, connection: ConnectionId) -> Option<ConnectionId> {
        let was_full = self.is_full();
        let connections = self.peers.entry(peer).or_default();
        let mut others = connections.iter().filter(|other| !self.closing.contains(other));
        let open = others.clone().count() + 1;
        let oldest = others.next().copied();
        connections.insert(connection);
        self.connections += 1;
        if connections.len() <= OWN_PLACES && self.named.contains(&peer) {
            self.on_own_place += 1;
            return None;
        }
        let oldest = oldest.filter(|_| open > MAX_CONNECTIONS_PER_PEER || was_full);
        self.closing.extend(oldest);
        oldest
    }

    /// The connection is closed.
    pub(super) fn give_back(&mut self, peer: &PeerId, connection: ConnectionId) {
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

    /// Names other peers. Connections stay where they are.
    pub(super) fn name(&mut self, named: HashSet<PeerId>) {
        self.named = named;
        let own = |(peer, connections): (&PeerId, &BTreeSet<ConnectionId>)| {
            if self.named.contains(peer) { connections.len().min(OWN_PLACES) } else { 0 }
        };
        self.on_own_place = self.peers.iter().map(own).sum();
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
    use super::*;

    fn id(number: usize) -> ConnectionId {
        ConnectionId::new_unchecked(number)
    }

    fn establish(places: &mut Places, peer: PeerId, number: usize) -> Result<Option<ConnectionId>, Denied> {
        places.check(&peer)?;
        let oldest = places.take(peer, id(number));
        if let Some(oldest) = oldest {
            places.give_back(&peer, oldest);
        }
        Ok(oldest)
    }

    #[test]
    fn the_oldest_connection_is_closed() {
        let (peer, named) = (PeerId::random(), PeerId::random());
        for who in [peer, named] {
            let mut places = Places::new(10, 100, HashSet::from([named]));
            for number in 0..4 {
                assert_eq!(establish(&mut places, who, number), Ok(None));
            }
            assert_eq!(establish(&mut places, who, 4), Ok(Some(id(0))));
            assert_eq!(establish(&mut places, who, 5), Ok(Some(id(1))));
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
        assert_eq!(establish(&mut places, first, 7), Ok(Some(id(4))));
        places.give_back(&stranger, id(0));
        places.give_back(&first, id(6));
        places.give_back(&first, id(7));
        places.give_back(&second, id(5));
        places.give_back(&stranger, id(1));
        assert_eq!((places.connections, places.on_own_place), (0, 0));
        assert!(places.peers.is_empty() && places.closing.is_empty());
        assert_eq!(establish(&mut places, stranger, 9), Ok(None));
        assert_eq!(establish(&mut places, late, 10), Ok(None));

        // Once they are named, they sit on places of their own, and the others are free again.
        places.name(HashSet::from([stranger, late]));
        assert_eq!(places.on_own_place, 2);
        assert_eq!(establish(&mut places, PeerId::random(), 11), Err(Denied::TooManyPeers(2)));
        places.name(HashSet::new());
        assert_eq!((places.on_own_place, places.is_full()), (0, true));
        places.give_back(&stranger, id(9));
        places.give_back(&late, id(10));
        assert_eq!((places.connections, places.on_own_place), (0, 0));
    }
}

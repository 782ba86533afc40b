//! The table of peers: which are connected, and which to dial when. A state machine without IO: it takes events
//! and the time, and returns the peers to dial.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};

use super::BootstrapAddr;
use super::contact::{PeerContact, Problem};
use super::protocol::Introduction;
use crate::metrics::labels::{Contact, Label as _};

/// The wait before the first retry; each failure doubles it.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// The longest wait between two attempts.
///
/// With the 10 s that one attempt may take, a peer is connected again within half a minute of its path recovering.
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// How long a link must have lasted for the backoff to start again at [`BACKOFF_MIN`] when it is lost. So a peer that
/// accepts connections and closes them at once (because it is full, or does not allow this agent) is not hammered.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// How many peers found on the local network are dialed; the others are ignored.
const MAX_FOUND: usize = 256;
/// How many addresses of one found peer are kept.
const MAX_FOUND_ADDRESSES: usize = 8;

/// Who opened the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The peer dialed us.
    Inbound,
    /// We dialed the peer.
    Outbound,
}

/// What is known about a connected peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// The peer.
    pub peer: PeerId,
    /// The address of its newest connection.
    pub address: Multiaddr,
    /// Who opened that connection.
    pub direction: Direction,
    /// How many connections there are to it.
    pub connections: usize,
    /// When the first of them was established.
    pub connected_at: Instant,
    /// The software that it claims to run: not verified, cut to 64 characters.
    pub agent: Option<String>,
    /// How it introduced itself, which it does only to agents that may scrape it. Nothing in it is verified.
    pub introduction: Option<Introduction>,
    /// Whether requests can be sent to it.
    pub link: bool,
}

#[derive(Debug)]
pub(super) enum Input {
    Connected {
        peer: PeerId,
        address: Multiaddr,
        direction: Direction,
    },
    /// One connection ended; `remaining` are left.
    Disconnected {
        peer: PeerId,
        remaining: usize,
    },
    Identified {
        peer: PeerId,
        agent: String,
    },
    LinkUp {
        peer: PeerId,
    },
    Introduced {
        peer: PeerId,
        /// `None` if it no longer allows scrapes.
        introduction: Option<Introduction>,
    },
    DialFailed {
        peer: PeerId,
    },
    /// A peer was found on the local network.
    Found {
        peer: PeerId,
        address: Multiaddr,
    },
    /// A found peer has not been announced at this address for a long time.
    Expired {
        peer: PeerId,
        address: Multiaddr,
    },
    /// Time has passed.
    Tick,
}

/// A peer to dial now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dial {
    pub(super) peer: PeerId,
    pub(super) addresses: Vec<Multiaddr>,
}

#[derive(Debug)]
pub(super) struct Peers {
    connected: HashMap<PeerId, PeerInfo>,
    /// The peers that the agent stays connected to: those configured, and those found.
    targets: HashMap<PeerId, Target>,
    /// Returns how much of the random half of the backoff to wait, from 0 to 1.
    jitter: fn() -> f64,
}

#[derive(Debug)]
struct Target {
    addresses: Vec<Multiaddr>,
    /// Whether it was found on the local network, not configured.
    found: bool,
    failures: u32,
    /// Why it is not connected, if that is known; kept until it has a link.
    problem: Option<Problem>,
    link_since: Option<Instant>,
    /// When to dial; `None` while connected or being dialed.
    next_dial: Option<Instant>,
}

impl Target {
    fn new(found: bool, next_dial: Option<Instant>) -> Self {
        Self { addresses: Vec::new(), found, failures: 0, problem: None, link_since: None, next_dial }
    }
}

impl Peers {
    pub(super) fn new(bootstrap: &[BootstrapAddr], local: PeerId, now: Instant, jitter: fn() -> f64) -> Self {
        let mut targets: HashMap<PeerId, Target> = HashMap::new();
        // Many agents may share one list, so an agent leaves itself out.
        for BootstrapAddr { peer, address } in bootstrap.iter().filter(|target| target.peer != local) {
            let target = targets.entry(*peer).or_insert_with(|| Target::new(false, Some(now)));
            target.addresses.push(address.clone());
        }
        Self { connected: HashMap::new(), targets, jitter }
    }

    /// Stays connected to these peers instead of those configured before. Connections that are up stay so.
    pub(super) fn configure(&mut self, bootstrap: &[BootstrapAddr], local: PeerId, now: Instant) -> Vec<Dial> {
        let mut wanted: HashMap<PeerId, Vec<Multiaddr>> = HashMap::new();
        for BootstrapAddr { peer, address } in bootstrap.iter().filter(|target| target.peer != local) {
            wanted.entry(*peer).or_default().push(address.clone());
        }
        self.targets.retain(|peer, target| target.found || wanted.contains_key(peer));
        for (peer, addresses) in wanted {
            let next_dial = (!self.connected.contains_key(&peer)).then_some(now);
            let target = self.targets.entry(peer).or_insert_with(|| Target::new(false, next_dial));
            if target.found || target.addresses != addresses {
                // Another address may work at once.
                (target.found, target.addresses, target.failures) = (false, addresses, 0);
                target.next_dial = next_dial;
            }
        }
        self.due(now)
    }

    /// How many peers have at least one live connection.
    pub(super) fn count(&self) -> usize {
        self.connected.len()
    }

    pub(super) fn is_connected(&self, peer: &PeerId) -> bool {
        self.connected.contains_key(peer)
    }

    /// Notes why `peer` is not connected. Returns whether that is news: the peer is one that the agent stays connected
    /// to, and the reason has changed since it last had a link.
    pub(super) fn note(&mut self, peer: &PeerId, reason: Contact, text: String, now: Instant) -> bool {
        let Some(target) = self.targets.get_mut(peer) else { return false };
        let is_news = target.problem.as_ref().is_none_or(|problem| problem.reason != reason);
        let since = target.problem.as_ref().filter(|_| !is_news).map_or(now, |problem| problem.since);
        target.problem = Some(Problem { reason, text, since });
        is_news
    }

    /// Why a peer that the agent stays connected to has no link, if that is known.
    pub(super) fn problem(&self, peer: &PeerId) -> Option<&Problem> {
        self.targets.get(peer)?.problem.as_ref()
    }

    /// Whether the peer has had a link since it was connected.
    pub(super) fn had_link(&self, peer: &PeerId) -> bool {
        self.targets.get(peer).is_some_and(|target| target.link_since.is_some())
    }

    /// How it stands with the peers that the agent stays connected to.
    pub(super) fn contacts(&self, now: Instant) -> impl Iterator<Item = PeerContact> {
        self.targets.iter().map(move |(peer, target)| PeerContact {
            peer: *peer,
            addresses: target.addresses.clone(),
            found: target.found,
            state: self.contact(peer, target),
            problem: target.problem.clone(),
            next_dial: target.next_dial.map(|at| at.saturating_duration_since(now)),
        })
    }

    /// How many of them are in each state.
    pub(super) fn count_contacts(&self) -> [usize; Contact::ALL.len()] {
        let mut counts = [0; Contact::ALL.len()];
        for (peer, target) in &self.targets {
            if let Some(count) = counts.get_mut(self.contact(peer, target).index()) {
                *count += 1;
            }
        }
        counts
    }

    fn contact(&self, peer: &PeerId, target: &Target) -> Contact {
        match &target.problem {
            Some(problem) => problem.reason,
            None if self.is_connected(peer) => Contact::Connected,
            None => Contact::Dialing,
        }
    }

    /// Whether the agent stays connected to `peer`.
    pub(super) fn is_target(&self, peer: &PeerId) -> bool {
        self.targets.contains_key(peer)
    }

    pub(super) fn get(&self, peer: &PeerId) -> Option<&PeerInfo> {
        self.connected.get(peer)
    }

    pub(super) fn list(&self) -> impl Iterator<Item = &PeerInfo> {
        self.connected.values()
    }

    /// When [`Input::Tick`] is due.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        self.targets.values().filter_map(|target| target.next_dial).min()
    }

    /// Processes an event and returns the peers to dial.
    pub(super) fn handle(&mut self, input: Input, now: Instant) -> Vec<Dial> {
        match input {
            Input::Connected { peer, address, direction } => self.on_connected(peer, address, direction, now),
            Input::Disconnected { peer, remaining } => self.on_disconnected(peer, remaining, now),
            Input::Identified { peer, agent } => {
                if let Some(info) = self.connected.get_mut(&peer) {
                    info.agent = Some(agent.chars().filter(|c| !c.is_control()).take(64).collect());
                }
            }
            Input::LinkUp { peer } => {
                if let Some(target) = self.targets.get_mut(&peer) {
                    target.link_since.get_or_insert(now);
                    target.problem = None;
                }
            }
            Input::Introduced { peer, introduction } => {
                if let Some(info) = self.connected.get_mut(&peer) {
                    info.introduction = introduction;
                }
            }
            Input::DialFailed { peer } => {
                if !self.is_connected(&peer) {
                    self.retry(peer, now);
                }
            }
            Input::Found { peer, address } => self.on_found(peer, address, now),
            Input::Expired { peer, address } => self.on_expired(peer, &address),
            Input::Tick => {}
        }
        self.due(now)
    }

    /// Anyone on the local network can announce any peer: hence the bounds.
    fn on_found(&mut self, peer: PeerId, address: Multiaddr, now: Instant) {
        let room = self.targets.values().filter(|target| target.found).count() < MAX_FOUND;
        let next_dial = (!self.is_connected(&peer)).then_some(now);
        if !room && !self.targets.contains_key(&peer) {
            return;
        }
        let target = self.targets.entry(peer).or_insert_with(|| Target::new(true, next_dial));
        if target.found && target.addresses.len() < MAX_FOUND_ADDRESSES && !target.addresses.contains(&address) {
            target.addresses.push(address);
        }
    }

    fn on_expired(&mut self, peer: PeerId, address: &Multiaddr) {
        if let Some(target) = self.targets.get_mut(&peer).filter(|target| target.found) {
            target.addresses.retain(|known| known != address);
            if target.addresses.is_empty() {
                self.targets.remove(&peer);
            }
        }
    }

    fn on_connected(&mut self, peer: PeerId, address: Multiaddr, direction: Direction, now: Instant) {
        let info = self.connected.entry(peer).or_insert_with(|| PeerInfo {
            peer,
            address: address.clone(),
            direction,
            connections: 0,
            connected_at: now,
            agent: None,
            introduction: None,
            link: false,
        });
        info.connections += 1;
        (info.address, info.direction) = (address, direction);
        if let Some(target) = self.targets.get_mut(&peer) {
            target.next_dial = None;
        }
    }

    fn on_disconnected(&mut self, peer: PeerId, remaining: usize, now: Instant) {
        if remaining > 0 {
            if let Some(info) = self.connected.get_mut(&peer) {
                info.connections = remaining;
            }
            return;
        }
        self.connected.remove(&peer);
        if let Some(target) = self.targets.get_mut(&peer) {
            let stable = target.link_since.take().is_some_and(|since| now - since >= STABLE_AFTER);
            if stable {
                target.failures = 0;
            }
        }
        self.retry(peer, now);
    }

    fn retry(&mut self, peer: PeerId, now: Instant) {
        let jitter = (self.jitter)();
        if let Some(target) = self.targets.get_mut(&peer) {
            target.next_dial = Some(now + backoff(target.failures, jitter));
            target.failures = target.failures.saturating_add(1);
        }
    }

    fn due(&mut self, now: Instant) -> Vec<Dial> {
        let due = self.targets.iter_mut().filter(|(_, target)| target.next_dial.is_some_and(|at| at <= now));
        due.map(|(&peer, target)| {
            target.next_dial = None;
            Dial { peer, addresses: target.addresses.clone() }
        })
        .collect()
    }
}

/// Doubles from [`BACKOFF_MIN`] to [`BACKOFF_MAX`]; half of it is random, so that a fleet that lost its gateway does
/// not reconnect all at once.
fn backoff(failures: u32, jitter: f64) -> Duration {
    let full = BACKOFF_MIN.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
    full / 2 + (full / 2).mul_f64(jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address() -> Multiaddr {
        "/ip4/127.0.0.1/tcp/4001".parse().unwrap()
    }

    fn table(now: Instant) -> (Peers, PeerId) {
        let peer = PeerId::random();
        let target = BootstrapAddr { peer, address: address() };
        (Peers::new(&[target], PeerId::random(), now, || 1.0), peer)
    }

    fn connected(peer: PeerId) -> Input {
        Input::Connected { peer, address: address(), direction: Direction::Outbound }
    }

    #[test]
    fn a_bootstrap_peer_is_dialed_at_once_and_again_with_backoff() {
        let start = Instant::now();
        let (mut peers, peer) = table(start);
        assert_eq!(peers.handle(Input::Tick, start), vec![Dial { peer, addresses: vec![address()] }]);
        assert_eq!(peers.next_tick(), None, "it is being dialed");
        let mut now = start;
        for wait in [250, 500, 1000, 2000, 4000, 8000, 15000, 15000] {
            assert_eq!(peers.handle(Input::DialFailed { peer }, now), vec![]);
            let due = now + Duration::from_millis(wait);
            assert_eq!(peers.next_tick(), Some(due));
            assert_eq!(peers.handle(Input::Tick, due - Duration::from_millis(1)), vec![]);
            assert_eq!(peers.handle(Input::Tick, due).len(), 1);
            now = due;
        }
    }

    #[test]
    fn only_a_link_that_lasted_resets_the_backoff() {
        let start = Instant::now();
        let (mut peers, peer) = table(start);
        peers.handle(Input::Tick, start);
        for round in 0..4u32 {
            // A peer that accepts and closes at once, as a full one does.
            peers.handle(connected(peer), start);
            peers.handle(Input::Disconnected { peer, remaining: 0 }, start);
            assert_eq!(peers.next_tick(), Some(start + BACKOFF_MIN * 2u32.pow(round)));
        }
        peers.handle(connected(peer), start);
        peers.handle(Input::LinkUp { peer }, start);
        let later = start + STABLE_AFTER;
        peers.handle(Input::Disconnected { peer, remaining: 0 }, later);
        assert_eq!(peers.next_tick(), Some(later + BACKOFF_MIN));
    }

    #[test]
    fn the_local_peer_is_left_out_of_a_shared_list() {
        let now = Instant::now();
        let local = PeerId::random();
        let mut peers = Peers::new(&[BootstrapAddr { peer: local, address: address() }], local, now, || 0.0);
        assert_eq!(peers.handle(Input::Tick, now), vec![]);
    }

    /// Two agents that find each other at the same time dial from and to the same ports. TCP turns that into a single
    /// connection in which both are the dialer, and both dials fail: the second attempt matters.
    #[test]
    fn a_found_peer_is_dialed_until_it_expires() {
        let start = Instant::now();
        let (mut peers, configured) = table(start);
        peers.handle(Input::Tick, start);
        let peer = PeerId::random();
        let found = || Input::Found { peer, address: address() };
        assert_eq!(peers.handle(found(), start), vec![Dial { peer, addresses: vec![address()] }]);
        assert_eq!(peers.handle(found(), start), vec![], "it is being dialed");
        peers.handle(Input::DialFailed { peer }, start);
        assert_eq!(peers.handle(Input::Tick, start + BACKOFF_MIN).len(), 1);
        peers.handle(connected(peer), start);
        peers.handle(Input::Disconnected { peer, remaining: 0 }, start);
        assert!(peers.next_tick().is_some());
        peers.handle(Input::Expired { peer, address: address() }, start);
        assert_eq!(peers.next_tick(), None, "no peer is left to dial");
        // A configured peer stays, whatever mDNS reports about it.
        peers.handle(Input::Found { peer: configured, address: "/ip4/10.0.0.1/tcp/1".parse().unwrap() }, start);
        peers.handle(Input::Expired { peer: configured, address: address() }, start);
        peers.handle(Input::DialFailed { peer: configured }, start);
        assert_eq!(
            peers.handle(Input::Tick, start + BACKOFF_MIN),
            vec![Dial { peer: configured, addresses: vec![address()] }]
        );
        for _ in 0..2 * MAX_FOUND {
            peers.handle(Input::Found { peer: PeerId::random(), address: address() }, start);
        }
        assert_eq!(peers.targets.len(), MAX_FOUND + 1);
    }

    #[test]
    fn a_second_connection_is_not_a_second_peer() {
        let now = Instant::now();
        let (mut peers, peer) = table(now);
        peers.handle(connected(peer), now);
        peers.handle(connected(peer), now);
        assert_eq!((peers.count(), peers.list().next().unwrap().connections), (1, 2));
        peers.handle(Input::Disconnected { peer, remaining: 1 }, now);
        assert_eq!((peers.count(), peers.list().next().unwrap().connections), (1, 1));
        peers.handle(Input::Disconnected { peer, remaining: 0 }, now);
        assert_eq!(peers.count(), 0);
    }

    #[test]
    fn other_bootstrap_peers_are_dialed_at_once_and_those_before_no_longer() {
        let start = Instant::now();
        let (mut peers, before) = table(start);
        peers.handle(Input::Tick, start);
        peers.handle(connected(before), start);
        let (new, found, local) = (PeerId::random(), PeerId::random(), PeerId::random());
        peers.handle(Input::Found { peer: found, address: address() }, start);
        let target = |peer, address: &str| BootstrapAddr { peer, address: address.parse().unwrap() };
        let list = [target(new, "/ip4/127.0.0.1/tcp/1"), target(local, "/ip4/127.0.0.1/tcp/2")];
        let dials = peers.configure(&list, local, start);
        assert_eq!(dials, vec![Dial { peer: new, addresses: vec!["/ip4/127.0.0.1/tcp/1".parse().unwrap()] }]);
        assert_eq!(peers.configure(&list, local, start), vec![], "nothing has changed");
        // The one before stays connected, and is not dialed any more once it leaves.
        assert!(peers.is_connected(&before) && !peers.is_target(&before) && peers.is_target(&found));
        peers.handle(Input::Disconnected { peer: before, remaining: 0 }, start);
        peers.handle(Input::DialFailed { peer: new }, start);
        // Another address is tried at once, whatever the backoff.
        let dials = peers.configure(&[target(new, "/ip4/127.0.0.1/tcp/3")], local, start);
        assert_eq!(dials, vec![Dial { peer: new, addresses: vec!["/ip4/127.0.0.1/tcp/3".parse().unwrap()] }]);
    }

    proptest! {
        #[test]
        fn a_target_is_always_connected_dialed_or_due(steps in proptest::collection::vec(0u8..5, 1..60)) {
            let start = Instant::now();
            let (mut peers, peer) = table(start);
            let (mut connections, mut dialing) = (0usize, false);
            for (second, step) in steps.into_iter().enumerate() {
                let now = start + Duration::from_secs(second as u64 * 7);
                let dials = match step {
                    0 => { connections += 1; dialing = false; peers.handle(connected(peer), now) }
                    1 if connections > 0 => {
                        connections -= 1;
                        peers.handle(Input::Disconnected { peer, remaining: connections }, now)
                    }
                    2 if connections > 0 => peers.handle(Input::LinkUp { peer }, now),
                    3 if dialing => { dialing = false; peers.handle(Input::DialFailed { peer }, now) }
                    _ => peers.handle(Input::Tick, now),
                };
                prop_assert!(dials.len() <= 1);
                prop_assert!(dials.is_empty() || connections == 0, "dialed while connected");
                dialing |= !dials.is_empty();
                prop_assert!(connections > 0 || dialing || peers.next_tick().is_some(), "forgotten");
                prop_assert_eq!(peers.count(), usize::from(connections > 0));
            }
        }
    }
}

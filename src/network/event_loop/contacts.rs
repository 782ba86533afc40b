//! How it stands with the peers that the agent stays connected to, and which others are refused.

use std::collections::HashSet;
use std::time::Instant;

use libp2p::swarm::{ConnectionDenied, DialError};
use libp2p::{Multiaddr, PeerId};

use super::super::behaviour::allowed;
use super::super::contact::{Problem, dial_problem};
use super::super::peers::Input;
use super::super::{Reconfigured, RequestError, refusals};
use super::Driver;
use crate::metrics::labels::{Contact, Label as _};

impl Driver {
    /// The addresses of the peers that the agent stays connected to are dialed, private or not.
    pub(super) fn name_addresses(&self) {
        let contacts = self.peers.contacts(Instant::now());
        self.filter.set_named(contacts.flat_map(|contact| contact.addresses));
    }

    /// Takes over what a reload has changed.
    pub(super) fn reconfigure(&mut self, peers: &Reconfigured) {
        let local = *self.swarm.local_peer_id();
        let behaviour = &mut self.swarm.behaviour_mut().0;
        let expected = behaviour.links.requests().expected();
        behaviour.links.reserve(peers.named().chain(expected).collect());
        behaviour.allowed = allowed(peers.allow_peers.as_deref()).into();
        for target in &peers.bootstrap {
            behaviour.kad.add_address(&target.peer, target.address.clone());
        }
        let allowed: Option<HashSet<PeerId>> =
            peers.allow_peers.as_ref().map(|peers| peers.iter().map(|peer| peer.0).collect());
        let connected = self.swarm.connected_peers().copied();
        let (stay, leave): (Vec<PeerId>, Vec<PeerId>) =
            connected.partition(|peer| allowed.as_ref().is_none_or(|allowed| allowed.contains(peer)));
        for peer in leave {
            self.lost.insert(peer, "closed by this agent, no longer in network.allow_peers".into());
            let _not_connected = self.swarm.disconnect_peer_id(peer);
        }
        for peer in &stay {
            // Who is a target of a gateway may have changed.
            self.tell_handler(peer);
        }
        if let Some(affected) = &peers.affected {
            let affected = stay.into_iter().filter(|peer| affected(peer)).collect();
            self.swarm.behaviour_mut().0.links.introduce(&affected);
        }
        let dials = self.peers.configure(&peers.bootstrap, local, Instant::now());
        self.name_addresses();
        self.dial(dials);
    }

    /// Whether to log at `info` that `peer` connected or disconnected: always for a peer that the agent stays connected
    /// to.
    pub(super) fn may_tell(&mut self, peer: &PeerId) -> bool {
        // One that never gets a link would be logged with every attempt; why it does not has been logged.
        let flaps = |problem: &Problem| problem.reason != Contact::Lost;
        match self.peers.is_target(peer) {
            true => !self.peers.problem(peer).is_some_and(flaps),
            false => self.comings.take(Instant::now()),
        }
    }

    pub(super) fn on_refused(&mut self, peer: PeerId, address: Multiaddr, denied: ConnectionDenied) {
        let Some(reason) = refusals::reason(denied) else { return };
        self.metrics.connection_refused(reason);
        if let Some(summary) = self.refusals.note(reason, peer, address, Instant::now()) {
            tracing::warn!("Peers' connections are refused (network.max_peers, network.allow_peers): {summary}");
        }
    }

    pub(super) fn on_dial_failed(&mut self, peer: PeerId, error: &DialError) {
        let (kind, reason) = dial_problem(error);
        self.note(peer, kind, &reason);
        self.answer_waiting(peer, || Err(RequestError::Unreachable { peer, reason: reason.clone() }));
        self.tell(Input::DialFailed { peer });
    }

    /// Notes why a peer is not connected, and logs it if that is news about a peer that the agent stays connected to.
    pub(super) fn note(&mut self, peer: PeerId, reason: Contact, text: &str) {
        if self.peers.note(&peer, reason, text.to_owned(), Instant::now()) {
            let advice = reason.advice();
            tracing::warn!(
                %peer,
                state = reason.as_str(),
                reason = text,
                "A bootstrap or mDNS peer cannot be reached; retrying until it can: {advice}"
            );
        } else {
            tracing::debug!(%peer, state = reason.as_str(), reason = text, "not connected");
        }
    }

    /// Why the last connection to a peer ended, if the agent stays connected to it.
    pub(super) fn note_closed(&mut self, peer: PeerId, cause: &str, by_peer: bool) {
        let reason = match self.strange.remove(&peer) {
            Some(strange) => strange,
            None if self.peers.had_link(&peer) => {
                // Logged as any peer that leaves.
                self.peers.note(&peer, Contact::Lost, cause.to_owned(), Instant::now());
                return;
            }
            None if by_peer => Contact::TurnedAway,
            None => Contact::Other,
        };
        self.note(peer, reason, cause);
    }
}

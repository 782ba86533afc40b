//! Hands the swarm's events to libp2p's own metrics, with one rule: what a remote peer says never
//! becomes a label value.
//!
//! libp2p-metrics labels some series with the protocol stack of an address (`/ip4/tcp`). Addresses that
//! a peer reports through identify are the peer's to invent, each new stack would be a new series, and
//! so only the stacks that an agent can have itself are let through.

use libp2p::metrics::{Metrics, Recorder as _};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, identify};

use super::behaviour::BehaviourEvent;
use crate::metrics::Registry;

pub(super) struct Telemetry {
    metrics: Metrics,
}

impl Telemetry {
    pub(super) fn new(registry: &mut Registry) -> Self {
        Self { metrics: Metrics::new(registry) }
    }

    pub(super) fn record(&self, event: &SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::NewExternalAddrCandidate { address } if !is_known_stack(address) => return,
            SwarmEvent::NewExternalAddrOfPeer { .. } => return,
            SwarmEvent::Behaviour(BehaviourEvent::Identify(event)) => self.record_identify(event),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => self.metrics.record(event),
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.metrics.record(event),
            _ => {}
        }
        self.metrics.record(event);
    }

    fn record_identify(&self, event: &identify::Event) {
        match event {
            identify::Event::Received { connection_id, peer_id, info } => {
                let (connection_id, peer_id, info) = (*connection_id, *peer_id, cleaned(info));
                self.metrics.record(&identify::Event::Received { connection_id, peer_id, info });
            }
            event => self.metrics.record(event),
        }
    }
}

/// The info with only those addresses that cannot mint a series.
fn cleaned(info: &identify::Info) -> identify::Info {
    let mut info = info.clone();
    info.listen_addrs.retain(is_known_stack);
    info.listen_addrs.truncate(16);
    info.protocols.truncate(64);
    if !is_known_stack(&info.observed_addr) {
        info.observed_addr = Multiaddr::empty();
    }
    info
}

/// Whether the address is one of the few kinds that an agent can listen on or be reached at.
fn is_known_stack(address: &Multiaddr) -> bool {
    let mut parts = address.iter().peekable();
    let host = matches!(
        parts.next(),
        Some(Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_))
    );
    let transport = match parts.next() {
        Some(Protocol::Tcp(_)) => true,
        Some(Protocol::Udp(_)) => matches!(parts.next(), Some(Protocol::QuicV1)),
        _ => false,
    };
    let peer = parts.next_if(|part| matches!(part, Protocol::P2p(_))).is_some() || parts.peek().is_none();
    host && transport && peer && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_our_own_kinds_may_become_labels() {
        let peer = libp2p::PeerId::random();
        for (text, known) in [
            ("/ip4/1.2.3.4/tcp/1".to_owned(), true),
            ("/ip6/::1/udp/1/quic-v1".to_owned(), true),
            (format!("/dns4/example.org/tcp/1/p2p/{peer}"), true),
            ("/ip4/1.2.3.4/tcp/1/ws".to_owned(), false),
            ("/ip4/1.2.3.4/tcp/1/tcp/2".to_owned(), false),
            ("/ip4/1.2.3.4/udp/1".to_owned(), false),
            ("/memory/1".to_owned(), false),
            (format!("/ip4/1.2.3.4/tcp/1/p2p/{peer}/p2p-circuit/p2p/{peer}"), false),
        ] {
            assert_eq!(is_known_stack(&text.parse().unwrap()), known, "{text}");
        }
    }
}

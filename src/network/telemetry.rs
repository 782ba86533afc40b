//! Passes the swarm's events to libp2p's own metrics, with one rule: nothing that a peer sends becomes a label value.
//!
//! libp2p-metrics labels some series with the protocol stack of an address (`/ip4/tcp`). A peer can invent the
//! addresses that it reports through identify, and each new stack would create a new series. So only stacks that an
//! agent can have itself are let through.

use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::metrics::{BandwidthTransport, Metrics, Recorder as _};
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, Transport as _, identify};

use super::addresses::is_usual_stack;
use super::behaviour::BehaviourEvent;
use crate::metrics::Registry;

pub(super) struct Telemetry {
    metrics: Metrics,
}

impl Telemetry {
    /// Registers libp2p's families, and returns `transport` wrapped so that its bytes are counted.
    pub(super) fn new(
        transport: Boxed<(PeerId, StreamMuxerBox)>,
        registry: &Registry,
    ) -> (Self, Boxed<(PeerId, StreamMuxerBox)>) {
        let mut libp2p = prometheus_client::registry::Registry::default();
        let transport = BandwidthTransport::new(transport, &mut libp2p);
        let telemetry = Self { metrics: Metrics::new(&mut libp2p) };
        registry.add_foreign("libp2p", libp2p);
        let boxed = transport.map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection))).boxed();
        (telemetry, boxed)
    }

    pub(super) fn record(&self, event: &SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::NewExternalAddrCandidate { address } if !is_usual_stack(address) => return,
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

/// The info with only the addresses that cannot create a series.
fn cleaned(info: &identify::Info) -> identify::Info {
    let mut info = info.clone();
    info.listen_addrs.retain(is_usual_stack);
    info.listen_addrs.truncate(16);
    info.protocols.truncate(64);
    if !is_usual_stack(&info.observed_addr) {
        info.observed_addr = Multiaddr::empty();
    }
    info
}

//! Passes the swarm's events to libp2p's own metrics, with one rule: nothing that a peer sends becomes a label value.
//!
//! libp2p-metrics labels some series with the protocol stack of an address (`/ip4/tcp`). A peer can invent addresses,
//! and each new stack would create a new series. So only stacks that an agent can have itself are let through.
//!
//! Identify's events are counted here: libp2p-metrics' own collector walks what every connected peer has said, at each
//! scrape.

use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::swarm::SwarmEvent;
use libp2p::{PeerId, Transport as _, identify};
use libp2p_metrics::{BandwidthTransport, Metrics, Recorder as _};
use prometheus_client::metrics::counter::Counter;

use super::addresses::is_usual_stack;
use super::behaviour::BehaviourEvent;
use crate::metrics::Registry;

pub(super) struct Telemetry {
    metrics: Metrics,
    identify: Identify,
}

/// How often peers exchanged what they say of themselves.
#[derive(Debug, Default)]
struct Identify {
    received: Counter,
    sent: Counter,
    pushed: Counter,
    errors: Counter,
}

impl Telemetry {
    /// Registers libp2p's families, and returns `transport` wrapped so that its bytes are counted.
    pub(super) fn new(
        transport: Boxed<(PeerId, StreamMuxerBox)>,
        registry: &Registry,
    ) -> (Self, Boxed<(PeerId, StreamMuxerBox)>) {
        let mut libp2p = prometheus_client::registry::Registry::default();
        let transport = BandwidthTransport::new(transport, &mut libp2p);
        let (metrics, identify) = (Metrics::new(&mut libp2p), Identify::default());
        let families = libp2p.sub_registry_with_prefix("libp2p").sub_registry_with_prefix("identify");
        for (name, help, counter) in [
            ("received", "What peers said of themselves, on request or by a push", &identify.received),
            ("sent", "What this agent said of itself on request", &identify.sent),
            ("pushed", "What this agent said of itself because it had changed", &identify.pushed),
            ("errors", "Exchanges that failed", &identify.errors),
        ] {
            families.register(name, help, counter.clone());
        }
        registry.add_foreign("libp2p", libp2p);
        let boxed = transport.map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection))).boxed();
        (Self { metrics, identify }, boxed)
    }

    pub(super) fn record(&self, event: &SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::NewExternalAddrCandidate { address } if !is_usual_stack(address) => return,
            SwarmEvent::NewExternalAddrOfPeer { .. } => return,
            SwarmEvent::Behaviour(BehaviourEvent::Identify(event)) => {
                match event {
                    identify::Event::Received { .. } => &self.identify.received,
                    identify::Event::Sent { .. } => &self.identify.sent,
                    identify::Event::Pushed { .. } => &self.identify.pushed,
                    identify::Event::Error { .. } => &self.identify.errors,
                }
                .inc();
            }
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.metrics.record(event),
            _ => {}
        }
        self.metrics.record(event);
    }
}

//! Stands in for `telemetry.rs` in a build without the cargo feature `metrics-prometheus`.

use libp2p::PeerId;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::swarm::SwarmEvent;

use super::behaviour::BehaviourEvent;
use crate::metrics::Registry;

pub(super) struct Telemetry;

impl Telemetry {
    pub(super) fn new(
        transport: Boxed<(PeerId, StreamMuxerBox)>,
        _: &Registry,
    ) -> (Self, Boxed<(PeerId, StreamMuxerBox)>) {
        (Self, transport)
    }

    #[allow(clippy::unused_self, reason = "the same API as telemetry.rs")]
    pub(super) fn record(&self, _: &SwarmEvent<BehaviourEvent>) {}
}

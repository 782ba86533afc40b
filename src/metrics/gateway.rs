//! What a gateway records. Its families exist only where the gateway is enabled: otherwise, thousands of ordinary
//! agents would show series that never change.

use std::sync::Arc;

use super::Timer;
use super::catalogue as c;
use super::collector::{Add, buckets};
use super::instruments::{Buckets, Counter, DURATION_BOUNDS, Gauge, Histogram, SIZE_BOUNDS};
use super::labels::{PeerState, ScrapeOutcome};
use super::registry::Registry;

/// Records what a gateway does. Clones share the same numbers.
#[derive(Debug, Clone)]
pub struct GatewayMetrics {
    families: Arc<Families>,
}

#[derive(Debug)]
struct Families {
    scrapes: Counter<ScrapeOutcome>,
    peers: Gauge<PeerState>,
    duration: Histogram<()>,
    body: Histogram<()>,
}

impl GatewayMetrics {
    /// Registers every family in `registry`.
    pub fn new(registry: &Registry) -> Self {
        let durations = buckets(Buckets::durations(&DURATION_BOUNDS, registry.native_histograms()));
        let sizes = buckets(Buckets::numbers(&SIZE_BOUNDS, registry.native_histograms()));
        let add = Add { registry, durations: &durations };
        let families = Families {
            scrapes: add.instrument(&c::GATEWAY_SCRAPES, Counter::new()),
            peers: add.instrument(&c::GATEWAY_PEERS, Gauge::new()),
            duration: add.instrument(&c::GATEWAY_SCRAPE_DURATION, Histogram::new(&durations)),
            body: add.instrument(&c::GATEWAY_SCRAPE_BODY, Histogram::new(&sizes)),
        };
        Self { families: Arc::new(families) }
    }

    /// A scraper's request was answered; `timer` started when it arrived.
    pub fn scraped(&self, outcome: ScrapeOutcome, timer: Timer) {
        self.families.scrapes.inc(outcome);
        self.families.duration.observe((), timer.nanos());
    }

    /// A peer's page was passed on; `bytes` is its size on the network.
    pub fn passed_on(&self, bytes: usize) {
        self.families.body.observe((), bytes as u64);
    }

    /// Sets the number of peers in this state.
    pub fn set_peers(&self, state: PeerState, count: usize) {
        self.families.peers.set(state, i64::try_from(count).unwrap_or(i64::MAX));
    }
}

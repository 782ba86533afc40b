//! What a gateway records. Its families are there only where the gateway is switched on: thousands of agents that
//! are none would otherwise show series that never move.

use std::sync::Arc;

use super::Timer;
use super::catalogue as c;
use super::collector::{Add, buckets};
use super::instruments::{Buckets, Counter, DURATION_BOUNDS, Gauge, Histogram, SIZE_BOUNDS};
use super::labels::{PeerState, ScrapeOutcome};
use super::registry::Registry;

/// Records what a gateway does. Cloning shares the same numbers.
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

    /// A scraper's request was answered; `timer` started when it came.
    pub fn scraped(&self, outcome: ScrapeOutcome, timer: Timer) {
        self.families.scrapes.inc(outcome);
        self.families.duration.observe((), timer.nanos());
    }

    /// A peer's page was passed on; `bytes` as they crossed the network.
    pub fn passed_on(&self, bytes: usize) {
        self.families.body.observe((), bytes as u64);
    }

    /// So many peers are in this state.
    pub fn set_peers(&self, state: PeerState, count: usize) {
        self.families.peers.set(state, i64::try_from(count).unwrap_or(i64::MAX));
    }
}

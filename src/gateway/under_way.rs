//! A scrape under way: what it holds, and how it is counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use tokio::sync::OwnedSemaphorePermit;

use super::Fleet;
use super::failure::ScrapeFailure;
use super::lanes::Lane;
use super::members::{LastScrape, PROMPT, Took};
use crate::metrics::labels::ScrapeOutcome;
use crate::metrics::{GatewayMetrics, Timer};
use crate::network::ScrapeRequest;

/// A scrape from its beginning to its last byte. It is counted once: when the last byte has arrived, when it fails, or
/// when this is dropped before either.
#[derive(Debug)]
pub(super) struct UnderWay {
    fleet: Arc<Fleet>,
    metrics: GatewayMetrics,
    peer: PeerId,
    exposed: Option<String>,
    timer: Timer,
    began: Instant,
    pub(super) deadline: Instant,
    /// When the peer was asked.
    pub(super) asked: Option<Instant>,
    /// How long this side has waited for the peer, once its page has begun.
    pub(super) took: Option<Duration>,
    /// Whether it uses the places that slow pages share.
    pub(super) is_slow: bool,
    pub(super) lane: Option<Lane<(PeerId, Option<String>)>>,
    /// Its place among the scrapes of this peer.
    pub(super) of_peer: Option<Lane<PeerId>>,
    pub(super) holds: Vec<OwnedSemaphorePermit>,
    is_counted: bool,
}

impl UnderWay {
    pub(super) fn new(fleet: Arc<Fleet>, metrics: GatewayMetrics, peer: PeerId, request: &ScrapeRequest) -> Self {
        let began = Instant::now();
        Self {
            fleet,
            metrics,
            peer,
            exposed: request.exposed.clone(),
            timer: Timer::start(),
            began,
            deadline: began + request.timeout,
            asked: None,
            took: None,
            is_slow: false,
            lane: None,
            of_peer: None,
            holds: Vec::new(),
            is_counted: false,
        }
    }

    /// Counts a wait for the peer after its page has begun. Waits for the scraper are not the peer's fault.
    pub(super) fn waited(&mut self, time: Duration) {
        self.took = self.took.map(|took| took + time);
    }

    /// The page is complete, with this many bytes.
    pub(super) fn complete(&mut self, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.metrics.passed_on(bytes);
        self.count(ScrapeOutcome::Ok);
        self.tell(ScrapeOutcome::Ok, bytes, None);
    }

    /// The scrape failed, before or after the beginning of its page.
    pub(super) fn failed(&mut self, failure: &ScrapeFailure) {
        tracing::debug!(peer = %self.peer, outcome = %failure.outcome, "a scrape failed: {failure}");
        self.count(failure.outcome);
        self.tell(failure.outcome, 0, Some(failure.text.clone()));
    }

    fn count(&mut self, outcome: ScrapeOutcome) {
        if !std::mem::replace(&mut self.is_counted, true) {
            self.metrics.scraped(outcome, self.timer);
        }
    }

    /// How long this side has waited for the peer since it asked.
    fn took(&self) -> Option<Duration> {
        self.took.or_else(|| Some(self.asked?.elapsed()))
    }

    /// Reports the result to the fleet, unless the scrape was rejected before it got a place for its page.
    fn tell(&mut self, outcome: ScrapeOutcome, bytes: usize, problem: Option<String>) {
        self.holds.clear();
        self.of_peer = None;
        if self.lane.take().is_none() {
            return;
        }
        let took = self.took().zip(self.asked);
        let took = took.map(|(took, asked)| Took { took, of: self.deadline.saturating_duration_since(asked) });
        let last = LastScrape { at: Instant::now(), duration: self.began.elapsed(), bytes, outcome, problem };
        self.fleet.scraped(&self.peer, self.exposed.as_deref(), took, last);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.is_counted {
            return;
        }
        self.count(ScrapeOutcome::Cancelled);
        // The scraper gave up. The time that has passed shows whether the peer is to blame.
        if self.took().is_some_and(|took| took > PROMPT) {
            self.tell(
                ScrapeOutcome::Cancelled,
                0,
                Some("the scraper disconnected before the page was complete".into()),
            );
        }
    }
}

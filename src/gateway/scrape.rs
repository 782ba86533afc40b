//! Scrapes of peers: live, bounded, fair, and each counted once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use libp2p::PeerId;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::fetch::{self, Budget, Page};
use super::members::{LastScrape, Took};
use super::queue::Queue;
use super::{Config, Fleet};
use crate::metrics::labels::ScrapeOutcome;
use crate::metrics::{GatewayMetrics, Timer};
use crate::network::{Network, ScrapeRequest};

/// What a scraper wants of a peer. Who wants the same at the same time gets the same page.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Want {
    /// The exporter behind the peer; `None` for the peer itself.
    pub exposed: Option<String>,
    /// The scraper's `Accept`.
    pub accept: String,
    /// Whether the scraper takes gzip.
    pub gzip: bool,
}

/// A peer's page.
#[derive(Debug, Clone)]
pub struct Scraped {
    /// Its `Content-Type`: visible ASCII.
    pub content_type: String,
    /// Whether `body` is compressed by gzip.
    pub gzip: bool,
    /// The page.
    pub body: Bytes,
}

/// Why there is no page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// What became of it. Never [`ScrapeOutcome::Ok`].
    pub outcome: ScrapeOutcome,
    /// One sentence for people.
    pub text: String,
}

impl Failure {
    pub(super) fn new(outcome: ScrapeOutcome, text: impl Into<String>) -> Self {
        Self { outcome, text: text.into() }
    }
}

/// Scrapes peers. Cloning shares all bounds.
#[derive(Debug, Clone)]
pub struct Scraper {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    network: Network,
    /// The network's, where pages are fetched.
    runtime: Handle,
    fleet: Arc<Fleet>,
    metrics: GatewayMetrics,
    queue: Queue<(PeerId, Option<String>), Want, Result<Page, Failure>>,
    slots: Slots,
    budget: Budget,
    max_body: usize,
    clients: usize,
}

/// The places of scrapes under way, in all.
#[derive(Debug)]
struct Slots {
    all: Arc<Semaphore>,
    /// Peers that took all their time when they were asked last, or have not been asked yet, share half of the
    /// places, so that they, however many they are, leave the other half to those that answer.
    slow: Arc<Semaphore>,
    /// Slow ones that are served or wait, as many as there are places, and others that do, twice as many: more are
    /// told at once, so that connections are left for who looks at the gateway itself.
    slow_line: Semaphore,
    line: Semaphore,
}

/// How much longer than its time a fetch is waited for.
const LAST_WORD: Duration = Duration::from_millis(50);

/// How many scrapes may be served or wait, for each place that there is.
const IN_LINE: usize = 3;

const BUSY: &str = "too many scrapes are under way at this gateway (gateway.max_scrapes); try again later";

impl Scraper {
    /// A scraper of the peers of `fleet`. It is made in the network's runtime.
    pub fn new(config: &Config, network: Network, fleet: Arc<Fleet>, metrics: GatewayMetrics) -> Self {
        let max_scrapes = config.max_scrapes as usize;
        let slots = Slots {
            all: Arc::new(Semaphore::new(max_scrapes)),
            slow: Arc::new(Semaphore::new(max_scrapes.div_ceil(2))),
            slow_line: Semaphore::new(max_scrapes),
            line: Semaphore::new((IN_LINE - 1) * max_scrapes),
        };
        let (queue, budget, max_body) = (Queue::new(), Budget::new(), config.max_body_size);
        Self {
            shared: Arc::new(Shared {
                network,
                runtime: Handle::current(),
                fleet,
                metrics,
                queue,
                slots,
                budget,
                max_body,
                clients: IN_LINE * max_scrapes,
            }),
        }
    }

    /// How many may wait for a page at once.
    pub fn clients(&self) -> usize {
        self.shared.clients
    }

    /// The peers that can be scraped.
    pub fn fleet(&self) -> &Fleet {
        &self.shared.fleet
    }

    /// Fetches what is wanted of `peer`, now and not from any cache, within `time`. Who asks for the same while it
    /// is under way is given the same. Dropped by everybody who waits, it ends at the peer, too.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub async fn scrape(&self, peer: PeerId, want: Want, time: Duration) -> Result<Scraped, Failure> {
        let mut count =
            Count { metrics: &self.shared.metrics, timer: Timer::start(), outcome: ScrapeOutcome::Cancelled };
        let slots = &self.shared.slots;
        let line = if self.shared.fleet.is_slow(&peer, &want) { &slots.slow_line } else { &slots.line };
        let result = match line.try_acquire() {
            Ok(_in_line) => self.join(peer, &want, Instant::now() + time).await,
            Err(_) => Err(Failure::new(ScrapeOutcome::Busy, BUSY)),
        };
        count.outcome = match &result {
            Ok(_) => ScrapeOutcome::Ok,
            Err(failure) => failure.outcome,
        };
        let Page { content_type, gzip, body } = result?;
        self.shared.metrics.passed_on(body.len());
        Ok(Scraped { content_type, gzip, body })
    }

    async fn join(&self, peer: PeerId, want: &Want, deadline: Instant) -> Result<Page, Failure> {
        loop {
            self.shared.fleet.check(&peer, want)?;
            let mut began = false;
            let begin = |turn| {
                began = true;
                let (shared, want) = (Arc::clone(&self.shared), want.clone());
                self.spawn(async move { shared.fetch(peer, want, turn, deadline).await })
            };
            // An exporter that hangs has nobody wait but those who want it.
            let lane = (peer, want.exposed.clone());
            let fetch = self.shared.queue.join(lane, want, begin).map_err(|_| {
                Failure::new(ScrapeOutcome::Busy, "too many scrapes of this peer are under way; try again later")
            })?;
            // A little later than the fetch itself, which knows better what was missing.
            match tokio::time::timeout_at((deadline + LAST_WORD).into(), fetch).await {
                // Whom this one joined had less time than this one has. What it began itself is not begun again:
                // a peer that says at once that its time is up would be asked without pause.
                Ok(Err(failure))
                    if !began && failure.outcome == ScrapeOutcome::Timeout && Instant::now() < deadline => {}
                Ok(result) => return result,
                Err(_) => return Err(Failure::new(ScrapeOutcome::Timeout, "the peer did not answer in time")),
            }
        }
    }
}

impl Scraper {
    /// Does the work where the connections are, until what is returned is dropped. There what a peer sends wakes a
    /// task of the same runtime; here, on the endpoint's one thread, every piece would be a system call.
    fn spawn(
        &self,
        work: impl Future<Output = Result<Page, Failure>> + Send + 'static,
    ) -> BoxFuture<'static, Result<Page, Failure>> {
        let mut tasks = JoinSet::new();
        tasks.spawn_on(work, &self.shared.runtime);
        async move {
            match tasks.join_next().await {
                Some(Ok(result)) => result,
                _ => Err(Failure::new(ScrapeOutcome::Cancelled, "this gateway is shutting down")),
            }
        }
        .boxed()
    }
}

impl Shared {
    async fn fetch(
        self: Arc<Self>,
        peer: PeerId,
        want: Want,
        turn: Arc<Semaphore>,
        deadline: Instant,
    ) -> Result<Page, Failure> {
        let got = AtomicU64::new(0);
        let begin = Instant::now();
        let exposed = want.exposed.clone();
        let asked = OnceLock::new();
        let work = self.work(peer, want, turn, deadline, &asked, &got);
        let result = match tokio::time::timeout_at(deadline.into(), work).await {
            Ok(result) => result,
            Err(_) => {
                let (waited, got) = (deadline.saturating_duration_since(begin), got.load(Ordering::Relaxed));
                let text = match asked.get() {
                    Some(_) => format!("the page was not complete after {waited:.1?}; {got} bytes of it had come"),
                    None => format!("another scrape of the same page took all of {waited:.1?}"),
                };
                Err(Failure::new(ScrapeOutcome::Timeout, text))
            }
        };
        let took = |asked: &Instant| Took { took: asked.elapsed(), of: deadline.saturating_duration_since(*asked) };
        let took = asked.get().map(took);
        self.fleet.scraped(&peer, exposed.as_deref(), took, last(begin, &result));
        if let Err(failure) = &result {
            tracing::debug!(%peer, outcome = %failure.outcome, "a scrape failed: {failure}");
        }
        result
    }

    async fn work(
        &self,
        peer: PeerId,
        want: Want,
        turn: Arc<Semaphore>,
        deadline: Instant,
        asked: &OnceLock<Instant>,
        got: &AtomicU64,
    ) -> Result<Page, Failure> {
        let _turn = turn.acquire_owned().await;
        let _slots = self.slots.take(self.fleet.is_slow(&peer, &want), deadline).await?;
        let Want { exposed, accept, gzip } = want;
        let timeout = deadline.saturating_duration_since(*asked.get_or_init(Instant::now));
        let wants_gzip = gzip;
        let request = ScrapeRequest { exposed, accept, gzip, timeout };
        let incoming = self.network.scrape(peer, &request).await.map_err(fetch::lost)?;
        fetch::page(incoming, wants_gzip, self.max_body, &self.budget, got).await
    }
}

impl Slots {
    /// A place. It is waited for as long as half of the time is left, in the order of coming.
    async fn take(
        &self,
        slow: bool,
        deadline: Instant,
    ) -> Result<(Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>), Failure> {
        let patience = deadline.saturating_duration_since(Instant::now()) / 2;
        let both = async {
            let slow = if slow { Arc::clone(&self.slow).acquire_owned().await.ok() } else { None };
            (slow, Arc::clone(&self.all).acquire_owned().await.ok())
        };
        tokio::time::timeout(patience, both).await.map_err(|_| Failure::new(ScrapeOutcome::Busy, BUSY))
    }
}

fn last(begin: Instant, result: &Result<Page, Failure>) -> LastScrape {
    let (bytes, outcome, problem) = match result {
        Ok(page) => (page.body.len(), ScrapeOutcome::Ok, None),
        Err(failure) => (0, failure.outcome, Some(failure.text.clone())),
    };
    LastScrape { at: Instant::now(), duration: begin.elapsed(), bytes, outcome, problem }
}

/// Counts one scrape when it ends, also when its future is dropped.
struct Count<'a> {
    metrics: &'a GatewayMetrics,
    timer: Timer,
    outcome: ScrapeOutcome,
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.metrics.scraped(self.outcome, self.timer);
    }
}

//! Scrapes of peers: live, bounded, fair, and each counted once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::fetch::{self, Body, Coming};
use super::lanes::{Lane, Lanes};
use super::members::{LastScrape, PROMPT, Took};
use super::{Config, Fleet};
use crate::metrics::labels::ScrapeOutcome;
use crate::metrics::{GatewayMetrics, GuestBody, GuestStream, Page, Timer};
use crate::network::{Network, ScrapeRequest};

/// Why there is no page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ScrapeFailure {
    /// What became of it. Never [`ScrapeOutcome::Ok`].
    pub outcome: ScrapeOutcome,
    /// One sentence for people.
    pub text: String,
}

impl ScrapeFailure {
    pub(super) fn new(outcome: ScrapeOutcome, text: impl Into<String>) -> Self {
        Self { outcome, text: text.into() }
    }
}

/// Scrapes peers. Cloning shares all bounds.
#[derive(Debug, Clone)]
pub struct Scraper {
    shared: Arc<ScraperState>,
}

#[derive(Debug)]
struct ScraperState {
    network: Network,
    /// The network's, where pages begin.
    runtime: Handle,
    fleet: Arc<Fleet>,
    metrics: GatewayMetrics,
    lanes: Lanes<(PeerId, Option<String>)>,
    peers: Lanes<PeerId>,
    slots: Slots,
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
    slow_line: Arc<Semaphore>,
    line: Arc<Semaphore>,
    /// Those that were asked just now, slow ones and others: what they send shows as unread a moment later.
    slow_beginning: Arc<Semaphore>,
    beginning: Arc<Semaphore>,
    /// Pages that are passed on piece by piece, and those of slow peers among them.
    large: Arc<Semaphore>,
    slow_large: Arc<Semaphore>,
}

/// How much longer than its time a beginning is waited for.
const LAST_WORD: Duration = Duration::from_millis(50);

/// How many scrapes may be served or wait, for each place that there is.
const IN_LINE: usize = 3;

/// Scrapes of one page that are under way or wait for a place: those of several Prometheus servers, and of people. Who asks
/// again before the page has come is to take nothing from others.
const MAX_OF_PAGE: usize = 8;
/// And those of all pages of one peer: each is a substream of the same connection, and an agent answers no more at once.
const MAX_OF_PEER: usize = 32;

/// While so much of pages has come and was not read, because scrapers do not, no further one is asked for.
const MAX_UNREAD: usize = 12 << 20;
const UNREAD_PAUSE: Duration = Duration::from_millis(20);

/// So many of each kind are asked at once, until they answer or [`SOON`] is over: each may send what Yamux lets it,
/// 256 KiB, before that shows.
const BEGINNING: usize = 32;
const SOON: Duration = Duration::from_secs(1);

/// Pages that are passed on piece by piece at once. A peer may send half a megabyte of one before anybody reads it: what
/// Yamux lets it, more when it was read fast before.
const MAX_LARGE: usize = 32;

const BUSY: &str = "too many scrapes are under way at this gateway (gateway.max_scrapes); try again later";

impl Scraper {
    /// A scraper of the peers of `fleet`. It is made in the network's runtime.
    pub fn new(config: &Config, network: Network, fleet: Arc<Fleet>, metrics: GatewayMetrics) -> Self {
        let max_scrapes = config.max_scrapes as usize;
        let slots = Slots {
            all: Arc::new(Semaphore::new(max_scrapes)),
            slow: Arc::new(Semaphore::new(max_scrapes.div_ceil(2))),
            slow_line: Arc::new(Semaphore::new(max_scrapes)),
            line: Arc::new(Semaphore::new((IN_LINE - 1) * max_scrapes)),
            slow_beginning: Arc::new(Semaphore::new(BEGINNING)),
            beginning: Arc::new(Semaphore::new(BEGINNING)),
            large: Arc::new(Semaphore::new(MAX_LARGE)),
            slow_large: Arc::new(Semaphore::new(MAX_LARGE / 2)),
        };
        Self {
            shared: Arc::new(ScraperState {
                network,
                runtime: Handle::current(),
                fleet,
                metrics,
                lanes: Lanes::default(),
                peers: Lanes::default(),
                slots,
                max_body: config.max_body_size,
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

    /// Fetches a page of `peer`, now and not from any cache, within the request's timeout, the last byte included. Dropped,
    /// here or with the body, it ends at the peer, too. Its content type is visible ASCII and spaces.
    ///
    /// # Errors
    ///
    /// See [`ScrapeFailure`]. What is found out when the body is on its way breaks that off.
    pub async fn scrape(&self, peer: PeerId, request: ScrapeRequest) -> Result<Page<GuestBody>, ScrapeFailure> {
        let mut under_way = UnderWay::new(Arc::clone(&self.shared), peer, &request);
        let Page { content_type, gzip, body } = match self.begin(peer, request, &mut under_way).await {
            Ok(page) => page,
            Err(failure) => {
                under_way.failed(&failure);
                return Err(failure);
            }
        };
        let body = match body {
            Body::Whole(bytes) => {
                under_way.complete(bytes.len() as u64);
                GuestBody::Whole(bytes)
            }
            Body::Coming(body) => {
                let (until, len) = (under_way.deadline, body.left());
                GuestBody::Stream(GuestStream { len, until, chunks: Box::pin(Coming::new(body, under_way)) })
            }
        };
        Ok(Page { content_type, gzip, body })
    }

    async fn begin(
        &self,
        peer: PeerId,
        request: ScrapeRequest,
        under_way: &mut UnderWay,
    ) -> Result<Page<Body>, ScrapeFailure> {
        let (shared, deadline) = (&self.shared, under_way.deadline);
        let is_slow = shared.fleet.is_slow(&peer, request.exposed.as_deref());
        under_way.is_slow = is_slow;
        under_way.holds.push(shared.slots.line(is_slow)?);
        shared.fleet.check(&peer, request.exposed.as_deref())?;
        // An exporter that hangs takes nothing from those who want another one.
        let busy =
            |what| ScrapeFailure::new(ScrapeOutcome::Busy, format!("too many scrapes of {what}; try again later"));
        let lane = shared.lanes.enter((peer, request.exposed.clone()), MAX_OF_PAGE);
        under_way.lane = Some(lane.ok_or_else(|| busy("this page are under way"))?);
        let of_peer = shared.peers.enter(peer, MAX_OF_PEER);
        under_way.of_peer = Some(of_peer.ok_or_else(|| busy("this peer are under way"))?);
        let (places, beginning) = shared.slots.take(is_slow, deadline, &shared.network).await?;
        under_way.holds.extend(places);
        let asked = *under_way.asked.insert(Instant::now());
        // A little later than the peer, which knows better what was missing.
        let asking = tokio::time::timeout_at((deadline + LAST_WORD).into(), self.ask(peer, request, deadline));
        let mut asking = std::pin::pin!(asking);
        let early = tokio::time::timeout(SOON, asking.as_mut()).await;
        drop(beginning);
        let answered = match early {
            Ok(answered) => answered,
            Err(_) => asking.await,
        };
        if answered.is_ok() {
            under_way.took = Some(asked.elapsed());
        }
        let late = |_| Err(ScrapeFailure::new(ScrapeOutcome::Timeout, "the peer did not answer in time"));
        let page = answered.unwrap_or_else(late)?;
        if let Body::Coming(_) = page.body {
            shared.slots.take_large(under_way).await?;
        }
        Ok(page)
    }

    /// Where the connections are: there what a peer sends wakes a task of the same runtime; here, on the endpoint's one
    /// thread, every piece would be a system call.
    async fn ask(&self, peer: PeerId, request: ScrapeRequest, deadline: Instant) -> Result<Page<Body>, ScrapeFailure> {
        let shared = Arc::clone(&self.shared);
        let mut tasks = JoinSet::new();
        tasks.spawn_on(
            async move {
                // Some of the time has passed.
                let request = ScrapeRequest { timeout: deadline.saturating_duration_since(Instant::now()), ..request };
                let incoming = shared.network.scrape(peer, &request).await.map_err(fetch::lost)?;
                fetch::begin(incoming, request.gzip, shared.max_body, deadline).await
            },
            &self.shared.runtime,
        );
        match tasks.join_next().await {
            Some(Ok(result)) => result,
            _ => Err(ScrapeFailure::new(ScrapeOutcome::Cancelled, "this gateway is shutting down")),
        }
    }
}

impl Slots {
    /// A place among those who are served or wait, at once.
    fn line(&self, slow: bool) -> Result<OwnedSemaphorePermit, ScrapeFailure> {
        let line = if slow { &self.slow_line } else { &self.line };
        Arc::clone(line).try_acquire_owned().map_err(|_| ScrapeFailure::new(ScrapeOutcome::Busy, BUSY))
    }

    /// A place, and one among those that begin. They are waited for as long as half of the time is left, in the order of
    /// coming.
    async fn take(&self, slow: bool, deadline: Instant, network: &Network) -> Result<Places, ScrapeFailure> {
        let patience = deadline.saturating_duration_since(Instant::now()) / 2;
        let all = async {
            let slow_place = if slow { Arc::clone(&self.slow).acquire_owned().await.ok() } else { None };
            let place = Arc::clone(&self.all).acquire_owned().await.ok();
            let beginning = if slow { &self.slow_beginning } else { &self.beginning };
            let beginning = Arc::clone(beginning).acquire_owned().await.ok();
            // Whatever slow ones leave unread, there is room for others.
            while network.unread_pages() > if slow { MAX_UNREAD } else { 2 * MAX_UNREAD } {
                tokio::time::sleep(UNREAD_PAUSE).await;
            }
            (slow_place.into_iter().chain(place).collect(), beginning)
        };
        tokio::time::timeout(patience, all).await.map_err(|_| ScrapeFailure::new(ScrapeOutcome::Busy, BUSY))
    }

    /// A place for a large page, of which the beginning has come. One of a slow peer has one now or none: what it has sent
    /// would lie unread as long as it is waited for.
    async fn take_large(&self, under_way: &mut UnderWay) -> Result<(), ScrapeFailure> {
        let busy = || {
            let text = "too many large pages are under way at this gateway; try again later";
            ScrapeFailure::new(ScrapeOutcome::Busy, text)
        };
        if under_way.is_slow {
            for places in [&self.slow_large, &self.large] {
                under_way.holds.push(Arc::clone(places).try_acquire_owned().map_err(|_| busy())?);
            }
            return Ok(());
        }
        let patience = under_way.deadline.saturating_duration_since(Instant::now()) / 2;
        let place = tokio::time::timeout(patience, Arc::clone(&self.large).acquire_owned()).await;
        under_way.holds.extend(place.map_err(|_| busy())?.ok());
        Ok(())
    }
}

/// The places of a scrape, and that of its beginning.
type Places = (Vec<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>);

/// A scrape from its beginning to its last byte. It is counted once, when that has come, when it has failed, or when this
/// is dropped before.
#[derive(Debug)]
pub(super) struct UnderWay {
    shared: Arc<ScraperState>,
    peer: PeerId,
    exposed: Option<String>,
    timer: Timer,
    began: Instant,
    pub(super) deadline: Instant,
    /// When the peer was asked.
    asked: Option<Instant>,
    /// How long it was waited for, once its page has begun.
    took: Option<Duration>,
    /// Whether it takes part in what slow peers share.
    is_slow: bool,
    lane: Option<Lane<(PeerId, Option<String>)>>,
    /// So many of this peer's pages.
    of_peer: Option<Lane<PeerId>>,
    holds: Vec<OwnedSemaphorePermit>,
    is_counted: bool,
}

impl UnderWay {
    fn new(shared: Arc<ScraperState>, peer: PeerId, request: &ScrapeRequest) -> Self {
        let began = Instant::now();
        Self {
            shared,
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

    /// The peer was waited for, behind the beginning of its page. That the scraper was waited for is not its fault.
    pub(super) fn waited(&mut self, time: Duration) {
        self.took = self.took.map(|took| took + time);
    }

    /// The last byte of so many has come.
    pub(super) fn complete(&mut self, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.shared.metrics.passed_on(bytes);
        self.count(ScrapeOutcome::Ok);
        self.tell(ScrapeOutcome::Ok, bytes, None);
    }

    /// There is no page, or no more of it.
    pub(super) fn failed(&mut self, failure: &ScrapeFailure) {
        tracing::debug!(peer = %self.peer, outcome = %failure.outcome, "a scrape failed: {failure}");
        self.count(failure.outcome);
        self.tell(failure.outcome, 0, Some(failure.text.clone()));
    }

    fn count(&mut self, outcome: ScrapeOutcome) {
        if !std::mem::replace(&mut self.is_counted, true) {
            self.shared.metrics.scraped(outcome, self.timer);
        }
    }

    /// How long the peer was waited for, since it was asked.
    fn took(&self) -> Option<Duration> {
        self.took.or_else(|| Some(self.asked?.elapsed()))
    }

    /// Tells the fleet, unless it was not the peer's turn yet.
    fn tell(&mut self, outcome: ScrapeOutcome, bytes: usize, problem: Option<String>) {
        self.holds.clear();
        self.of_peer = None;
        if self.lane.take().is_none() {
            return;
        }
        let took = self.took().zip(self.asked);
        let took = took.map(|(took, asked)| Took { took, of: self.deadline.saturating_duration_since(asked) });
        let last = LastScrape { at: Instant::now(), duration: self.began.elapsed(), bytes, outcome, problem };
        self.shared.fleet.scraped(&self.peer, self.exposed.as_deref(), took, last);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.is_counted {
            return;
        }
        self.count(ScrapeOutcome::Cancelled);
        // The scraper had no patience left; whether the peer is to blame, the time tells.
        if self.took().is_some_and(|took| took > PROMPT) {
            self.tell(ScrapeOutcome::Cancelled, 0, Some("the scraper went away before the page had come".into()));
        }
    }
}

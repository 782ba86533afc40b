//! Scrapes of peers: live, bounded, fair, and each counted once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use libp2p::PeerId;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::failure::ScrapeFailure;
use super::fetch::{self, Body, Coming};
use super::lanes::Lanes;
use super::under_way::UnderWay;
use super::{Config, Fleet};
use crate::metrics::labels::ScrapeOutcome;
use crate::metrics::{GatewayMetrics, GuestBody, GuestStream, Page};
use crate::network::{Network, ScrapeRequest};

/// Scrapes peers. Clones share all limits.
#[derive(Debug, Clone)]
pub struct Scraper {
    shared: Arc<ScraperState>,
}

#[derive(Debug)]
struct ScraperState {
    network: Network,
    /// The network's runtime, on which the beginnings of pages are read.
    runtime: Handle,
    fleet: Arc<Fleet>,
    metrics: GatewayMetrics,
    lanes: Lanes<(PeerId, Option<String>)>,
    peers: Lanes<PeerId>,
    limits: ArcSwap<ScrapeLimits>,
}

/// What a reload can change.
#[derive(Debug)]
struct ScrapeLimits {
    slots: Arc<Slots>,
    max_body: usize,
    clients: usize,
}

/// The places for all scrapes of this gateway.
#[derive(Debug)]
struct Slots {
    all: Arc<Semaphore>,
    /// Pages that were slow when last asked for, or have not been asked for yet, share half of the places. However many
    /// they are, the other half is left for prompt ones.
    slow: Arc<Semaphore>,
    /// Scrapes that are served or waiting: as many of slow pages as there are places, and twice as many of others.
    /// Further ones are rejected at once, so that connections are left for requests to the gateway itself.
    slow_line: Arc<Semaphore>,
    line: Arc<Semaphore>,
    /// Scrapes whose peer has just been asked, and whose data is not counted as unread yet.
    slow_beginning: Arc<Semaphore>,
    beginning: Arc<Semaphore>,
    /// Pages that are passed on piece by piece, and the slow ones among them.
    large: Arc<Semaphore>,
    slow_large: Arc<Semaphore>,
}

/// How long past the deadline to wait for the beginning of a page.
const LAST_WORD: Duration = Duration::from_millis(50);

/// How many scrapes may be served or waiting, as a multiple of `gateway.max_scrapes`.
const IN_LINE: usize = 3;

/// Scrapes of one page that are under way or wait for a place: enough for several Prometheus servers and a few people.
/// A client that repeats a request before the page has arrived must not take places from others.
const MAX_OF_PAGE: usize = 8;
/// The same for all pages of one peer: each is a substream of one connection, and an agent serves no more at once.
const MAX_OF_PEER: usize = 32;

/// While more than this many bytes of pages have arrived that scrapers have not read, no further slow page is asked
/// for. For other pages the limit is twice as high.
const MAX_UNREAD: usize = 12 << 20;
const UNREAD_PAUSE: Duration = Duration::from_millis(20);

/// How many pages of each kind may be awaited at once; each counts until it begins, or for [`SOON`]. Its peer may send
/// the 256 KiB that Yamux allows before they are counted as unread.
const BEGINNING: usize = 32;
const SOON: Duration = Duration::from_secs(1);

/// How many pages are passed on piece by piece at once. A peer may send half a megabyte of each before it is read:
/// Yamux allows more than its initial 256 KiB after fast reads.
const MAX_LARGE: usize = 32;

const BUSY: &str = "too many scrapes are under way at this gateway (gateway.max_scrapes); try again later";

impl Scraper {
    /// A scraper of the peers of `fleet`. Must be created on the network's runtime.
    pub fn new(config: &Config, network: Network, fleet: Arc<Fleet>, metrics: GatewayMetrics) -> Self {
        Self {
            shared: Arc::new(ScraperState {
                network,
                runtime: Handle::current(),
                fleet,
                metrics,
                lanes: Lanes::default(),
                peers: Lanes::default(),
                limits: ArcSwap::from_pointee(ScrapeLimits::new(config)),
            }),
        }
    }

    /// Takes over other limits. What is under way keeps its places among the old ones.
    pub fn configure(&self, config: &Config) {
        let limits = self.shared.limits.load();
        let mut new = ScrapeLimits::new(config);
        if limits.clients == new.clients {
            // New places would be in addition to those that are taken.
            new.slots = Arc::clone(&limits.slots);
        }
        self.shared.limits.store(Arc::new(new));
    }

    /// How many clients may wait for a page at once.
    pub fn clients(&self) -> usize {
        self.shared.limits.load().clients
    }

    /// The gateway's peers.
    pub fn fleet(&self) -> &Fleet {
        &self.shared.fleet
    }

    /// Fetches a page of `peer`, never from a cache. The request's timeout includes the last byte. Dropping the future
    /// or the body ends the scrape at the peer, too. The page's content type is visible ASCII and spaces.
    ///
    /// # Errors
    ///
    /// See [`ScrapeFailure`]. A failure after the body has begun cuts the body short.
    pub async fn scrape(&self, peer: PeerId, request: ScrapeRequest) -> Result<Page<GuestBody>, ScrapeFailure> {
        let mut under_way = UnderWay::new(Arc::clone(&self.shared.fleet), self.shared.metrics.clone(), peer, &request);
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
        let limits = shared.limits.load_full();
        let is_slow = shared.fleet.is_slow(&peer, request.exposed.as_deref());
        under_way.is_slow = is_slow;
        under_way.holds.push(limits.slots.line(is_slow)?);
        shared.fleet.check(&peer, request.exposed.as_deref())?;
        // Scrapes of an exporter that hangs must not take places from others.
        let busy =
            |what| ScrapeFailure::new(ScrapeOutcome::Busy, format!("too many scrapes of {what}; try again later"));
        let lane = shared.lanes.enter((peer, request.exposed.clone()), MAX_OF_PAGE);
        under_way.lane = Some(lane.ok_or_else(|| busy("this page are under way"))?);
        let of_peer = shared.peers.enter(peer, MAX_OF_PEER);
        under_way.of_peer = Some(of_peer.ok_or_else(|| busy("this peer are under way"))?);
        let (places, beginning) = limits.slots.take(is_slow, deadline, &shared.network).await?;
        under_way.holds.extend(places);
        let asked = *under_way.asked.insert(Instant::now());
        // Times out a little later than the peer, which knows the reason better.
        let asking =
            tokio::time::timeout_at((deadline + LAST_WORD).into(), self.ask(peer, request, limits.max_body, deadline));
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
            limits.slots.take_large(under_way).await?;
        }
        Ok(page)
    }

    /// Runs on the network's runtime, so that data from a peer wakes a task of the same runtime. On the endpoint's
    /// single thread, every piece would cost a system call.
    async fn ask(
        &self,
        peer: PeerId,
        request: ScrapeRequest,
        max_body: usize,
        deadline: Instant,
    ) -> Result<Page<Body>, ScrapeFailure> {
        let shared = Arc::clone(&self.shared);
        let mut tasks = JoinSet::new();
        tasks.spawn_on(
            async move {
                // Some of the time has already passed.
                let request = ScrapeRequest { timeout: deadline.saturating_duration_since(Instant::now()), ..request };
                let incoming = shared.network.scrape(peer, &request).await.map_err(fetch::lost)?;
                fetch::begin(incoming, request.gzip, max_body, deadline).await
            },
            &self.shared.runtime,
        );
        match tasks.join_next().await {
            Some(Ok(result)) => result,
            _ => Err(ScrapeFailure::new(ScrapeOutcome::Cancelled, "this gateway is shutting down")),
        }
    }
}

impl ScrapeLimits {
    fn new(config: &Config) -> Self {
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
        Self { slots: Arc::new(slots), max_body: config.max_body_size, clients: IN_LINE * max_scrapes }
    }
}

impl Slots {
    /// A place among the scrapes that are served or waiting; fails at once if none is free.
    fn line(&self, slow: bool) -> Result<OwnedSemaphorePermit, ScrapeFailure> {
        let line = if slow { &self.slow_line } else { &self.line };
        Arc::clone(line).try_acquire_owned().map_err(|_| ScrapeFailure::new(ScrapeOutcome::Busy, BUSY))
    }

    /// A place, and one until the page begins. Waits in order of arrival, for at most half of the time left.
    async fn take(&self, slow: bool, deadline: Instant, network: &Network) -> Result<Places, ScrapeFailure> {
        let patience = deadline.saturating_duration_since(Instant::now()) / 2;
        let all = async {
            let slow_place = if slow { Arc::clone(&self.slow).acquire_owned().await.ok() } else { None };
            let place = Arc::clone(&self.all).acquire_owned().await.ok();
            let beginning = if slow { &self.slow_beginning } else { &self.beginning };
            let beginning = Arc::clone(beginning).acquire_owned().await.ok();
            // However much of slow pages is unread, there is room for others.
            while network.unread_pages() > if slow { MAX_UNREAD } else { 2 * MAX_UNREAD } {
                tokio::time::sleep(UNREAD_PAUSE).await;
            }
            (slow_place.into_iter().chain(place).collect(), beginning)
        };
        tokio::time::timeout(patience, all).await.map_err(|_| ScrapeFailure::new(ScrapeOutcome::Busy, BUSY))
    }

    /// A place for a large page whose beginning has arrived. A slow page gets one at once or not at all: what the peer
    /// has sent would stay unread while it waits.
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

/// The places of a scrape, and the one that it keeps until its page begins.
type Places = (Vec<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>);

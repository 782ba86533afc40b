//! A real gateway, with peers that the test controls: light ones, which use the agent's network and serve pages made by
//! the test, and hostile ones, whose protocol is written by hand. They run on a runtime apart from the test's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncReadExt as _, FutureExt as _};
use libp2p::core::muxing::SubstreamBox;
use libp2p::{PeerId, identity};
use peerscope::metrics::Page;
use peerscope::metrics::labels::MessageType;
use peerscope::metrics::{Health, MetricsCollector, Registry};
use peerscope::network::protocol::scrape::Ask;
use peerscope::network::protocol::{
    self, ErrorCode, Hello, Introduction, RemoteError, Request, RequestBody, RequestFrame, ResponseBody, ResponseFrame,
};
use peerscope::network::{
    Config, Handling, MessageAnswer, Network, Receipt, RequestHandler, ScrapeAnswer, ScrapeRequest,
};
use prost::Message as _;
use tokio::runtime::Runtime;

use super::fixture::gateway;
use crate::support::agent::TestAgent;
use crate::support::raw_peer::{Link, Offer, RawPeer};
use crate::support::{agent_info, metrics};

const LINK: &str = "/peerscope/link/1";
const SCRAPE: &str = "/peerscope/scrape/1";

pub(crate) const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A gateway, its address, and the runtime of its peers.
pub(crate) struct Scene {
    pub(crate) runtime: Runtime,
    pub(crate) gateway: TestAgent,
    pub(crate) gateway_id: PeerId,
    address: String,
}

impl Scene {
    /// `more` continues the `gateway` section, indented by two spaces, and may continue with other sections.
    pub(crate) fn set(more: &str) -> Self {
        let gateway = gateway(more);
        let address = gateway.listen_address();
        let gateway_id = gateway.peer_id().parse().unwrap();
        Self { runtime: Runtime::new().unwrap(), gateway, gateway_id, address }
    }

    /// A peer that answers every scrape with the result of `serve`.
    pub(crate) fn light<F>(&self, name: &str, serve: impl Fn(ScrapeRequest) -> F + Send + Sync + 'static) -> LightPeer
    where
        F: Future<Output = Result<Page, RemoteError>> + Send + 'static,
    {
        self.light_as(identity::Keypair::generate_ed25519(), name, serve)
    }

    pub(crate) fn light_as<F>(
        &self,
        key: identity::Keypair,
        name: &str,
        serve: impl Fn(ScrapeRequest) -> F + Send + Sync + 'static,
    ) -> LightPeer
    where
        F: Future<Output = Result<Page, RemoteError>> + Send + 'static,
    {
        let config = Config { listen: vec![], bootstrap: vec![self.address.parse().unwrap()], ..Config::default() };
        let registry = Registry::default();
        let collector = MetricsCollector::new(&registry, &agent_info());
        let peer = key.public().to_peer_id();
        let seen = Arc::new(Seen::default());
        let introduction = Introduction { name: name.to_owned(), exposed: vec![], withdrawn: false };
        let handler = Arc::new(Handler {
            introduction,
            metrics: collector.clone(),
            serve: Box::new(move |request| serve(request).boxed()),
            seen: Arc::clone(&seen),
        });
        let network = self.runtime.block_on(async {
            let (network, driver) =
                Network::bind(&config, key, 1 << 20, handler, collector, &registry, Health::default()).await.unwrap();
            tokio::spawn(driver.run());
            network
        });
        LightPeer { id: peer.to_string(), network, seen, registry }
    }

    /// A peer with this introduction that passes every substream of a scrape to `answer`.
    pub(crate) fn hostile<F>(
        &self,
        introduction: Introduction,
        answer: impl Fn(SubstreamBox) -> F + Send + Sync + 'static,
    ) -> HostilePeer
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.hostile_as(&identity::Keypair::generate_ed25519(), vec![introduce(introduction)], answer)
    }

    /// A peer that sends `frames` after its hello.
    pub(crate) fn hostile_as<F>(
        &self,
        key: &identity::Keypair,
        frames: Vec<ResponseFrame>,
        answer: impl Fn(SubstreamBox) -> F + Send + Sync + 'static,
    ) -> HostilePeer
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.hostile_from_the_start(key, frames, accepting(answer))
    }

    /// A peer that also decides whether to accept a substream.
    pub(crate) fn hostile_from_the_start<F>(
        &self,
        key: &identity::Keypair,
        frames: Vec<ResponseFrame>,
        answer: impl Fn(Offer) -> F + Send + Sync + 'static,
    ) -> HostilePeer
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.runtime.block_on(async {
            let mut raw = RawPeer::dial_as(&self.gateway, key).await;
            let id = raw.peer.to_string();
            raw.serve_all(&[LINK, SCRAPE], move |offer| match offer.protocol.as_str() {
                LINK => link(offer, frames.clone()).boxed(),
                _ => answer(offer).boxed(),
            });
            HostilePeer { id, raw }
        })
    }

    /// A peer that has a link, and answers "na" to the scrape protocol.
    pub(crate) fn without_scrapes(&self, name: &str) -> HostilePeer {
        self.runtime.block_on(async {
            let mut raw = RawPeer::dial(&self.gateway).await;
            let id = raw.peer.to_string();
            let frames = vec![introduce(named(name))];
            raw.serve_all(&[LINK], move |offer| link(offer, frames.clone()));
            HostilePeer { id, raw }
        })
    }
}

/// Accepts every substream, and passes it on.
pub(crate) fn accepting<F>(
    answer: impl Fn(SubstreamBox) -> F + Send + Sync + 'static,
) -> impl Fn(Offer) -> BoxFuture<'static, ()> + Send + Sync + 'static
where
    F: Future<Output = ()> + Send + 'static,
{
    let answer = Arc::new(answer);
    move |offer| {
        let answer = Arc::clone(&answer);
        async move { answer(offer.accept().await).await }.boxed()
    }
}

pub(crate) fn named(name: &str) -> Introduction {
    Introduction { name: name.to_owned(), exposed: vec![], withdrawn: false }
}

pub(crate) fn introduce(introduction: Introduction) -> ResponseFrame {
    ResponseFrame { id: 0, body: Some(ResponseBody::Introduction(introduction)) }
}

/// A peer whose protocol is written by hand. Its connection is closed when it is dropped.
pub(crate) struct HostilePeer {
    pub(crate) id: String,
    pub(crate) raw: RawPeer,
}

/// The responding half of a link: a hello, `frames`, and then heartbeats.
async fn link(offer: Offer, frames: Vec<ResponseFrame>) {
    let mut link = Link::new(offer.accept().await);
    let hello = Hello { max_frame: 1 << 20, max_in_flight: 16 };
    link.send(&ResponseFrame { id: 0, body: Some(ResponseBody::Hello(hello)) }).await;
    for frame in &frames {
        link.send(frame).await;
    }
    while let Some(frame) = link.read::<RequestFrame>().await {
        if let Some(RequestBody::Heartbeat(empty)) = frame.body {
            link.send(&ResponseFrame { id: 0, body: Some(ResponseBody::Heartbeat(empty)) }).await;
        }
    }
}

/// Reads the gateway's request.
pub(crate) async fn read_ask(stream: &mut (impl AsyncRead + Unpin)) -> Ask {
    let mut bytes = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        bytes.push(byte[0]);
        if let Ok(ask) = Ask::decode_length_delimited(bytes.as_slice()) {
            return ask;
        }
    }
}

/// A peer whose pages are made by the test.
pub(crate) struct LightPeer {
    pub(crate) id: String,
    pub(crate) network: Network,
    pub(crate) seen: Arc<Seen>,
    registry: Registry,
}

impl LightPeer {
    pub(crate) fn failed(&self, reason: &str) -> f64 {
        let labels = [("type", "scrape"), ("reason", reason)];
        metrics::value(&metrics::encode(&self.registry), "messages_failed_total", &labels)
    }
}

/// The scrapes that a light peer has seen.
#[derive(Default)]
pub(crate) struct Seen {
    begun: AtomicUsize,
    under_way: AtomicUsize,
    given_up: AtomicUsize,
    timeout_ms: AtomicU64,
}

impl Seen {
    /// How many have begun.
    pub(crate) fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    /// How many are under way.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::SeqCst)
    }

    /// How many were dropped before their page was made.
    pub(crate) fn given_up(&self) -> usize {
        self.given_up.load(Ordering::SeqCst)
    }

    /// The timeout of the last one, in milliseconds.
    pub(crate) fn timeout_ms(&self) -> u64 {
        self.timeout_ms.load(Ordering::SeqCst)
    }
}

/// One scrape at a light peer.
struct UnderWay {
    seen: Arc<Seen>,
    done: bool,
}

impl UnderWay {
    fn begin(seen: &Arc<Seen>, request: &ScrapeRequest) -> Self {
        seen.timeout_ms.store(u64::try_from(request.timeout.as_millis()).unwrap(), Ordering::SeqCst);
        seen.begun.fetch_add(1, Ordering::SeqCst);
        seen.under_way.fetch_add(1, Ordering::SeqCst);
        Self { seen: Arc::clone(seen), done: false }
    }

    fn finish(mut self) {
        self.done = true;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.seen.given_up.fetch_add(usize::from(!self.done), Ordering::SeqCst);
        self.seen.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

type Serve = dyn Fn(ScrapeRequest) -> BoxFuture<'static, Result<Page, RemoteError>> + Send + Sync;

struct Handler {
    introduction: Introduction,
    metrics: MetricsCollector,
    serve: Box<Serve>,
    seen: Arc<Seen>,
}

impl RequestHandler for Handler {
    fn handle(&self, _: PeerId, request: Request) -> Handling {
        let receipt = Receipt::begin(self.metrics.clone(), request.message_type());
        let error = RemoteError::new(ErrorCode::Refused, "this peer has pages only");
        Handling::Done(MessageAnswer { result: Err(error), receipt })
    }

    fn scrape(&self, _: PeerId, request: ScrapeRequest) -> BoxFuture<'static, ScrapeAnswer> {
        let receipt = Receipt::begin(self.metrics.clone(), MessageType::Scrape);
        let under_way = UnderWay::begin(&self.seen, &request);
        let made = (self.serve)(request);
        async move {
            let result = made.await;
            under_way.finish();
            ScrapeAnswer { result, receipt }
        }
        .boxed()
    }

    fn introduction(&self, _: &PeerId) -> Option<Introduction> {
        Some(self.introduction.clone())
    }
}

/// A valid page of at least `len` bytes that differs for every `whose`.
pub(crate) fn page(whose: &str, len: usize) -> Page {
    let mut body = String::from("# HELP lines_of_a_page Lines.\n# TYPE lines_of_a_page gauge\n");
    for line in 0.. {
        if body.len() >= len {
            break;
        }
        body += &format!("lines_of_a_page{{whose=\"{whose}\",line=\"{line:06}\"}} {line}\n");
    }
    Page { content_type: Some(TEXT.into()), gzip: false, body: body.into() }
}

/// The head that comes before the page on the substream of a scrape.
pub(crate) fn head(content_type: &str, gzip: bool, len: usize) -> Vec<u8> {
    let page = protocol::scrape::PageHead { content_type: content_type.into(), gzip, len: len as u64 };
    let mut bytes = Vec::new();
    let head = protocol::scrape::Head { body: Some(protocol::scrape::HeadBody::Page(page)) };
    protocol::encode(&head, &mut bytes);
    bytes
}

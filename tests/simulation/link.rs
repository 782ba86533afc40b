//! Two agents on the real link, over pipes in memory and with a simulated clock, so that every run with the same seed
//! is the same. Pipes stall, drip and break; callers give up; agents restart with another key.
//!
//! Every request that is not given up ends in time, with exactly one outcome that each side counts once, and gets its
//! own answer. Nothing grows past its bound. When the path works again, so does the link.
//!
//! `SIMULATION_SECONDS=SECONDS` runs new seeds for that long; `SIMULATION_SEED=N` runs the seed that a failure printed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite, FutureExt as _};
use libp2p::PeerId;
use libp2p::identity::Keypair;
use libp2p::swarm::ConnectionId;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::handler::{Event, LinkHandler, Step};
use super::{Limits, LinkContext, LinkTable};
use crate::metrics::{AgentInfo, MetricsCollector, Registry};
use crate::network::protocol::{FRAME_OVERHEAD, Request, Response};
use crate::network::scrape::ScrapeTable;
use crate::network::{
    Handling, MessageAnswer, Network, NetworkState, Receipt, RequestError, RequestHandler, ScrapeAnswer, ScrapeRequest,
};

const SEEDS: u64 = 150;
const STEPS: usize = 400;
const MAX_FRAME: usize = 16 * 1024;
const MAX_IN_FLIGHT: u32 = 8;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// How precisely deadlines are enforced: `DEADLINE_PRECISION`, how far the clock leaps, and `BUSY_AFTER`, for a caller
/// that has waited for a place in the queue and is behind one with a later deadline.
const PRECISION: Duration = Duration::from_millis(250 + LEAP + 50 + 1000);
const LEAP: u64 = 400;

/// One direction of a stream.
#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// How many of them have arrived.
    arrived: usize,
    flow: Flow,
    is_broken: bool,
    is_ended: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Flow {
    #[default]
    Free,
    Stalled,
    /// Some bytes with each step of the story.
    Drips(usize),
}

impl Pipe {
    const CAPACITY: usize = 32 * 1024;

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    fn arrive(&mut self) {
        let more = match self.flow {
            Flow::Free => usize::MAX,
            Flow::Stalled => 0,
            Flow::Drips(bytes) => bytes,
        };
        let arrived = self.arrived.saturating_add(more).min(self.bytes.len());
        if arrived != self.arrived {
            self.arrived = arrived;
            self.wake();
        }
    }
}

/// One end of a stream.
struct End {
    from: Arc<Mutex<Pipe>>,
    to: Arc<Mutex<Pipe>>,
}

fn stream() -> (End, End, [Arc<Mutex<Pipe>>; 2]) {
    let (a, b) = (Arc::<Mutex<Pipe>>::default(), Arc::<Mutex<Pipe>>::default());
    let ends = (End { from: a.clone(), to: b.clone() }, End { from: b.clone(), to: a.clone() });
    (ends.0, ends.1, [a, b])
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut pipe = self.from.lock().unwrap();
        let len = buffer.len().min(pipe.arrived);
        if len > 0 {
            for (place, byte) in buffer.iter_mut().zip(pipe.bytes.drain(..len)) {
                *place = byte;
            }
            pipe.arrived -= len;
            if let Some(writer) = pipe.writer.take() {
                writer.wake();
            }
            return Poll::Ready(Ok(len));
        }
        if pipe.is_broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if pipe.is_ended && pipe.bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        pipe.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut pipe = self.to.lock().unwrap();
        if pipe.is_broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let len = bytes.len().min(Pipe::CAPACITY - pipe.bytes.len());
        if len == 0 {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        pipe.bytes.extend(&bytes[..len]);
        if pipe.flow == Flow::Free {
            pipe.arrive();
        }
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut to = self.to.lock().unwrap();
        to.is_ended = true;
        to.wake();
    }
}

/// Answers according to the key, which holds how long the answer takes, in milliseconds, and how long the value is.
struct Answers {
    metrics: MetricsCollector,
    handled: Arc<AtomicU64>,
    trusts: bool,
}

impl RequestHandler for Answers {
    fn has_permission(&self, _: &PeerId) -> bool {
        self.trusts
    }

    fn handle(&self, _: PeerId, request: Request) -> Handling {
        let receipt = Receipt::begin(self.metrics.clone(), request.message_type());
        self.handled.fetch_add(1, Ordering::Relaxed);
        let respond = |request| match request {
            Request::Get { key } => Response::Value(Some(value_of(&key))),
            Request::Put { .. } => Response::Stored,
            Request::Delete { .. } => Response::Deleted(true),
            Request::Ping { payload } => Response::Pong(payload),
        };
        let after = match &request {
            Request::Get { key } => wait_of(key),
            _ => Duration::ZERO,
        };
        if after.is_zero() {
            return Handling::Done(MessageAnswer { result: Ok(respond(request)), receipt });
        }
        let work = async move {
            tokio::time::sleep(after).await;
            MessageAnswer { result: Ok(respond(request)), receipt }
        };
        Handling::Pending(work.boxed())
    }

    fn scrape(&self, _: PeerId, _: ScrapeRequest) -> BoxFuture<'static, ScrapeAnswer> {
        unreachable!("nobody scrapes here")
    }
}

fn number(key: &[u8], at: usize) -> u64 {
    std::str::from_utf8(key).unwrap().split(' ').nth(at).unwrap().parse().unwrap()
}

/// `id wait length`
fn wait_of(key: &[u8]) -> Duration {
    Duration::from_millis(number(key, 1))
}

fn value_of(key: &[u8]) -> Bytes {
    let id = number(key, 0).to_be_bytes();
    id.iter().copied().cycle().take(8 + number(key, 2) as usize).collect()
}

/// Whether a task of the story has to be polled.
struct Flag(AtomicBool);

impl Flag {
    fn new() -> Arc<Self> {
        Arc::new(Self(AtomicBool::new(true)))
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg_attr(not(feature = "metrics-prometheus"), allow(dead_code, reason = "nothing is counted then"))]
struct Agent {
    peer: PeerId,
    network: Network,
    context: Arc<LinkContext>,
    registry: Arc<Registry>,
    handled: Arc<AtomicU64>,
    in_flight: Arc<std::sync::atomic::AtomicU32>,
    /// How many requests of its callers succeeded and failed.
    done: u64,
    failed: u64,
}

impl Agent {
    fn new(rng: &mut SmallRng) -> Self {
        let peer = Keypair::ed25519_from_bytes(rng.random::<[u8; 32]>()).unwrap().public().to_peer_id();
        let registry = Registry::default();
        let metrics = MetricsCollector::new(&registry, &AgentInfo { peer_id: "a".into(), name: "a".into() });
        let handled = Arc::<AtomicU64>::default();
        let trusts = rng.random_bool(0.7);
        let table = LinkTable::default();
        let limits = Limits {
            max_frame: MAX_FRAME,
            max_in_flight: MAX_IN_FLIGHT,
            request_timeout: REQUEST_TIMEOUT,
            max_peers: 10,
        };
        let context = Arc::new(LinkContext {
            handler: Arc::new(Answers { metrics: metrics.clone(), handled: handled.clone(), trusts }),
            metrics: metrics.clone(),
            table: table.clone(),
            limits,
            reserved: Default::default(),
            budget: Arc::default(),
        });
        // Dialing is not simulated: without a link, the peer is unreachable.
        let (commands, _) = mpsc::channel(1);
        let shared = NetworkState {
            table,
            scrapes: ScrapeTable::default(),
            commands,
            metrics,
            request_timeout: REQUEST_TIMEOUT,
            listen_addresses: Arc::default(),
        };
        Self {
            peer,
            network: Network { shared: Arc::new(shared) },
            context,
            registry: Arc::new(registry),
            handled,
            in_flight: Arc::default(),
            done: 0,
            failed: 0,
        }
    }
}

/// A connection: a link at each of its ends.
struct Connection {
    id: ConnectionId,
    sides: [Side; 2],
    pipes: Vec<Arc<Mutex<Pipe>>>,
    /// Substreams that are being negotiated: the side that opens it, and its two ends.
    opening: Vec<(usize, End, End)>,
    is_lost: bool,
}

struct Side {
    link: LinkHandler<End>,
    queue: Option<mpsc::Sender<super::Outgoing>>,
    woken: Arc<Flag>,
}

struct Caller {
    agent: usize,
    id: u64,
    began: Instant,
    call: Pin<Box<dyn Future<Output = Result<Response, RequestError>>>>,
    expected: Response,
    woken: Arc<Flag>,
}

struct Story {
    rng: SmallRng,
    agents: [Agent; 2],
    connections: Vec<Connection>,
    callers: Vec<Caller>,
    next_id: u64,
    began: Instant,
    tally: Tally,
    told: Rc<RefCell<Vec<String>>>,
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Tally {
    done: u64,
    failed: u64,
    given_up: u64,
    stalls: u64,
    breaks: u64,
    restarts: u64,
    lost: u64,
}

impl Story {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let agents = [Agent::new(&mut rng), Agent::new(&mut rng)];
        Self {
            rng,
            agents,
            connections: Vec::new(),
            callers: Vec::new(),
            next_id: 1,
            began: Instant::now(),
            tally: Tally::default(),
            told: Rc::default(),
        }
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        self.told.borrow_mut().push(format!("{:>8} ms: {}", self.began.elapsed().as_millis(), what()));
    }

    async fn run(&mut self) {
        self.connect();
        for _ in 0..STEPS {
            self.step().await;
            self.settle().await;
        }
        self.tell(|| "the path works again".into());
        for connection in &self.connections {
            for pipe in &connection.pipes {
                let mut pipe = pipe.lock().unwrap();
                pipe.flow = Flow::Free;
                pipe.arrive();
            }
        }
        for _ in 0..40 {
            self.settle().await;
            tokio::time::advance(Duration::from_millis(250)).await;
        }
        assert!(self.callers.is_empty(), "{} requests never ended", self.callers.len());
        if self.connections.is_empty() {
            self.connect();
            self.settle().await;
        }
        for agent in 0..2 {
            let before = self.agents[agent].done;
            self.call(agent, 0);
            self.settle().await;
            for _ in 0..8 {
                tokio::time::advance(Duration::from_millis(100)).await;
                self.settle().await;
            }
            assert_eq!(self.agents[agent].done, before + 1, "the link works again");
        }
        self.connections.clear();
        for _ in 0..8 {
            tokio::task::yield_now().await;
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        for agent in &self.agents {
            check_counts(agent);
        }
    }

    async fn step(&mut self) {
        if self.connections.is_empty() && self.rng.random_bool(0.5) {
            self.connect();
            self.settle().await;
        }
        match self.rng.random_range(0..100) {
            0..45 => {
                let agent = self.rng.random_range(0..2);
                for _ in 0..self.rng.random_range(1..12) {
                    let wait = if self.rng.random_bool(0.3) { self.rng.random_range(1..5000) } else { 0 };
                    self.call(agent, wait);
                }
            }
            45..55 if !self.callers.is_empty() => {
                let index = self.rng.random_range(0..self.callers.len());
                let caller = self.callers.swap_remove(index);
                self.tally.given_up += 1;
                self.tell(|| format!("caller {} gives up", caller.id));
            }
            55..67 => {
                let flow = match self.rng.random_range(0..4) {
                    0 | 1 => Flow::Free,
                    2 => Flow::Stalled,
                    _ => Flow::Drips(self.rng.random_range(1..400)),
                };
                self.tally.stalls += u64::from(flow != Flow::Free);
                if let Some(pipe) = self.a_pipe() {
                    self.tell(|| format!("a pipe: {flow:?}"));
                    let mut pipe = pipe.lock().unwrap();
                    pipe.flow = flow;
                    pipe.arrive();
                }
            }
            67..69 => {
                if let Some(pipe) = self.a_pipe() {
                    self.tally.breaks += 1;
                    self.tell(|| "a pipe breaks".into());
                    let mut pipe = pipe.lock().unwrap();
                    pipe.is_broken = true;
                    pipe.wake();
                }
            }
            69..72 if self.connections.len() < 3 => self.connect(),
            72..73 => {
                // With another key. Its callers and its counts are dropped with it.
                let agent = self.rng.random_range(0..2);
                self.tally.restarts += 1;
                self.tell(|| format!("agent {agent} restarts"));
                self.callers.retain(|caller| caller.agent != agent);
                self.lose(|_| true);
                self.agents[agent] = Agent::new(&mut self.rng);
                self.connect();
            }
            73..75 => {
                if !self.connections.is_empty() {
                    let index = self.rng.random_range(0..self.connections.len());
                    let id = self.connections[index].id;
                    self.tell(|| format!("{id} is closed"));
                    self.lose(|connection| connection.id == id);
                }
            }
            _ => {
                let wait = Duration::from_millis(self.rng.random_range(1..LEAP));
                tokio::time::advance(wait).await;
            }
        }
        for connection in &self.connections {
            for pipe in &connection.pipes {
                pipe.lock().unwrap().arrive();
            }
        }
    }

    fn a_pipe(&mut self) -> Option<Arc<Mutex<Pipe>>> {
        let pipes: Vec<_> = self.connections.iter().flat_map(|connection| connection.pipes.iter().cloned()).collect();
        (!pipes.is_empty()).then(|| pipes[self.rng.random_range(0..pipes.len())].clone())
    }

    fn call(&mut self, agent: usize, wait: u64) {
        let id = self.next_id;
        self.next_id += 1;
        let most = if self.rng.random_bool(0.1) { 15_000 } else { 200 };
        let len = self.rng.random_range(0..most);
        let key = Bytes::from(format!("{id} {wait} {len}"));
        let (request, expected) = match self.rng.random_range(0..4) {
            _ if wait > 0 => (Request::Get { key: key.clone() }, Response::Value(Some(value_of(&key)))),
            0 => (Request::Get { key: key.clone() }, Response::Value(Some(value_of(&key)))),
            1 => (Request::Put { key, value: vec![7; len].into() }, Response::Stored),
            2 => (Request::Delete { key }, Response::Deleted(true)),
            _ => (Request::Ping { payload: key.clone() }, Response::Pong(key)),
        };
        let network = self.agents[agent].network.clone();
        let peer = self.agents[1 - agent].peer;
        let call = Box::pin(async move { network.request(peer, request).await });
        self.callers.push(Caller { agent, id, began: Instant::now(), call, expected, woken: Flag::new() });
    }

    fn connect(&mut self) {
        let id = ConnectionId::new_unchecked(self.next_id as usize);
        self.next_id += 1;
        self.tell(|| format!("{id} is made"));
        let side = |agents: &[Agent; 2], agent: usize| {
            let (sender, queue) = mpsc::channel(MAX_IN_FLIGHT as usize);
            let own = &agents[agent];
            let in_flight = Arc::clone(&own.in_flight);
            let link = LinkHandler::new(agents[1 - agent].peer, id, queue, in_flight, own.context.clone());
            Side { link, queue: Some(sender), woken: Flag::new() }
        };
        let sides = [side(&self.agents, 0), side(&self.agents, 1)];
        self.connections.push(Connection { id, sides, pipes: Vec::new(), opening: Vec::new(), is_lost: false });
    }

    /// Closes connections at both ends, as the swarm does.
    fn lose(&mut self, which: impl Fn(&Connection) -> bool) {
        for connection in self.connections.extract_if(.., |connection| which(connection)) {
            for agent in 0..2 {
                let peer = self.agents[1 - agent].peer;
                self.agents[agent].context.table.remove(&peer, connection.id);
            }
        }
    }

    /// Polls everything that was woken until nothing is.
    async fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 10_000, "it never settles");
            // Requests whose connection was closed are still being finished.
            tokio::task::yield_now().await;
            let mut moved = false;
            for index in 0..self.connections.len() {
                for agent in 0..2 {
                    moved |= self.poll_link(index, agent);
                }
            }
            self.lose(|connection| connection.is_lost);
            for index in (0..self.callers.len()).rev() {
                moved |= self.poll_caller(index);
            }
            self.check_bounds();
            if !moved {
                return;
            }
        }
    }

    fn poll_link(&mut self, index: usize, agent: usize) -> bool {
        let connection = &mut self.connections[index];
        // Finish the negotiation of new substreams.
        for (asks, own, other) in std::mem::take(&mut connection.opening) {
            connection.sides[asks].link.on_outbound(own);
            connection.sides[1 - asks].link.on_inbound(other);
            connection.sides.iter().for_each(|side| side.woken.0.store(true, Ordering::Relaxed));
        }
        let side = &mut connection.sides[agent];
        if connection.is_lost || !side.woken.take() {
            return false;
        }
        let waker = Waker::from(Arc::clone(&side.woken));
        let Poll::Ready(step) = side.link.poll_link(&mut Context::from_waker(&waker)) else { return true };
        side.woken.0.store(true, Ordering::Relaxed);
        let id = connection.id;
        match step {
            Step::Open => {
                let (own, other, pipes) = stream();
                connection.pipes.extend(pipes);
                connection.opening.push((agent, own, other));
            }
            Step::Tell(Event::Up) => {
                let queue = side.queue.take().expect("a link comes up once");
                self.agents[agent].context.table.add(self.agents[1 - agent].peer, id, queue);
            }
            Step::Tell(Event::Lost(why)) => {
                connection.is_lost = true;
                self.tally.lost += 1;
                self.tell(|| format!("{id} is lost: {why}"));
            }
            Step::Tell(other) => panic!("{other:?}"),
        }
        true
    }

    fn poll_caller(&mut self, index: usize) -> bool {
        let caller = &mut self.callers[index];
        let took = caller.began.elapsed();
        assert!(took <= REQUEST_TIMEOUT + PRECISION, "request {} waits for {took:?}", caller.id);
        if !caller.woken.take() {
            return false;
        }
        let waker = Waker::from(Arc::clone(&caller.woken));
        let Poll::Ready(result) = caller.call.as_mut().poll(&mut Context::from_waker(&waker)) else { return true };
        let caller = self.callers.swap_remove(index);
        let agent = &mut self.agents[caller.agent];
        match &result {
            Ok(response) => {
                assert_eq!(*response, caller.expected, "the answer to {} is its own", caller.id);
                agent.done += 1;
                self.tally.done += 1;
            }
            Err(error) => {
                agent.failed += 1;
                self.tally.failed += 1;
                assert!(!matches!(error, RequestError::Unexpected | RequestError::Unsupported(_)), "{error}");
            }
        }
        self.tell(|| format!("{} of agent {}: {:?}", caller.id, caller.agent, result.as_ref().map(drop)));
        true
    }

    fn check_bounds(&mut self) {
        for connection in &mut self.connections {
            for side in &mut connection.sides {
                let (reads, writes) = side.link.held();
                // Read: one frame with its length, and one read. To write: `HIGH_WATER`, and the answers in flight.
                assert!(reads <= 2 * (MAX_FRAME + 10 + 64 * 1024), "{reads} bytes read");
                let most = super::framed::HIGH_WATER + (MAX_IN_FLIGHT as usize + 1) * (MAX_FRAME + FRAME_OVERHEAD);
                assert!(writes <= 2 * most, "{writes} bytes to write");
            }
        }
    }
}

/// Checks that an agent's page shows what happened.
#[cfg(feature = "metrics-prometheus")]
fn check_counts(agent: &Agent) {
    use crate::metrics::exposition::{FamilyFilter, Format};
    let page = agent.registry.render(Format::Text, &FamilyFilter::all());
    let page = String::from_utf8(page.into()).unwrap();
    let sum = |name: &str, without: &str| -> u64 {
        let series = page.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
        let values = series.filter(|line| !line.contains(without)).map(|line| line.rsplit(' ').next().unwrap());
        values.map(|value| value.parse::<f64>().unwrap() as u64).sum()
    };
    let handled = agent.handled.load(Ordering::Relaxed);
    let said = sum("messages_received_total", "\0") + sum("messages_failed_total", "type=\"unknown\"");
    // Requests that the link itself refuses are counted but not handled.
    assert!(said >= handled, "{said} counted, {handled} handled");
    assert_eq!(sum("messages_send_failures_total", "\0"), agent.failed, "{page}");
    assert!(sum("messages_sent_total", "\0") >= agent.done);
}

#[cfg(not(feature = "metrics-prometheus"))]
fn check_counts(_: &Agent) {}

fn run(seed: u64) -> (Tally, Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut story = Story::new(seed);
        let told = Rc::clone(&story.told);
        let ran = std::panic::AssertUnwindSafe(story.run()).catch_unwind().await;
        if let Err(panic) = ran {
            let told = told.borrow();
            for line in told.iter().skip(told.len().saturating_sub(60)) {
                eprintln!("{line}");
            }
            eprintln!("the seed was SIMULATION_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
        let told = told.take();
        (story.tally.clone(), told)
    })
}

#[test]
fn every_request_ends_once_in_time_and_with_its_own_answer() {
    let environment = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    if let Some(seed) = environment("SIMULATION_SEED") {
        run(seed);
        return;
    }
    let mut all = Tally::default();
    let mut count = |seed| {
        let (tally, _) = run(seed);
        all.done += tally.done;
        all.failed += tally.failed;
        all.given_up += tally.given_up;
        all.stalls += tally.stalls;
        all.breaks += tally.breaks;
        all.restarts += tally.restarts;
        all.lost += tally.lost;
    };
    (0..SEEDS).for_each(&mut count);
    let until = std::time::Instant::now() + Duration::from_secs(environment("SIMULATION_SECONDS").unwrap_or(0));
    while std::time::Instant::now() < until {
        count(rand::random());
    }
    for happened in [all.done, all.failed, all.given_up, all.stalls, all.breaks, all.restarts, all.lost] {
        assert!(happened > 0, "{all:?}");
    }
    eprintln!("{all:?}");
}

#[test]
fn a_seed_tells_the_same_story_twice() {
    for seed in 0..5 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

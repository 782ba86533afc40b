//! Peers without a permission push against a bound, with one kind of load after the other: one peer, and then fifty at
//! once. What that costs the whole agent is measured from outside: memory, descriptors, processor time, log lines, and
//! what a good peer notices.
//!
//! `BOUNDS_SECONDS=60` applies each kind for that long; with `--nocapture` the figures are printed as a table.

use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use peerscope::network::protocol::{self, Hello, Pair, RequestBody, scrape};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::agent::{PATIENCE, TestAgent, within_or};
use crate::support::raw_peer::{Link, Listening, RawPeer, request};
use crate::support::raw_yamux::RawYamux;

const MIB: u64 = 1024 * 1024;

/// How long each kind of load lasts by default.
const SECONDS: u64 = 1;

/// What all strangers together may cost (`docs/security.md`), and what is held for those that are being disconnected,
/// which takes longer on a busy machine.
const TOGETHER: u64 = 64 * MIB + 32 * MIB;

/// How much longer to wait until the load has been applied at least once.
const BEGINNING: Duration = Duration::from_secs(30);

/// How long the good peer waits between its requests.
const PACE: Duration = Duration::from_millis(20);

/// The agent under load, until when, and a count of what was done.
#[derive(Clone)]
struct Target {
    address: Multiaddr,
    socket: SocketAddr,
    until: Instant,
    done: Arc<AtomicU64>,
}

impl Listening for Target {
    fn address(&self) -> Multiaddr {
        self.address.clone()
    }
}

impl Target {
    fn is_on(&self) -> bool {
        Instant::now() < self.until
    }

    /// Whether to wait longer because nothing has been done yet, on a machine that is busy with other things.
    fn is_waited_for(&self) -> bool {
        self.done.load(Ordering::Relaxed) == 0 && Instant::now() < self.until + BEGINNING
    }

    fn did(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// Pushes until it is dropped, with a new connection whenever one ends.
    async fn keep_pushing(self, kind: Kind) {
        let key = Keypair::generate_ed25519();
        let mut pushing = tokio::task::JoinSet::new();
        loop {
            // If the agent refuses something (for example does not finish a handshake), the fixture panics, which ends
            // this task.
            pushing.spawn(kind(self.clone(), key.clone()));
            let _ended = pushing.join_next().await;
        }
    }
}

/// A peer with a link, which refuses the substreams that the agent opens.
async fn linked(target: &Target, key: &Keypair) -> (RawPeer, Link) {
    let mut peer = RawPeer::dial_as(target, key).await;
    peer.refuse_all();
    let link = peer.link_with_hello().await;
    (peer, link)
}

type Pushing = Pin<Box<dyn Future<Output = ()> + Send>>;
type Kind = fn(Target, Keypair) -> Pushing;

fn hello() -> Option<RequestBody> {
    Some(RequestBody::Hello(Hello { max_frame: 2 * MIB, max_in_flight: 0 }))
}

fn ping(len: usize) -> Option<RequestBody> {
    Some(RequestBody::Ping(vec![b'p'; len].into()))
}

fn put(len: usize) -> Option<RequestBody> {
    Some(RequestBody::Put(Pair { key: "k".into(), value: vec![b'v'; len].into() }))
}

/// Connects, and does not even begin the negotiation.
fn handshakes(target: Target, _: Keypair) -> Pushing {
    Box::pin(async move {
        let mut held = Vec::new();
        for _ in 0..8 {
            if let Ok(socket) = TcpStream::connect(target.socket).await {
                target.did();
                held.push(socket);
            }
        }
        for mut socket in held {
            while socket.read(&mut [0; 64]).await.is_ok_and(|len| len > 0) {}
        }
    })
}

/// Goes through the handshake up to the point where the agent has done the expensive part, and stops there. Fifty such
/// strangers have more handshakes in progress than the agent allows.
fn half_handshakes(target: Target, _: Keypair) -> Pushing {
    Box::pin(async move {
        let mut held = Vec::new();
        for _ in 0..45 {
            let Ok(mut socket) = TcpStream::connect(target.socket).await else { continue };
            // Both protocols, and then Noise's first message: an ephemeral key, here the base point of Curve25519.
            let mut hello = b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x20\x09".to_vec();
            hello.extend([0; 31]);
            if socket.write_all(&hello).await.is_ok() {
                target.did();
                held.push(socket);
            }
        }
        for mut socket in held {
            while socket.read(&mut [0; 1024]).await.is_ok_and(|len| len > 0) {}
        }
    })
}

/// As many connections as a peer may have and one more, without any requests.
fn connections(target: Target, key: Keypair) -> Pushing {
    Box::pin(async move {
        let mut held = Vec::new();
        for _ in 0..5 {
            let mut peer = RawPeer::dial_as(&target, &key).await;
            peer.refuse_all();
            target.did();
            held.push(peer);
        }
        for mut peer in held {
            peer.closed().await;
        }
    })
}

/// Connects, and disconnects at once.
fn churn(target: Target, key: Keypair) -> Pushing {
    Box::pin(async move {
        let (_peer, _link) = linked(&target, &key).await;
        target.did();
    })
}

async fn ask_for_ever(target: Target, key: Keypair, body: fn() -> Option<RequestBody>, at_once: u64) {
    let (_peer, mut link) = linked(&target, &key).await;
    for id in 1.. {
        link.send(&request(id, body())).await;
        if id >= at_once {
            if link.answer().await.is_none() {
                return;
            }
            target.did();
        }
    }
}

fn pings(target: Target, key: Keypair) -> Pushing {
    Box::pin(ask_for_ever(target, key, || ping(16), 256))
}

fn large_pings(target: Target, key: Keypair) -> Pushing {
    Box::pin(ask_for_ever(target, key, || ping(1024 * 1024), 1))
}

fn refused_puts(target: Target, key: Keypair) -> Pushing {
    Box::pin(ask_for_ever(target, key, || put(512 * 1024), 2))
}

/// Reads no answers, and fills all windows.
fn unread(target: Target, key: Keypair) -> Pushing {
    Box::pin(async move {
        let peer = RawYamux::dial_as(&target, &key, Duration::from_millis(300)).await;
        let stream = peer.link().await;
        peer.request(stream, &request(0, hello())).await;
        let large = put(512 * 1024);
        for id in 1.. {
            let body = if id < 20_000 { put(1) } else { large.clone() };
            if !peer.request(stream, &request(id, body)).await {
                break;
            }
            target.did();
        }
        while !peer.is_closed() {
            peer.grant(stream, 1).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
}

/// The same in frames of one byte.
fn crumbs(target: Target, key: Keypair) -> Pushing {
    Box::pin(async move {
        let peer = RawYamux::dial_as(&target, &key, Duration::from_millis(300)).await;
        let stream = peer.link().await;
        peer.request(stream, &request(0, hello())).await;
        for id in 0..20_000 {
            if !peer.request(stream, &request(id, put(1))).await {
                break;
            }
            target.did();
        }
        while !peer.is_closed() {
            if peer.send_crumbs(stream, 64 * 1024).await > 0 {
                target.did();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
}

/// A large frame without its last byte on a link, and as many substreams as allowed, each with half a proposal.
fn substreams(target: Target, key: Keypair) -> Pushing {
    Box::pin(async move {
        let (mut peer, mut link) = linked(&target, &key).await;
        let mut frame = Vec::new();
        protocol::encode(&request(1, put(1024 * 1024 - 64)), &mut frame);
        link.send_bytes(&frame[..frame.len() - 1]).await;
        let mut held = Vec::new();
        while let Some(mut stream) = peer.try_open().await {
            if stream.write_all(b"\x13/multistream/1.0.0\n\x3f/half").await.is_err() || stream.flush().await.is_err() {
                break;
            }
            target.did();
            held.push(stream);
        }
        peer.closed().await;
    })
}

/// Asks Kademlia for the peers nearest to a random key.
fn nearest(target: Target, key: Keypair) -> Pushing {
    Box::pin(async move {
        let (peer, _link) = linked(&target, &key).await;
        let mut stream = peer.open_protocol("/peerscope/kad/1").await;
        loop {
            let mut message = vec![36, 8, 4, 18, 32];
            message.extend(rand::random::<[u8; 32]>());
            let mut answer = vec![0; 64 * 1024];
            if stream.write_all(&message).await.is_err() || stream.flush().await.is_err() {
                return;
            }
            match stream.read(&mut answer).await {
                Ok(1..) => target.did(),
                _ => return,
            }
        }
    })
}

/// Sends identify pushes all the time.
fn identify_pushes(target: Target, key: Keypair) -> Pushing {
    Box::pin(async move {
        let (peer, _link) = linked(&target, &key).await;
        // `agentVersion`, as long as the protocol allows.
        let mut message = vec![0xfc, 0x1f, 0x32, 0xf9, 0x1f];
        message.extend([b'a'; 4089]);
        while let Some(mut stream) = peer.try_open().await {
            let said = async {
                crate::support::raw_peer::propose(&mut stream, "/ipfs/id/push/1.0.0").await;
                stream.write_all(&message).await?;
                stream.close().await
            };
            if said.await.is_err_and(|error| error.kind() != ErrorKind::BrokenPipe) {
                return;
            }
            target.did();
        }
    })
}

/// Asks for metrics without the permission to.
fn scrapes(target: Target, key: Keypair) -> Pushing {
    Box::pin(async move {
        let (peer, _link) = linked(&target, &key).await;
        let mut link = Link::new(peer.open_protocol(scrape::PROTOCOL.as_ref()).await);
        let ask = scrape::Ask { timeout_ms: 10_000, accept: "a".repeat(1024), gzip: true, exposed: String::new() };
        loop {
            link.send(&ask).await;
            if link.read::<scrape::Head>().await.is_none() {
                return;
            }
            target.did();
        }
    })
}

const KINDS: [(&str, Kind); 13] = [
    ("handshakes that do not begin", handshakes),
    ("handshakes that stop half-way", half_handshakes),
    ("connections without requests", connections),
    ("connect and disconnect", churn),
    ("pings of 16 bytes", pings),
    ("pings of 1 MiB", large_pings),
    ("refused puts of 512 KiB", refused_puts),
    ("answers not read, windows full", unread),
    ("the same in frames of one byte", crumbs),
    ("substreams and frames, half of each", substreams),
    ("Kademlia: nearest peers", nearest),
    ("identify: pushes of 4 KiB", identify_pushes),
    ("refused scrapes", scrapes),
];

fn status(agent: &TestAgent, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

fn descriptors(agent: &TestAgent) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count()
}

/// The processor time that the agent has used so far, in hundredths of a second.
fn processor(agent: &TestAgent) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// How long one `get` through two agents takes. It has to be answered.
fn get(good: &TestAgent, agent: &str) -> Duration {
    let began = Instant::now();
    let reply = good.control("GET", &format!("/v1/keys/k?peer={agent}"), b"").unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    began.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Applies the load, checks that the bounds hold, and returns a row of the table.
async fn push(name: &str, kind: Kind, peers: usize, time: Duration) -> String {
    let good = TestAgent::start();
    let access = format!("access:\n  - {{ peer: '{}', allow: [get] }}\n", good.peer_id());
    let agent = TestAgent::start_with(&access);
    assert_eq!(agent.control("PUT", "/v1/keys/k", b"v").unwrap().status, 204);
    let good = {
        let mut good = good;
        good.kill();
        good.bootstrap(&agent).started()
    };
    let id = agent.peer_id();
    let linked = || good.control("GET", &format!("/v1/keys/k?peer={id}"), b"").unwrap();
    let logs = || [&good, &agent].map(|agent| agent.log().join("\n")).join("\n\n");
    let why = || format!("{name}, {peers} peers: they are linked: {}\n{}", linked().text(), logs());
    within_or(PATIENCE, why, || linked().status == 200);
    let before = (status(&agent, "VmHWM:"), descriptors(&agent), processor(&agent), agent.log().len());
    let paced = || {
        std::thread::sleep(PACE);
        get(&good, &id)
    };
    let alone = median((0..50).map(|_| tokio::task::block_in_place(paced)).collect());
    let target = Target {
        address: Listening::address(&agent),
        socket: agent.peer_socket(),
        until: Instant::now() + time,
        done: Arc::default(),
    };
    let mut pushing = tokio::task::JoinSet::new();
    for _ in 0..peers {
        pushing.spawn(target.clone().keep_pushing(kind));
    }
    let (mut most, mut among) = (0, Vec::new());
    while target.is_on() || target.is_waited_for() {
        among.push(tokio::task::block_in_place(paced));
        most = most.max(descriptors(&agent));
    }
    let memory = status(&agent, "VmHWM:").saturating_sub(before.0);
    let processor = processor(&agent) - before.2;
    let lines = agent.log().len() - before.3;
    pushing.shutdown().await;
    let done = target.done.load(Ordering::Relaxed);
    assert!(done > 0, "{name}: nothing was pushed");
    assert!(lines < 120 + 2 * time.as_secs() as usize, "{name}, {peers} peers: {lines} lines");
    assert!(memory < TOGETHER, "{name}, {peers} peers: {} MiB more", memory / MIB);
    format!(
        "| {name} | {peers} | {done} | {:.1} | {} | {:.2} | {lines} | {:.0} -> {:.0} |",
        memory as f64 / MIB as f64,
        most.saturating_sub(before.1),
        processor as f64 / 100.0 / time.as_secs_f64(),
        alone.as_secs_f64() * 1e6,
        median(among).as_secs_f64() * 1e6,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_strangers_push_costs_no_more_than_their_share() {
    let seconds = std::env::var("BOUNDS_SECONDS").map_or(SECONDS, |seconds| seconds.parse().unwrap());
    println!("| what | peers | times | MiB more | descriptors more | cores | lines | get, us |");
    for (name, kind) in KINDS {
        for peers in [1, 50] {
            println!("{}", push(name, kind, peers, Duration::from_secs(seconds)).await);
        }
    }
}

//! Peers that make an agent hold what they send, or hold connections. Measured from outside: memory and connections.

use std::time::{Duration, Instant};

use libp2p::identity::Keypair;
use peerscope::network::protocol::{Hello, Pair, RequestBody};

use crate::support::agent::{TestAgent, eventually, within};
use crate::support::raw_peer::{RawPeer, request};
use crate::support::raw_yamux::RawYamux;

const MIB: usize = 1024 * 1024;
/// What all strangers together may make an agent hold (`docs/security.md`), and what the allocator adds and is held for
/// those that are being disconnected, which takes longer on a busy machine. Without a bound it is ten times that.
const TOGETHER: usize = 64 * MIB + 64 * MIB;

/// The most memory that the agent has used so far, in bytes.
fn peak(agent: &TestAgent) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() * 1024
}

fn hello() -> Option<RequestBody> {
    Some(RequestBody::Hello(Hello { max_frame: 2 * MIB as u64, max_in_flight: 0 }))
}

fn put(len: usize) -> Option<RequestBody> {
    Some(RequestBody::Put(Pair { key: "k".into(), value: vec![b'v'; len].into() }))
}

/// Sends puts that are refused, and reads every answer, until `bytes` are sent or the agent accepts no more.
async fn talk(peer: &RawYamux, stream: u32, bytes: usize) -> usize {
    let (mut sent, mut granted) = (0, 0);
    while sent < bytes {
        if !peer.request(stream, &request(1 + sent as u64, put(512 * 1024))).await {
            break;
        }
        sent += 512 * 1024;
        let received = peer.received(stream);
        if received - granted > 64 * 1024 {
            peer.grant(stream, (received - granted) as u32).await;
            granted = received;
        }
    }
    sent
}

/// Sends many small requests without reading the answers.
async fn stop_taking(peer: &RawYamux, stream: u32) {
    for id in 0..20_000 {
        if !peer.request(stream, &request(id, put(1))).await {
            return;
        }
    }
}

/// A peer that answered Yamux's pings late used to make its window grow to 1 GiB by sending for a second. It filled the
/// window, and kept it full by reading a byte now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_that_delays_pongs_and_reads_no_answers_pins_little_and_not_for_long() {
    let agent = TestAgent::start();
    let before = peak(&agent);
    let peer = RawYamux::dial_as(&agent, &Keypair::generate_ed25519(), Duration::from_secs(6)).await;
    let stream = peer.link().await;
    assert!(peer.request(stream, &request(0, hello())).await);
    // By then Yamux has measured the round-trip time.
    tokio::time::sleep(Duration::from_secs(7)).await;
    talk(&peer, stream, 300 * MIB).await;
    stop_taking(&peer, stream).await;
    let mut sent = 0;
    while sent < 300 * MIB && peer.request(stream, &request(1, put(512 * 1024))).await {
        sent += 512 * 1024;
    }
    let full = Instant::now();
    while !peer.is_closed() {
        assert!(full.elapsed() < Duration::from_secs(90), "still connected");
        peer.grant(stream, 1).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let more = peak(&agent) - before;
    println!("{sent} bytes pinned {} KiB more for {:?}", more / 1024, full.elapsed());
    assert!(more < 40 * MIB, "{} MiB more", more / MIB);
    let cause = agent.await_log("Peer disconnected");
    assert!(cause.contains("did not read the data queued for it in time"), "{cause}");
}

/// Each of fifty strangers fills what a single peer may. Together that is more than they may, so some are disconnected,
/// but not a good peer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_strangers_together_pin_no_more_than_their_share() {
    let agent = TestAgent::start();
    let good = TestAgent::prepare().bootstrap(&agent).started();
    let id = agent.peer_id();
    eventually("they are linked", || good.cli(&["get", "k", "--peer", &id]).code != 69);
    let before = peak(&agent);
    let mut strangers = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let key = Keypair::generate_ed25519();
        let peer = RawYamux::dial_as(&agent, &key, Duration::from_secs(6)).await;
        strangers.spawn(async move {
            let stream = peer.link().await;
            peer.request(stream, &request(0, hello())).await;
            tokio::time::sleep(Duration::from_secs(7)).await;
            talk(&peer, stream, 8 * MIB).await;
            stop_taking(&peer, stream).await;
            let mut sent = 0;
            while sent < 32 * MIB && peer.request(stream, &request(1, put(512 * 1024))).await {
                sent += 512 * 1024;
            }
            (peer, sent)
        });
    }
    let strangers = strangers.join_all().await;
    let began = Instant::now();
    let answer = good.cli(&["get", "k", "--peer", &id]);
    assert_eq!(answer.code, 1, "refused, not lost: {answer:?}");
    assert!(began.elapsed() < Duration::from_secs(5));
    let more = peak(&agent) - before;
    let (sent, gone) =
        strangers.iter().fold((0, 0), |(sent, gone), (peer, more)| (sent + more, gone + usize::from(peer.is_closed())));
    println!("{} MiB sent pinned {} KiB more; {gone} of 50 were disconnected", sent / MIB, more / 1024);
    assert!(more < TOGETHER, "{} MiB more", more / MIB);
}

/// A waiting frame of one byte takes many times that in memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crumbs_are_counted_with_their_overhead() {
    let agent = TestAgent::start();
    let before = peak(&agent);
    let mut peers = Vec::new();
    for _ in 0..4 {
        let peer = RawYamux::dial_as(&agent, &Keypair::generate_ed25519(), Duration::from_secs(6)).await;
        let stream = peer.link().await;
        assert!(peer.request(stream, &request(0, hello())).await);
        peers.push((peer, stream));
    }
    tokio::time::sleep(Duration::from_secs(7)).await;
    let mut crumbs = 0;
    for &(ref peer, stream) in &peers {
        talk(peer, stream, 32 * MIB).await;
        stop_taking(peer, stream).await;
        crumbs += peer.send_crumbs(stream, MIB).await;
    }
    let more = peak(&agent) - before;
    println!("{crumbs} crumbs pinned {} KiB more", more / 1024);
    assert!(crumbs > 10_000, "{crumbs}");
    assert!(more < TOGETHER, "{} MiB more", more / MIB);
}

/// A named peer used to be able to hold as many connections as there are descriptors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_peer_has_four_connections_and_the_newest_is_always_accepted() {
    let key = Keypair::generate_ed25519();
    let config = format!("network: {{ allow_peers: ['{}'] }}\n", key.public().to_peer_id());
    let agent = TestAgent::start_with(&config);
    let mut connections = Vec::new();
    for _ in 0..40 {
        let mut connection = RawPeer::dial_as(&agent, &key).await;
        connection.refuse_all();
        connections.push(connection);
    }
    within(Duration::from_secs(20), "the others are closed", || {
        connections.iter().filter(|connection| !connection.is_closed()).count() == 4
    });
    assert!(!connections.last().unwrap().is_closed(), "a machine that was restarted is accepted");
}

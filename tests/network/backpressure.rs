//! What happens when a peer is slow: callers wait, then get `busy` or a timeout, and nothing piles up.

use std::time::Duration;

use peerscope::network::protocol::{Hello, PROTOCOL, RequestBody, RequestFrame, ResponseBody, ResponseFrame};
use peerscope::network::{Config, RequestError};
use tokio::time::Instant;

use super::fixture::{Agent, MAX_FRAME, PATIENCE, config, eventually, pair_of, pong};
use crate::support::raw_peer::{Link, RawPeer, request};

#[tokio::test]
async fn callers_of_a_full_queue_wait_and_then_get_busy_until_there_is_room() {
    let few = || Config { max_in_flight: 4, ..config() };
    let (server, client) = pair_of(few(), few()).await;
    // Four in flight, four in the queue, and one that was taken out to watch its deadline.
    let held: Vec<_> = (0..9)
        .map(|_| {
            let (network, to) = (client.network.clone(), server.peer);
            tokio::spawn(async move { network.request(to, super::fixture::get("hold:1")).await })
        })
        .collect();
    eventually("four requests begun", || async { server.handler.begun() == 4 }).await;
    let asked = Instant::now();
    let error = client.ping(server.peer).await.unwrap_err();
    assert!(matches!(error, RequestError::Busy), "{error}");
    assert!(asked.elapsed() >= Duration::from_secs(1), "it waited for a place first");
    assert_eq!(client.value("messages_send_failures_total", &[("type", "ping"), ("reason", "busy")]), 1.0);
    assert_eq!(server.handler.begun(), 4, "the peer never gets more than it said it accepts");
    // The other direction has its own places.
    assert_eq!(server.ping(client.peer).await.unwrap(), pong(b"x"));

    server.handler.release(1);
    for answer in held {
        answer.await.unwrap().unwrap();
    }
    assert_eq!(client.ping(server.peer).await.unwrap(), pong(b"x"));
    assert_eq!(server.value("messages_received_total", &[("type", "get")]), 9.0);
}

#[tokio::test]
async fn a_request_that_is_never_answered_times_out_and_the_link_still_works() {
    let timeout = Duration::from_millis(600);
    let (server, client) = pair_of(config(), Config { request_timeout: timeout, ..config() }).await;
    let asked = Instant::now();
    let (never, others) = tokio::join!(client.get(server.peer, "never"), async {
        for _ in 0..20 {
            client.ping(server.peer).await.unwrap();
        }
        asked.elapsed()
    });
    let error = never.unwrap_err();
    assert!(matches!(error, RequestError::Timeout(after) if after == timeout), "{error}");
    let took = asked.elapsed();
    assert!(took >= timeout && took < timeout + Duration::from_secs(2), "{took:?}");
    assert!(others < timeout, "the others did not wait for it: {others:?}");
    assert_eq!(client.value("messages_send_failures_total", &[("type", "get"), ("reason", "timeout")]), 1.0);
    assert_eq!(client.ping(server.peer).await.unwrap(), pong(b"x"));
}

/// Requests wait in the queue while the peer has as many as it accepts. Their deadlines used not to be checked there,
/// so a caller waited for ever for a peer that never answered.
#[tokio::test]
async fn a_request_that_waits_in_the_queue_times_out_too() {
    let (server, client) =
        pair_of(config(), Config { max_in_flight: 1, request_timeout: Duration::from_millis(600), ..config() }).await;
    let all = async { tokio::join!(client.get(server.peer, "never"), client.get(server.peer, "never")) };
    let (sent, queued) = tokio::time::timeout(PATIENCE, all).await.expect("both end");
    assert!(matches!(sent.unwrap_err(), RequestError::Timeout(_)));
    assert!(matches!(queued.unwrap_err(), RequestError::Timeout(_)));
    assert_eq!(client.value("messages_send_failures_total", &[("type", "get"), ("reason", "timeout")]), 2.0);
    // The places are free again on both sides.
    assert_eq!(client.ping(server.peer).await.unwrap(), pong(b"x"));
}

/// The bound used to apply to each connection, of which a peer may have four, and the work that a lost connection left
/// behind was not counted at all.
#[tokio::test]
async fn more_connections_get_a_peer_no_more_places() {
    let agent = Agent::start(Config { max_in_flight: 4, ..config() }).await;
    let key = libp2p::identity::Keypair::generate_ed25519();
    let first = RawPeer::dial_as(&agent, &key).await;
    let second = RawPeer::dial_as(&agent, &key).await;
    let (mut one, mut other) = (first.link_with_hello().await, second.link_with_hello().await);
    let hold = |id| request(id, Some(RequestBody::Get("hold:1".into())));
    for id in 1..=4 {
        one.send(&hold(id)).await;
    }
    eventually("four are in flight", || async { agent.handler.begun() == 4 }).await;
    let is_busy = |frame: Option<ResponseFrame>| match frame.unwrap().body {
        Some(ResponseBody::Error(error)) => error.code() == peerscope::network::protocol::ErrorCode::Busy,
        _ => false,
    };
    other.send(&hold(1)).await;
    assert!(is_busy(other.answer().await));
    drop((one, first));
    eventually("the connection is gone", || async { agent.network.peers().await[0].connections == 1 }).await;
    other.send(&hold(2)).await;
    assert!(is_busy(other.answer().await), "what it left behind is still in progress");
    assert_eq!((agent.handler.begun(), agent.failed("get", "busy")), (4, 2.0));
    // Another peer has places of its own.
    let stranger = RawPeer::dial(&agent).await;
    let mut link = stranger.link_with_hello().await;
    link.send(&request(1, Some(RequestBody::Get("x".into())))).await;
    assert!(!is_busy(link.answer().await));

    agent.handler.release(1);
    eventually("they have ended", || async { agent.handler.ended() >= 4 }).await;
    other.send(&hold(3)).await;
    assert!(!is_busy(other.answer().await));
}

/// A peer may announce that it accepts no requests at all. That costs its callers only their time.
#[tokio::test]
async fn a_peer_that_accepts_no_requests_cannot_block_callers_for_ever() {
    let agent = Agent::start(Config { request_timeout: Duration::from_millis(600), ..config() }).await;
    let mut raw = RawPeer::dial(&agent).await;
    let mut link = Link::new(raw.accept(PROTOCOL.as_ref()).await);
    let hello = Hello { max_frame: MAX_FRAME as u64, max_in_flight: 0 };
    link.send(&ResponseFrame { id: 0, body: Some(ResponseBody::Hello(hello)) }).await;
    agent.connected(1).await;
    let answer = tokio::time::timeout(PATIENCE, agent.ping(raw.peer)).await.expect("it ends");
    assert!(matches!(answer.unwrap_err(), RequestError::Timeout(_)));
}

/// The answers to 500 requests would take half a gigabyte, and none of them is read. The agent handles as many requests
/// as fill Yamux's window and the high-water mark, and then stops reading.
#[tokio::test]
async fn no_work_is_done_for_a_peer_that_reads_no_answers() {
    let agent = Agent::start(config()).await;
    let raw = RawPeer::dial(&agent).await;
    let mut link = raw.link().await;
    link.send(&request(0, Some(RequestBody::Hello(Hello { max_frame: MAX_FRAME as u64, max_in_flight: 0 })))).await;
    for id in 1..=500 {
        link.send(&request(id, Some(RequestBody::Get("big:1048576".into())))).await;
    }
    // Another peer is served meanwhile.
    let good = RawPeer::dial(&agent).await;
    let mut other = good.link_with_hello().await;
    for id in 1..=50 {
        other.send(&request(id, Some(RequestBody::Ping("hello".into())))).await;
        assert_eq!(other.answer().await.unwrap().id, id);
    }
    let gets = agent.value("messages_received_total", &[("type", "get")]);
    assert!((1.0..=2.0).contains(&gets), "{gets} answers of 1 MiB are buffered for a peer that reads none");

    // Nothing is lost: all answers arrive once the peer reads.
    let mut ids = Vec::new();
    while ids.len() < 500 {
        ids.push(link.answer().await.unwrap().id);
    }
    assert_eq!(ids, (1..=500).collect::<Vec<_>>(), "each once; requests that are answered at once keep their order");
    assert_eq!(agent.value("messages_received_total", &[("type", "get")]), 500.0);
}

/// The peer says hello and then never reads a request. What waits for it stays bounded; callers get a timeout or, once
/// the queue is full, `busy`.
#[tokio::test]
async fn a_peer_that_reads_no_requests_costs_its_callers_only_their_time() {
    let agent = Agent::start(Config { max_in_flight: 16, request_timeout: Duration::from_secs(3), ..config() }).await;
    let mut raw = RawPeer::dial(&agent).await;
    let mut link = Link::new(raw.accept(PROTOCOL.as_ref()).await);
    let hello: RequestFrame = link.read().await.unwrap();
    assert!(matches!(hello.body, Some(RequestBody::Hello(_))));
    let hello = Hello { max_frame: MAX_FRAME as u64, max_in_flight: 16 };
    link.send(&ResponseFrame { id: 0, body: Some(ResponseBody::Hello(hello)) }).await;
    agent.connected(1).await;
    let large = super::fixture::ping(&vec![1; 1 << 20]);
    let callers = (0..100).map(|_| agent.network.request(raw.peer, large.clone()));
    let ends = tokio::time::timeout(PATIENCE, futures::future::join_all(callers)).await.expect("all end");
    let late = ends.iter().filter(|end| matches!(end, Err(RequestError::Timeout(_)))).count();
    let busy = ends.iter().filter(|end| matches!(end, Err(RequestError::Busy))).count();
    assert_eq!(late + busy, 100, "{ends:?}");
    // 16 in the queue, and at most 16 taken from it, behind the one that filled the buffer.
    assert!((16..=32).contains(&late), "{late} were taken");
    // Another peer is served.
    let good = RawPeer::dial(&agent).await;
    let mut other = good.link_with_hello().await;
    other.send(&request(1, Some(RequestBody::Ping("hello".into())))).await;
    assert_eq!(other.answer().await.unwrap().id, 1);
}

//! The link between two good peers: many requests at once, large requests, and requests over a limit.

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use libp2p::identity::Keypair;
use peerscope::network::RequestError;
use peerscope::network::protocol::{
    ErrorBody, ErrorCode, Hello, PROTOCOL, Request, RequestBody, RequestFrame, Response, ResponseBody, ResponseFrame,
};

use super::fixture::{Agent, MAX_PAYLOAD, config, eventually, joining, pair, ping, pong};
use crate::support::raw_peer::{Link, RawPeer};

#[tokio::test]
async fn answers_reach_their_callers_in_any_order() {
    let (server, client) = pair().await;
    let mut answers = FuturesUnordered::new();
    for level in (1..=100).rev() {
        let (key, client, to) = (format!("hold:{level}"), &client, server.peer);
        answers.push(async move { (level, client.get(to, &key).await.unwrap()) });
    }
    // All hundred are in flight before the first is answered.
    let begun = eventually("100 requests begun", || async { server.handler.begun() == 100 });
    tokio::select! {
        () = begun => {}
        answer = answers.next() => panic!("answered before its time: {answer:?}"),
    }
    for level in 1..=100u32 {
        server.handler.release(level);
        let (answered, response) = answers.next().await.unwrap();
        assert_eq!(answered, level, "they were asked in the opposite order");
        assert_eq!(response, Response::Value(Some(Bytes::from(format!("hold:{level}")))));
    }
    assert_eq!(server.value("messages_received_total", &[("type", "get")]), 100.0);
    assert_eq!(client.value("messages_sent_total", &[("type", "get")]), 100.0);
    assert_eq!(client.value("message_round_trip_duration_seconds_count", &[("type", "get")]), 100.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_callers_in_both_directions_each_get_their_own_answer() {
    let (first, second) = pair().await;
    let caller = |from: &Agent, to: &Agent, id: u32| {
        let (network, to) = (from.network.clone(), to.peer);
        tokio::spawn(async move {
            for round in 0..50u32 {
                let payload = format!("{id}/{round}/").repeat(1 + (id as usize * round as usize) % 300);
                let answer = network.request(to, ping(payload.as_bytes())).await.unwrap();
                assert_eq!(answer, pong(payload.as_bytes()));
            }
        })
    };
    let callers: Vec<_> = (0..32).flat_map(|id| [caller(&first, &second, id), caller(&second, &first, id)]).collect();
    for caller in callers {
        caller.await.unwrap();
    }
    for agent in [&first, &second] {
        assert_eq!(agent.value("messages_received_total", &[("type", "ping")]), 1600.0);
        assert_eq!(agent.value("messages_sent_total", &[("type", "ping")]), 1600.0);
        assert_eq!(agent.failed_in_all(), 0.0);
    }
}

#[tokio::test]
async fn the_largest_request_passes_and_one_byte_more_is_refused_locally() {
    let (server, client) = pair().await;
    let largest = vec![7; MAX_PAYLOAD];
    assert_eq!(client.network.request(server.peer, ping(&largest)).await.unwrap(), pong(&largest));
    let handled = server.handler.begun();
    let put = Request::Put { key: Bytes::from_static(b"k"), value: Bytes::from(vec![7; MAX_PAYLOAD]) };
    let error = client.network.request(server.peer, put).await.unwrap_err();
    assert!(
        matches!(error, RequestError::TooLarge { len, max } if len == MAX_PAYLOAD + 1 && max == MAX_PAYLOAD),
        "{error}"
    );
    assert_eq!(client.value("messages_send_failures_total", &[("type", "put"), ("reason", "too_large")]), 1.0);
    // Nothing of it was sent, and the link goes on.
    assert_eq!(client.ping(server.peer).await.unwrap(), pong(b"x"));
    assert_eq!(server.handler.begun(), handled + 1);
    assert_eq!(server.failed_in_all(), 0.0);
}

#[tokio::test]
async fn a_peer_with_a_smaller_limit_is_sent_no_larger_request_or_answer() {
    let large = Agent::start(config()).await;
    let small = Agent::try_start(joining(&large), 2048, Keypair::generate_ed25519()).await.unwrap();
    large.connected(1).await;
    small.connected(1).await;
    let error = large.network.request(small.peer, ping(&[0; 2049])).await.unwrap_err();
    assert!(matches!(error, RequestError::TooLarge { len: 2049, max: 2048 }), "{error}");
    assert_eq!(large.network.request(small.peer, ping(&[0; 2048])).await.unwrap(), pong(&[0; 2048]));
    // In the other direction the request is small, but its answer is not.
    let error = small.get(large.peer, "big:5000").await.unwrap_err();
    assert!(matches!(&error, RequestError::Remote(remote) if remote.code == ErrorCode::TooLarge), "{error}");
    assert_eq!(large.failed("get", "too_large"), 1.0);
    assert_eq!(large.value("messages_received_total", &[("type", "get")]), 0.0, "it was not answered");
    assert_eq!(small.ping(large.peer).await.unwrap(), pong(b"x"));
}

/// A responder on the agent's link whose frames a test writes by hand.
async fn responder(agent: &Agent) -> (RawPeer, Link) {
    let mut raw = RawPeer::dial(agent).await;
    let mut link = Link::new(raw.accept(PROTOCOL.as_ref()).await);
    let hello: RequestFrame = link.read().await.unwrap();
    assert!(matches!(hello.body, Some(RequestBody::Hello(_))), "{hello:?}");
    let hello = Hello { max_frame: 1 << 20, max_in_flight: 16 };
    link.send(&ResponseFrame { id: 0, body: Some(ResponseBody::Hello(hello)) }).await;
    agent.connected(1).await;
    (raw, link)
}

async fn next_request(link: &mut Link) -> RequestFrame {
    loop {
        let frame: RequestFrame = link.read().await.unwrap();
        if frame.id != 0 {
            return frame;
        }
    }
}

#[tokio::test]
async fn an_answer_that_does_not_match_its_request_is_an_error() {
    let agent = Agent::start(config()).await;
    let (raw, mut link) = responder(&agent).await;
    for (body, remote) in [
        (Some(ResponseBody::Stored(Default::default())), false),
        (None, false),
        (Some(ResponseBody::Error(ErrorBody { code: 77, message: "a newer code".into() })), true),
    ] {
        let asked = agent.get(raw.peer, "k");
        let answering = async {
            let request = next_request(&mut link).await;
            // An answer to a request that nobody made changes nothing.
            link.send(&ResponseFrame { id: 999, body: Some(ResponseBody::Deleted(true)) }).await;
            link.send(&ResponseFrame { id: request.id, body }).await;
        };
        let (error, ()) = tokio::join!(asked, answering);
        match error.unwrap_err() {
            RequestError::Remote(error) if remote => assert_eq!(error.code, ErrorCode::Unspecified),
            RequestError::Unexpected if !remote => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(agent.value("messages_sent_total", &[("type", "get")]), 1.0, "only the error was an answer");
    assert_eq!(agent.value("messages_send_failures_total", &[("type", "get"), ("reason", "remote")]), 3.0);
}

#[tokio::test]
async fn a_responder_that_sends_garbage_loses_the_link_and_its_callers_get_an_error() {
    let agent = Agent::start(config()).await;
    let (mut raw, mut link) = responder(&agent).await;
    let asked = agent.get(raw.peer, "k");
    let answering = async {
        next_request(&mut link).await;
        link.send_bytes(&[4, 0xff, 0xff, 0xff, 0xff]).await;
    };
    let (answer, ()) = tokio::join!(asked, answering);
    assert!(matches!(answer.unwrap_err(), RequestError::LinkLost));
    raw.closed().await;
    agent.connected(0).await;
    assert_eq!((agent.failed("unknown", "malformed"), agent.failed_in_all()), (1.0, 1.0));
    assert_eq!(agent.value("messages_send_failures_total", &[("type", "get"), ("reason", "link_lost")]), 1.0);
}

#[tokio::test]
async fn a_connected_peer_without_the_link_protocol_is_reported_as_unsupported() {
    let agent = Agent::start(config()).await;
    let mut raw = RawPeer::dial(&agent).await;
    raw.refuse_all();
    eventually("connected", || async { agent.peers_connected() == 1.0 }).await;
    let error = agent.ping(raw.peer).await.unwrap_err();
    assert!(matches!(error, RequestError::Unsupported(peer) if peer == raw.peer), "{error}");
    assert_eq!(agent.value("messages_send_failures_total", &[("type", "ping"), ("reason", "unreachable")]), 1.0);
    let peers = agent.network.peers().await;
    assert_eq!((peers.len(), peers[0].link), (1, false));
}

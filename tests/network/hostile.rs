//! Peers that are hostile or broken. Each loses at most its own connection and is counted once, and a good peer is
//! served all the while.

use std::time::Duration;

use futures::AsyncWriteExt as _;
use peerscope::network::protocol::{ErrorCode, Hello, PROTOCOL, RemoteError, RequestBody, ResponseBody, ResponseFrame};

use super::fixture::{Agent, MAX_FRAME, config, eventually, joining, pong};
use crate::support::raw_peer::{Link, RawPeer, request};

/// An agent under attack, and a good peer that keeps sending it requests.
struct Scene {
    agent: Agent,
    good: Agent,
}

impl Scene {
    async fn set() -> Self {
        let agent = Agent::start(config()).await;
        let good = Agent::start(joining(&agent)).await;
        agent.connected(1).await;
        good.connected(1).await;
        Self { agent, good }
    }

    /// Asserts that the good peer is still connected over its first connection, and served.
    async fn assert_unharmed(&self) {
        for _ in 0..10 {
            assert_eq!(self.good.ping(self.agent.peer).await.unwrap(), pong(b"x"));
            assert_eq!(self.agent.ping(self.good.peer).await.unwrap(), pong(b"x"));
        }
        let peers = self.agent.network.peers().await;
        assert!(peers.iter().any(|peer| peer.peer == self.good.peer && peer.connections == 1), "{peers:?}");
        assert!(self.agent.value("messages_received_total", &[("type", "ping")]) >= 10.0);
        self.agent.assert_alive();
    }

    fn failures(&self) -> (f64, f64, f64) {
        (
            self.agent.failed("unknown", "malformed"),
            self.agent.failed("unknown", "too_large"),
            self.agent.failed_in_all(),
        )
    }
}

/// Sends `bytes` on a link, after a hello or instead of it. The agent sends an error, counts it once, and closes that
/// one connection.
async fn assert_cut_off_for(bytes: &[u8], code: ErrorCode, malformed: f64, too_large: f64) {
    for hello_first in [true, false] {
        let scene = Scene::set().await;
        let mut raw = RawPeer::dial(&scene.agent).await;
        let mut link = if hello_first { raw.link_with_hello().await } else { raw.link().await };
        eventually("the hostile peer is connected", || async { scene.agent.peers_connected() == 2.0 }).await;
        link.send_bytes(bytes).await;
        let last = link.answer().await.expect("the agent says why");
        let Some(ResponseBody::Error(error)) = last.body else { panic!("{last:?}") };
        assert_eq!((last.id, RemoteError::from(error).code), (0, code));
        assert_eq!(link.answer().await, None);
        raw.closed().await;
        scene.agent.connected(1).await;
        assert_eq!(scene.failures(), (malformed, too_large, malformed + too_large));
        scene.assert_unharmed().await;
    }
}

#[tokio::test]
async fn garbage_is_refused() {
    // A length of 100, and 100 bytes that are not a message (wire type 7 does not exist).
    assert_cut_off_for(&[&[100][..], &[0xff; 100]].concat(), ErrorCode::Malformed, 1.0, 0.0).await;
}

#[tokio::test]
async fn a_length_that_never_ends_is_refused() {
    assert_cut_off_for(&[0x80; 64], ErrorCode::Malformed, 1.0, 0.0).await;
}

#[tokio::test]
async fn a_frame_announced_with_four_gibibytes_is_refused() {
    assert_cut_off_for(&[0x80, 0x80, 0x80, 0x80, 0x10], ErrorCode::TooLarge, 0.0, 1.0).await;
}

#[tokio::test]
async fn a_frame_one_byte_over_the_limit_is_refused() {
    let mut length = Vec::new();
    prost::encode_length_delimiter(MAX_FRAME + 1, &mut length).unwrap();
    assert_cut_off_for(&length, ErrorCode::TooLarge, 0.0, 1.0).await;
}

#[tokio::test]
async fn random_bytes_never_do_more_than_end_their_link() {
    let scene = Scene::set().await;
    for _ in 0..20 {
        let raw = RawPeer::dial(&scene.agent).await;
        let mut link = raw.link().await;
        let noise: Vec<u8> = (0..20_000).map(|_| rand::random::<u8>()).collect();
        let _may_be_cut_off = link.stream.write_all(&noise).await;
        let _may_be_cut_off = link.stream.close().await;
        // Some noise is the beginning of a long frame, most is invalid: the stream ends in either case.
        while link.read::<ResponseFrame>().await.is_some() {}
    }
    scene.agent.connected(1).await;
    assert!(scene.failures().2 >= 1.0, "most noise is not a frame");
    scene.assert_unharmed().await;
}

#[tokio::test]
async fn a_request_of_an_unknown_type_gets_a_typed_answer_and_the_link_survives() {
    let scene = Scene::set().await;
    let raw = RawPeer::dial(&scene.agent).await;
    let mut link = raw.link_with_hello().await;
    // Field 15, which no version uses yet, in a request with id 7.
    link.send_bytes(&[4, 0x08, 7, 0x7a, 0]).await;
    let answer = link.answer().await.unwrap();
    let Some(ResponseBody::Error(error)) = answer.body else { panic!("{answer:?}") };
    assert_eq!((answer.id, RemoteError::from(error).code), (7, ErrorCode::Unsupported));
    assert_eq!(scene.failures(), (1.0, 0.0, 1.0));
    // With id 0 it is about the link itself, and an error with id 0 would end the link.
    link.send_bytes(&[2, 0x7a, 0]).await;
    link.send(&request(8, Some(RequestBody::Ping("x".into())))).await;
    assert_eq!(link.answer().await.unwrap(), ResponseFrame { id: 8, body: Some(ResponseBody::Pong("x".into())) });
    assert_eq!(scene.failures(), (2.0, 0.0, 2.0));
    assert!(!raw.is_closed());
    scene.assert_unharmed().await;
}

#[tokio::test]
async fn a_request_before_hello_gets_only_answers_that_any_peer_accepts() {
    let scene = Scene::set().await;
    let raw = RawPeer::dial(&scene.agent).await;
    let mut link = raw.link().await;
    link.send(&request(1, Some(RequestBody::Ping("early".into())))).await;
    assert_eq!(link.answer().await.unwrap().body, Some(ResponseBody::Pong("early".into())));
    link.send(&request(2, Some(RequestBody::Get("big:2000".into())))).await;
    let answer = link.answer().await.unwrap();
    let Some(ResponseBody::Error(error)) = answer.body else { panic!("{answer:?}") };
    assert_eq!(RemoteError::from(error).code, ErrorCode::TooLarge);
    assert_eq!((scene.agent.failed("get", "too_large"), scene.agent.failed_in_all()), (1.0, 1.0));
    scene.assert_unharmed().await;
}

#[tokio::test]
async fn a_second_link_on_one_connection_is_dropped_and_the_first_still_works() {
    let scene = Scene::set().await;
    let raw = RawPeer::dial(&scene.agent).await;
    let mut first = raw.link_with_hello().await;
    let mut second = raw.link().await;
    assert_eq!(second.read::<ResponseFrame>().await, None, "no hello on it");
    first.send(&request(1, Some(RequestBody::Ping("x".into())))).await;
    assert_eq!(first.answer().await.unwrap().id, 1);
    assert_eq!(scene.failures().2, 0.0);
    scene.assert_unharmed().await;
}

#[tokio::test]
async fn a_flood_of_substreams_ends_at_most_its_own_connection() {
    let scene = Scene::set().await;
    let mut raw = RawPeer::dial(&scene.agent).await;
    let mut streams = Vec::new();
    // One byte on each: Yamux announces a stream with its first data. Nothing is negotiated.
    for _ in 0..600 {
        let Some(mut stream) = raw.try_open().await else { break };
        if stream.write_all(&[19]).await.is_err() || stream.flush().await.is_err() {
            break;
        }
        streams.push(stream);
    }
    raw.closed().await;
    scene.agent.connected(1).await;
    scene.assert_unharmed().await;
}

#[tokio::test]
async fn a_half_closed_link_accepts_no_more_requests_but_still_sends_them() {
    let scene = Scene::set().await;
    let mut raw = RawPeer::dial(&scene.agent).await;
    let mut ours = Link::new(raw.accept(PROTOCOL.as_ref()).await);
    let hello = Hello { max_frame: MAX_FRAME as u64, max_in_flight: 16 };
    ours.send(&ResponseFrame { id: 0, body: Some(ResponseBody::Hello(hello)) }).await;
    scene.agent.connected(2).await;
    let mut link = raw.link_with_hello().await;
    link.send(&request(1, Some(RequestBody::Get("hold:1".into())))).await;
    eventually("the request is begun", || async { scene.agent.handler.begun() == 1 }).await;
    link.stream.close().await.unwrap();
    assert_eq!(link.answer().await, None);
    // A request in progress is finished although nobody waits for it any more. The message counts as cancelled.
    scene.agent.handler.release(1);
    eventually("the request is finished", || async { scene.agent.handler.ended() == 1 }).await;
    eventually("counted", || async { scene.agent.failed("get", "cancelled") == 1.0 }).await;
    let asked = scene.agent.ping(raw.peer);
    let answering = async {
        loop {
            let frame: peerscope::network::protocol::RequestFrame = ours.read().await.unwrap();
            if frame.id != 0 {
                ours.send(&ResponseFrame { id: frame.id, body: Some(ResponseBody::Pong("x".into())) }).await;
                return;
            }
        }
    };
    assert_eq!(tokio::join!(asked, answering).0.unwrap(), pong(b"x"));
    assert_eq!(scene.agent.failed_in_all(), 1.0);
    scene.assert_unharmed().await;
}

/// The answers to a peer that is gone are dropped, but its requests are carried out and counted.
#[tokio::test]
async fn requests_in_flight_are_finished_after_their_link_is_lost() {
    let scene = Scene::set().await;
    let raw = RawPeer::dial(&scene.agent).await;
    let mut link = raw.link_with_hello().await;
    for id in 1..=5 {
        link.send(&request(id, Some(RequestBody::Get("hold:1".into())))).await;
    }
    eventually("all begun", || async { scene.agent.handler.begun() == 5 }).await;
    drop((link, raw));
    scene.agent.connected(1).await;
    assert_eq!(scene.agent.handler.ended(), 0);
    scene.agent.handler.release(1);
    eventually("all finished", || async { scene.agent.handler.ended() == 5 }).await;
    eventually("all counted", || async { scene.agent.failed("get", "cancelled") == 5.0 }).await;
    assert_eq!(scene.agent.failed_in_all(), 5.0);
    assert_eq!(scene.agent.value("messages_received_total", &[("type", "get")]), 0.0);
    scene.assert_unharmed().await;
}

#[tokio::test]
async fn a_peer_that_negotiates_and_falls_silent_costs_nothing_until_it_is_cut_off() {
    let scene = Scene::set().await;
    let raw = RawPeer::dial(&scene.agent).await;
    let link = raw.link().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    scene.assert_unharmed().await;
    assert!(!raw.is_closed(), "it may be slow; `silence.rs` sees it go");
    drop(link);
}

//! Requests for an agent's metrics from strangers and from hostile gateways.
//!
//! docs/security.md, "A gateway": what a hostile gateway and a stranger can and cannot do.

use std::time::Duration;

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::core::muxing::SubstreamBox;
use libp2p::identity::Keypair;
use peerscope::network::protocol::scrape::{Ask, Head, HeadBody};
use peerscope::network::protocol::{self, ErrorCode, RemoteError, RequestBody, ResponseBody, ResponseFrame};
use prost::Message as _;
use tokio::time::timeout;

use super::hostile::memory;
use crate::support::agent::{PATIENCE, TestAgent, eventually};
use crate::support::metrics;
use crate::support::raw_peer::{Link, RawPeer, request};

const SCRAPE: &str = "/peerscope/scrape/1";

/// An agent that lets one peer scrape it.
struct Scene {
    agent: TestAgent,
    permitted: Keypair,
}

impl Scene {
    fn set() -> Self {
        Self::with("")
    }

    /// `more` is more configuration.
    fn with(more: &str) -> Self {
        let permitted = Keypair::generate_ed25519();
        let id = permitted.public().to_peer_id();
        let config = format!("node: {{name: secret-name}}\naccess: [{{peer: {id}, allow: [scrape]}}]\n{more}");
        Self { agent: TestAgent::start_with(&config), permitted }
    }

    fn failed(&self, reason: &str) -> f64 {
        metrics::value(&self.agent.scrape(), "messages_failed_total", &[("type", "scrape"), ("reason", reason)])
    }

    /// Checks that other peers are served as before.
    async fn assert_well(&self) {
        let other = RawPeer::dial(&self.agent).await;
        let mut link = other.link_with_hello().await;
        assert_pong(&mut link, 1).await;
        let other = RawPeer::dial_as(&self.agent, &self.permitted).await;
        let (head, body) = scraped(asked(&other, &ask(5000)).await).await;
        let Some(HeadBody::Page(page)) = head.body else { panic!("{head:?}") };
        assert_eq!(body.len() as u64, page.len);
        assert!(String::from_utf8(body).unwrap().contains("name=\"secret-name\""));
    }
}

fn ask(timeout_ms: u64) -> Ask {
    Ask { timeout_ms, ..Ask::default() }
}

/// A substream on which this request was sent.
async fn asked(peer: &RawPeer, ask: &Ask) -> SubstreamBox {
    let mut bytes = Vec::new();
    protocol::encode(ask, &mut bytes);
    said(peer, &bytes).await
}

async fn said(peer: &RawPeer, bytes: &[u8]) -> SubstreamBox {
    let mut stream = peer.open_protocol(SCRAPE).await;
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    stream
}

/// All bytes of the answer up to the end of the substream; none if the agent resets it.
async fn answered(mut stream: SubstreamBox) -> Vec<u8> {
    let mut answer = Vec::new();
    let _reset = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer in time");
    answer
}

/// One answer only: the agent keeps the substream for the next scrape.
async fn scraped(mut stream: SubstreamBox) -> (Head, Vec<u8>) {
    let answer = async {
        let mut length = Vec::new();
        while length.last().is_none_or(|byte| byte & 0x80 != 0) {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            length.extend(byte);
        }
        let mut head = vec![0; prost::decode_length_delimiter(length.as_slice()).unwrap()];
        stream.read_exact(&mut head).await.unwrap();
        let head = Head::decode(head.as_slice()).unwrap();
        let mut body = Vec::new();
        if let Some(HeadBody::Page(page)) = &head.body {
            body.resize(page.len as usize, 0);
            stream.read_exact(&mut body).await.unwrap();
        }
        (head, body)
    };
    timeout(PATIENCE, answer).await.expect("an answer in time")
}

async fn refusal(stream: SubstreamBox) -> RemoteError {
    match scraped(stream).await.0.body {
        Some(HeadBody::Error(error)) => error.into(),
        other => panic!("{other:?}"),
    }
}

/// Sends a ping and waits for its answer. Returns the frames that came before.
async fn assert_pong(link: &mut Link, id: u64) -> Vec<ResponseFrame> {
    link.send(&request(id, Some(RequestBody::Ping("x".into())))).await;
    let mut before = Vec::new();
    loop {
        let frame = link.answer().await.expect("the link is up");
        if frame.id == id {
            assert_eq!(frame.body, Some(ResponseBody::Pong("x".into())));
            return before;
        }
        before.push(frame);
    }
}

#[tokio::test]
async fn a_stranger_is_refused_and_does_not_learn_the_name() {
    let scene = Scene::set();
    let stranger = RawPeer::dial(&scene.agent).await;
    let mut link = stranger.link_with_hello().await;
    assert_eq!(assert_pong(&mut link, 1).await, [], "the agent does not introduce itself");
    let error = refusal(asked(&stranger, &ask(5000)).await).await;
    assert_eq!(error.code, ErrorCode::Refused);
    assert_eq!(error.message, format!("{} is not allowed to scrape here", stranger.peer));
    let exposed = Ask { exposed: "node".into(), ..ask(5000) };
    assert_eq!(refusal(asked(&stranger, &exposed).await).await, error, "nor does it learn what is exposed");
    assert_eq!(scene.failed("refused"), 2.0);

    let gateway = RawPeer::dial_as(&scene.agent, &scene.permitted).await;
    let mut link = gateway.link_with_hello().await;
    let said = assert_pong(&mut link, 1).await;
    let [ResponseFrame { id: 0, body: Some(ResponseBody::Introduction(introduction)) }] = said.as_slice() else {
        panic!("{said:?}")
    };
    assert_eq!(introduction.name, "secret-name");
    scene.assert_well().await;
}

#[tokio::test]
async fn a_malformed_request_ends_only_its_own_substream() {
    let scene = Scene::set();
    let gateway = RawPeer::dial_as(&scene.agent, &scene.permitted).await;
    let mut link = gateway.link_with_hello().await;
    let garbage = [&[100][..], &[0xff; 100]].concat();
    let too_long = [&[0x81, 0x10][..], &[0; 2049]].concat();
    for (bytes, failed) in [(garbage, 1.0), (vec![0x80; 64], 2.0), (too_long, 3.0)] {
        assert_eq!(answered(said(&gateway, &bytes).await).await, b"");
        eventually("it is counted", || scene.failed("malformed") == failed);
    }
    // An invalid Accept never becomes a header of a request to an exporter.
    for accept in ["x".repeat(1025), "text/plain\r\nX-Evil: 1".into(), "\u{e4}".into()] {
        let error = refusal(asked(&gateway, &Ask { accept, ..ask(5000) }).await).await;
        assert_eq!(error.code, ErrorCode::Malformed);
    }
    assert_eq!(scene.failed("malformed"), 6.0);
    let error = refusal(asked(&gateway, &Ask { exposed: "no\r\n/../x".into(), ..ask(5000) }).await).await;
    assert_eq!(
        (error.code, error.message.as_str()),
        (ErrorCode::Unsupported, "this agent exposes no exporter with that name")
    );
    assert_pong(&mut link, 1).await;
    scene.assert_well().await;
}

#[tokio::test]
async fn a_flood_of_requests_is_limited_and_delays_nobody() {
    let scene = Scene::set();
    let gateway = RawPeer::dial_as(&scene.agent, &scene.permitted).await;
    let mut link = gateway.link_with_hello().await;
    // Substreams without a request hold their places.
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(gateway.open_protocol(SCRAPE).await);
    }
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(refusal(asked(&gateway, &ask(u64::MAX)).await).await.code);
    }
    assert_eq!(answers, [ErrorCode::Busy; 4]);
    assert_eq!(scene.failed("busy"), 4.0);
    drop(silent);
    // Once the agent answers again, it has noticed.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Some(HeadBody::Error(_)) = scraped(asked(&gateway, &ask(u64::MAX)).await).await.0.body {
        assert!(tokio::time::Instant::now() < deadline);
    }

    let before = memory(scene.agent.pid(), "VmRSS");
    let mut unread = Vec::new();
    for _ in 0..200 {
        let Some(mut stream) = gateway.try_open().await else { break };
        // Negotiation and request in one write; no answer is ever read.
        let mut bytes = b"\x13/multistream/1.0.0\n\x14/peerscope/scrape/1\n".to_vec();
        protocol::encode(&ask(u64::MAX), &mut bytes);
        if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
            break;
        }
        unread.push(stream);
    }
    assert!(unread.len() > 100);
    for id in 1..=10 {
        let answered = timeout(Duration::from_secs(1), assert_pong(&mut link, id)).await;
        assert!(answered.is_ok(), "messages on the same connection go on");
    }
    scene.assert_well().await;
    let more = memory(scene.agent.pid(), "VmRSS").saturating_sub(before);
    assert!(more < 32 << 20, "{} MiB more", more >> 20);
}

#[tokio::test]
async fn unread_pages_of_exporters_take_a_limited_number_of_places() {
    let exporter = super::exposed::exporter();
    let scene = Scene::with(&format!("expose: [{{name: node, url: \"http://{exporter}/huge\"}}]\n"));
    let want = Ask { exposed: "node".into(), ..ask(u64::MAX) };
    let connections = [
        RawPeer::dial_as(&scene.agent, &scene.permitted).await,
        RawPeer::dial_as(&scene.agent, &scene.permitted).await,
        RawPeer::dial_as(&scene.agent, &scene.permitted).await,
    ];
    let before = memory(scene.agent.pid(), "VmRSS");
    let mut unread = Vec::new();
    for connection in &connections[..2] {
        for _ in 0..8 {
            let mut stream = asked(connection, &want).await;
            // The page has begun, and gets no further than the window of the substream.
            timeout(PATIENCE, stream.read_exact(&mut [0; 10])).await.expect("a page in time").unwrap();
            unread.push(stream);
        }
    }
    let error = refusal(asked(&connections[2], &want).await).await;
    assert_eq!(
        (error.code, error.message.as_str()),
        (ErrorCode::Busy, "this agent is fetching from too many exporters; try again later")
    );
    let more = memory(scene.agent.pid(), "VmRSS").saturating_sub(before);
    assert!(more < 180 << 20, "{} MiB more", more >> 20);
    // The agent's own page and its messages do not need these places.
    let mut link = connections[0].link_with_hello().await;
    assert_pong(&mut link, 1).await;
    scene.assert_well().await;
    drop(unread);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Some(HeadBody::Error(_)) = scraped(asked(&connections[2], &want).await).await.0.body {
        assert!(tokio::time::Instant::now() < deadline, "the places come back");
    }
}

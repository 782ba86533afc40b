//! Nothing that a stranger sends becomes a new series, and libp2p's own families are correct.

use std::collections::BTreeSet;

use futures::AsyncWriteExt as _;
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use peerscope::network::RequestError;
use prost::Message as _;

use super::fixture::{Agent, config, eventually, pair, ping};
use crate::support::raw_peer::RawPeer;

/// The names and labels of all series, without their values.
fn series(agent: &Agent) -> BTreeSet<String> {
    let text = agent.exposition();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

/// The Identify message (libp2p specs, "identify", section "The Identify Message").
#[derive(Clone, PartialEq, prost::Message)]
struct Identify {
    #[prost(bytes = "vec", optional, tag = "1")]
    public_key: Option<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    listen_addrs: Vec<Vec<u8>>,
    #[prost(string, repeated, tag = "3")]
    protocols: Vec<String>,
    #[prost(bytes = "vec", optional, tag = "4")]
    observed_addr: Option<Vec<u8>>,
    #[prost(string, optional, tag = "5")]
    protocol_version: Option<String>,
    #[prost(string, optional, tag = "6")]
    agent_version: Option<String>,
}

const PUSH: &str = "/ipfs/id/push/1.0.0";
const KAD: &str = "/peerscope/kad/1";

async fn push(raw: &RawPeer, message: &Identify) {
    let mut stream = raw.open_protocol(PUSH).await;
    stream.write_all(&message.encode_length_delimited_to_vec()).await.unwrap();
    stream.close().await.unwrap();
}

/// Answers the agent's identify request. Before that, the agent accepts no push.
async fn identify(raw: &mut RawPeer, message: &Identify) {
    let mut stream = raw.accept("/ipfs/id/1.0.0").await;
    stream.write_all(&message.encode_length_delimited_to_vec()).await.unwrap();
    stream.close().await.unwrap();
}

fn address(text: &str) -> Vec<u8> {
    text.parse::<Multiaddr>().unwrap().to_vec()
}

/// What a well-behaved stranger with this key would send.
fn plain(key: &Keypair, listen: Vec<Vec<u8>>) -> Identify {
    Identify {
        public_key: Some(key.public().encode_protobuf()),
        listen_addrs: listen,
        protocols: vec![KAD.into(), "/ipfs/ping/1.0.0".into()],
        observed_addr: Some(address("/ip4/127.0.0.1/tcp/1")),
        protocol_version: Some("/peerscope/1".into()),
        agent_version: Some("stranger".into()),
    }
}

#[tokio::test]
async fn nothing_that_a_stranger_says_of_itself_creates_a_series() {
    let agent = Agent::start(config()).await;
    let key = Keypair::generate_ed25519();
    let mut raw = RawPeer::dial_as(&agent, &key).await;
    let received = || agent.value("libp2p_identify_received_total", &[]);
    // All unusual stacks count as one, without a name. This creates its series.
    let mut first = plain(&key, vec![address("/ip4/127.0.0.1/tcp/1"), address("/ip6/::1/udp/1/quic-v1")]);
    first.observed_addr = Some(address("/memory/1"));
    identify(&mut raw, &first).await;
    eventually("it is received", || async { received() >= 1.0 }).await;
    let before = series(&agent);
    let bytes_before = agent.exposition().len();

    for round in 1..=60u32 {
        // Stacks that no agent has, of any depth. A transport would even dial some of them.
        let odd = |i: u32| match i % 4 {
            0 => format!("/ip4/127.0.0.1{}", "/tcp/1".repeat(1 + (round + i) as usize % 12)),
            1 => format!("/memory/{i}{}", "/ws".repeat(round as usize % 20)),
            2 => format!("/dns4/x{round}/tcp/1{}", format!("/p2p/{}", raw.peer).repeat(3 + i as usize % 3)),
            _ => format!("/ip6/::1/udp/1{}", "/quic".repeat(1 + (round * i) as usize % 9)),
        };
        let mut message = plain(&key, (0..10).map(|i| address(&odd(i))).collect());
        message.protocols.extend((0..40).map(|i| format!("/invented/{round}/{i}")));
        message.observed_addr = Some(address(&odd(round | 1)));
        message.protocol_version = Some(format!("version-{round}"));
        message.agent_version = Some(format!("agent-{round}\n\"}}"));
        assert!(message.encoded_len() < 4096, "identify reads no more");
        let seen = received();
        push(&raw, &message).await;
        eventually("the push is received", || async { received() > seen }).await;
    }
    let new: Vec<_> = series(&agent).difference(&before).cloned().collect();
    assert_eq!(new, Vec::<String>::new());
    // Values may get more digits; nothing else may grow.
    let grown = agent.exposition().len().abs_diff(bytes_before);
    assert!(grown < 2000, "the exposition grew by {grown} bytes");
    let listed = agent.network.peers().await;
    let agent_version = listed[0].agent.as_deref().unwrap();
    assert!(agent_version.starts_with("agent-60") && !agent_version.contains('\n'), "{agent_version:?}");
}

/// libp2p's TCP transport ignores how often an address repeats its PeerId, and the stack of a dialed address becomes a
/// label value. A peer that spread such addresses and let itself be dialed used to create one series for each depth.
#[tokio::test]
async fn an_odd_address_that_works_creates_no_series_when_it_is_dialed() {
    let agent = Agent::start(config()).await;
    let key = Keypair::generate_ed25519();
    let peer: PeerId = key.public().to_peer_id();
    let (listening, mut dialed) = RawPeer::listen(key.clone()).await;
    let mut raw = RawPeer::dial_as(&agent, &key).await;
    let odd = format!("{listening}/p2p/{peer}/p2p/{peer}");
    identify(&mut raw, &plain(&key, vec![address(&odd)])).await;
    eventually("it is received", || async { agent.value("libp2p_identify_received_total", &[]) >= 1.0 }).await;
    drop(raw);
    agent.connected(0).await;
    let before = series(&agent);
    let error = agent.ping(peer).await.unwrap_err();
    assert!(matches!(error, RequestError::Unreachable { .. }), "{error}");
    assert!(dialed.try_recv().is_err(), "it was not dialed");
    let minted = series(&agent).difference(&before).find(|series| series.contains("protocols")).cloned();
    assert_eq!(minted, None);

    // Its usual address is dialed.
    let mut raw = RawPeer::dial_as(&agent, &key).await;
    identify(&mut raw, &plain(&key, vec![address(&listening.to_string())])).await;
    eventually("it is received", || async { agent.value("libp2p_identify_received_total", &[]) >= 2.0 }).await;
    drop(raw);
    agent.connected(0).await;
    let listener = tokio::spawn(async move {
        let mut connection = dialed.recv().await.unwrap();
        connection.refuse_all();
        connection.closed().await;
    });
    let error = agent.ping(peer).await.unwrap_err();
    assert!(matches!(error, RequestError::Unsupported(_)), "{error}");
    listener.abort();
    let stacks: Vec<_> =
        series(&agent).difference(&before).filter(|series| series.contains("/p2p/p2p")).cloned().collect();
    assert_eq!(stacks, Vec::<String>::new());
}

#[tokio::test]
async fn libp2p_counts_connections_and_bytes() {
    let (server, client) = pair().await;
    let established =
        |agent: &Agent, role| agent.sum(&format!("libp2p_swarm_connections_established_total{{role=\"{role}\""));
    assert_eq!((established(&client, "Dialer"), established(&client, "Listener")), (1.0, 0.0));
    assert_eq!((established(&server, "Dialer"), established(&server, "Listener")), (0.0, 1.0));
    let bytes = |agent: &Agent, direction: &str| {
        let text = agent.exposition();
        let line = text
            .lines()
            .find(|line| line.starts_with("libp2p_bandwidth_bytes_total{") && line.to_lowercase().contains(direction));
        line.unwrap_or_else(|| panic!("no bandwidth in {text}")).rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let before = (bytes(&client, "outbound"), bytes(&server, "inbound"), bytes(&client, "inbound"));
    client.network.request(server.peer, ping(&[0; 100_000])).await.unwrap();
    let after = (bytes(&client, "outbound"), bytes(&server, "inbound"), bytes(&client, "inbound"));
    for (before, after) in [(before.0, after.0), (before.1, after.1), (before.2, after.2)] {
        let moved = after - before;
        assert!((100_000.0..130_000.0).contains(&moved), "100 kB there and back moved the counter by {moved}");
    }
    for family in ["libp2p_swarm_connections_established", "libp2p_identify_", "libp2p_kad_"] {
        assert!(client.exposition().contains(family), "{family}");
    }
}

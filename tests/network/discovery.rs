//! Peers that were never configured: found through others, or not at all.

use std::time::Duration;

use libp2p::PeerId;
use peerscope::network::{Config, RequestError};
use tokio::time::Instant;

use super::fixture::{Agent, config, eventually, joining, pong};

#[tokio::test]
async fn a_third_peer_is_reached_through_the_second() {
    let middle = Agent::start(config()).await;
    let far = Agent::start(joining(&middle)).await;
    middle.connected(1).await;
    let near = Agent::start(joining(&middle)).await;
    eventually("the far peer answers", || async { near.ping(far.peer).await.is_ok() }).await;
    assert_eq!(far.ping(near.peer).await.unwrap(), pong(b"x"), "and the near one");
    let peers = near.network.peers().await;
    assert!(peers.iter().any(|peer| peer.peer == far.peer && peer.address.to_string().contains("127.0.0.1")));
    assert!(far.value("messages_received_total", &[("type", "ping")]) >= 1.0);
}

#[tokio::test]
async fn an_unknown_peer_is_unreachable_at_once() {
    let agent = Agent::start(config()).await;
    let asked = Instant::now();
    let error = agent.ping(PeerId::random()).await.unwrap_err();
    assert!(matches!(&error, RequestError::Unreachable { reason, .. } if reason.contains("no address")), "{error}");
    assert!(asked.elapsed() < Duration::from_secs(1));
    assert_eq!(agent.value("messages_send_failures_total", &[("type", "ping"), ("reason", "unreachable")]), 1.0);
}

#[tokio::test]
async fn a_known_peer_that_is_down_is_unreachable_with_the_reason() {
    let agent = Agent::start(config()).await;
    let gone = Agent::start(config()).await;
    let bootstrap = vec![gone.as_bootstrap()];
    let peer = gone.peer;
    gone.stop().await;
    let other = Agent::start(Config { bootstrap, ..config() }).await;
    let asked = Instant::now();
    let error = other.ping(peer).await.unwrap_err();
    assert!(matches!(&error, RequestError::Unreachable { reason, .. } if reason.contains("refused")), "{error}");
    assert!(asked.elapsed() < Duration::from_secs(2));
    assert_eq!(agent.peers_connected(), 0.0);
}

/// Only in a build with the cargo feature `quic`.
#[cfg(feature = "quic")]
#[tokio::test]
async fn two_agents_connect_over_quic() {
    let quic = || Config { listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()], ..config() };
    let (first, second) = super::fixture::pair_of(quic(), quic()).await;
    assert!(first.address().to_string().ends_with("/quic-v1"), "{}", first.address());
    assert_eq!(first.ping(second.peer).await.unwrap(), pong(b"x"));
    let large = vec![1; super::fixture::MAX_PAYLOAD];
    assert_eq!(second.network.request(first.peer, super::fixture::ping(&large)).await.unwrap(), pong(&large));
    assert!(second.network.peers().await[0].address.to_string().contains("/quic-v1"));
}

//! Connections between peers: simultaneous dials, peers that leave and come back, and the limits.

use std::time::Duration;

use libp2p::identity::Keypair;
use peerscope::network::{BootstrapAddr, Config, NetworkError};

use super::fixture::{Agent, MAX_PAYLOAD, config, eventually, joining, pair, pong};
use crate::support::port::ReservedPort;
use crate::support::raw_peer::RawPeer;

/// Two agents dial each other at the same time. There may be two connections, but always one peer, and each can send
/// requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simultaneous_dials_always_end_connected() {
    let mut crossed = 0;
    for round in 0..25 {
        let keys = [Keypair::generate_ed25519(), Keypair::generate_ed25519()];
        // Each needs to know the other's port before that one listens.
        let ports = [ReservedPort::new(), ReservedPort::new()];
        let one = |own: usize, other: usize| {
            let mut config = config();
            config.listen = vec![format!("/ip4/127.0.0.1/tcp/{}", ports[own].number()).parse().unwrap()];
            let address = format!("/ip4/127.0.0.1/tcp/{}", ports[other].number()).parse().unwrap();
            config.bootstrap = vec![BootstrapAddr { peer: keys[other].public().to_peer_id(), address }];
            Agent::try_start(config, MAX_PAYLOAD, keys[own].clone())
        };
        let (first, second) = tokio::join!(one(0, 1), one(1, 0));
        let (first, second) = (first.unwrap(), second.unwrap());
        first.connected(1).await;
        second.connected(1).await;
        for _ in 0..5 {
            assert_eq!(first.ping(second.peer).await.unwrap(), pong(b"x"), "round {round}");
            assert_eq!(second.ping(first.peer).await.unwrap(), pong(b"x"), "round {round}");
        }
        assert_eq!((first.peers_connected(), second.peers_connected()), (1.0, 1.0));
        let connections = first.network.peers().await[0].connections;
        assert!((1..=4).contains(&connections), "{connections}");
        crossed += usize::from(connections > 1);
        tokio::join!(first.stop(), second.stop());
    }
    println!("{crossed} of 25 rounds ended with two connections");
}

#[tokio::test]
async fn a_peer_stays_connected_when_one_of_two_connections_closes() {
    let agent = Agent::start(config()).await;
    let key = Keypair::generate_ed25519();
    let first = RawPeer::dial_as(&agent, &key).await;
    let mut kept = first.link_with_hello().await;
    let second = RawPeer::dial_as(&agent, &key).await;
    let _link = second.link_with_hello().await;
    let connections = || async { agent.network.peers().await.first().map_or(0, |peer| peer.connections) };
    eventually("two connections", || async { connections().await == 2 }).await;
    assert_eq!(agent.peers_connected(), 1.0);
    drop(second);
    eventually("one connection", || async { connections().await == 1 }).await;
    assert_eq!(agent.peers_connected(), 1.0);
    kept.send(&crate::support::raw_peer::request(1, Some(peerscope::network::protocol::RequestBody::Ping("x".into()))))
        .await;
    assert_eq!(kept.answer().await.unwrap().id, 1);
    drop((kept, first));
    agent.connected(0).await;
}

/// Otherwise a machine that was restarted would be locked out until its old connections are found dead.
#[tokio::test]
async fn a_fifth_connection_of_a_peer_replaces_the_oldest() {
    let agent = Agent::start(config()).await;
    let key = Keypair::generate_ed25519();
    let mut connections = Vec::new();
    for count in 1..=5 {
        connections.push(RawPeer::dial_as(&agent, &key).await);
        eventually("accepted", || async {
            agent.network.peers().await.first().is_some_and(|peer| peer.connections == count.min(4))
        })
        .await;
    }
    connections[0].closed().await;
    assert_eq!(agent.network.peers().await[0].connections, 4);
    assert!(connections[1..].iter().all(|connection| !connection.is_closed()));
}

#[tokio::test]
async fn a_bootstrap_peer_that_is_down_is_connected_when_it_starts() {
    let (port, key) = (ReservedPort::new(), Keypair::generate_ed25519());
    let address = format!("/ip4/127.0.0.1/tcp/{}", port.number());
    let peer = key.public().to_peer_id();
    let bootstrap = vec![BootstrapAddr { peer, address: address.parse().unwrap() }];
    let agent = Agent::start(Config { bootstrap, ..config() }).await;
    let dials = || agent.sum("libp2p_swarm_outgoing_connection_error_total{");
    eventually("a second attempt", || async { dials() >= 2.0 }).await;
    assert_eq!(agent.peers_connected(), 0.0);
    for _ in 0..2 {
        let mut there = config();
        there.listen = vec![address.parse().unwrap()];
        let other = Agent::try_start(there, MAX_PAYLOAD, key.clone()).await.unwrap();
        agent.connected(1).await;
        assert_eq!(agent.ping(peer).await.unwrap(), pong(b"x"));
        other.crash().await;
        agent.connected(0).await;
    }
    // There is a growing wait between attempts: at least 0.125 s, doubling each time.
    assert!(dials() < 30.0, "{} attempts", dials());
}

#[tokio::test]
async fn a_third_peer_is_refused_if_two_are_allowed() {
    let agent = Agent::start(Config { max_peers: 2, ..config() }).await;
    let first = Agent::start(joining(&agent)).await;
    let second = Agent::start(joining(&agent)).await;
    // They may find each other through the agent; only their connections to the agent count.
    agent.connected(2).await;
    let refused = || agent.sum("libp2p_swarm_connections_incoming_error_total{");
    assert_eq!(refused(), 0.0);
    let mut third = RawPeer::dial(&agent).await;
    third.closed().await;
    assert_eq!(refused(), 1.0);
    for peer in [&first, &second] {
        assert_eq!(peer.ping(agent.peer).await.unwrap(), pong(b"x"));
        assert_eq!(agent.ping(peer.peer).await.unwrap(), pong(b"x"));
    }
    assert_eq!(agent.peers_connected(), 2.0);
    // When one leaves, there is room again.
    first.stop().await;
    agent.connected(1).await;
    let _fourth = RawPeer::dial(&agent).await;
    eventually("the fourth is let in", || async { agent.peers_connected() == 2.0 }).await;
}

/// Anyone may connect. Strangers used to be able to take every place and shut out the peers that the operator named.
#[tokio::test]
async fn strangers_cannot_take_the_place_of_a_named_peer() {
    let key = Keypair::generate_ed25519();
    let configured = Agent::try_start(config(), MAX_PAYLOAD, key.clone()).await.unwrap();
    let port = configured.port();
    let named = configured.as_bootstrap();
    configured.stop().await;
    let agent = Agent::start(Config { max_peers: 1, bootstrap: vec![named], ..config() }).await;
    let _stranger = RawPeer::dial(&agent).await;
    eventually("a stranger has the place", || async { agent.peers_connected() == 1.0 }).await;
    let mut another = RawPeer::dial(&agent).await;
    another.closed().await;
    let listen = vec![format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()];
    let configured = Agent::try_start(Config { listen, ..config() }, MAX_PAYLOAD, key).await.unwrap();
    eventually("there is one more", || async { agent.peers_connected() == 2.0 }).await;
    assert_eq!(agent.ping(configured.peer).await.unwrap(), pong(b"x"));
}

#[tokio::test]
async fn the_error_for_an_address_in_use_names_it() {
    let (first, _second) = pair().await;
    let mut config = config();
    config.listen = vec![format!("/ip4/127.0.0.1/tcp/{}", first.port()).parse().unwrap()];
    let error = Agent::try_start(config, MAX_PAYLOAD, Keypair::generate_ed25519()).await.err().unwrap();
    assert!(matches!(&error, NetworkError::Listen { address, .. } if *address == first.address()), "{error}");
    assert!(error.to_string().contains("in use"), "{error}");
}

#[tokio::test]
async fn an_agent_that_stops_disconnects_at_once() {
    let (server, client) = pair().await;
    let stopped = tokio::time::Instant::now();
    server.stop().await;
    client.connected(0).await;
    assert!(stopped.elapsed() < Duration::from_secs(2), "{:?}", stopped.elapsed());
}

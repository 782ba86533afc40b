//! Why a bootstrap peer is not connected, as `peerscope peers`, the status, the metrics and the log tell it.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use futures::AsyncWriteExt as _;
use libp2p::identity::Keypair;
use serde_json::Value;

use crate::support::agent::{TestAgent, eventually, own_address, within_or};
use crate::support::apart;
#[cfg(feature = "metrics-prometheus")]
use crate::support::metrics::value;
use crate::support::raw_peer::RawPeer;

/// How it stands with this bootstrap peer.
fn contact(agent: &TestAgent, peer: &str) -> Value {
    let peers = agent.cli(&["peers", "--json"]).json();
    let peer = peers.as_array().unwrap().iter().find(|found| found["peer_id"] == peer);
    peer.map(|peer| peer["contact"].clone()).unwrap_or_default()
}

/// Waits until the agent says this about a peer, everywhere.
#[track_caller]
fn await_state(agent: &TestAgent, peer: &str, state: &str, words: &str) {
    let seen = || contact(agent, peer);
    within_or(
        std::time::Duration::from_secs(30),
        || format!("{state}: {}", seen()),
        || seen()["state"] == state && seen()["problem"].as_str().is_some_and(|problem| problem.contains(words)),
    );
    let advice = seen()["advice"].as_str().unwrap().to_owned();
    assert!(!advice.is_empty());
    let (peers, status) = (agent.cli(&["peers"]).text(), agent.cli(&["status"]).text());
    for text in [&peers, &status] {
        assert!(
            text.lines().any(|line| line.contains(peer) && line.contains(state) && line.contains(&advice)),
            "{text}"
        );
    }
    #[cfg(feature = "metrics-prometheus")]
    assert!(value(&agent.scrape(), "agent_bootstrap_peers", &[("state", state)]) >= 1.0);
    let line = agent.await_log(&format!("state=\"{state}\""));
    assert!(line.contains(peer) && line.contains(&advice), "{line}");
}

/// An agent whose only bootstrap peer is `peer` at this address.
fn joining(address: std::net::SocketAddr, peer: &str) -> TestAgent {
    joining_with(TestAgent::prepare(), address, peer)
}

fn joining_with(agent: TestAgent, address: std::net::SocketAddr, peer: &str) -> TestAgent {
    agent.flag("--bootstrap").flag(&format!("/ip4/{}/tcp/{}/p2p/{peer}", address.ip(), address.port())).started()
}

#[test]
fn nothing_listens_there_until_it_does_and_then_it_leaves() {
    let mut peer = TestAgent::start();
    let id = peer.peer_id();
    assert!(peer.stop().success());
    let agent = joining(peer.peer_socket(), &id);
    await_state(&agent, &id, "refused", "Connection refused");
    peer.restart();
    eventually("it is connected", || contact(&agent, &id)["state"] == "connected");
    assert_eq!(contact(&agent, &id)["problem"], Value::Null);
    assert!(agent.cli(&["status"]).text().contains("bootstrap  1 of 1 connected\n"));
    #[cfg(feature = "metrics-prometheus")]
    for (state, count) in [("connected", 1.0), ("refused", 0.0)] {
        assert_eq!(value(&agent.scrape(), "agent_bootstrap_peers", &[("state", state)]), count);
    }
    assert!(peer.stop().success());
    eventually("it is gone", || matches!(contact(&agent, &id)["state"].as_str(), Some("lost" | "refused")));
}

#[test]
fn the_peer_has_a_new_key() {
    let mut peer = TestAgent::start();
    let before = peer.peer_id();
    let agent = joining(peer.peer_socket(), &before);
    eventually("it is connected", || contact(&agent, &before)["state"] == "connected");
    assert!(peer.stop().success());
    std::fs::remove_file(peer.data_dir().join("identity.key")).unwrap();
    peer.restart();
    let now = peer.peer_id();
    await_state(&agent, &before, "wrong_identity", &format!("the peer there is {now}"));
}

#[test]
fn the_peer_is_full_or_does_not_allow_this_agent() {
    let guest = TestAgent::start();
    let full = TestAgent::prepare().configured("network: {max_peers: 1}\n").bootstrap(&guest).started();
    let closed =
        TestAgent::prepare().configured(&format!("network: {{allow_peers: [{}]}}\n", guest.peer_id())).started();
    eventually("its only place is taken", || full.status()["peers_connected"] == 1);
    for (peer, reason) in [(full, "full"), (closed, "not_allowed")] {
        let agent = joining(peer.peer_socket(), &peer.peer_id());
        await_state(&agent, &peer.peer_id(), "turned_away", "");
        // Every attempt connects first, and that is not logged each time.
        std::thread::sleep(std::time::Duration::from_secs(2));
        let flaps = agent.log().iter().filter(|line| line.contains("Peer connected")).count();
        assert!(flaps <= 1, "{:?}", agent.log());
        // The other side says it, too, at once and then once a minute.
        let line = peer.await_log("Peers' connections are refused");
        assert!(line.contains(&format!("1 {reason}; among them {}", agent.peer_id())), "{line}");
        let refused = peer.log().iter().filter(|line| line.contains("are refused")).count();
        assert_eq!(refused, 1, "{:?}", peer.log());
        #[cfg(feature = "metrics-prometheus")]
        assert!(value(&peer.scrape(), "agent_connections_refused_total", &[("reason", reason)]) >= 2.0);
    }
}

/// Strangers have taken every place; who is named in the access rules has one all the same.
#[test]
fn a_peer_with_an_access_rule_has_a_place() {
    let (stranger, mut named) = (TestAgent::start(), TestAgent::start());
    assert!(named.stop().success());
    let config = format!("network: {{max_peers: 1}}\naccess: [{{peer: {}, allow: [get]}}]\n", named.peer_id());
    let full = TestAgent::prepare().configured(&config).bootstrap(&stranger).started();
    eventually("its only place is taken", || full.status()["peers_connected"] == 1);
    let named = named.bootstrap(&full).started();
    eventually("both are connected", || full.status()["peers_connected"] == 2);
    assert_eq!(contact(&named, &full.peer_id())["state"], "connected");
}

#[test]
fn one_side_has_another_key_of_a_private_network_or_none() {
    let key = |agent: &TestAgent, digit: char| {
        let file = agent.home().join("swarm.key");
        let text = format!("/key/swarm/psk/1.0.0/\n/base16/\n{}\n", digit.to_string().repeat(64));
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        format!("network: {{psk_file: {}}}\n", file.display())
    };
    let prepare = |digit: Option<char>| {
        let agent = TestAgent::prepare();
        let config = digit.map_or_else(|| "{}\n".to_owned(), |digit| key(&agent, digit));
        agent.configured(&config)
    };
    for (theirs, ours) in [(Some('1'), Some('2')), (Some('1'), None), (None, Some('2'))] {
        let peer = prepare(theirs).started();
        let agent = joining_with(prepare(ours), peer.peer_socket(), &peer.peer_id());
        await_state(&agent, &peer.peer_id(), "no_common_language", "");
    }
}

#[test]
fn something_else_listens_there() {
    let listener = TcpListener::bind((own_address(), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _asked = stream.read(&mut [0; 1024]);
            let _gone = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let id = TestAgent::start().peer_id();
    await_state(&joining(address, &id), &id, "no_common_language", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_speaks_libp2p_but_not_this_protocol() {
    for (protocol, state) in [("/ipfs/kad/1.0.0", "not_peerscope"), ("/peerscope/link/9", "other_version")] {
        let key = Keypair::generate_ed25519();
        let id = key.public().to_peer_id().to_string();
        // What the other program says about itself: its `publicKey` and one of its `protocols`, and how long that is.
        let public = key.public().encode_protobuf();
        let mut identity = [&[0x0a, u8::try_from(public.len()).unwrap()], &*public].concat();
        identity.extend([0x1a, u8::try_from(protocol.len()).unwrap()]);
        identity.extend(protocol.as_bytes());
        identity.insert(0, u8::try_from(identity.len()).unwrap());
        let (listening, mut dialed) = RawPeer::listen(key).await;
        tokio::spawn(async move {
            let mut connections = Vec::new();
            while let Some(mut peer) = dialed.recv().await {
                let identity = identity.clone();
                peer.serve_all(&["/ipfs/id/1.0.0"], move |offer| {
                    let identity = identity.clone();
                    async move {
                        let mut stream = offer.accept().await;
                        let _gone = stream.write_all(&identity).await;
                        let _gone = stream.close().await;
                    }
                });
                connections.push(peer);
            }
        });
        let asking = move || {
            let agent = TestAgent::prepare().flag("--bootstrap").flag(&format!("{listening}/p2p/{id}")).started();
            await_state(&agent, &id, state, "");
        };
        tokio::task::spawn_blocking(asking).await.unwrap();
    }
}

#[test]
fn there_is_no_route_or_no_name() {
    apart::run("--net", "agent::contact::there_is_no_route_or_no_name", || {
        assert!(std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let id = TestAgent::start().peer_id();
        let address = ("203.0.113.9".parse::<std::net::Ipv4Addr>().unwrap(), 4001).into();
        await_state(&joining(address, &id), &id, "no_route", "Network is unreachable");
        let agent = TestAgent::prepare().flag("--bootstrap").flag(&format!("/dns4/gateway.invalid/tcp/1/p2p/{id}"));
        await_state(&agent.started(), &id, "name_not_found", "gateway.invalid was not found");
    });
}

//! Peers come and go: each agent reports how many are connected, and finds the others again by itself.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::agent::{TestAgent, eventually, within};
use crate::support::metrics::value;

fn connected(agent: &TestAgent) -> f64 {
    value(&agent.scrape(), "agent_peers_connected", &[])
}

/// Two agents; the first is the second's bootstrap peer, and they connect within two seconds.
fn pair() -> (TestAgent, TestAgent) {
    let first = TestAgent::start();
    assert_eq!(connected(&first), 0.0);
    let second = TestAgent::prepare().bootstrap(&first).started();
    within(Duration::from_secs(2), "both are connected", || connected(&first) == 1.0 && connected(&second) == 1.0);
    (first, second)
}

#[test]
fn a_dialed_agent_that_stops_and_comes_back_is_found_again() {
    let (mut first, second) = pair();
    let id = first.peer_id();
    for kill in [false, true] {
        if kill {
            first.kill()
        } else {
            assert_eq!(first.stop().code(), Some(0))
        }
        within(Duration::from_secs(2), "the second one is alone", || connected(&second) == 0.0);
        assert_eq!(second.status()["peers_connected"], 0);
        let peers = second.cli(&["peers"]).text();
        assert!(peers.starts_with("no peers are connected\n\nNOT CONNECTED") && peers.contains(&id), "{peers}");

        first.restart();
        assert_eq!(first.peer_id(), id);
        eventually("they are connected again", || connected(&first) == 1.0 && connected(&second) == 1.0);
        assert_eq!(second.status()["peers_connected"], 1);
    }
}

#[test]
fn a_dialing_agent_that_stops_and_comes_back_connects_again() {
    let (first, mut second) = pair();
    for kill in [false, true] {
        if kill {
            second.kill()
        } else {
            assert_eq!(second.stop().code(), Some(0))
        }
        within(Duration::from_secs(2), "the first one is alone", || connected(&first) == 0.0);
        second.restart();
        within(Duration::from_secs(2), "connected again", || connected(&first) == 1.0 && connected(&second) == 1.0);
    }
}

/// A process that hangs closes no connection, so only its silence shows it.
#[test]
fn a_frozen_peer_is_noticed_and_found_again() {
    let (first, second) = pair();
    // The one that dialed asks for a sign of life first, so the other one needs patience of its own.
    for (frozen, other) in [(&first, &second), (&second, &first)] {
        frozen.signal(Signal::STOP);
        within(Duration::from_secs(25), "the silence is noticed", || connected(other) == 0.0);
        frozen.signal(Signal::CONT);
        eventually("they are connected again", || connected(&first) == 1.0 && connected(&second) == 1.0);
    }
}

#[test]
fn both_sides_list_the_peer_that_they_are_connected_to() {
    let (first, second) = pair();
    eventually("both know each other's software", || {
        [&first, &second].iter().all(|agent| agent.cli(&["peers", "--json"]).json()[0]["agent"].is_string())
    });
    let (here, there) = (first.cli(&["peers", "--json"]).json(), second.cli(&["peers", "--json"]).json());
    for (peers, other, direction) in [(&here, &second, "inbound"), (&there, &first, "outbound")] {
        assert_eq!(peers.as_array().unwrap().len(), 1, "{peers}");
        assert_eq!(peers[0]["peer_id"], other.peer_id().as_str());
        assert_eq!(peers[0]["direction"], direction);
        assert_eq!(peers[0]["agent"], concat!("peerscope/", env!("CARGO_PKG_VERSION")));
        assert_eq!(peers[0]["link"], true);
    }
    let dialed = there[0]["address"].as_str().unwrap();
    assert!(first.listen_address().starts_with(dialed), "{dialed}");
    let table = second.cli(&["peers"]).text();
    let line = table.lines().nth(1).unwrap();
    assert!(line.starts_with(&first.peer_id()) && line.contains("outbound") && line.ends_with(dialed), "{table}");
}

/// The bootstrap peer may start after the agent.
#[test]
fn the_order_in_which_peers_start_does_not_matter() {
    let mut first = TestAgent::start();
    let second = TestAgent::prepare().bootstrap(&first);
    assert!(first.stop().success());
    let second = second.started();
    assert_eq!(connected(&second), 0.0);
    assert_eq!(second.http("/ready").status, 200, "an agent without peers is ready");
    first.restart();
    eventually("they are connected", || connected(&first) == 1.0 && connected(&second) == 1.0);
}

//! The agent is killed at random times, again and again on one data directory.

use std::time::{Duration, Instant};

use rand::RngExt as _;

use super::load::{Load, assert_kept};
use crate::support::agent::{TestAgent, eventually};

const KILLS: usize = 50;

/// How long a start may take. The actual time is printed, and depends on the machine.
const START: Duration = Duration::from_secs(5);

#[test]
#[allow(clippy::print_stderr, reason = "what a start takes is worth knowing")]
fn no_kill_loses_an_acknowledged_put() {
    let mut rng = rand::rng();
    let mut agent = TestAgent::start();
    let id = agent.peer_id();
    let mut kept = Vec::new();
    let mut longest_start = Duration::ZERO;
    for round in 0..KILLS {
        let load = Load::start(&agent, round);
        // The first kills come when hardly anything has been written.
        load.await_acknowledged(rng.random_range(if round < 3 { 0..5 } else { 5..200 }));
        // A random time, not tied to anything that the process does.
        std::thread::sleep(Duration::from_micros(rng.random_range(0..3000)));
        agent.kill();
        let acknowledged = load.finish();
        // No lock of the killed process is in the way, and recovery is fast.
        let began = Instant::now();
        agent.restart();
        eventually("the agent is ready", || agent.control("GET", "/v1/status", b"").unwrap().json()["ready"] == true);
        longest_start = longest_start.max(began.elapsed());
        assert_kept(&agent, &acknowledged);
        kept.extend(acknowledged);
    }
    assert!(kept.len() > KILLS * 20, "only {} puts were acknowledged", kept.len());
    eprintln!("{} puts were acknowledged; the longest start of {KILLS} took {longest_start:?}", kept.len());
    assert!(longest_start < START, "{longest_start:?}");
    assert_kept(&agent, &kept);
    assert_eq!(agent.peer_id(), id);
    assert_eq!(agent.stop().code(), Some(0));
}

/// The files that a killed agent leaves behind do not keep the next one from starting.
#[test]
fn the_socket_and_the_lock_of_a_killed_agent_are_taken_over() {
    let mut agent = TestAgent::start();
    agent.kill();
    assert!(agent.control_socket().exists());
    let message = agent.cli(&["status"]).failed(69);
    assert!(message.starts_with("no agent is running on the data directory"), "{message}");
    agent.restart();
    assert_eq!(agent.status()["ready"], true);
}

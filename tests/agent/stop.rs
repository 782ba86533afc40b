//! SIGTERM: requests in flight finish, within bounds, and no acknowledged write is lost.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::load::{Load, assert_kept};
use crate::support::agent::TestAgent;
use crate::support::http;

/// How long the agent waits for requests in flight, and some slack for a busy machine.
const DRAIN: Duration = Duration::from_secs(10);
const SLACK: Duration = Duration::from_secs(5);

/// A client that has announced a value of five bytes, been told to continue, and sent two.
fn half_a_request(agent: &TestAgent, key: &str) -> UnixStream {
    let mut stream = agent.connect_control().unwrap();
    let head =
        format!("PUT /v1/keys/{key} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut goes_on = [0; 25];
    stream.read_exact(&mut goes_on).unwrap();
    assert_eq!(&goes_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"he").unwrap();
    stream
}

#[test]
fn requests_in_flight_finish_and_nothing_acknowledged_is_lost() {
    let mut agent = TestAgent::start();
    let mut kept = Vec::new();
    for (round, acknowledged) in [1, 100, 250].into_iter().enumerate() {
        let load = Load::start(&agent, round);
        load.await_acknowledged(acknowledged);
        assert_eq!(agent.stop().code(), Some(0));
        kept.extend(load.finish());
        assert!(!agent.control_socket().exists());
        agent.restart();
        assert_kept(&agent, &kept);
    }
}

#[test]
fn a_request_that_was_begun_is_answered_after_the_signal() {
    let mut agent = TestAgent::start();
    let mut begun = half_a_request(&agent, "begun");
    agent.signal(Signal::TERM);
    agent.await_log("SIGTERM: stopping");
    let asked = Instant::now();
    let message = agent.cli(&["get", "begun"]);
    assert_eq!(message.code, 69, "no new request is accepted: {message:?}");
    // Whoever connected just before the socket was closed is told at once, too.
    assert!(asked.elapsed() < SLACK, "{:?}", asked.elapsed());
    begun.write_all(b"llo").unwrap();
    assert_eq!(http::read_reply(begun).unwrap().status, 204);
    assert_eq!(agent.ended().code(), Some(0));

    agent.restart();
    assert_eq!(agent.cli(&["get", "begun"]).ok(), b"hello");
}

/// A slow client of the control socket once used up the ten seconds of the peers, too, whose new requests were accepted
/// in the meantime. Links drain from the beginning.
#[test]
fn new_requests_of_peers_are_refused_while_a_local_client_finishes() {
    let (mut agent, mut stopping) = super::data::pair();
    let target = stopping.peer_id();
    assert_eq!(agent.cli(&["put", "before", "x", "--peer", &target]).ok(), b"");
    let mut begun = half_a_request(&stopping, "begun");
    stopping.signal(Signal::TERM);
    stopping.await_log("SIGTERM: stopping");
    let since = Instant::now();
    let refused = loop {
        let answer = agent.cli(&["get", "before", "--peer", &target]);
        if answer.code != 0 {
            break answer.failed(1);
        }
        assert!(since.elapsed() < SLACK, "requests of peers are still accepted");
    };
    assert!(refused.contains("shutting down"), "{refused}");
    begun.write_all(b"llo").unwrap();
    assert_eq!(http::read_reply(begun).unwrap().status, 204);
    assert_eq!(stopping.ended().code(), Some(0));
    assert_eq!(agent.stop().code(), Some(0));
}

/// A client that is connected but has sent nothing has no request in flight.
#[test]
fn idle_clients_do_not_delay_the_stop() {
    let mut agent = TestAgent::start();
    let mut idle = agent.connect_control().unwrap();
    assert_eq!(agent.control("GET", "/v1/status", b"").unwrap().status, 200);
    let started = Instant::now();
    assert_eq!(agent.stop().code(), Some(0));
    assert!(started.elapsed() < SLACK, "{:?}", started.elapsed());
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_hanging_client_delays_the_stop_by_at_most_ten_seconds() {
    let mut agent = TestAgent::start();
    let hanging = half_a_request(&agent, "never");
    agent.cli(&["put", "key", "value"]).ok();
    let started = Instant::now();
    assert_eq!(agent.stop().code(), Some(0));
    assert!((DRAIN..DRAIN + SLACK).contains(&started.elapsed()), "{:?}", started.elapsed());
    drop(hanging);
    agent.restart();
    assert_eq!(agent.cli(&["get", "key"]).ok(), b"value");
    assert_eq!(agent.cli(&["get", "never"]).code, 1);
}

#[test]
fn a_second_signal_exits_at_once_but_an_echo_does_not() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::TERM)] {
        let mut agent = TestAgent::start();
        let _hanging = half_a_request(&agent, "never");
        agent.signal(first);
        agent.await_log(": stopping");
        // timeout(1) sends the signal twice.
        agent.signal(second);
        // A signal within 250 ms counts as an echo, so the next one has to come later.
        std::thread::sleep(Duration::from_millis(600));
        assert!(!agent.log().iter().any(|line| line.contains("exiting at once")), "{:#?}", agent.log());
        assert_eq!(agent.control("GET", "/v1/status", b"").unwrap_err().kind(), std::io::ErrorKind::NotFound);
        let again = Instant::now();
        agent.signal(second);
        agent.await_log("again: exiting at once");
        assert_eq!(agent.ended().code(), Some(1));
        assert!(again.elapsed() < SLACK, "{:?}", again.elapsed());
    }
}

#[test]
fn acknowledged_messages_of_peers_are_kept_as_well() {
    let mut second = TestAgent::start();
    let id = second.peer_id();
    let mut first = TestAgent::start_with(&format!("access: [{{peer: {id}, allow: [put]}}]\n"));
    assert!(second.stop().success());
    let second = second.bootstrap(&first).started();
    let peer = first.peer_id();
    second.cli(&["put", "linked", "yes", "--peer", &peer]).ok();

    // Through the second agent's control socket, so that every put crosses the network.
    let acknowledged = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let (acknowledged, second, peer) = (&acknowledged, &second, &peer);
        for writer in 0..8 {
            scope.spawn(move || {
                for i in 0.. {
                    let key = format!("{writer}-{i}");
                    let target = format!("/v1/keys/{key}?peer={peer}");
                    match second.control("PUT", &target, key.as_bytes()).unwrap().status {
                        204 => acknowledged.lock().unwrap().push(key),
                        _ => return,
                    }
                }
            });
        }
        crate::support::agent::eventually("puts are acknowledged", || acknowledged.lock().unwrap().len() > 50);
        assert_eq!(first.stop().code(), Some(0));
    });
    first.restart();
    for key in acknowledged.into_inner().unwrap() {
        let reply = first.control("GET", &format!("/v1/keys/{key}"), b"").unwrap();
        assert_eq!((reply.status, reply.body.as_slice()), (200, key.as_bytes()), "{key}");
    }
}

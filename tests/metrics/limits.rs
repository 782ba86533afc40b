//! Clients that are slow, silent, too many or too loud, and collectors that fail: none of them keeps the
//! endpoint from serving others.

use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use peerscope::metrics::Limits;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry as Others;

use super::fixture::{Client, Endpoint, PATIENCE, eventually};
use crate::support::metrics::value;

/// A collector that blocks until the gate opens.
#[derive(Debug, Clone, Default)]
struct Gate(Arc<(Mutex<(bool, usize)>, Condvar)>);

impl Gate {
    fn open(&self) {
        self.0.0.lock().unwrap().0 = true;
        self.0.1.notify_all();
    }

    fn wait_for_waiting(&self, count: usize) {
        let state = self.0.0.lock().unwrap();
        let (_state, timeout) = self.0.1.wait_timeout_while(state, PATIENCE, |(_, waiting)| *waiting < count).unwrap();
        assert!(!timeout.timed_out(), "fewer than {count} scrapes are waiting");
    }
}

impl Collector for Gate {
    fn encode(&self, _: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut state = self.0.0.lock().unwrap();
        state.1 += 1;
        self.0.1.notify_all();
        drop(self.0.1.wait_while(state, |(open, _)| !*open).unwrap());
        Ok(())
    }
}

#[test]
fn a_fifth_concurrent_scrape_is_rejected_and_the_other_pages_still_answer() {
    let gate = Gate::default();
    let endpoint = Endpoint::with(Limits::default(), |registry| registry.register_collector(Box::new(gate.clone())));
    let mut clients: Vec<_> = (0..4).map(|_| endpoint.connect()).collect();
    for client in &mut clients {
        client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    }
    gate.wait_for_waiting(4);

    let reply = endpoint.get("/metrics");
    assert_eq!(reply.status, 503);
    assert_eq!(reply.text(), "Limit of concurrent requests reached (4), try again later.\n");
    let asked = Instant::now();
    assert_eq!(endpoint.get("/live").status, 200);
    assert_eq!(endpoint.get("/ready").status, 200);
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());

    gate.open();
    for client in &mut clients {
        assert_eq!(client.reply(false).unwrap().status, 200);
    }
    let text = endpoint.scrape();
    assert_eq!(value(&text, "http_requests_total", &[("handler", "metrics"), ("code", "503")]), 1.0);
    assert_eq!(value(&text, "http_requests_total", &[("handler", "metrics"), ("code", "200")]), 4.0);
}

#[test]
fn a_client_that_disconnects_does_not_free_the_place_of_its_scrape() {
    let gate = Gate::default();
    let limits = Limits { scrapes: 1, ..Limits::default() };
    let endpoint = Endpoint::with(limits, |registry| registry.register_collector(Box::new(gate.clone())));
    let mut client = endpoint.connect();
    client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    gate.wait_for_waiting(1);
    drop(client);
    assert_eq!(endpoint.get("/metrics").status, 503, "its page is still being made");
    gate.open();
    eventually("the place is free again", || endpoint.get("/metrics").status == 200);
}

/// A collector that fails the first three times.
#[derive(Debug)]
struct Broken {
    panics: bool,
    asked: AtomicUsize,
}

impl Collector for Broken {
    fn encode(&self, _: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        if self.asked.fetch_add(1, Ordering::Relaxed) >= 3 {
            return Ok(());
        }
        assert!(!self.panics, "a defect in a collector, on purpose");
        Err(std::fmt::Error)
    }
}

#[test]
fn a_foreign_collector_that_panics_or_fails_costs_its_own_families_only() {
    for panics in [true, false] {
        let limits = Limits { scrapes: 1, ..Limits::default() };
        let endpoint = Endpoint::with(limits, |others| {
            others.register("lost_meanwhile", "In the same registry", Gauge::<i64>::default());
            others.register_collector(Box::new(Broken { panics, asked: AtomicUsize::new(0) }));
        });
        // Families can be added while the endpoint serves.
        let mut good = Others::default();
        good.register("good", "In another registry", Gauge::<i64>::default());
        endpoint.registry.add_foreign("good", good);
        let mut client = endpoint.connect();
        for asked in 0..4 {
            let reply = client.get("/metrics", &[]);
            assert_eq!(reply.status, 200);
            let text = reply.text();
            assert!(text.contains("\ngood 0\n") && text.contains("\nagent_peers_connected 0\n"), "{text}");
            assert_eq!(text.contains("\nlost_meanwhile 0\n"), asked == 3, "{text}");
            let failed = value(&text, "exposition_failed_registries", &[]);
            assert_eq!(failed, if asked == 3 { 0.0 } else { 1.0 });
        }
    }
}

#[test]
fn a_request_that_never_completes_is_cut_off() {
    let limits = Limits { head: Duration::from_millis(300), ..Limits::default() };
    let endpoint = Endpoint::with(limits, |_| ());
    let started = Instant::now();
    let mut silent = endpoint.connect();
    // Sending a byte now and then does not help.
    let mut dripping = endpoint.connect();
    let mut sent = 0;
    while dripping.send(b"G").is_ok() {
        assert!(started.elapsed() < PATIENCE, "it is still served after {sent} bytes");
        sent += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(silent.closed(), b"");
    assert!(started.elapsed() >= Duration::from_millis(300));
    // The same on a connection that has served a request.
    let mut client = endpoint.connect();
    assert_eq!(client.get("/live", &[]).status, 200);
    client.send(b"GET /metrics HTTP/1.1\r\nHost: te").unwrap();
    assert_eq!(client.closed(), b"");
}

#[test]
fn a_connection_may_be_idle_longer_than_a_head_may_take_but_not_for_ever() {
    let limits = Limits { head: Duration::from_millis(200), idle: Duration::from_secs(2), ..Limits::default() };
    let endpoint = Endpoint::with(limits, |_| ());
    let mut client = endpoint.connect();
    assert_eq!(client.get("/live", &[]).status, 200);
    // A scrape interval that is longer than the head's deadline: the same connection is used again.
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(client.get("/live", &[]).status, 200);
    let idle_since = Instant::now();
    assert_eq!(client.closed(), b"");
    let idle = idle_since.elapsed();
    assert!(idle >= Duration::from_millis(1900) && idle < PATIENCE, "{idle:?}");
}

/// A page that is larger than the socket's buffers.
pub(crate) fn register_wide(registry: &mut Others) {
    register_wide_as(registry, "wide");
}

fn register_wide_as(registry: &mut Others, name: &str) {
    let family = Family::<Vec<(&str, String)>, Gauge>::default();
    for row in 0..2_000 {
        let _ = family.get_or_create(&vec![("row", format!("{row:01000}"))]);
    }
    registry.register(name, "More than the socket's buffers hold", family);
}

#[test]
fn a_client_that_does_not_fetch_its_response_is_cut_off() {
    let limits = Limits { answer: Duration::from_millis(500), ..Limits::default() };
    let endpoint = Endpoint::with(limits, register_wide);
    let full = endpoint.scrape().len();
    assert!(full > 2_000_000);
    // Several requests at once, without reading a byte of the responses.
    let mut client = endpoint.connect();
    for _ in 0..8 {
        client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    }
    let stalled = Instant::now();
    // The server closes while most of the responses are still on its side.
    eventually("the server hangs up", || client.send(b"GET /live HTTP/1.1\r\n\r\n").is_err());
    assert!(stalled.elapsed() >= Duration::from_millis(450), "{:?}", stalled.elapsed());
    assert!(client.closed().len() < 8 * full);
    assert_eq!(endpoint.get("/live").status, 200);
}

#[test]
fn pipelined_responses_that_are_fetched_slowly_all_arrive() {
    let endpoint = Endpoint::with(Limits::default(), register_wide);
    let mut client = endpoint.connect();
    client.send(&b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(6)).unwrap();
    for _ in 0..6 {
        // Each one gets stuck in the socket before it is fetched.
        let reply = client.reply(false).unwrap();
        assert_eq!(reply.status, 200);
        assert!(reply.body.len() > 2_000_000);
    }
    assert_eq!(client.get("/live", &[]).status, 200);
}

/// Sends a request and reads the response at once.
fn asks(client: &mut Client) {
    assert_eq!(client.get("/live", &[]).status, 200);
}

#[test]
fn a_new_connection_takes_the_place_of_the_one_that_has_waited_longest_for_its_client() {
    let endpoint = Endpoint::with(Limits { connections: 3, ..Limits::default() }, |_| ());
    let mut clients: Vec<_> = (0..3).map(|_| endpoint.connect()).collect();
    clients.iter_mut().for_each(asks);
    // The first one is the oldest, but has just been useful again: it read a response.
    asks(&mut clients[0]);
    clients.push(endpoint.connect());
    asks(&mut clients[3]);
    assert_eq!(clients.remove(1).closed(), b"");
    // No other connection was closed.
    clients.iter_mut().for_each(asks);
    // While a place is free, none is closed at all.
    clients.remove(0);
    asks(&mut endpoint.connect());
    clients.iter_mut().for_each(asks);
}

#[test]
fn a_client_that_sends_its_request_byte_by_byte_does_not_keep_its_place() {
    let endpoint = Endpoint::with(Limits { connections: 2, ..Limits::default() }, |_| ());
    let (mut first, mut second) = (endpoint.connect(), endpoint.connect());
    asks(&mut first);
    asks(&mut second);
    for byte in b"GET /live HTTP/1.1\r\nHost: localhost\r\n" {
        first.send(&[*byte]).unwrap();
    }
    asks(&mut endpoint.connect());
    assert_eq!(first.closed(), b"");
    asks(&mut second);
}

#[test]
fn a_client_keeps_its_place_while_its_response_is_being_made() {
    let gate = Gate::default();
    let limits = Limits { connections: 2, ..Limits::default() };
    let endpoint = Endpoint::with(limits, |registry| registry.register_collector(Box::new(gate.clone())));
    let mut first = endpoint.connect();
    first.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    gate.wait_for_waiting(1);
    // It has been connected longer than any of these, but it is waiting for us.
    let mut second = endpoint.connect();
    asks(&mut second);
    asks(&mut endpoint.connect());
    assert_eq!(second.closed(), b"");
    let mut third = endpoint.connect();
    third.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    gate.wait_for_waiting(2);
    // Now both are being answered. Closing the new one tells it so; leaving it in the kernel's queue would not.
    assert_eq!(endpoint.connect().closed(), b"");
    gate.open();
    assert_eq!(first.reply(false).unwrap().status, 200);
    assert_eq!(third.reply(false).unwrap().status, 200);
}

#[test]
fn a_client_that_does_not_read_its_responses_does_not_keep_its_place() {
    let endpoint = Endpoint::with(Limits { connections: 2, ..Limits::default() }, register_wide);
    let full = endpoint.scrape().len();
    // When its first response gets stuck, its second request has been read and its third has not.
    let mut slow = endpoint.connect();
    for _ in 0..3 {
        slow.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    }
    let mut other = endpoint.connect();
    let answered = [("handler", "metrics"), ("code", "200")];
    eventually("its response is made", || {
        let text = other.get("/metrics", &[]).text();
        value(&text, "http_requests_in_flight", &[("handler", "metrics")]) == 1.0
            && value(&text, "http_requests_total", &answered) >= 2.0
    });
    asks(&mut endpoint.connect());
    assert!(slow.closed().len() < 3 * full);
    asks(&mut other);
}

#[test]
fn a_client_that_fetches_its_response_keeps_its_place() {
    let endpoint = Endpoint::with(Limits { connections: 2, ..Limits::default() }, |registry| {
        // A response of 12 MB: the socket's buffers hold half of that at most.
        (0..6).for_each(|number| register_wide_as(registry, &format!("wide_{number}")));
    });
    let mut fetching = endpoint.connect();
    fetching.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    fetching.begun();
    // The other client is waited for from now on; the fetching one reads more of its response after that.
    let mut other = endpoint.connect();
    asks(&mut other);
    assert_eq!(fetching.reply(false).unwrap().status, 200);
    asks(&mut endpoint.connect());
    assert_eq!(other.closed(), b"");
    asks(&mut fetching);
}

/// The order in which a runtime polls sockets must not matter: with new ones to accept all the time, it could
/// notice last a request that arrived long ago.
#[test]
fn a_request_sent_right_after_connecting_is_answered_however_many_clients_follow() {
    let endpoint = Endpoint::with(Limits { connections: 2, ..Limits::default() }, |_| ());
    let ask = |_| {
        let mut client = endpoint.connect();
        client.send(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        client
    };
    let clients: Vec<_> = (0..300).map(ask).collect();
    for (number, mut client) in clients.into_iter().enumerate() {
        assert_eq!(client.reply(false).map(|reply| reply.status), Some(200), "{number}");
    }
}

#[test]
fn a_collector_that_hangs_costs_its_client_a_bounded_wait() {
    let gate = Gate::default();
    let limits = Limits { scrapes: 1, making: Duration::from_millis(300), ..Limits::default() };
    let endpoint = Endpoint::with(limits, |registry| registry.register_collector(Box::new(gate.clone())));
    let mut client = endpoint.connect();
    let asked = Instant::now();
    // The bytes after the request must not keep the connection from noticing its deadline.
    client
        .send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\nGET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let reply = client.reply(false).unwrap();
    assert_eq!(reply.status, 503);
    assert_eq!(reply.text(), "The metrics page was not ready within 300ms: part of the agent is hanging.\n");
    assert!(asked.elapsed() >= Duration::from_millis(300) && asked.elapsed() < PATIENCE, "{:?}", asked.elapsed());
    assert_eq!(client.reply(false).unwrap().status, 200);
    // The page still has its thread and its place; the connection works as before.
    assert_eq!(client.get("/metrics", &[]).text(), "Limit of concurrent requests reached (1), try again later.\n");
    gate.open();
    eventually("the place is free again", || client.get("/metrics", &[]).status == 200);
    let refused = value(&endpoint.scrape(), "http_requests_total", &[("handler", "metrics"), ("code", "503")]);
    assert!(refused >= 2.0, "both refusals are counted: {refused}");
}

#[test]
fn an_incomplete_request_right_after_another_one_is_cut_off_too() {
    let limits = Limits { head: Duration::from_millis(300), ..Limits::default() };
    let endpoint = Endpoint::with(limits, |_| ());
    let mut client = endpoint.connect();
    client.send(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\nGET /li").unwrap();
    assert_eq!(client.reply(false).unwrap().status, 200);
    assert_eq!(client.closed(), b"");
}

#[test]
fn an_unexpected_body_does_not_hold_the_connection() {
    let limits = Limits { head: Duration::from_millis(300), ..Limits::default() };
    let endpoint = Endpoint::with(limits, |_| ());
    let mut client = endpoint.connect();
    client.send(b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nabc").unwrap();
    assert_eq!(client.reply(false).unwrap().status, 405);
    assert_eq!(client.closed(), b"");
}

#[test]
fn clients_that_disconnect_early_do_no_harm() {
    let endpoint = Endpoint::start();
    for _ in 0..200 {
        let stream = std::net::TcpStream::connect(endpoint.addr()).unwrap();
        let _ = stream.shutdown(Shutdown::Both);
    }
    eventually("their places are free again", || {
        let mut client = Client::connect(endpoint.addr());
        client.send(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n").is_ok() && client.reply(false).is_some()
    });
}

//! Floods: thousands of connections that only take up places, and descriptors that run out.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use peerscope::metrics::Limits;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

use super::fixture::Endpoint;
use super::limits::register_wide;
use crate::support::agent::{PATIENCE, TestAgent, connect, eventually};
use crate::support::http;
use crate::support::metrics::value;

/// A kind of flood: its name, the number of connections, what each does once connected, and whether it stays open.
type Kind = (&'static str, usize, fn(&mut TcpStream, usize) -> std::io::Result<()>, bool);

const KINDS: &[Kind] = &[
    ("silent", 2_000, |_, _| Ok(()), true),
    ("slow to write", 1_000, |stream, _| stream.write_all(b"GET /metrics HTTP/1.1\r\nHo"), true),
    ("slow to read", 200, slow_to_read, true),
    (
        "not reading",
        500,
        |stream, _| stream.write_all(&b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(50)),
        true,
    ),
    ("noise", 1_000, |stream, round| stream.write_all(&(round * 0x9e37_79b9).to_le_bytes().repeat(40)), false),
];

/// Reads one byte of a page and no more.
fn slow_to_read(stream: &mut TcpStream, _: usize) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    stream.read_exact(&mut [0])
}

/// The clients of a flood need descriptors of this process.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

fn descriptors(agent: &TestAgent) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count()
}

/// Opens all connections of one kind and keeps those that stay.
fn flood(address: SocketAddr, kind: Kind, opened: &AtomicUsize) -> Vec<TcpStream> {
    let (name, connections, act, stays) = kind;
    let mut streams = Vec::new();
    for round in 0..connections {
        let mut stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("{name}, {round}: {error}"));
        // It may have lost its place already.
        let _ = act(&mut stream, round);
        opened.fetch_add(1, Ordering::Relaxed);
        if stays {
            streams.push(stream);
        }
        // One more byte on an earlier connection, as from a slow writer.
        if let Some(early) = streams.get_mut(round / 2) {
            let _ = early.write(b"s");
        }
    }
    streams
}

#[test]
fn a_scrape_is_answered_while_thousands_of_connections_come_and_stay() {
    raise_descriptor_limit();
    let agent = TestAgent::start();
    agent.scrape();
    let before = descriptors(&agent);
    let (address, opened) = (agent.metrics_socket(), &AtomicUsize::new(0));
    let all: usize = KINDS.iter().map(|kind| kind.1).sum();
    let (mut scrapes, mut lost, mut slowest, mut most) = (0, 0, Duration::ZERO, 0.0_f64);
    std::thread::scope(|scope| {
        let floods: Vec<_> = KINDS.iter().map(|kind| scope.spawn(move || flood(address, *kind, opened))).collect();
        while opened.load(Ordering::Relaxed) < all && floods.iter().any(|flood| !flood.is_finished()) {
            scrapes += 1;
            let asked = Instant::now();
            let reply = http::exchange(connect(address).unwrap(), "GET", "/metrics", b"");
            slowest = slowest.max(asked.elapsed());
            match reply {
                Ok(reply) => most = most.max(value(&reply.text(), "process_open_fds", &[])),
                // The scheduler paused this thread between connecting and sending, and meanwhile as many others
                // connected as there are places: to the agent it was silent. The next scrape tries again.
                Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                    lost += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        let staying: Vec<_> = floods.into_iter().flat_map(|flood| flood.join().unwrap()).collect();
        assert_eq!((opened.load(Ordering::Relaxed), staying.len()), (all, all - 1_000));
        // All of them are still connected, as far as they know.
        agent.scrape();
        assert_eq!(agent.http("/live").status, 200);
    });
    assert!(scrapes >= 20 && lost <= scrapes / 20, "{lost} of {scrapes} lost");
    // Prometheus gives up after 10 s.
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    // One for each place, one for the connection that is about to get one, and those that a scrape opens to count them.
    #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
    let bound = (before + Limits::default().connections + 4) as f64;
    assert!(most <= bound, "{most} descriptors, {before} before");
    eventually("the descriptors are closed", || descriptors(&agent) <= before);
    agent.scrape();
}

#[test]
fn idle_connections_are_closed_when_the_agent_runs_out_of_descriptors() {
    let agent = TestAgent::start();
    agent.scrape();
    let pid = Pid::from_raw(agent.pid().try_into().unwrap()).unwrap();
    let few = u32::try_from(descriptors(&agent)).unwrap() + 10;
    let limit = getrlimit(Resource::Nofile);
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(few.into()), ..limit }).unwrap();
    // Fewer than there are places, but more than there are descriptors.
    let idle: Vec<_> = (0..50).map(|_| TcpStream::connect(agent.metrics_socket()).unwrap()).collect();
    for _ in 0..20 {
        let text = agent.scrape();
        assert!(value(&text, "process_open_fds", &[]) <= f64::from(few));
    }
    let said = |agent: &TestAgent| agent.log().iter().filter(|line| line.contains("cannot accept connections")).count();
    assert_eq!(said(&agent), 1, "{:#?}", agent.log());
    drop(idle);
    agent.scrape();
}

/// The kernel keeps the unsent bytes of a closed socket for minutes if the client does not read: responses to clients
/// that connect, send a request and are disconnected would pile up there.
#[test]
fn the_kernel_does_not_keep_responses_to_clients_that_were_disconnected() {
    let limits = Limits { connections: 1, answer: Duration::from_secs(3), ..Limits::default() };
    let endpoint = Endpoint::with(limits, register_wide);
    let mut client = TcpStream::connect(endpoint.addr()).unwrap();
    client.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let own = client.local_addr().unwrap();
    eventually("the response has filled the buffers", || unsent(endpoint.addr(), own).is_some_and(|bytes| bytes > 0));
    assert_eq!(endpoint.get("/live").status, 200, "another client gets its place");
    assert!(unsent(endpoint.addr(), own).is_some_and(|bytes| bytes > 0), "the kernel still tries");
    eventually("the bytes are gone", || unsent(endpoint.addr(), own).is_none());
}

/// How many bytes the kernel still has to send from one address to the other; `None` without a connection.
fn unsent(from: SocketAddr, to: SocketAddr) -> Option<u64> {
    let (from, to) = (hexadecimal(from), hexadecimal(to));
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let mut rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row.get(1) == Some(&from.as_str()) && row.get(2) == Some(&to.as_str()))?;
    Some(u64::from_str_radix(row[4].split(':').next().unwrap(), 16).unwrap())
}

/// An address as `/proc/net/tcp` writes it.
fn hexadecimal(address: SocketAddr) -> String {
    let std::net::IpAddr::V4(ip) = address.ip() else { panic!("{address} is not an IPv4 address") };
    format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port())
}

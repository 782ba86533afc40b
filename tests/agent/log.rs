//! A log that nobody reads or that cannot be written costs log lines and nothing else.

use std::fs::File;
use std::io::Read as _;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode};
use rustix::process::Signal;

use super::store::{STOP, get, put};
use crate::support::agent::{PATIENCE, TestAgent, eventually, free_port};
use crate::support::metrics::value;

/// A running agent whose standard error goes to `out`.
fn logging_to(out: &str) -> TestAgent {
    let script = format!("exec \"$0\" \"$@\" 2>{out}");
    let mut agent = TestAgent::prepare().behind(["sh", "-c", &script].map(str::to_owned).to_vec());
    let port = free_port(agent.address());
    agent = agent.on_metrics_port(port).flag("--log-level").flag("info,libp2p_swarm=debug,libp2p_tcp=debug");
    agent.spawn();
    eventually("the agent is up", || is_up(&agent));
    agent.await_store();
    agent
}

pub(crate) fn is_up(agent: &TestAgent) -> bool {
    agent.control("GET", "/v1/status", b"").is_ok_and(|reply| reply.status == 200)
}

/// Where peers reach an agent whose log the test cannot read.
fn listen_address(agent: &TestAgent) -> String {
    let status = agent.control("GET", "/v1/status", b"").unwrap().json();
    status["listen"][0].as_str().unwrap().to_owned()
}

/// Asserts that the agent works in every respect.
fn assert_well(agent: &TestAgent) {
    let status = agent.control("GET", "/v1/status", b"").unwrap().json();
    assert_eq!(status["ready"], true, "{status}");
    assert_eq!(put(agent, "key", b"value").status, 204);
    assert_eq!(get(agent, "key").unwrap(), b"value");
    assert_eq!(agent.http("/ready").status, 200);
}

/// Asserts that a peer can connect, which logs a line.
fn assert_peers_can_come(agent: &TestAgent) {
    let mut peer = TestAgent::prepare().flag("--bootstrap").flag(&listen_address(agent)).started();
    let id = agent.peer_id();
    eventually("they are connected", || peer.cli(&["get", "key", "--peer", &id]).code != 69);
    eventually("both know it", || {
        agent.control("GET", "/v1/status", b"").unwrap().json()["peers_connected"].as_u64() == Some(1)
    });
    assert_eq!(peer.stop().code(), Some(0));
}

/// A named pipe that holds one page, and its reading end.
pub(crate) fn pipe(at: &Path) -> File {
    rustix::fs::mknodat(rustix::fs::CWD, at, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    // Also for writing, so that opening it does not wait for the agent.
    let pipe = File::options().read(true).write(true).open(at).unwrap();
    rustix::pipe::fcntl_setpipe_size(&pipe, 4096).unwrap();
    pipe
}

/// Fills the pipe with strangers that come and go, each of which logs a line at `debug`.
fn fill(agent: &TestAgent, pipe: &File) {
    let address = listen_address(agent);
    let port = address.split('/').nth(4).unwrap().parse().unwrap();
    eventually("the pipe is full", || {
        drop(TcpStream::connect((agent.address(), port)));
        // A line that does not fit waits.
        rustix::io::ioctl_fionread(pipe).unwrap() > 4096 - 400
    });
    // More lines, so that some are queued behind the one that waits.
    for _ in 0..50 {
        drop(TcpStream::connect((agent.address(), port)));
    }
}

#[test]
fn an_agent_whose_log_cannot_be_written_goes_on() {
    let mut agent = logging_to("/dev/full");
    assert_well(&agent);
    assert_peers_can_come(&agent);
    assert_well(&agent);
    assert!(value(&agent.scrape(), "log_lines_dropped_total", &[]) > 0.0);
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn an_agent_whose_log_has_lost_its_reader_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("log");
    let reader = pipe(&fifo);
    let mut agent = logging_to(fifo.to_str().unwrap());
    drop(reader);
    assert_peers_can_come(&agent);
    assert_well(&agent);
    assert!(value(&agent.scrape(), "log_lines_dropped_total", &[]) > 0.0);
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn an_agent_whose_log_nobody_reads_goes_on_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("log");
    let mut reader = pipe(&fifo);
    let mut agent = logging_to(fifo.to_str().unwrap());
    fill(&agent, &reader);
    assert_well(&agent);
    assert_peers_can_come(&agent);
    assert_eq!(agent.cli(&["status"]).code, 0);

    // Once the log is read again, nothing is missing.
    let text = std::thread::spawn(move || {
        let mut text = String::new();
        let mut page = [0; 4096];
        while !text.contains("stopping; requests in flight may finish") {
            let read = reader.read(&mut page).unwrap();
            text.push_str(std::str::from_utf8(&page[..read]).unwrap());
        }
        (text, reader)
    });
    agent.signal(Signal::TERM);
    let (text, _reader) = text.join().unwrap();
    assert!(!text.contains("missing here"), "{text}");
    assert!(text.contains("PeerId 12D3"), "{text}");
    // The agent also ends with unread lines in its log.
    assert_eq!(agent.ended().code(), Some(0));

    let mut agent = logging_to(fifo.to_str().unwrap());
    fill(&agent, &_reader);
    let began = Instant::now();
    assert_eq!(agent.stop().code(), Some(0));
    assert!(began.elapsed() < STOP, "{:?}", began.elapsed());
}

/// The runtime waits for a file that never comes. The first signal asks it to stop, the second one ends it.
#[test]
fn a_second_signal_ends_an_agent_that_hangs() {
    let folder = tempfile::tempdir().unwrap();
    let never = folder.path().join("never");
    rustix::fs::mknodat(rustix::fs::CWD, &never, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let config = format!(
        "storage: {{ backend: redis, redis: {{ urls: ['rediss://127.0.0.1:1'], ca_file: {} }} }}",
        never.display()
    );
    let mut agent = TestAgent::prepare().configured(&config).flag("--log-level").flag("info");
    agent.spawn();
    agent.await_log("PeerId 12D3");
    agent.signal(Signal::TERM);
    // Late enough not to count as an echo, even on a busy machine.
    std::thread::sleep(Duration::from_secs(1));
    agent.signal(Signal::TERM);
    agent.await_log("SIGTERM again: exiting at once");
    let began = Instant::now();
    assert_eq!(agent.ended().code(), Some(1));
    assert!(began.elapsed() < PATIENCE);
}

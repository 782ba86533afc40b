//! What the agent tells systemd (`sd_notify(3)`). The fixture is the other end of the socket.

use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::agent::{Process, TestAgent, connect, eventually, free_port};

/// READY=1 promises that everything listens. This test connects as soon as it reads the notification, so it would
/// notice a listener that is opened later.
#[test]
fn ready_means_that_every_listener_is_open() {
    let mut agent = TestAgent::prepare();
    let metrics = free_port(agent.address());
    agent = agent.on_metrics_port(metrics);
    agent.spawn();
    assert_eq!(agent.notification(), "READY=1");
    let (control, endpoint) = (agent.connect_control(), connect(agent.metrics_socket()));
    control.unwrap();
    assert_eq!(endpoint.is_ok(), cfg!(feature = "metrics-prometheus"));
    let line = agent.await_log("Listening for peers on ");
    let port = line.split("/tcp/").nth(1).unwrap().split('/').next().unwrap().parse().unwrap();
    connect((agent.address(), port).into()).unwrap();

    agent.signal(Signal::TERM);
    // On a slow disk a status about the store comes first.
    let mut said = agent.notification();
    while said.starts_with("STATUS=") {
        said = agent.notification();
    }
    assert_eq!(said, "STOPPING=1");
    assert_eq!(agent.ended().code(), Some(0));
}

#[test]
fn an_agent_that_cannot_start_is_never_ready() {
    let agent = TestAgent::prepare();
    let taken = TcpListener::bind((agent.address(), 0)).unwrap();
    let listen = format!("/ip4/{}/tcp/{}", agent.address(), taken.local_addr().unwrap().port());
    let command = agent.command(&["run", "--metrics-port", "0", "--listen", &listen]);
    let process = Process::spawn(command, &agent.home().join("notify.sock"));
    let message = process.log.await_line("peerscope: ");
    assert!(
        message.contains(&format!(
            "cannot listen for peers on {listen} (network.listen, --listen): Address already in use"
        )),
        "{message}"
    );
    assert!(!process.has_notified());
    assert_eq!(process.ended(Duration::from_secs(10)).code(), Some(1));
}

/// The supervisor hangs, or stops reading after `READY=1`. The socket holds about ten messages, and the next one
/// blocks. That must not block a thread that peers and callers need.
#[test]
fn a_supervisor_that_does_not_read_blocks_nothing() {
    let mut agent = TestAgent::start();
    let socket = UnixDatagram::unbound().unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.send_to(b"STATUS=of somebody else", agent.home().join("notify.sock")).is_ok() {}
    let (store, away) = (agent.data_dir().join("store.redb"), agent.home().join("away"));
    let is_ready = |agent: &TestAgent| agent.control("GET", "/v1/status", b"").unwrap().json()["ready"] == true;
    // Each change is reported with a message, within a second.
    std::fs::rename(&store, &away).unwrap();
    eventually("the store is missed", || !is_ready(&agent));
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        assert!(!is_ready(&agent));
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::rename(&away, &store).unwrap();
    eventually("the store is found", || is_ready(&agent));
    assert_eq!(agent.stop().code(), Some(0));
}

//! What the agent tells systemd (`sd_notify(3)`): the fixture is the other end of the socket.

use std::net::TcpListener;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::agent::{Process, TestAgent, connect, free_port};

/// READY=1 is a promise that everything listens: what comes up after it would be found missing here, since
/// the notification is on its way before the first line of this test.
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
    assert_eq!(agent.notification(), "STOPPING=1");
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

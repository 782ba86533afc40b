//! The first start of a new user: no configuration, no files, the default ports.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::agent::{PATIENCE, Process, TestAgent, connect, eventually, peerscope};
use crate::support::http::{self, Reply};
use crate::support::metrics::value;

const ENDPOINT: &str = "127.0.0.1:8080";

/// Locks the two default ports for this test. No other test uses them, but those of another checkout may run on the
/// same machine.
fn default_ports() -> File {
    let path = std::env::temp_dir().join("peerscope-test-default-ports.lock");
    let lock = File::options().create(true).write(true).truncate(false).open(path).unwrap();
    lock.lock().unwrap();
    for address in [(Ipv4Addr::UNSPECIFIED, 4001), (Ipv4Addr::LOCALHOST, 8080)] {
        let what = format!(
            "{address:?} is free, because this test needs the default ports (stop the program that listens there)"
        );
        eventually(&what, || TcpListener::bind(address).is_ok());
    }
    lock
}

fn start(home: &Path) -> Process {
    let mut command = peerscope();
    command.arg("run").current_dir(home.join("cwd")).env("HOME", home).env("XDG_STATE_HOME", home.join("state"));
    Process::spawn(command, &home.join("notify.sock"))
}

fn stop(process: Process) {
    kill_process(Pid::from_child(&process.child), Signal::TERM).unwrap();
    assert_eq!(process.ended(PATIENCE).code(), Some(0));
}

fn get(path: &str) -> std::io::Result<Reply> {
    http::exchange(connect(ENDPOINT.parse().unwrap())?, "GET", path, b"")
}

/// The message of a log line, after its time and level.
fn message(line: &str) -> &str {
    let (_, message) = line.split_once("  INFO ").unwrap_or_else(|| panic!("{line}"));
    message
}

#[test]
fn without_any_configuration_the_agent_runs_and_can_be_scraped() {
    let ports = default_ports();
    let home = tempfile::Builder::new().prefix("ps").tempdir().unwrap();
    std::fs::create_dir(home.path().join("cwd")).unwrap();

    let started = Instant::now();
    let process = start(home.path());
    let mut first = None;
    eventually("the first scrape", || {
        first = get("/metrics").ok();
        first.is_some()
    });
    println!("from the start to the first scrape: {:?}", started.elapsed());
    let reply = first.unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = reply.text();
    assert!(value(&text, "process_cpu_usage", &[]) >= 0.0);
    assert!((1e6..1e9).contains(&value(&text, "process_memory_bytes", &[])), "{text}");
    assert_eq!(value(&text, "agent_peers_connected", &[]), 0.0);

    process.log.await_line("Metrics at");
    let lines = process.log.lines();
    assert_eq!(lines.len(), 4, "these four lines and nothing else: {lines:#?}");
    let peer_id = message(&lines[0]).strip_prefix("PeerId ").unwrap().split(' ').next().unwrap().to_owned();
    assert!(peer_id.starts_with("12D3KooW"), "{peer_id}");
    let listening = message(&lines[1]).strip_prefix("Listening for peers on ").unwrap();
    let local = format!("/ip4/127.0.0.1/tcp/4001/p2p/{peer_id}");
    assert!(listening.split(", ").any(|address| address == local), "{listening}");
    let store = home.path().join("state/peerscope/store.redb");
    assert_eq!(message(&lines[2]), format!("Store local {}", store.display()));
    assert_eq!(message(&lines[3]), format!("Metrics at http://{ENDPOINT}/metrics"));

    // Everything that it stores is in one directory, for its owner only.
    let mode = |path: &str| std::fs::metadata(home.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("state/peerscope"), 0o700);
    assert_eq!(mode("state/peerscope/identity.key"), 0o600);
    assert_eq!(mode("state/peerscope/control.sock"), 0o600);
    assert_eq!(std::fs::read_dir(home.path().join("cwd")).unwrap().count(), 0, "nothing in the working directory");

    assert_eq!(get("/live").unwrap().status, 200);
    eventually("it is ready", || {
        get("/ready").unwrap().text() == "ready\nstorage: ready\nnetwork: ready\nmetrics: ready\nruntime: ready\n"
    });
    assert!(get("/").unwrap().text().contains(&peer_id));
    stop(process);

    // After a restart it is the same agent.
    let process = start(home.path());
    let line = process.log.await_line("PeerId ");
    assert_eq!(message(&line).split(' ').nth(1), Some(peer_id.as_str()));
    process.log.await_line("Metrics at");
    stop(process);
    drop(ports);
}

/// Most systems start a process with a soft limit that is too low for the default number of peers.
#[test]
fn the_limit_of_open_files_is_raised_as_far_as_possible() {
    let limits = |agent: &TestAgent| {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", agent.pid())).unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        let mut numbers = line.split_whitespace().map(|number| number.parse::<f64>().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    };
    let agent =
        TestAgent::prepare().after("ulimit -n 4096 && ulimit -Sn 256").flag("--log-level=peerscope=debug").started();
    agent.await_log("Limit on open files raised from 256 to 4096");
    assert_eq!(limits(&agent), (4096.0, 4096.0));
    assert_eq!(value(&agent.scrape(), "process_max_fds", &[]), 4096.0);
    assert!(!agent.log().iter().any(|line| line.contains("WARN")), "{:#?}", agent.log());

    // The agent does not try to raise the hard limit, which takes root. It warns the operator.
    let agent = TestAgent::prepare().after("ulimit -n 256").started();
    assert_eq!(value(&agent.scrape(), "process_max_fds", &[]), 256.0);
    let warnings: Vec<_> = agent.log().into_iter().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    let expected = "the limit on open files is 256, but network.max_peers 1024 may need 2816: raise it with \
                    LimitNOFILE=2816 in the systemd unit or with `ulimit -n 2816`, or lower network.max_peers";
    assert!(warnings[0].ends_with(expected), "{}", warnings[0]);
    let few = TestAgent::prepare().configured("network: {max_peers: 1}\n").after("ulimit -n 770").started();
    assert!(!few.log().iter().any(|line| line.contains("WARN")), "{:#?}", few.log());
}

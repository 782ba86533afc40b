//! Many failures at once.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::log::{is_up, pipe};
use super::store::put;
use crate::support::agent::{TestAgent, eventually};
use crate::support::disk::{self, Disk};
use crate::support::metrics::value;
use crate::support::redis::RedisServer;

/// How long a scraper or an operator waits at most.
const AT_ONCE: Duration = Duration::from_secs(2);

/// How long each of the two states is observed.
const A_WHILE: Duration = Duration::from_secs(4);

#[test]
fn a_full_disk_and_many_other_failures_at_once() {
    disk::story("agent::everything::a_full_disk_and_many_other_failures_at_once", || {
        let disk = Disk::new();
        let filler = disk.path().join("filler");
        let fill = |agent: &TestAgent| {
            let mut file = std::fs::File::create(&filler).unwrap();
            // Fills even the small gaps.
            for piece in [1 << 20, 4096] {
                while file.write_all(&vec![1; piece]).and_then(|()| file.sync_data()).is_ok() {}
            }
            eventually("the disk is full", || put(agent, "small", b"does not fit").status == 507);
        };
        let heal = || std::fs::remove_file(&filler).unwrap();
        everything_at_once(&disk.store_config(), "no space left on the disk", fill, heal);
    });
}

#[test]
fn an_unreachable_redis_and_many_other_failures_at_once() {
    let redis = std::cell::RefCell::new(RedisServer::start(&[]));
    let port = redis.borrow().port;
    let config =
        format!("storage: {{ backend: redis, redis: {{ urls: ['redis://127.0.0.1:{port}'], timeout: 300ms }} }}\n");
    let away = |_: &TestAgent| redis.borrow_mut().kill();
    let heal = || redis.borrow_mut().restart();
    everything_at_once(&config, "Redis at redis://127.0.0.1:", away, heal);
}

/// The backend fails, another program has the metrics port, nobody reads the log, there are only 100 descriptors, and
/// strangers flood the port for peers. The agent still answers, reports each cause, and recovers by itself.
fn everything_at_once(config: &str, cause: &str, break_backend: impl Fn(&TestAgent), heal_backend: impl Fn()) {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("log");
    let _nobody_reads = pipe(&fifo);
    let agent = TestAgent::prepare().configured(config).after("ulimit -n 100");
    let taken = TcpListener::bind((agent.address(), 0)).unwrap();
    let script = format!("exec \"$0\" \"$@\" 2>{}", fifo.display());
    let mut agent = agent
        .on_metrics_port(taken.local_addr().unwrap().port())
        .behind(["sh", "-c", &script].map(str::to_owned).to_vec())
        .flag("--log-level")
        .flag("info,libp2p_swarm=debug,libp2p_tcp=debug");
    agent.spawn();
    eventually("the agent is up", || is_up(&agent));
    let status = || agent.control("GET", "/v1/status", b"").unwrap().json();
    let port = status()["listen"][0].as_str().unwrap().split('/').nth(4).unwrap().parse().unwrap();
    let peers = SocketAddr::from((agent.address(), port));
    eventually("the backend is there", || put(&agent, "key", b"value").status == 204);
    break_backend(&agent);
    eventually("that is noticed", || status()["components"].to_string().contains(cause));

    let floods = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| flood(peers, &floods));
        // A failing assertion must not leave the flood running.
        let _ends = Ends(&floods);
        for_a_while(|| {
            let page = agent.control("GET", "/v1/metrics", b"").unwrap();
            assert_eq!(page.status, 200);
            assert_eq!(value(&page.text(), "agent_component_ready", &[("component", "storage")]), 0.0);
            let problems = status()["components"].to_string();
            for why in [cause, "is already in use by another program"] {
                assert!(problems.contains(why), "{why}: {problems}");
            }
        });
        drop(taken);
        eventually("the endpoint is there", || TcpStream::connect(agent.metrics_socket()).is_ok());
        for_a_while(|| {
            agent.scrape();
            let ready = agent.http("/ready");
            assert!(ready.status == 503 && ready.text().contains(cause), "{}", ready.text());
        });
        heal_backend();
        eventually("all is well again", || agent.http("/ready").status == 200);
        assert_eq!(put(&agent, "key", b"other").status, 204);
        assert!(value(&agent.scrape(), "process_open_fds", &[]) < 95.0);
    });
    assert_eq!(agent.stop().code(), Some(0));
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Checks again and again; no check may take long.
fn for_a_while(look: impl Fn()) {
    let began = Instant::now();
    while began.elapsed() < A_WHILE {
        let asked = Instant::now();
        look();
        assert!(asked.elapsed() < AT_ONCE, "answered after {:?}", asked.elapsed());
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// Opens a thousand connections a second, and keeps the last two hundred.
fn flood(peers: SocketAddr, goes_on: &AtomicBool) {
    let mut strangers = std::collections::VecDeque::new();
    while goes_on.load(Ordering::Relaxed) {
        // A connection that is not accepted does not count.
        strangers.extend(TcpStream::connect_timeout(&peers, Duration::from_millis(100)));
        if strangers.len() > 200 {
            strangers.pop_front();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

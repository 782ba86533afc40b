//! Two agents on one Redis behind a bad network, whose clients use their own agent's store and, through it, the peer's.
//! One register per key must be able to explain everything that the clients see.
//!
//! `HISTORY_SECONDS=3600` sets how long it runs.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use crate::support::agent::{TestAgent, eventually};
use crate::support::history::{self, Acknowledged, Kind, Operation};
use crate::support::http;
use crate::support::nat;
use crate::support::packets::{FAR, NEAR, Path};
use crate::support::redis::RedisServer;

const KEYS: u64 = 2;

/// An agent, and the writes that it acknowledged to its own clients.
struct Site {
    agent: RwLock<TestAgent>,
    /// How often it was killed plus how often it was restarted: odd while it is not running.
    life: AtomicU64,
    /// By life.
    writes: Mutex<HashMap<u64, Acknowledged>>,
}

/// Where a client sends its requests: to an agent, for its own store or for that of its peer.
#[derive(Clone, Copy)]
struct Door {
    site: usize,
    asks_peer: bool,
}

const DOORS: [Door; 5] = [
    Door { site: 0, asks_peer: false },
    Door { site: 0, asks_peer: false },
    Door { site: 1, asks_peer: false },
    Door { site: 0, asks_peer: true },
    Door { site: 1, asks_peer: true },
];

struct Run {
    began: Instant,
    sites: [Site; 2],
    peers: [String; 2],
    next_value: AtomicU64,
    stop: AtomicBool,
}

impl Run {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap()
    }

    /// Sends a request; returns the status and the body of the answer, if there was one.
    fn ask(&self, door: Door, method: &str, key: u64, body: &[u8]) -> Option<(u16, Vec<u8>)> {
        let peer = if door.asks_peer { format!("?peer={}", self.peers[1 - door.site]) } else { String::new() };
        // An agent is not killed while a client connects, but it may be before it answers.
        let connection = self.sites[door.site].agent.read().unwrap().connect_control().ok()?;
        let reply = http::exchange(connection, method, &format!("/v1/keys/register-{key}{peer}"), body).ok()?;
        Some((reply.status, reply.body))
    }

    /// Runs one operation; also returns the life of the agent in which it began.
    fn operation(&self, door: Door, key: u64, reads: bool) -> Option<(Operation, u64)> {
        let life = self.sites[door.site].life.load(Ordering::SeqCst);
        let begin = self.now();
        if reads {
            // A read that failed saw nothing.
            let (status, value) = self.ask(door, "GET", key, b"")?;
            assert_ne!(status, 404, "nobody removes register-{key}");
            if status != 200 {
                return None;
            }
            let value = std::str::from_utf8(&value).unwrap().parse().unwrap();
            return Some((Operation { key, begin, end: self.now(), kind: Kind::Read, value }, life));
        }
        let value = self.next_value.fetch_add(1, Ordering::Relaxed);
        let done = self.ask(door, "PUT", key, value.to_string().as_bytes()).is_some_and(|(status, _)| status == 204);
        let (end, kind) = (self.now(), if done { Kind::Write } else { Kind::FailedWrite });
        if done && !door.asks_peer {
            self.sites[door.site].writes.lock().unwrap().entry(life).or_default().push(begin, end);
        }
        Some((Operation { key, begin, end, kind, value }, life))
    }

    fn client(&self, door: Door) -> Vec<Operation> {
        let mut seen = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let key = rand::random_range(0..KEYS);
            seen.extend(self.operation(door, key, rand::random_bool(0.5)));
            // A few hundred operations a second are enough, and leave the machine to other tests.
            std::thread::sleep(Duration::from_millis(rand::random_range(1..8)));
        }
        let site = &self.sites[door.site];
        let writes = site.writes.lock().unwrap();
        let settle = |(mut operation, life): (Operation, u64)| {
            if operation.kind == Kind::FailedWrite {
                // The write is settled, done or never to be done, once its agent has acknowledged a later one. That
                // does not hold for a write on a peer, which may still have it, or if the agent was killed, since its
                // requests may still be on their way.
                let writes = writes.get(&life).filter(|_| !door.asks_peer && life % 2 == 0);
                operation.end = writes.map_or(u64::MAX, |writes| writes.settles(operation.end));
            }
            operation
        };
        seen.into_iter().map(settle).collect()
    }

    /// Kills an agent as a crash would, and starts it again.
    fn kill(&self, site: usize) {
        let site = &self.sites[site];
        site.life.fetch_add(1, Ordering::SeqCst);
        let mut agent = site.agent.write().unwrap();
        agent.kill();
        agent.restart();
        site.life.fetch_add(1, Ordering::SeqCst);
    }
}

/// Stops the clients when it is dropped, also by a panic, which would otherwise wait for them forever.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The source port of one of the agents' connections.
fn a_connection(server: &RedisServer) -> Option<u16> {
    let clients: String = server.command(&["CLIENT", "LIST"]);
    let from = format!(" addr={FAR}:");
    let ports: Vec<_> = clients.split(&from).skip(1).filter_map(|rest| rest.split(' ').next()).collect();
    ports.get(rand::random_range(0..ports.len().max(1)))?.parse().ok()
}

/// One thing goes wrong, for a while.
fn disturb(run: &Run, server: &mut RedisServer, path: &Path) {
    let while_it_lasts = || std::thread::sleep(Duration::from_millis(rand::random_range(100..900)));
    match rand::random_range(0..13) {
        0..4 => {
            path.storm(rand::random_range(1..300), rand::random_range(0..30), rand::random_range(0..30));
            while_it_lasts();
            path.calm();
        }
        // Only one of the connections is cut off, or delayed.
        4..6 => {
            if let Some(port) = a_connection(server) {
                let input = "type filter hook input priority filter";
                nat::rules(&format!("table ip dark {{\nchain in {{ {input}; tcp sport {port} drop; }}\n}}\n"));
                while_it_lasts();
                nat::rules("delete table ip dark\n");
            }
        }
        6..8 => {
            if let Some(port) = a_connection(server) {
                path.slow(port, rand::random_range(200..3_000));
                while_it_lasts();
                path.calm();
            }
        }
        8 => {
            server.freeze();
            while_it_lasts();
            server.thaw();
        }
        9 => drop(server.command::<redis::Value>(&["DEBUG", "SLEEP", "0.5"])),
        10 => drop(server.command::<redis::Value>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])),
        11 => {
            server.kill();
            server.restart();
        }
        _ => run.kill(rand::random_range(0..2)),
    }
    std::thread::sleep(Duration::from_millis(rand::random_range(50..500)));
}

fn history(server: &mut RedisServer, path: &Path) -> Vec<Operation> {
    let redis = format!("redis://{NEAR}:{}", server.port);
    let prepare = || TestAgent::prepare().behind(path.far());
    let configured = |agent: TestAgent, more: &str| {
        agent.configured(&format!(
            "storage: {{backend: redis, redis: {{urls: [\"{redis}\"], timeout: 200ms}}}}\n\
             access: [{{peer: '*', allow: [get, put]}}]\n{more}"
        ))
    };
    let first = configured(prepare(), "").started();
    let join = format!("network: {{bootstrap: [{}]}}\n", first.listen_address());
    let second = configured(prepare(), &join).started();
    let agents = [first, second];
    let peers = [0, 1].map(|site: usize| agents[site].peer_id());
    let sites =
        agents.map(|agent| Site { agent: RwLock::new(agent), life: AtomicU64::new(0), writes: Mutex::default() });
    let run = Run { began: Instant::now(), sites, peers, next_value: AtomicU64::new(1), stop: AtomicBool::new(false) };

    let mut seen: Vec<Operation> = Vec::new();
    for key in 0..KEYS {
        eventually("the first value", || {
            let (operation, _) = run.operation(DOORS[0], key, false).unwrap();
            let done = operation.kind == Kind::Write;
            let end = if done { operation.end } else { u64::MAX };
            seen.push(Operation { end, ..operation });
            done
        });
    }
    std::thread::scope(|scope| {
        let stopping = Stopping(&run.stop);
        let clients = DOORS.map(|door| {
            scope.spawn({
                let run = &run;
                move || run.client(door)
            })
        });
        while run.began.elapsed() < Duration::from_secs(history::seconds()) {
            disturb(&run, server, path);
        }
        for door in DOORS {
            eventually("all is well", || run.operation(door, 0, true).is_some());
        }
        drop(stopping);
        seen.extend(clients.into_iter().flat_map(|client| client.join().unwrap()));
    });
    seen.sort_by_key(|operation| operation.begin);
    seen
}

#[test]
fn clients_of_two_agents_behind_a_bad_network_see_a_linearizable_history() {
    nat::apart("agent::redis_history::clients_of_two_agents_behind_a_bad_network_see_a_linearizable_history", || {
        let path = Path::new();
        let [lo, near] = [Ipv4Addr::LOCALHOST, NEAR].map(|address| address.to_string());
        let mut server = RedisServer::start(&[
            "--bind",
            &lo,
            &near,
            "--protected-mode",
            "no",
            "--enable-debug-command",
            "yes",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
        ]);
        let seen = history(&mut server, &path);
        history::check(&seen);
    });
}

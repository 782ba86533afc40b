//! Two agents on one Redis, whose paths, processes and connections fail; everything that their clients saw has to be what
//! one register a key can explain.
//!
//! `HISTORY_SECONDS=3600` goes on for that long. A history that fails is printed; it can be kept in `tests/histories/`,
//! where it is judged again by name.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use peerscope::storage::{RedisConfig, Storage};
use tokio::task::JoinSet;

use super::redis::{Rig, config};
use crate::support::history::{self, Kind, Operation};
use crate::support::proxy::Proxy;
use crate::support::redis::{RedisServer, eventually};

const SECONDS: u64 = 20;
const KEYS: u64 = 2;
const CLIENTS: usize = 3;

/// What the clients share.
struct Run {
    began: Instant,
    next_value: AtomicU64,
    stop: AtomicBool,
}

impl Run {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap()
    }

    async fn operation(&self, storage: &Storage, agent: &Agent) -> Option<Operation> {
        let key = rand::random_range(0..KEYS);
        let name = Bytes::from(format!("register-{key}"));
        let begin = self.now();
        if rand::random_bool(0.5) {
            let value = self.next_value.fetch_add(1, Ordering::Relaxed);
            let done = storage.put(name, Bytes::from(value.to_string())).await;
            let end = self.now();
            let kind = if done.is_ok() { Kind::Write } else { Kind::FailedWrite };
            agent.lock().unwrap().push((begin, end, kind));
            return Some(Operation { key, begin, end, kind, value });
        }
        // A read that failed saw nothing.
        let found = storage.get(&name).await.ok()?;
        let value = std::str::from_utf8(&found.expect("nobody removes it")).unwrap().parse().unwrap();
        Some(Operation { key, begin, end: self.now(), kind: Kind::Read, value })
    }

    async fn client(self: Arc<Self>, storage: Storage, agent: Arc<Agent>) -> Vec<Operation> {
        let mut seen = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            seen.extend(self.operation(&storage, &agent).await);
            // Some hundred operations a second are enough, and leave the machine to others.
            tokio::time::sleep(Duration::from_millis(rand::random_range(1..8))).await;
        }
        // What failed was done, or never will be, when its agent has acknowledged something that was asked for later.
        let writes = agent.lock().unwrap();
        for failed in seen.iter_mut().filter(|operation| operation.kind == Kind::FailedWrite) {
            let later = |(begin, _, kind): &&(u64, u64, Kind)| *kind == Kind::Write && *begin > failed.end;
            failed.end = writes.iter().filter(later).map(|(_, end, _)| *end).min().unwrap_or(u64::MAX);
        }
        seen
    }
}

/// The writes of all clients of one agent: begin, end, and whether it was acknowledged.
type Agent = Mutex<Vec<(u64, u64, Kind)>>;

/// One thing goes wrong, for a while.
async fn disturb(server: &mut RedisServer, proxies: &[Proxy]) {
    let while_it_lasts = Duration::from_millis(rand::random_range(100..900));
    let proxy = &proxies[rand::random_range(0..proxies.len())];
    match rand::random_range(0..10) {
        // What was sent, or the answer to it, is on its way for longer than anybody waits for it.
        0..3 => {
            proxy.hold();
            tokio::time::sleep(while_it_lasts).await;
            proxy.open();
        }
        3..5 => {
            proxy.hold_answers();
            tokio::time::sleep(while_it_lasts).await;
            proxy.open();
        }
        5..7 => {
            server.freeze();
            tokio::time::sleep(while_it_lasts).await;
            server.thaw();
        }
        7..9 => drop(server.command::<redis::Value>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])),
        _ => {
            server.kill();
            server.restart();
        }
    }
    tokio::time::sleep(Duration::from_millis(rand::random_range(50..500))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_see_is_what_one_register_can_explain() {
    let seconds = std::env::var("HISTORY_SECONDS").map_or(SECONDS, |seconds| seconds.parse().unwrap());
    // What was acknowledged outlasts the process.
    let mut server = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (mut proxies, mut rigs) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let proxy = Proxy::to(server.port);
        let timeout = Duration::from_millis(200);
        rigs.push(Rig::open(RedisConfig { timeout, ..config(&[proxy.url()]) }).await.ready().await);
        proxies.push(proxy);
    }
    let (next_value, stop) = (AtomicU64::new(1), AtomicBool::new(false));
    let run = Arc::new(Run { began: Instant::now(), next_value, stop });
    let mut seen = Vec::new();
    for key in 0..KEYS {
        let (begin, value) = (run.now(), run.next_value.fetch_add(1, Ordering::Relaxed));
        let name = Bytes::from(format!("register-{key}"));
        rigs[0].storage.put(name, Bytes::from(value.to_string())).await.unwrap();
        seen.push(Operation { key, begin, end: run.now(), kind: Kind::Write, value });
    }
    let mut clients = JoinSet::new();
    for rig in &rigs {
        let agent = Arc::<Agent>::default();
        for _ in 0..CLIENTS {
            clients.spawn(Arc::clone(&run).client(rig.storage.clone(), Arc::clone(&agent)));
        }
    }
    while run.began.elapsed() < Duration::from_secs(seconds) {
        disturb(&mut server, &proxies).await;
    }
    for rig in &rigs {
        eventually("all is well", || rig.health.is_ready()).await;
    }
    run.stop.store(true, Ordering::Relaxed);
    seen.extend(clients.join_all().await.into_iter().flatten());
    seen.sort_by_key(|operation| operation.begin);
    let unknown = seen.iter().filter(|operation| operation.kind == Kind::FailedWrite).count();
    assert!(seen.len() > 500 && unknown > 0, "{} operations, {unknown} of them unknown", seen.len());
    eprintln!("{} operations in {seconds} s, {unknown} of unknown outcome", seen.len());
    if let Err(why) = history::judge(&seen) {
        panic!("{why}");
    }
}

/// What agents did that did not end the connections they had given up, or sent again what may have been done.
#[test]
fn the_histories_that_failed_are_still_refused() {
    let late = include_str!("../histories/redis_late_write.txt");
    let resent = include_str!("../histories/redis_resent_write.txt");
    for (history, came_back) in [(late, "1707 and 1735"), (resent, "111 and 115")] {
        let why = history::judge(&history::read(history)).unwrap_err();
        assert!(why.contains(&format!("{came_back} were both there")), "{why}");
    }
}

//! Two agents share one Redis while network paths, processes and connections fail. Everything that their clients
//! observe must be explained by one register per key.
//!
//! `HISTORY_SECONDS=3600` runs for that long. A history that fails is printed; save it in `tests/histories/` for a test
//! that names it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use peerscope::storage::{RedisConfig, Storage};
use tokio::task::JoinSet;

use super::redis::{Rig, config};
use crate::support::history::{self, Acknowledged, Kind, Operation};
use crate::support::proxy::Proxy;
use crate::support::redis::{RedisServer, eventually, start_cluster_with};

const KEYS: u64 = 2;
const CLIENTS: usize = 3;

/// The state that the clients share.
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
            if done.is_ok() {
                agent.lock().unwrap().push(begin, end);
            }
            let kind = if done.is_ok() { Kind::Write } else { Kind::FailedWrite };
            return Some(Operation { key, begin, end, kind, value });
        }
        // A failed read has observed nothing.
        let found = storage.get(&name).await.ok()?;
        let value = std::str::from_utf8(&found.expect("the key is never removed")).unwrap().parse().unwrap();
        Some(Operation { key, begin, end: self.now(), kind: Kind::Read, value })
    }

    async fn client(self: Arc<Self>, storage: Storage, agent: Arc<Agent>) -> Vec<Operation> {
        let mut seen = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            seen.extend(self.operation(&storage, &agent).await);
            // A few hundred operations per second suffice, and leave room for the other tests.
            tokio::time::sleep(Duration::from_millis(rand::random_range(1..8))).await;
        }
        // A failed write has either happened or never will, once its agent has acknowledged a write that began later.
        let writes = agent.lock().unwrap();
        for failed in seen.iter_mut().filter(|operation| operation.kind == Kind::FailedWrite) {
            failed.end = writes.settles(failed.end);
        }
        seen
    }
}

/// The writes of all clients of one agent.
type Agent = Mutex<Acknowledged>;

/// Causes one fault, for a while.
async fn disturb(server: &mut RedisServer, proxies: &[Proxy]) {
    let while_it_lasts = Duration::from_millis(rand::random_range(100..900));
    let proxy = &proxies[rand::random_range(0..proxies.len())];
    match rand::random_range(0..10) {
        // A request, or its answer, is delayed for longer than its caller waits.
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

/// The same for a node of a cluster, without a proxy.
async fn disturb_node(node: &mut RedisServer) {
    match rand::random_range(0..10) {
        0..4 => {
            node.freeze();
            tokio::time::sleep(Duration::from_millis(rand::random_range(100..900))).await;
            node.thaw();
        }
        4..8 => drop(node.command::<redis::Value>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])),
        _ => {
            node.kill();
            node.restart();
        }
    }
    tokio::time::sleep(Duration::from_millis(rand::random_range(50..500))).await;
}

/// Options that make writes survive a kill of the server.
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];
const TIMEOUT: Duration = Duration::from_millis(200);

/// Everything that the clients of these agents observe while faults happen.
async fn history(rigs: &[Rig], mut disturb: impl AsyncFnMut()) -> Vec<Operation> {
    let (next_value, stop) = (AtomicU64::new(1), AtomicBool::new(false));
    let run = Arc::new(Run { began: Instant::now(), next_value, stop });
    let mut seen = Vec::new();
    for key in 0..KEYS {
        let name = Bytes::from(format!("register-{key}"));
        loop {
            let (begin, value) = (run.now(), run.next_value.fetch_add(1, Ordering::Relaxed));
            let done = rigs[0].storage.put(name.clone(), Bytes::from(value.to_string())).await.is_ok();
            let (end, kind) = if done { (run.now(), Kind::Write) } else { (u64::MAX, Kind::FailedWrite) };
            seen.push(Operation { key, begin, end, kind, value });
            if done {
                break;
            }
        }
    }
    let mut clients = JoinSet::new();
    for rig in rigs {
        let agent = Arc::<Agent>::default();
        for _ in 0..CLIENTS {
            clients.spawn(Arc::clone(&run).client(rig.storage.clone(), Arc::clone(&agent)));
        }
    }
    while run.began.elapsed() < Duration::from_secs(history::seconds()) {
        disturb().await;
    }
    for rig in rigs {
        eventually("the agents are ready", || rig.health.is_ready()).await;
    }
    run.stop.store(true, Ordering::Relaxed);
    seen.extend(clients.join_all().await.into_iter().flatten());
    seen.sort_by_key(|operation| operation.begin);
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_register_per_key_explains_what_clients_see() {
    let mut server = RedisServer::start(&DURABLE);
    let (mut proxies, mut rigs) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let proxy = Proxy::to(server.port);
        rigs.push(Rig::open(RedisConfig { timeout: TIMEOUT, ..config(&[proxy.url()]) }).await.ready().await);
        proxies.push(proxy);
    }
    let seen = history(&rigs, async || disturb(&mut server, &proxies).await).await;
    history::check(&seen);
}

/// In a cluster a failed write may happen at any later time, but only once, and acknowledged writes stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_register_per_key_explains_what_clients_of_a_cluster_see() {
    let mut nodes = start_cluster_with(&DURABLE);
    let seeds: Vec<_> = nodes.iter().map(RedisServer::url).collect();
    let mut rigs = Vec::new();
    for _ in 0..2 {
        rigs.push(Rig::open(RedisConfig { timeout: TIMEOUT, ..config(&seeds) }).await.ready().await);
    }
    let mut seen = history(&rigs, async || {
        let node = rand::random_range(0..nodes.len());
        disturb_node(&mut nodes[node]).await;
    })
    .await;
    for failed in seen.iter_mut().filter(|operation| operation.kind == Kind::FailedWrite) {
        failed.end = u64::MAX;
    }
    history::check(&seen);
}

/// A replica is promoted while the agent writes, and the agent is redirected to it. Writes that the replica had not
/// received are lost, and counted here. All others, and those acknowledged afterwards, are kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_loses_only_what_the_replica_had_not_received() {
    let mut primary = RedisServer::start(&["--repl-diskless-sync-delay", "0"]);
    let mut replica = RedisServer::start(&["--repl-diskless-sync-delay", "0"]);
    let proxy = Proxy::to(primary.port);
    let rig = Rig::open(RedisConfig { timeout: TIMEOUT, ..config(&[proxy.url()]) }).await.ready().await;
    let (mut acknowledged, mut lost, mut promotions) = (0, 0, 0);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(history::seconds() / 2) {
        let () = replica.command(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
        eventually("the replica follows", || {
            let info: String = replica.command(&["INFO", "replication"]);
            info.contains("master_link_status:up")
        })
        .await;
        let kept = format!("kept-{promotions}");
        rig.storage.put(Bytes::from(kept.clone()), Bytes::from("yes")).await.unwrap();
        let raw = format!("peerscope:{kept}");
        eventually("the replica has it", || replica.command::<Option<String>>(&["GET", &raw]).is_some()).await;

        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for writer in 0..CLIENTS {
            let (storage, stop) = (rig.storage.clone(), Arc::clone(&stop));
            writers.spawn(async move {
                let mut counted = 0_u64;
                for value in 1_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let name = Bytes::from(format!("count-{promotions}-{writer}"));
                    if storage.put(name, Bytes::from(value.to_string())).await.is_ok() {
                        counted = value;
                    }
                }
                counted
            });
        }
        tokio::time::sleep(Duration::from_millis(rand::random_range(50..300))).await;
        // The replica lags behind when the primary is lost.
        replica.freeze();
        tokio::time::sleep(Duration::from_millis(20)).await;
        primary.freeze();
        stop.store(true, Ordering::Relaxed);
        let counts = writers.join_all().await;
        replica.thaw();
        let () = replica.command(&["REPLICAOF", "NO", "ONE"]);
        proxy.lead_to(replica.port);
        let after = format!("after-{promotions}");
        while rig.storage.put(Bytes::from(after.clone()), Bytes::from("yes")).await.is_err() {}
        // The old primary comes back, still believes that it is the primary, and executes what arrives late. No one
        // reads from it.
        primary.thaw();
        for (writer, counted) in counts.into_iter().enumerate() {
            let name = Bytes::from(format!("count-{promotions}-{writer}"));
            let found = rig.storage.get(&name).await.unwrap();
            let found = found.map_or(0, |value| std::str::from_utf8(&value).unwrap().parse::<u64>().unwrap());
            acknowledged += counted;
            lost += counted.saturating_sub(found);
        }
        std::mem::swap(&mut primary, &mut replica);
        let () = replica.command(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
        for name in [kept, after] {
            let found = rig.storage.get(&Bytes::from(name.clone())).await.unwrap();
            assert_eq!(found, Some(Bytes::from("yes")), "{name}");
        }
        promotions += 1;
    }
    assert!(promotions > 1 && acknowledged > 0);
    println!("{promotions} promotions, {lost} of {acknowledged} acknowledged puts lost with the old primary");
}

/// Recorded with agents that did not close abandoned connections, or resent writes that may have been performed.
#[test]
fn the_histories_that_once_failed_are_still_rejected() {
    let late = include_str!("../histories/redis_late_write.txt");
    let resent = include_str!("../histories/redis_resent_write.txt");
    for (history, came_back) in [(late, "1707 and 1735"), (resent, "111 and 115")] {
        let why = history::judge(&history::read(history)).unwrap_err();
        assert!(why.contains(&format!("{came_back} were both held")), "{why}");
    }
}

//! A write on an abandoned connection does not take effect after a later one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use peerscope::storage::{RedisConfig, StorageError};

use super::redis::{Rig, config, key};
use crate::support::nat::{apart, rules};
use crate::support::proxy::Proxy;
use crate::support::redis::{RedisServer, eventually};

/// A timeout short enough for these tests, but long enough to reconnect on a machine that is busy with other tests.
fn quick(url: String) -> RedisConfig {
    RedisConfig { timeout: Duration::from_secs(1), ..config(&[url]) }
}

fn block_on(story: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(story);
}

/// The client ports of all connections to the server, except the one that asks.
fn clients(server: &RedisServer) -> Vec<u16> {
    let list: String = server.command(&["CLIENT", "LIST", "TYPE", "normal"]);
    let others = list.lines().filter(|line| !line.contains(" cmd=client"));
    others
        .map(|line| line.split(' ').find_map(|field| field.strip_prefix("addr=127.0.0.1:")).unwrap().parse().unwrap())
        .collect()
}

/// Whether the kernel may still send data on a connection from or to this port.
fn lingers(port: u16) -> bool {
    let end = format!(":{port:04X}");
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    table.lines().skip(1).any(|row| {
        let fields: Vec<_> = row.split_whitespace().collect();
        // 06 is TIME_WAIT, which does not send any more.
        (fields[1].ends_with(&end) || fields[2].ends_with(&end)) && fields[3] != "06"
    })
}

/// The packets of the first connection are dropped. A put on it fails, and a later one on another connection is
/// acknowledged. Once the path worked again, the kernel used to deliver the first put.
#[test]
fn a_put_whose_packets_were_lost_does_not_come_back() {
    apart("storage::redis_order::a_put_whose_packets_were_lost_does_not_come_back", || {
        block_on(async {
            let server = RedisServer::start(&[]);
            let rig = Rig::open(quick(server.url())).await.ready().await;
            rig.storage.put(key("k"), key("old")).await.unwrap();
            let port = clients(&server)[0];
            rules(&format!(
                "
table ip dark {{
    chain out {{
        type filter hook output priority 0;
        tcp sport {port} drop
        tcp dport {port} drop
    }}
}}
"
            ));
            let failed = rig.storage.put(key("k"), key("first")).await.unwrap_err();
            assert!(matches!(failed, StorageError::Timeout(_)), "{failed}");
            // At once: only one put is lost, not the next one too.
            rig.storage.put(key("k"), key("second")).await.unwrap();
            assert_eq!(rig.storage.get(&key("k")).await.unwrap(), Some(key("second")));
            rules("delete table ip dark");
            eventually("the kernel is done with the old connection", || !lingers(port)).await;
            assert_eq!(rig.storage.get(&key("k")).await.unwrap(), Some(key("second")));
        });
    });
}

/// A proxy buffers a put or delete, and delivers it long after the sender has given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_buffered_by_a_proxy_does_not_take_effect_later() {
    for deletes in [false, true] {
        let server = RedisServer::start(&[]);
        let proxy = Proxy::to(server.port);
        let rig = Rig::open(quick(proxy.url())).await.ready().await;
        rig.storage.put(key("k"), key("old")).await.unwrap();
        proxy.hold();
        let failed = match deletes {
            false => rig.storage.put(key("k"), key("first")).await.unwrap_err(),
            true => rig.storage.delete(key("k")).await.unwrap_err(),
        };
        assert!(matches!(failed, StorageError::Timeout(_)), "{failed}");
        rig.storage.put(key("k"), key("second")).await.unwrap();
        proxy.let_go();
        assert_eq!(rig.storage.get(&key("k")).await.unwrap(), Some(key("second")));
        let raw: Option<String> = server.command(&["GET", "peerscope:k"]);
        assert_eq!(raw.as_deref(), Some("second"));
    }
}

/// A frozen server has received a write that no one is waiting for any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_kept_by_a_frozen_server_does_not_undo_a_later_one() {
    let server = RedisServer::start(&[]);
    let rig = Rig::open(quick(server.url())).await.ready().await;
    for round in 0..5 {
        server.freeze();
        let failed = rig.storage.put(key("k"), key("first")).await.unwrap_err();
        assert!(matches!(failed, StorageError::Timeout(_)), "{failed}");
        eventually("the freeze is noticed", || !rig.health.is_ready()).await;
        server.thaw();
        eventually("there is another connection", || rig.health.is_ready()).await;
        let second = Bytes::from(format!("second {round}"));
        rig.storage.put(key("k"), second.clone()).await.unwrap();
        for _ in 0..20 {
            assert_eq!(rig.storage.get(&key("k")).await.unwrap(), Some(second.clone()));
        }
    }
}

/// The connection breaks during a put. It is unknown whether the put was performed, so it is not sent again: another
/// client may have written meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_may_have_been_done_is_not_sent_again() {
    let server = RedisServer::start(&[]);
    let rig = Rig::open(config(&[server.url()])).await.ready().await;
    rig.storage.put(key("k"), key("old")).await.unwrap();
    let () = server.command(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    let putting = tokio::spawn({
        let storage = rig.storage.clone();
        async move { storage.put(key("k"), key("first")).await }
    });
    eventually("the put waits in the server", || {
        let list: String = server.command(&["CLIENT", "LIST", "TYPE", "normal"]);
        list.lines().any(|line| line.contains(" cmd=set"))
    })
    .await;
    let () = server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    let () = server.command(&["CLIENT", "UNPAUSE"]);
    let failed = putting.await.unwrap().unwrap_err();
    assert!(matches!(failed, StorageError::Unavailable(_)), "{failed}");
    rig.ready().await;
    let raw: Option<String> = server.command(&["GET", "peerscope:k"]);
    assert_eq!(raw.as_deref(), Some("old"), "the put was lost with its connection, and was not sent again");
}

/// The server becomes a replica, and its name leads to another server. The old connection stays up all the while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_leaves_a_primary_that_is_demoted() {
    let (old, new) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let proxy = Proxy::to(old.port);
    let rig = Rig::open(config(&[proxy.url()])).await.ready().await;
    rig.storage.put(key("k"), key("old")).await.unwrap();
    // The demotion is noticed with a write and without one.
    for writes in [true, false] {
        let () = old.command(&["REPLICAOF", "127.0.0.1", &new.port.to_string()]);
        if writes {
            let before = Instant::now();
            let failed = rig.storage.put(key("k"), key("refused")).await.unwrap_err();
            assert!(matches!(failed, StorageError::Unavailable(_)), "{failed}");
            assert!(before.elapsed() < Duration::from_secs(5));
        }
        let why = format!("it is a replica of 127.0.0.1:{} and rejects writes", new.port);
        eventually("the problem is reported", || rig.problem().contains(&why)).await;
        proxy.lead_to(new.port);
        eventually("the new primary is found", || rig.health.is_ready()).await;
        rig.storage.put(key("k"), key("new")).await.unwrap();
        assert_eq!(new.command::<String>(&["GET", "peerscope:k"]), "new");
        proxy.lead_to(old.port);
        let () = old.command(&["REPLICAOF", "NO", "ONE"]);
        let () = new.command(&["CLIENT", "KILL", "TYPE", "normal"]);
        eventually("the agent uses the old primary again", || !clients(&old).is_empty() && rig.health.is_ready()).await;
    }
}

/// With too few replicas reads still work, and the agent reports that writes do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_replicas_are_reported_until_there_are_enough() {
    let server = RedisServer::start(&["--min-replicas-to-write", "1", "--repl-diskless-sync-delay", "0"]);
    let rig = Rig::open(config(&[server.url()])).await.ready().await;
    let failed = rig.storage.put(key("k"), key("v")).await.unwrap_err();
    assert!(matches!(&failed, StorageError::Backend(why) if why.starts_with("NOREPLICAS")), "{failed}");
    eventually("the problem is reported", || rig.problem().contains("NOREPLICAS")).await;
    assert_eq!(rig.storage.get(&key("k")).await.unwrap(), None);
    let replica = RedisServer::start(&["--replicaof", "127.0.0.1", &server.port.to_string()]);
    // Without another write.
    eventually("enough replicas are noticed", || rig.health.is_ready()).await;
    rig.storage.put(key("k"), key("v")).await.unwrap();

    drop(replica);
    eventually("the server misses its replica", || {
        server.command::<String>(&["INFO", "replication"]).contains("min_slaves_good_slaves:0")
    })
    .await;
    let failed = rig.storage.put(key("k"), key("v")).await.unwrap_err();
    assert!(matches!(&failed, StorageError::Backend(why) if why.starts_with("NOREPLICAS")), "{failed}");
    eventually("the problem is reported", || rig.problem().contains("NOREPLICAS")).await;
    let () = server.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    rig.storage.put(key("k"), key("v")).await.unwrap();
    eventually("a successful put makes the agent ready", || rig.health.is_ready()).await;
}

/// Redis closes a connection whose answers exceed its output buffer. That must affect only the caller of that value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_redis_does_not_deliver_affects_no_other_operation() {
    let server = RedisServer::start(&["--client-output-buffer-limit", "normal", "100kb", "0", "0"]);
    let rig = Rig::open(config(&[server.url()])).await.ready().await;
    let () = server.command(&["SET", "peerscope:huge", &"x".repeat(900_000)]);
    rig.storage.put(key("small"), key("value")).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut others = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (storage, stop) = (rig.storage.clone(), Arc::clone(&stop));
        others.spawn(async move {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                storage.put(key("written"), key("value")).await.unwrap();
                assert_eq!(storage.get(&key("small")).await.unwrap(), Some(key("value")));
                count += 1;
            }
            count
        });
    }
    for _ in 0..10 {
        let failed = rig.storage.get(&key("huge")).await.unwrap_err().to_string();
        assert!(failed.contains("client-output-buffer-limit"), "{failed}");
    }
    stop.store(true, Ordering::Relaxed);
    for count in others.join_all().await {
        assert!(count > 10, "{count}");
    }
    assert!(rig.health.is_ready());
}

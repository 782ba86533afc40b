//! Redis Cluster: three real nodes.

use std::time::Duration;

use peerscope::storage::{RedisConfig, StorageError};

use super::contract;
use super::redis::{Rig, config, key};
use crate::support::redis::{DEADLINE, RedisServer, await_cluster, eventually, start_cluster};

fn seeds(nodes: &[RedisServer]) -> Vec<String> {
    nodes.iter().map(RedisServer::url).collect()
}

/// The node that serves `key`, and the key's slot.
fn owner<'a>(nodes: &'a [RedisServer], key: &str) -> (&'a RedisServer, u16) {
    let slot: u16 = nodes[0].command(&["CLUSTER", "KEYSLOT", key]);
    let index = match slot {
        0..=5460 => 0,
        5461..=10922 => 1,
        _ => 2,
    };
    (&nodes[index], slot)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_fulfils_the_contract_and_every_node_serves() {
    let nodes = start_cluster();
    let rig = Rig::open(config(&seeds(&nodes))).await;
    contract::storage_contract(rig.storage.clone()).await;
    for i in 0..60 {
        rig.storage.put(key(&format!("spread-{i}")), key("v")).await.unwrap();
    }
    for node in &nodes {
        let keys: usize = node.command(&["DBSIZE"]);
        assert!(keys > 0, "the node on port {} holds nothing", node.port);
    }
    let ports: Vec<_> = nodes.iter().map(|node| format!("redis://127.0.0.1:{}", node.port)).collect();
    assert_eq!(rig.storage.describe(), format!("redis cluster of 3 seeds {}", ports.join(", ")));
    assert!(rig.health.is_ready());

    // One seed is enough to find all nodes.
    let one_seed = Rig::open(RedisConfig { cluster: Some(true), ..config(&seeds(&nodes[..1])) }).await;
    for i in 0..60 {
        assert_eq!(one_seed.storage.get(&key(&format!("spread-{i}"))).await.unwrap(), Some(key("v")));
    }

    // If a cluster is configured as a single server, the error says what to change.
    let single = Rig::open(config(&seeds(&nodes[..1]))).await.ready().await;
    let foreign = (0..60)
        .map(|i| format!("spread-{i}"))
        .find(|k| owner(&nodes, &format!("peerscope:{k}")).0.port != nodes[0].port);
    let error = single.storage.get(&key(&foreign.unwrap())).await.unwrap_err();
    assert!(
        matches!(&error, StorageError::Backend(why) if why.contains("set storage.redis.cluster to true")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_is_followed() {
    let nodes = start_cluster();
    let rig = Rig::open(config(&seeds(&nodes))).await.ready().await;
    rig.storage.put(key("traveller"), key("v1")).await.unwrap();
    let raw = "peerscope:traveller";
    let (from, slot) = owner(&nodes, raw);
    let to = nodes.iter().find(|node| node.port != from.port).unwrap();
    let slot = slot.to_string();
    let id = |node: &RedisServer| node.command::<String>(&["CLUSTER", "MYID"]);
    let (from_id, to_id) = (id(from), id(to));

    let () = to.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
    let () = from.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
    assert_eq!(rig.storage.get(&key("traveller")).await.unwrap(), Some(key("v1")), "still on its old node");
    let () = from.command(&["MIGRATE", "127.0.0.1", &to.port.to_string(), raw, "0", "5000"]);
    assert_eq!(rig.storage.get(&key("traveller")).await.unwrap(), Some(key("v1")), "by ASK");
    rig.storage.put(key("traveller"), key("v2")).await.unwrap();
    for node in [to, from] {
        let () = node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
    }
    assert_eq!(rig.storage.get(&key("traveller")).await.unwrap(), Some(key("v2")), "by MOVED");
    let at_new: Option<String> = to.command(&["GET", raw]);
    assert_eq!(at_new.as_deref(), Some("v2"));
    assert!(rig.storage.delete(key("traveller")).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_restarts_comes_back_by_itself() {
    let mut nodes = start_cluster();
    let rig = Rig::open(config(&seeds(&nodes))).await.ready().await;
    let lost =
        (0..).map(|i| format!("key-{i}")).find(|k| owner(&nodes, &format!("peerscope:{k}")).0.port == nodes[1].port);
    let lost = key(&lost.unwrap());
    rig.storage.put(lost.clone(), key("before")).await.unwrap();

    nodes[1].kill();
    eventually("the loss is noticed without traffic", || !rig.health.is_ready()).await;
    let error = rig.storage.get(&lost).await.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable(_) | StorageError::Timeout(_)), "{error}");
    #[cfg(feature = "metrics-prometheus")]
    assert!(rig.counter("storage_redis_retries_total") >= 3.0);

    nodes[1].restart();
    await_cluster(&nodes);
    eventually("the storage is ready again", || rig.health.is_ready()).await;
    let write = async {
        rig.storage.put(lost.clone(), key("after")).await.unwrap();
        assert_eq!(rig.storage.get(&lost).await.unwrap(), Some(key("after")));
    };
    tokio::time::timeout(DEADLINE, write).await.unwrap();
    #[cfg(feature = "metrics-prometheus")]
    assert!(rig.counter("storage_redis_reconnects_total") >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_cluster_that_restarts_comes_back_by_itself() {
    let mut nodes = start_cluster();
    let rig = Rig::open(config(&seeds(&nodes))).await.ready().await;
    rig.storage.put(key("k"), key("v")).await.unwrap();
    nodes.iter_mut().for_each(RedisServer::kill);
    eventually("the loss is noticed", || !rig.health.is_ready()).await;
    let error = rig.storage.get(&key("k")).await.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable(_) | StorageError::Timeout(_)), "{error}");
    nodes.iter_mut().for_each(RedisServer::restart);
    await_cluster(&nodes);
    eventually("the storage is ready again", || rig.health.is_ready()).await;
    rig.storage.put(key("k"), key("v")).await.unwrap();
    #[cfg(feature = "metrics-prometheus")]
    assert!(rig.counter("storage_redis_reconnects_total") >= 1.0);
}

/// A put on a node that does not answer, or whose connection breaks, may have been performed. redis-rs's cluster client
/// used to send it again, which undid what another client had written meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_may_have_been_done_is_not_sent_again() {
    let nodes = start_cluster();
    let timeout = Duration::from_millis(500);
    let rig = Rig::open(RedisConfig { timeout, ..config(&seeds(&nodes)) }).await.ready().await;
    let (node, _) = owner(&nodes, "peerscope:k");
    for breaks in [true, false] {
        rig.storage.put(key("k"), key("old")).await.unwrap();
        let before = sets(node);
        let () = node.command(&["CLIENT", "PAUSE", "60000", "WRITE"]);
        let putting = tokio::spawn({
            let storage = rig.storage.clone();
            async move { storage.put(key("k"), key("first")).await }
        });
        eventually("the put waits in the server", || {
            let list: String = node.command(&["CLIENT", "LIST", "TYPE", "normal"]);
            list.lines().any(|line| line.contains(" cmd=set"))
        })
        .await;
        if breaks {
            let () = node.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        }
        let failed = putting.await.unwrap().unwrap_err();
        assert_eq!(matches!(failed, StorageError::Timeout(_)), !breaks, "{failed}");
        let () = node.command(&["CLIENT", "UNPAUSE"]);
        eventually("the storage is ready", || rig.health.is_ready()).await;
        // A read now comes after everything that was sent before.
        while rig.storage.get(&key("k")).await.is_err() {}
        let sent = sets(node) - before;
        // Either the server closed the connection first, or it performed the put once it could.
        assert!(sent <= u64::from(!breaks), "{sent} times, after {failed}");
    }
}

/// How many `SET`s a node has executed.
fn sets(node: &RedisServer) -> u64 {
    let statistics: String = node.command(&["INFO", "commandstats"]);
    let line = statistics.lines().find_map(|line| line.strip_prefix("cmdstat_set:calls=")).unwrap_or("0,");
    line.split(',').next().unwrap().parse().unwrap()
}

//! The embedded store on real files.

use peerscope::metrics::{Health, MetricsCollector, Registry};
use peerscope::storage::{Config, Storage};

use super::contract;
use crate::support;

async fn open(path: std::path::PathBuf) -> (Storage, Registry) {
    let mut registry = Registry::default();
    let metrics = MetricsCollector::new(&mut registry, &support::agent_info());
    let storage = Storage::open(&Config::default(), path, metrics, Health::default()).await.unwrap();
    (storage, registry)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_backend_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let (storage, _registry) = open(folder.path().join("store.redb")).await;
    contract::storage_contract(storage).await;
}

#[cfg(feature = "metrics-prometheus")]
#[tokio::test]
async fn the_local_backend_is_measured_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let (storage, registry) = open(folder.path().join("store.redb")).await;
    contract::metrics_contract(storage, &registry).await;
}

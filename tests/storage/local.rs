//! The embedded store on real files: the contract, its files, its queue, and closing it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::future::join_all;
use peerscope::metrics::labels::Component;
use peerscope::metrics::{Health, MetricsCollector, Registry};
use peerscope::storage::{Config, OpenError, Storage, StorageError};
use proptest::prelude::*;

use super::contract;
use crate::support;

/// A store, with its health and metrics for tests to inspect.
pub(crate) struct Opened {
    pub(crate) storage: Storage,
    pub(crate) health: Health,
    #[cfg_attr(
        not(feature = "metrics-prometheus"),
        allow(dead_code, reason = "an empty registry has nothing to read")
    )]
    pub(crate) registry: Registry,
}

pub(crate) async fn try_open(path: &Path) -> Result<Opened, OpenError> {
    open_with_cache(path, Config::default().local.cache_size).await
}

pub(crate) async fn open_with_cache(path: &Path, cache_size: usize) -> Result<Opened, OpenError> {
    let mut config = Config::default();
    config.local.cache_size = cache_size;
    open_with(path, config).await
}

/// Opens the store with `check_on_open`.
pub(crate) async fn open_checked(path: &Path) -> Result<Opened, OpenError> {
    let mut config = Config::default();
    config.local.check_on_open = true;
    open_with(path, config).await
}

#[allow(clippy::default_constructed_unit_structs, reason = "without metrics the registry is one")]
async fn open_with(path: &Path, config: Config) -> Result<Opened, OpenError> {
    let registry = Registry::default();
    let metrics = MetricsCollector::new(&registry, &support::agent_info());
    let health = Health::default();
    let storage = Storage::open(&config, path.to_owned(), metrics, health.clone()).await?;
    Ok(Opened { storage, health, registry })
}

pub(crate) async fn open(path: &Path) -> Opened {
    try_open(path).await.unwrap()
}

/// A command that runs one test of this binary in its own process, with `path` available through [`child_path`].
/// Without that path the test does nothing, so it can be listed with the others.
pub(crate) fn child(test: &str, path: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD_PATH, path);
    command
}

pub(crate) const CHILD_PATH: &str = "PEERSCOPE_TEST_CHILD_PATH";

pub(crate) fn child_path() -> Option<PathBuf> {
    std::env::var_os(CHILD_PATH).map(PathBuf::from)
}

/// Why the component `storage` is not ready; `None` if it is.
pub(crate) fn problem(health: &Health) -> Option<String> {
    let states = health.snapshot();
    let storage = states.into_iter().find(|state| state.component == Component::Storage);
    storage.expect("the storage has reported").problem
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_backend_fulfils_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let opened = open(&folder.path().join("store.redb")).await;
    contract::storage_contract(opened.storage).await;
}

#[cfg(feature = "metrics-prometheus")]
#[tokio::test]
async fn the_metrics_of_the_local_backend_are_exact() {
    use support::metrics::{encode, value};

    let folder = tempfile::tempdir().unwrap();
    let opened = open(&folder.path().join("store.redb")).await;
    let batches = || {
        let text = encode(&opened.registry);
        let count = value(&text, "storage_local_commit_batch_size_count", &[]);
        (count, value(&text, "storage_local_commit_batch_size_sum", &[]))
    };
    assert_eq!(batches(), (0.0, 0.0));
    contract::metrics_contract(opened.storage.clone(), &opened.registry).await;
    assert_eq!(batches(), (3.0, 3.0), "one put and two deletes, one after the other, are three transactions");

    let before = batches();
    let writes = (0..200).map(|i| opened.storage.put(Bytes::from(format!("{i}")), Bytes::new()));
    assert!(join_all(writes).await.iter().all(Result::is_ok));
    let after = batches();
    assert_eq!(after.1 - before.1, 200.0, "every write is in exactly one transaction");
    assert!(after.0 - before.0 < 20.0, "concurrent writes share transactions: {} for 200", after.0 - before.0);
}

#[tokio::test]
async fn a_new_store_is_private_and_reports_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made/on/demand/store.redb");
    let opened = open(&path).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(mode(&folder.path().join("made")), 0o700);
    assert_eq!(opened.storage.describe(), format!("local {}", path.display()));
    assert_eq!(problem(&opened.health), None);
    let names = || {
        let folder = std::fs::read_dir(path.parent().unwrap()).unwrap();
        folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<BTreeSet<_>>()
    };
    assert_eq!(names(), ["store.redb"].map(String::from).into(), "creating the store leaves no other file");
    opened.storage.put(Bytes::from_static(b"k"), Bytes::new()).await.unwrap();
    assert_eq!(names(), ["store.redb", "store.redb.log0"].map(String::from).into());
    opened.storage.close().await;
    assert_eq!(names(), ["store.redb"].map(String::from).into());
}

#[tokio::test]
async fn leftovers_of_a_killed_creation_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    std::fs::write(folder.path().join("store.redb.new"), vec![0; 100_000]).unwrap();
    let opened = open(&path).await;
    opened.storage.put(Bytes::from_static(b"k"), Bytes::from_static(b"v")).await.unwrap();
    opened.storage.close().await;
    assert!(!folder.path().join("store.redb.new").exists());
    let value = open(&path).await.storage.get(&Bytes::from_static(b"k")).await.unwrap();
    assert_eq!(value.as_deref(), Some(&b"v"[..]));
}

#[tokio::test]
async fn only_one_process_can_open_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let opened = open(&path).await;
    let in_use = try_open(&path).await.err().expect("the file is open already");
    assert!(matches!(&in_use, OpenError::InUse(at) if *at == path), "{in_use}");

    let attempt = || {
        let output = child("storage::local::child_that_opens", &path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let said = attempt();
    assert!(said.contains("is in use by another process"), "{said}");
    opened.storage.put(Bytes::from_static(b"k"), Bytes::from_static(b"v")).await.unwrap();
    opened.storage.close().await;
    let said = attempt();
    assert!(said.contains("opened"), "once it is closed, another process can open it: {said}");
}

#[tokio::test]
async fn child_that_opens() {
    let Some(path) = child_path() else { return };
    match try_open(&path).await {
        Ok(_) => eprintln!("opened"),
        Err(error) => eprintln!("{error}"),
    }
}

#[tokio::test]
async fn a_path_that_cannot_be_a_file_is_an_io_error() {
    let folder = tempfile::tempdir().unwrap();
    let error = try_open(folder.path()).await.err().unwrap();
    assert!(matches!(&error, OpenError::Io { path, .. } if path == folder.path()), "{error}");
    std::fs::write(folder.path().join("file"), "x").unwrap();
    let error = try_open(&folder.path().join("file/store.redb")).await.err().unwrap();
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
}

#[tokio::test]
async fn closing_finishes_queued_writes_and_refuses_later_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let Opened { storage, health, .. } = open(&path).await;
    // Their first poll, which comes before the close, queues all of them.
    let writes = join_all((0..800).map(|i| storage.put(Bytes::from(format!("{i}")), Bytes::from(vec![7; 512]))));
    let (written, ()) = futures::join!(writes, storage.close());
    assert!(written.iter().all(Result::is_ok), "{:?}", written.iter().find(|result| result.is_err()));

    let key = Bytes::from_static(b"1");
    assert!(matches!(storage.get(&key).await, Err(StorageError::Unavailable(_))));
    assert!(matches!(storage.put(key.clone(), Bytes::new()).await, Err(StorageError::Unavailable(_))));
    assert!(matches!(storage.delete(key).await, Err(StorageError::Unavailable(_))));
    assert_eq!(problem(&health).as_deref(), Some("the store is closed"));
    storage.close().await;

    let again = open(&path).await;
    for i in 0..800 {
        let value = again.storage.get(&Bytes::from(format!("{i}"))).await.unwrap();
        assert_eq!(value.map(|value| value.len()), Some(512), "{i}");
    }
}

#[tokio::test]
async fn a_full_queue_returns_busy_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let Opened { storage, .. } = open(&folder.path().join("store.redb")).await;
    // One thread queues all of this without a pause, far faster than any disk syncs.
    let many = (0..20_000).map(|i| storage.put(Bytes::from(format!("{i}")), Bytes::from_static(b"v")));
    let outcomes = join_all(many).await;
    let refused = outcomes.iter().filter(|outcome| matches!(outcome, Err(StorageError::Busy(1024)))).count();
    let done = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert!(refused > 0, "a queue of 1024 took 20000 writes");
    assert!(done >= 1024, "{done}");
    assert_eq!(done + refused, outcomes.len());
    for (i, outcome) in outcomes.iter().enumerate() {
        let there = storage.get(&Bytes::from(format!("{i}"))).await.unwrap().is_some();
        assert_eq!(there, outcome.is_ok(), "write {i}: {outcome:?}");
    }

    let large = Bytes::from(vec![1; 1024 * 1024]);
    let outcomes = join_all((0..200).map(|i| storage.put(Bytes::from(format!("large-{i}")), large.clone()))).await;
    let refused = outcomes.iter().filter(|outcome| matches!(outcome, Err(StorageError::Busy(_)))).count();
    assert!(refused > 0, "200 MiB were queued at once");
    storage.put(Bytes::from_static(b"after"), Bytes::new()).await.expect("the queue is empty again");
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, Vec<u8>),
    Delete(u8),
    Get(u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..40_u8, prop_oneof![prop::collection::vec(any::<u8>(), 0..100), prop::collection::vec(any::<u8>(), 4000..9000)])
            .prop_map(|(key, value)| Step::Put(key, value)),
        3 => (0..40_u8).prop_map(Step::Delete),
        3 => (0..40_u8).prop_map(Step::Get),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_behaves_like_a_map(steps in prop::collection::vec(step(), 1..120)) {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("store.redb");
            let mut opened = open(&path).await;
            let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
            // Keys of different lengths, the shorter ones prefixes of the longer ones.
            let name = |key: u8| vec![b'k'; usize::from(key) + 1];
            for step in steps {
                match step {
                    Step::Put(key, value) => {
                        opened.storage.put(name(key).into(), value.clone().into()).await.unwrap();
                        model.insert(name(key), value);
                    }
                    Step::Delete(key) => {
                        let existed = opened.storage.delete(name(key).into()).await.unwrap();
                        assert_eq!(existed, model.remove(&name(key)).is_some());
                    }
                    Step::Get(key) => {
                        let value = opened.storage.get(&name(key).into()).await.unwrap();
                        assert_eq!(value.as_deref(), model.get(&name(key)).map(Vec::as_slice));
                    }
                    Step::Reopen => {
                        opened.storage.close().await;
                        opened = open(&path).await;
                    }
                }
            }
            opened.storage.close().await;
            let opened = open(&path).await;
            for key in 0..40 {
                let value = opened.storage.get(&name(key).into()).await.unwrap();
                assert_eq!(value.as_deref(), model.get(&name(key)).map(Vec::as_slice));
            }
        });
    }
}

//! The store with its threads, on a disk where one kind of call hangs or panics.

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::disk::{Disk, DiskFile, LinuxDisk};
use super::super::open::Options;
use super::super::read::Readers;
use super::super::start::start;
use super::super::state::{Source, StoreState};
use super::super::{LocalStorageBackend, watch};
use super::story::metrics;
use crate::metrics::Health;
use crate::storage::StorageError;

/// How soon a hanging disk must be noticed, including a margin for a busy machine.
const NOTICED: Duration = Duration::from_secs(6);

/// How soon all callers must be answered, and the store must recover.
const ANSWERED: Duration = Duration::from_secs(watch::GIVE_UP.as_secs() + 3);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Write,
    Sync,
    IsAt,
    Room,
    SyncNames,
    RedbWrite,
    RedbSync,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Hangs(Call),
    Panics(Call),
}

/// Makes one kind of call hang or panic.
#[derive(Debug, Default)]
struct Gate {
    trouble: Mutex<Option<Trouble>>,
    opened: Condvar,
}

impl Gate {
    fn set(&self, trouble: Option<Trouble>) {
        *self.trouble.lock().unwrap() = trouble;
        self.opened.notify_all();
    }

    fn pass(&self, call: Call) {
        let trouble = self.trouble.lock().unwrap();
        let trouble = self.opened.wait_while(trouble, |trouble| *trouble == Some(Trouble::Hangs(call))).unwrap();
        let panics = *trouble == Some(Trouble::Panics(call));
        drop(trouble);
        assert!(!panics, "{call:?} was told to panic");
    }
}

#[derive(Debug)]
struct HangingDisk(Arc<Gate>);

impl Disk for HangingDisk {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let file = LinuxDisk.open(path, create)?;
        let is_log = path.to_string_lossy().contains(".log");
        Ok(Arc::new(HangingFile { file, is_log, gate: self.0.clone() }))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        LinuxDisk.exists(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        LinuxDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        LinuxDisk.remove(path)
    }

    fn sync_names(&self, path: &Path) -> io::Result<()> {
        self.0.pass(Call::SyncNames);
        LinuxDisk.sync_names(path)
    }
}

#[derive(Debug)]
struct HangingFile {
    file: Arc<dyn DiskFile>,
    is_log: bool,
    gate: Arc<Gate>,
}

impl DiskFile for HangingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8], wait: bool) -> io::Result<()> {
        self.file.read(offset, out, wait)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.gate.pass(if self.is_log { Call::Write } else { Call::RedbWrite });
        self.file.write(offset, data)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.gate.pass(if self.is_log { Call::Sync } else { Call::RedbSync });
        self.file.sync()
    }

    fn forget(&self) -> io::Result<()> {
        self.file.forget()
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        self.gate.pass(Call::IsAt);
        self.file.is_at(path)
    }

    fn room(&self) -> io::Result<u64> {
        self.gate.pass(Call::Room);
        self.file.room()
    }
}

async fn within<T>(limit: Duration, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn started(folder: &Path, gate: &Arc<Gate>) -> Arc<LocalStorageBackend> {
    let shared = Arc::new(StoreState::new(folder.join("store.redb"), Health::default()));
    let options = Options { cache_size: 1 << 20, check: false };
    let stage = start(Arc::new(HangingDisk(gate.clone())), options, shared.clone(), metrics());
    Arc::new(LocalStorageBackend { shared, readers: Readers::new(), stage })
}

async fn hangs(call: Call, in_use: bool) {
    let folder = tempfile::tempdir().unwrap();
    let gate = Arc::new(Gate::default());
    let store = started(folder.path(), &gate);
    store.opened().await.unwrap();
    let (key, value) = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
    // Log files are created by the first write.
    let kept = (call != Call::SyncNames).then_some(value.clone());
    if kept.is_some() {
        store.put(key.clone(), value.clone()).await.unwrap();
    }

    gate.set(Some(Trouble::Hangs(call)));
    let putting = in_use.then(|| {
        let (store, key, value) = (store.clone(), key.clone(), value.clone());
        tokio::spawn(async move { store.put(key, value).await })
    });
    let is_waiting = || store.shared.troubles.of(Source::Waiting);
    within(NOTICED, "the disk hangs", is_waiting).await;
    let refused = store.put(key.clone(), value.clone()).await.unwrap_err();
    assert!(matches!(refused, StorageError::Hangs { may_happen: false, .. }), "{call:?}: {refused}");
    assert_eq!(store.get(&key).await.unwrap(), kept);
    if let Some(putting) = putting {
        let given_up = tokio::time::timeout(ANSWERED, putting).await.unwrap().unwrap().unwrap_err();
        assert!(matches!(given_up, StorageError::Hangs { may_happen: true, .. }), "{call:?}: {given_up}");
    }

    gate.set(None);
    within(ANSWERED, "it has recovered", || is_waiting().is_none().then_some(())).await;
    store.put(key.clone(), value.clone()).await.unwrap();
    tokio::time::timeout(ANSWERED, store.close()).await.unwrap();
}

/// Any call of the writer to the disk may hang, with or without a write in progress.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_hangs_is_noticed_and_no_caller_waits_for_ever() {
    let cases = [
        (Call::Write, true),
        (Call::Sync, true),
        (Call::Room, true),
        (Call::IsAt, true),
        (Call::IsAt, false),
        (Call::SyncNames, true),
    ];
    let cases = cases.map(|(call, in_use)| tokio::spawn(hangs(call, in_use)));
    for case in cases {
        case.await.unwrap();
    }
}

/// A put needs only the log, but a hanging call on redb's file must be noticed before it stops the writer too.
#[tokio::test]
async fn a_call_of_redb_that_hangs_is_noticed() {
    for call in [Call::RedbWrite, Call::RedbSync] {
        let folder = tempfile::tempdir().unwrap();
        let gate = Arc::new(Gate::default());
        let store = started(folder.path(), &gate);
        store.opened().await.unwrap();
        gate.set(Some(Trouble::Hangs(call)));
        let (key, value) = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
        store.put(key.clone(), value.clone()).await.unwrap();
        let is_waiting = || store.shared.troubles.of(Source::Waiting);
        within(2 * NOTICED, "the disk hangs", is_waiting).await;
        assert_eq!(store.get(&key).await.unwrap(), Some(value.clone()));
        store.put(key.clone(), value.clone()).await.unwrap();
        gate.set(None);
        within(ANSWERED, "it has recovered", || is_waiting().is_none().then_some(())).await;
        tokio::time::timeout(ANSWERED, store.close()).await.unwrap();
    }
}

/// An opening that hangs reports it, whichever call it waits for.
#[tokio::test(flavor = "multi_thread")]
async fn an_opening_that_hangs_is_noticed() {
    async fn hangs(call: Call) {
        let folder = tempfile::tempdir().unwrap();
        let gate = Arc::new(Gate::default());
        let store = started(folder.path(), &gate);
        store.opened().await.unwrap();
        // A store with a log, as after a kill.
        let (key, value) = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
        store.put(key.clone(), value.clone()).await.unwrap();
        let killed = tempfile::tempdir().unwrap();
        for name in ["store.redb", "store.redb.log0"] {
            std::fs::copy(folder.path().join(name), killed.path().join(name)).unwrap();
        }
        store.close().await;
        gate.set(Some(Trouble::Hangs(call)));
        let store = started(killed.path(), &gate);
        let is_waiting = || store.shared.troubles.of(Source::Waiting);
        let reason = within(NOTICED, "the disk hangs", is_waiting).await;
        assert!(reason.contains("has not answered for"), "{call:?}: {reason}");
        let refused = store.get(&key).await.unwrap_err();
        assert!(matches!(&refused, StorageError::Starting(why) if why.contains("has not answered for")), "{refused}");
        gate.set(None);
        store.opened().await.unwrap();
        within(ANSWERED, "it has recovered", || is_waiting().is_none().then_some(())).await;
        assert_eq!(store.get(&key).await.unwrap(), Some(value));
        store.close().await;
    }
    let calls = [Call::RedbSync, Call::RedbWrite, Call::SyncNames, Call::Sync, Call::Write];
    for case in calls.map(|call| tokio::spawn(hangs(call))) {
        case.await.unwrap();
    }
}

/// No thread of the store dies silently: waiting and later callers get an error.
#[tokio::test]
async fn a_thread_that_panics_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let gate = Arc::new(Gate::default());
    let (key, value) = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
    // During the opening.
    gate.set(Some(Trouble::Panics(Call::SyncNames)));
    let store = started(folder.path(), &gate);
    let failed = store.opened().await.unwrap_err().to_string();
    assert!(failed.contains("the store has failed: SyncNames was told to panic"), "{failed}");
    let refused = store.put(key.clone(), value.clone()).await.unwrap_err();
    assert!(matches!(refused, StorageError::Starting(_)), "{refused}");

    // During a write.
    gate.set(None);
    let store = started(folder.path(), &gate);
    store.opened().await.unwrap();
    store.put(key.clone(), value.clone()).await.unwrap();
    gate.set(Some(Trouble::Panics(Call::Sync)));
    let lost = store.put(key.clone(), value.clone()).await.unwrap_err();
    assert!(matches!(lost, StorageError::Uncertain { .. }), "{lost}");
    gate.set(None);
    for _ in 0..2 {
        let refused = store.put(key.clone(), value.clone()).await.unwrap_err().to_string();
        assert!(refused.contains("the store has failed: Sync was told to panic"), "{refused}");
        assert!(store.shared.troubles.of(Source::Thread).is_some());
    }
    // The agent ends in this case.
    let died = tokio::time::timeout(ANSWERED, store.died()).await.unwrap();
    assert!(died.contains("Sync was told to panic"), "{died}");
    tokio::time::timeout(ANSWERED, store.close()).await.unwrap();

    // In the flusher.
    let folder = tempfile::tempdir().unwrap();
    let store = started(folder.path(), &gate);
    store.opened().await.unwrap();
    gate.set(Some(Trouble::Panics(Call::RedbSync)));
    store.put(key.clone(), value.clone()).await.unwrap();
    let died = tokio::time::timeout(ANSWERED, store.died()).await.unwrap();
    assert!(died.contains("RedbSync was told to panic"), "{died}");
    gate.set(None);
    tokio::time::timeout(ANSWERED, store.close()).await.unwrap();
    let store = started(folder.path(), &gate);
    store.opened().await.unwrap();
    assert_eq!(store.get(&key).await.unwrap(), Some(value));
}

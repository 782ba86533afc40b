//! What the store's threads and its callers share: what readers see, and what is wrong.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::Snapshot;
use super::log::{Frame, Segments};
use super::queue::Queue;
use crate::metrics::Health;
use crate::metrics::labels::Component;
use crate::storage::StorageError;

/// What the log has and redb may not: the newest value of each key, `None` for a removed one. The bytes are those of the
/// log's frames, so that a table holds no more of them than its segments on the disk.
#[derive(Debug, Default)]
pub(super) struct MemoryTable {
    entries: HashMap<Bytes, Option<Bytes>>,
}

/// A key, and its newest value; `None` when it is removed.
pub(super) type Entry<'a> = (&'a Bytes, Option<&'a Bytes>);

impl MemoryTable {
    /// `None` when it knows nothing of the key; `Some(None)` when it is removed.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<&Bytes>> {
        self.entries.get(key).map(Option::as_ref)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Its entries in the order of their keys, which is the cheapest for redb.
    pub(super) fn sorted(&self) -> Vec<Entry<'_>> {
        let mut entries: Vec<_> = self.entries.iter().map(|(key, value)| (key, value.as_ref())).collect();
        entries.sort_unstable_by_key(|(key, _)| *key);
        entries
    }

    pub(super) fn apply(&mut self, frame: &Frame) {
        for record in frame.records() {
            self.entries.insert(record.key, record.value);
        }
    }
}

/// A table that takes no more, on its way into redb.
#[derive(Debug, Clone)]
pub(super) struct Frozen {
    pub(super) table: Arc<MemoryTable>,
    /// Where the log holds it.
    pub(super) segments: Segments,
}

/// What readers see, newest first.
#[derive(Default)]
struct Tables {
    active: MemoryTable,
    frozen: Option<Arc<MemoryTable>>,
    /// `None` while the store is starting, and once it is closed. Keeping it open between commits saves every read the
    /// opening of a transaction and of the table, which cost more than the look-up itself. It delays the reuse of freed
    /// pages by one commit.
    snapshot: Option<Arc<Snapshot>>,
}

/// What a look-up in memory found.
pub(super) enum LookUp {
    Found(Option<Bytes>),
    /// redb knows.
    In(Arc<Snapshot>),
}

/// What was there under a key that was written.
#[derive(Debug)]
pub(super) enum Before {
    Known(bool),
    /// redb knows; whoever wants to hear it asks.
    In(Arc<Snapshot>),
    /// Nobody wants to know.
    NotAsked,
}

pub(super) struct StoreState {
    pub(super) path: PathBuf,
    pub(super) queue: Queue,
    pub(super) troubles: Troubles,
    // A std lock: held for look-ups in memory and for one batch of insertions, never for I/O.
    tables: RwLock<Tables>,
    /// Where a caller's read failed, for the store to look again. Locked while that becomes a trouble, or ceases to be.
    failed_read: Mutex<Option<(u64, usize)>>,
    /// Whether the log says already that something is damaged.
    pub(super) damage_was_said: AtomicBool,
}

impl std::fmt::Debug for StoreState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A table's own `Debug` reads from the disk.
        f.debug_struct("StoreState").field("path", &self.path).finish_non_exhaustive()
    }
}

impl StoreState {
    pub(super) fn new(path: PathBuf, health: Health) -> Self {
        Self {
            troubles: Troubles::new(health),
            path,
            queue: Queue::default(),
            tables: RwLock::default(),
            failed_read: Mutex::default(),
            damage_was_said: AtomicBool::new(false),
        }
    }

    /// Looks the key up in memory. Values are copied: a small one must not hold on to its frame.
    pub(super) fn look_up(&self, key: &[u8]) -> Result<LookUp, StorageError> {
        let tables = self.tables.read();
        let Some(snapshot) = &tables.snapshot else { return Err(self.unavailable()) };
        Ok(match tables.in_memory(key) {
            Some(value) => LookUp::Found(value.map(|value| Bytes::copy_from_slice(value))),
            None => LookUp::In(snapshot.clone()),
        })
    }

    /// Shows readers what is durable in the log. Answers for each record whose `asked` is true what was there before.
    pub(super) fn apply(&self, frame: &Frame, asked: &[bool]) -> Vec<Before> {
        let mut tables = self.tables.write();
        let mut before = Vec::with_capacity(asked.len());
        if asked.contains(&true) {
            // Each sees those before it in the same frame.
            for (record, &asked) in frame.records().zip(asked) {
                before.push(if asked { tables.before(&record.key) } else { Before::NotAsked });
                tables.active.entries.insert(record.key, record.value);
            }
        } else {
            tables.active.apply(frame);
        }
        before
    }

    /// Makes room for a new table. `None` when there is nothing in the active one, or the frozen one is there yet.
    pub(super) fn freeze(&self) -> Option<Arc<MemoryTable>> {
        let mut tables = self.tables.write();
        if tables.frozen.is_some() || tables.active.is_empty() {
            return None;
        }
        let frozen = Arc::new(std::mem::take(&mut tables.active));
        tables.frozen = Some(frozen.clone());
        Some(frozen)
    }

    /// Shows readers the store as an opening found it.
    pub(super) fn open(&self, snapshot: Arc<Snapshot>, frozen: Option<Arc<MemoryTable>>) {
        let mut tables = self.tables.write();
        *tables = Tables { active: MemoryTable::default(), frozen, snapshot: Some(snapshot) };
    }

    /// Shows readers another state of redb, and returns the one that they saw before. With `has_frozen`, it has what
    /// the frozen table holds.
    pub(super) fn publish(&self, snapshot: Option<Arc<Snapshot>>, has_frozen: bool) -> Option<Arc<Snapshot>> {
        let mut tables = self.tables.write();
        let frozen = if has_frozen { tables.frozen.take() } else { None };
        let before = std::mem::replace(&mut tables.snapshot, snapshot);
        drop(tables);
        // Outside the lock: it may be the last owner of many small pieces.
        drop(frozen);
        before
    }

    /// A read of so many bytes at this offset failed.
    pub(super) fn cannot_read(&self, part: (u64, usize), reason: String) {
        let mut failed = self.failed_read.lock();
        *failed = Some(part);
        self.troubles.set(Source::Read, reason);
    }

    /// What could not be read last.
    pub(super) fn failed_read(&self) -> Option<(u64, usize)> {
        *self.failed_read.lock()
    }

    /// It can be read, and is no trouble any more unless something else failed meanwhile.
    pub(super) fn can_read(&self, part: (u64, usize)) {
        let mut failed = self.failed_read.lock();
        if *failed == Some(part) {
            *failed = None;
            self.troubles.clear(Source::Read);
        }
    }

    /// Why nothing can be asked.
    pub(super) fn unavailable(&self) -> StorageError {
        if self.queue.is_closed() {
            return closed();
        }
        let reason = self.troubles.first().unwrap_or_else(|| "the store is being opened".into());
        // After it was open there is only one way to nothing: a thread of the store has ended.
        if self.queue.is_open() { StorageError::Unavailable(reason) } else { StorageError::Starting(reason) }
    }
}

impl Tables {
    fn in_memory(&self, key: &[u8]) -> Option<Option<&Bytes>> {
        if !self.active.is_empty()
            && let Some(found) = self.active.get(key)
        {
            return Some(found);
        }
        self.frozen.as_ref()?.get(key)
    }

    fn before(&self, key: &[u8]) -> Before {
        match (self.in_memory(key), &self.snapshot) {
            (Some(found), _) => Before::Known(found.is_some()),
            (None, Some(snapshot)) => Before::In(snapshot.clone()),
            (None, None) => Before::Known(false),
        }
    }
}

pub(super) fn closed() -> StorageError {
    StorageError::Unavailable("the store is closed".into())
}

/// Whom a trouble concerns. The first one that has one says why the store is not ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The disk does not answer.
    Waiting,
    /// The opening is not done.
    Opening,
    /// The log cannot be written.
    Log,
    /// redb cannot take what the log has.
    Flush,
    /// A read failed.
    Read,
    /// A thread of the store ended.
    Thread,
}

const SOURCES: usize = 6;

/// What is wrong at present, by whom it concerns; the component `storage` is ready when nothing is.
#[derive(Debug)]
pub(super) struct Troubles {
    health: Health,
    list: Mutex<[Option<String>; SOURCES]>,
}

impl Troubles {
    fn new(health: Health) -> Self {
        Self { health, list: Mutex::default() }
    }

    pub(super) fn set(&self, source: Source, reason: impl Into<String>) {
        self.change(source, Some(reason.into()));
    }

    pub(super) fn clear(&self, source: Source) {
        self.change(source, None);
    }

    pub(super) fn of(&self, source: Source) -> Option<String> {
        self.list().get(source as usize).cloned().flatten()
    }

    fn first(&self) -> Option<String> {
        self.list().iter().flatten().next().cloned()
    }

    fn list(&self) -> parking_lot::MutexGuard<'_, [Option<String>; SOURCES]> {
        self.list.lock()
    }

    fn change(&self, source: Source, reason: Option<String>) {
        let mut list = self.list();
        let was = list.iter().flatten().next().cloned();
        if let Some(entry) = list.get_mut(source as usize) {
            if *entry == reason {
                return;
            }
            if source != Source::Opening {
                match (&entry, &reason) {
                    (None, Some(reason)) => tracing::warn!(reason, "The store is not ready"),
                    (Some(reason), None) => tracing::info!(reason, "The store has recovered"),
                    _ => {}
                }
            }
            *entry = reason;
        }
        let is = list.iter().flatten().next();
        // Said under the lock, so that what was said last is what is.
        match is {
            Some(reason) if was.as_ref() != Some(reason) => self.health.not_ready(Component::Storage, reason.clone()),
            Some(_) => {}
            None => self.health.ready(Component::Storage),
        }
    }
}

//! The state that the store's threads share with its callers: the contents that readers see, and current problems.

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

/// The contents of the log that redb may not have yet: the newest value of each key, or `None` for a removed key. The
/// bytes are shared with the log's frames, so they take no more memory than the table's segments take on the disk.
#[derive(Debug, Default)]
pub(super) struct MemoryTable {
    entries: HashMap<Bytes, Option<Bytes>>,
}

/// A key and its newest value; `None` if it was removed.
pub(super) type Entry<'a> = (&'a Bytes, Option<&'a Bytes>);

impl MemoryTable {
    /// `None` if the table does not have the key; `Some(None)` if the key was removed.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<&Bytes>> {
        self.entries.get(key).map(Option::as_ref)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Its entries sorted by key, which is the cheapest order for redb.
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

/// A table that no longer changes, on its way to redb.
#[derive(Debug, Clone)]
pub(super) struct Frozen {
    pub(super) table: Arc<MemoryTable>,
    /// The segments of the log that contain it.
    pub(super) segments: Segments,
}

/// The contents that readers see, newest first.
#[derive(Default)]
struct Tables {
    active: MemoryTable,
    frozen: Option<Arc<MemoryTable>>,
    /// `None` while the store is starting, and after it is closed. Keeping it open between commits saves every read
    /// from opening a transaction and the table, which cost more than the look-up itself. It delays the reuse of freed
    /// pages by one commit.
    snapshot: Option<Arc<Snapshot>>,
}

/// The result of a look-up in memory.
pub(super) enum LookUp {
    Found(Option<Bytes>),
    /// Not in memory; redb must be read.
    In(Arc<Snapshot>),
}

/// Whether a key had a value before it was written.
#[derive(Debug)]
pub(super) enum Before {
    Known(bool),
    /// Not in memory; a caller that wants to know must read redb.
    In(Arc<Snapshot>),
    /// The caller did not ask.
    NotAsked,
}

pub(super) struct StoreState {
    pub(super) path: PathBuf,
    pub(super) queue: Queue,
    pub(super) troubles: Troubles,
    // Locked for a look-up in memory or one batch of insertions, never during I/O.
    tables: RwLock<Tables>,
    /// Where a caller's read failed, so that the store can retry it. Locked while the trouble is set or cleared.
    failed_read: Mutex<Option<(u64, usize)>>,
    /// Whether damage has already been logged.
    pub(super) damage_was_said: AtomicBool,
}

impl std::fmt::Debug for StoreState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The `Debug` of a redb table reads from the disk.
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

    /// Looks the key up in memory. Values are copied, so that a small one does not keep its whole frame alive.
    pub(super) fn look_up(&self, key: &[u8]) -> Result<LookUp, StorageError> {
        let tables = self.tables.read();
        let Some(snapshot) = &tables.snapshot else { return Err(self.unavailable()) };
        Ok(match tables.in_memory(key) {
            Some(value) => LookUp::Found(value.map(|value| Bytes::copy_from_slice(value))),
            None => LookUp::In(snapshot.clone()),
        })
    }

    /// Makes a durable frame visible to readers. If any of `asked` is true, returns for each record whether its key had
    /// a value before.
    pub(super) fn apply(&self, frame: &Frame, asked: &[bool]) -> Vec<Before> {
        let mut tables = self.tables.write();
        let mut before = Vec::with_capacity(asked.len());
        if asked.contains(&true) {
            // Each record sees the earlier ones of the same frame.
            for (record, &asked) in frame.records().zip(asked) {
                before.push(if asked { tables.before(&record.key) } else { Before::NotAsked });
                tables.active.entries.insert(record.key, record.value);
            }
        } else {
            tables.active.apply(frame);
        }
        before
    }

    /// Freezes the active table and begins a new one. `None` if the active one is empty, or one is still frozen.
    pub(super) fn freeze(&self) -> Option<Arc<MemoryTable>> {
        let mut tables = self.tables.write();
        if tables.frozen.is_some() || tables.active.is_empty() {
            return None;
        }
        let frozen = Arc::new(std::mem::take(&mut tables.active));
        tables.frozen = Some(frozen.clone());
        Some(frozen)
    }

    /// Makes the result of an opening visible to readers.
    pub(super) fn open(&self, snapshot: Arc<Snapshot>, frozen: Option<Arc<MemoryTable>>) {
        let mut tables = self.tables.write();
        *tables = Tables { active: MemoryTable::default(), frozen, snapshot: Some(snapshot) };
    }

    /// Makes another state of redb visible to readers, and returns the previous one. `has_frozen`: whether the new one
    /// includes the frozen table.
    pub(super) fn publish(&self, snapshot: Option<Arc<Snapshot>>, has_frozen: bool) -> Option<Arc<Snapshot>> {
        let mut tables = self.tables.write();
        let frozen = if has_frozen { tables.frozen.take() } else { None };
        let before = std::mem::replace(&mut tables.snapshot, snapshot);
        drop(tables);
        // Outside the lock, because this may free many small pieces.
        drop(frozen);
        before
    }

    /// Records that a read of this part, an offset and a length, failed.
    pub(super) fn cannot_read(&self, part: (u64, usize), reason: String) {
        let mut failed = self.failed_read.lock();
        *failed = Some(part);
        self.troubles.set(Source::Read, reason);
    }

    /// The part of the last failed read, if it has not been read since.
    pub(super) fn failed_read(&self) -> Option<(u64, usize)> {
        *self.failed_read.lock()
    }

    /// The part can be read again: clears the trouble, unless another read has failed meanwhile.
    pub(super) fn can_read(&self, part: (u64, usize)) {
        let mut failed = self.failed_read.lock();
        if *failed == Some(part) {
            *failed = None;
            self.troubles.clear(Source::Read);
        }
    }

    /// Why the store cannot be used now.
    pub(super) fn unavailable(&self) -> StorageError {
        if self.queue.is_closed() {
            return closed();
        }
        let reason = self.troubles.first().unwrap_or_else(|| "the store is being opened".into());
        // An open store becomes unavailable only when one of its threads has died.
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

/// The source of a trouble. Of several troubles, the first in this order is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The disk does not answer.
    Waiting,
    /// The store is not open.
    Opening,
    /// The log cannot be written.
    Log,
    /// The contents of the log cannot be moved to redb.
    Flush,
    /// A read failed.
    Read,
    /// A thread of the store has panicked.
    Thread,
}

const SOURCES: usize = 6;

/// The current troubles, by source. The component `storage` is ready when there are none.
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
        // Reported under the lock, so that the last report is the current state.
        match is {
            Some(reason) if was.as_ref() != Some(reason) => self.health.not_ready(Component::Storage, reason.clone()),
            Some(_) => {}
            None => self.health.ready(Component::Storage),
        }
    }
}

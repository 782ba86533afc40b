//! The embedded store: a log in front of a redb database, in files of their own beside each other.
//!
//! # The files
//!
//! `store.redb` is a redb database (file format 3) with the table [`TABLE_NAME`], from key bytes to value bytes with a
//! checksum behind them (`value.rs`), and one of what the store knows of itself. The table's name carries the version of
//! this layout: an incompatible one gets a new name, and an older agent then refuses the file and says so. The file is
//! made under another name and gets its own only when it is complete, so that it either is not there or is a store. For
//! the same reason an empty file counts as damaged: no store ever is one.
//!
//! `store.redb.log0` to `log7` are the log (`log.rs`, its format in `log/format.rs`). A closing takes them away when redb
//! has all that they hold.
//!
//! # Durability
//!
//! [`put`](LocalStorageBackend::put) and [`delete`](LocalStorageBackend::delete) return when the log has them, synced;
//! the killing of the process or a power cut cannot undo them. Concurrent writes share a sync (`writer.rs`). Readers
//! find them in memory (`state.rs`) until redb has them, some megabytes in one transaction (`flush.rs`); then the part
//! of the log that held them is written anew. A start reads the log back into memory (`start.rs`).
//!
//! Assumed of the disk: a sync that succeeded lasts, a sector of 512 bytes is written whole or not at all, and a write
//! does not change bytes outside its own range. Nothing is assumed about the order of writes between two syncs. Of a
//! sync that failed it is assumed that nothing it was to write is on the disk, whatever the page cache says and
//! whatever later syncs say: the frame of the log is written again elsewhere, and the transaction of redb once more,
//! from what the log holds. On ext4 a page that never reached the disk cannot be written any more as long as the page
//! cache has it, although that is reported as a success; so the cache has to forget the file first
//! ([`DiskFile::forget`](disk::DiskFile::forget)), also at each opening: nobody knows what failed before.
//!
//! redb commits in two phases, with the state of its allocator: pages first, a sync, then the header that names them.
//! So an opening needs the header alone, writes that one page again before it trusts it (`file.rs`), and takes the same
//! time whatever the size. Two syncs a commit cost nothing here: nobody waits for them.
//!
//! # Damage
//!
//! Each value is verified when it is read. An opening that is refused writes nothing: a file that is refused keeps its
//! bytes. `storage.local.check_on_open` reads every page before the store is ready.
//!
//! # A disk that is full, fails, or hangs
//!
//! A frame that does not fit is refused with [`StorageError::DiskFull`]; one that fails may still happen, and says so. Writes
//! work again by themselves. Reads go on, from memory and from the last state of redb. What waits for the disk too long
//! is given up (`watch.rs`).

mod check;
mod disk;
mod file;
mod flush;
mod log;
mod open;
mod queue;
mod read;
#[cfg(test)]
#[path = "../../tests/simulation/mod.rs"]
mod simulation;
mod start;
mod state;
mod value;
mod watch;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redb::{ReadOnlyTable, TableDefinition};
use tokio::sync::{oneshot, watch as channel};

pub use self::check::Checked;
pub(super) use self::check::check;
use self::disk::LinuxDisk;
#[cfg(any(test, fuzzing))]
pub use self::log::fuzz as fuzz_log;
use self::open::Options;
use self::queue::Write;
use self::read::Readers;
use self::state::{Before, LookUp, StoreState, closed};
use super::{LocalConfig, OpenError, StorageError};
use crate::metrics::{Health, MetricsCollector};

/// The name of the table of values; the number is the version of the layout.
const TABLE_NAME: &str = "peerscope.v2";
const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new(TABLE_NAME);

/// The last state that redb has committed, as readers see it.
type Snapshot = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// How long a closing waits for an opening to end.
const OPENING_ENDS: Duration = Duration::from_millis(500);

/// How far the store is, as its threads say.
#[derive(Debug, Clone)]
enum Stage {
    Starting,
    Open,
    /// It could not be opened.
    Failed(OpenError),
    /// One of its threads has panicked; with what, and whether the others have ended, too.
    Died {
        reason: String,
        ended: bool,
    },
    /// Closed, and its files given back.
    Ended,
}

impl Stage {
    fn is_final(&self) -> bool {
        matches!(self, Self::Ended | Self::Failed(_) | Self::Died { ended: true, .. })
    }
}

/// The embedded store. Dropping it closes it, some time later; [`close`](Self::close) waits.
#[derive(Debug)]
pub struct LocalStorageBackend {
    shared: Arc<StoreState>,
    readers: Readers,
    stage: channel::Receiver<Stage>,
}

impl LocalStorageBackend {
    /// Begins to open the store at `path`, or to make it, with its folders (mode 0700, the file 0600), when there is
    /// nothing there. Of `config`, the path is not used. [`opened`](Self::opened) waits for it; until then operations
    /// fail with [`StorageError::Starting`].
    pub fn start(path: PathBuf, config: &LocalConfig, metrics: MetricsCollector, health: Health) -> Self {
        let options = Options { cache_size: config.cache_size, check: config.check_on_open };
        let shared = Arc::new(StoreState::new(path, health));
        let stage = start::start(Arc::new(LinuxDisk), options, shared.clone(), metrics);
        Self { shared, readers: Readers::new(), stage }
    }

    /// Opens the store, and returns when it is open; see [`start`](Self::start).
    ///
    /// # Errors
    ///
    /// Those of [`opened`](Self::opened).
    pub async fn open(
        path: PathBuf,
        config: &LocalConfig,
        metrics: MetricsCollector,
        health: Health,
    ) -> Result<Self, OpenError> {
        let store = Self::start(path, config, metrics, health);
        store.opened().await.map(|()| store)
    }

    /// Waits until the store is open, or closed.
    ///
    /// # Errors
    ///
    /// [`OpenError::InUse`], [`OpenError::Damaged`] (also for a file that is something else), and [`OpenError::Io`] for
    /// what does not mend itself, such as a folder that may not be read.
    pub async fn opened(&self) -> Result<(), OpenError> {
        let mut stage = self.stage.clone();
        let reached = stage.wait_for(|stage| !matches!(stage, Stage::Starting)).await;
        match reached.as_deref() {
            Ok(Stage::Failed(error)) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Completes when a thread of the store has panicked, and says with what. What was acknowledged is in the log or in
    /// redb; but nothing can be written any more, and perhaps nothing read.
    pub async fn died(&self) -> String {
        let mut stage = self.stage.clone();
        loop {
            if let Stage::Died { reason, .. } = &*stage.borrow_and_update() {
                return reason.clone();
            }
            if stage.changed().await.is_err() {
                // It has ended in order.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Reads the value under `key`: about a microsecond on the calling thread from memory, and on a thread of its own
    /// where that takes a read from the disk.
    ///
    /// # Errors
    ///
    /// [`StorageError::Starting`], [`StorageError::Unavailable`] once closed, [`StorageError::Backend`] when the disk cannot be read,
    /// [`StorageError::Damaged`] when what it holds is not what was put, [`StorageError::Timeout`] when it does not answer within 8 s,
    /// [`StorageError::Busy`] when too many reads wait for it.
    pub async fn get(&self, key: &Bytes) -> Result<Option<Bytes>, StorageError> {
        match self.shared.look_up(key)? {
            LookUp::Found(value) => Ok(value),
            LookUp::In(snapshot) => self.readers.get(&self.shared, snapshot, key).await,
        }
    }

    /// Writes `value` under `key`, and returns when it is durable.
    ///
    /// # Errors
    ///
    /// [`StorageError::Busy`] at once when the queue is full: waiting belongs to the caller, who knows its own
    /// deadline. [`StorageError::DiskFull`], [`StorageError::Backend`] when the disk fails, [`StorageError::Uncertain`] when it failed in the
    /// middle of this write, which may still happen, [`StorageError::Hangs`] when it does not answer,
    /// [`StorageError::Starting`], [`StorageError::Unavailable`] once closed.
    pub async fn put(&self, key: Bytes, value: Bytes) -> Result<(), StorageError> {
        self.write(key, Some(value)).await.map(drop)
    }

    /// Removes `key`, and returns when that is durable; `true` when there was a value.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put) and [`get`](Self::get). After one of the latter the key is removed.
    pub async fn delete(&self, key: Bytes) -> Result<bool, StorageError> {
        match self.write(key.clone(), None).await? {
            Before::Known(existed) => Ok(existed),
            Before::In(snapshot) => Ok(self.readers.get(&self.shared, snapshot, &key).await?.is_some()),
            Before::NotAsked => Ok(false),
        }
    }

    /// One line for people: what and where the store is.
    pub fn describe(&self) -> String {
        format!("local {}", self.shared.path.display())
    }

    /// Refuses new work, waits until every write in the queue is durable, and closes the file. It can be
    /// opened again at once. Closing twice is no error. An opening that goes on is not waited for: it has made no
    /// promises, and can be cut short anywhere.
    pub async fn close(&self) {
        self.shared.queue.close();
        let mut stage = self.stage.clone();
        if matches!(*stage.borrow(), Stage::Starting) {
            let _goes_on = tokio::time::timeout(OPENING_ENDS, stage.wait_for(Stage::is_final)).await;
        } else {
            let _ended = stage.wait_for(Stage::is_final).await;
        }
    }

    async fn write(&self, key: Bytes, value: Option<Bytes>) -> Result<Before, StorageError> {
        if !self.shared.queue.is_open() {
            return Err(self.shared.unavailable());
        }
        let (done, outcome) = oneshot::channel();
        self.shared.queue.add(Write { key, value, done })?;
        outcome.await.unwrap_or_else(|_| Err(closed()))
    }
}

impl Drop for LocalStorageBackend {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

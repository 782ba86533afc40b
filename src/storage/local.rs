//! The embedded store: a log in front of a redb database, each in files of its own.
//!
//! # The files
//!
//! `store.redb` is a redb database (file format 3) with two tables: [`TABLE_NAME`], which maps key bytes to value bytes
//! followed by a checksum (`value.rs`), and one with the store's metadata. The name of the first includes the version
//! of this layout: an incompatible layout gets a new name, so that an older agent refuses the file with a clear error.
//! The file is created under another name and renamed when it is complete, so it is either absent or a store. That is
//! also why an empty file counts as damaged.
//!
//! `store.redb.log0` to `log7` are the log (`log.rs`, its format in `log/format.rs`). Closing the store removes them
//! once redb has all of their contents.
//!
//! # Durability
//!
//! [`put`](LocalStorageBackend::put) and [`delete`](LocalStorageBackend::delete) return once they are synced to the
//! log. After that neither a kill nor a power cut can undo them. Concurrent writes share a sync (`writer.rs`). Readers
//! find them in memory (`state.rs`) until redb has them. Several megabytes go to redb in one transaction (`flush.rs`),
//! and their part of the log is then reused. A start reads the log back into memory (`start.rs`).
//!
//! Assumptions about the disk: a sync that succeeded lasts, a sector of 512 bytes is written entirely or not at all,
//! and a write does not change bytes outside its own range. Nothing is assumed about the order of writes between two
//! syncs. After a failed sync, all data that it covered is assumed not to be on the disk, whatever the page cache
//! shows and later syncs report: the log frame is written again elsewhere, and the redb transaction is repeated from
//! the log. On ext4 a page that never reached the disk cannot be written as long as it is in the page cache, although
//! syncs report success. So the cache must first drop the file ([`DiskFile::forget`](disk::DiskFile::forget)). Every
//! opening does that, because it cannot know what failed before.
//!
//! redb commits in two phases and saves the state of its allocator: first pages, then a sync, then the header that
//! refers to them. So an opening needs only the header, rewrites that one page before it trusts it (`file.rs`), and
//! takes constant time. The two syncs of a commit cost nothing here, because no caller waits for them.
//!
//! # Damage
//!
//! Each value is verified when it is read. An opening that is refused leaves the file unchanged.
//! `storage.local.check_on_open` reads every page before the store is ready.
//!
//! # A disk that is full, fails, or hangs
//!
//! A frame that does not fit is refused with [`StorageError::DiskFull`]. A frame that fails may still take effect, as
//! its error says. Writes recover by themselves. Reads continue, from memory and from the last state of redb. An
//! operation that waits too long for the disk is given up (`watch.rs`, `read.rs`).

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

/// The name of the table of values, which includes the version of the layout.
const TABLE_NAME: &str = "peerscope.v2";
const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new(TABLE_NAME);

/// The state of redb's last commit, as readers see it.
type Snapshot = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// How long `close` waits for an unfinished opening to end.
const OPENING_ENDS: Duration = Duration::from_millis(500);

/// The stage of the store's life, set by its threads.
#[derive(Debug, Clone)]
enum Stage {
    Starting,
    Open,
    /// It could not be opened.
    Failed(OpenError),
    /// One of its threads has panicked, for this reason; `ended` if the others have ended too.
    Died {
        reason: String,
        ended: bool,
    },
    /// Closed, with its files released.
    Ended,
}

impl Stage {
    fn is_final(&self) -> bool {
        matches!(self, Self::Ended | Self::Failed(_) | Self::Died { ended: true, .. })
    }
}

/// The embedded store. Dropping it closes it in the background; [`close`](Self::close) waits for that.
#[derive(Debug)]
pub struct LocalStorageBackend {
    shared: Arc<StoreState>,
    readers: Readers,
    stage: channel::Receiver<Stage>,
}

impl LocalStorageBackend {
    /// Starts to open the store at `path`, and creates it (mode 0600) and its folders (0700) if they do not exist. The
    /// path in `config` is ignored. [`opened`](Self::opened) waits for the store; until it is open, operations fail
    /// with [`StorageError::Starting`].
    pub fn start(path: PathBuf, config: &LocalConfig, metrics: MetricsCollector, health: Health) -> Self {
        let options = Options { cache_size: config.cache_size, check: config.check_on_open };
        let shared = Arc::new(StoreState::new(path, health));
        let stage = start::start(Arc::new(LinuxDisk), options, shared.clone(), metrics);
        Self { shared, readers: Readers::new(), stage }
    }

    /// Opens the store and waits until it is open; see [`start`](Self::start).
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
    /// [`OpenError::InUse`], [`OpenError::Damaged`] (also for a file that is not a store), and [`OpenError::Io`] for
    /// errors that do not go away by themselves, such as a folder without read permission.
    pub async fn opened(&self) -> Result<(), OpenError> {
        let mut stage = self.stage.clone();
        let reached = stage.wait_for(|stage| !matches!(stage, Stage::Starting)).await;
        match reached.as_deref() {
            Ok(Stage::Failed(error)) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Completes when a thread of the store has panicked, and returns the reason. Every acknowledged write is in the
    /// log or in redb, but nothing can be written any more, and possibly nothing can be read.
    pub async fn died(&self) -> String {
        let mut stage = self.stage.clone();
        loop {
            if let Stage::Died { reason, .. } = &*stage.borrow_and_update() {
                return reason.clone();
            }
            if stage.changed().await.is_err() {
                // The store has ended normally.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Reads the value under `key`: from memory on the calling thread, in about a microsecond, or on another thread if
    /// the disk must be read.
    ///
    /// # Errors
    ///
    /// [`StorageError::Starting`], [`StorageError::Unavailable`] once closed, [`StorageError::Backend`] if the disk
    /// cannot be read, [`StorageError::Damaged`] if the stored value is not the one that was put,
    /// [`StorageError::Timeout`] if the disk does not answer within 8 s, [`StorageError::Busy`] if too many reads are
    /// waiting for it.
    pub async fn get(&self, key: &Bytes) -> Result<Option<Bytes>, StorageError> {
        match self.shared.look_up(key)? {
            LookUp::Found(value) => Ok(value),
            LookUp::In(snapshot) => self.readers.get(&self.shared, snapshot, key).await,
        }
    }

    /// The same as [`get`](Self::get) if the answer is in memory; otherwise `None`.
    pub fn get_at_once(&self, key: &Bytes) -> Option<Result<Option<Bytes>, StorageError>> {
        match self.shared.look_up(key) {
            Ok(LookUp::Found(value)) => Some(Ok(value)),
            Ok(LookUp::In(snapshot)) => Readers::get_at_once(&self.shared, &snapshot, key),
            Err(error) => Some(Err(error)),
        }
    }

    /// Writes `value` under `key`, and returns when it is durable.
    ///
    /// # Errors
    ///
    /// [`StorageError::Busy`] at once if the queue is full: a caller that wants to wait knows its own deadline.
    /// [`StorageError::DiskFull`], [`StorageError::Backend`] if the disk fails, [`StorageError::Uncertain`] if it
    /// failed during this write, which may still take effect, [`StorageError::Hangs`] if it does not answer,
    /// [`StorageError::Starting`], [`StorageError::Unavailable`] once closed.
    pub async fn put(&self, key: Bytes, value: Bytes) -> Result<(), StorageError> {
        self.write(key, Some(value)).await.map(drop)
    }

    /// Removes `key`, and returns when that is durable; `true` if there was a value.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put) and [`get`](Self::get). If reading the old value failed, the key has been removed.
    pub async fn delete(&self, key: Bytes) -> Result<bool, StorageError> {
        match self.write(key.clone(), None).await? {
            Before::Known(existed) => Ok(existed),
            Before::In(snapshot) => Ok(self.readers.get(&self.shared, snapshot, &key).await?.is_some()),
            Before::NotAsked => Ok(false),
        }
    }

    /// How long an operation may wait for the disk: a call to it is given up after 8 s, checked twice a second.
    #[allow(clippy::unused_self, reason = "another backend's depends on its configuration")]
    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(9)
    }

    /// A one-line description: the kind of store and its path.
    pub fn describe(&self) -> String {
        format!("local {}", self.shared.path.display())
    }

    /// Refuses new operations, waits until every queued write is durable, and closes the file, which can be opened
    /// again at once. Closing twice is allowed. An unfinished opening gets 500 ms and is then abandoned, which is safe
    /// at any point: it has acknowledged nothing.
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

//! The embedded store: one redb file, one writer thread, reads on the caller's own thread.
//!
//! # The file
//!
//! A redb database (file format 3) with one table, [`TABLE_NAME`], from key bytes to value bytes. The
//! table's name carries the version of this layout: an incompatible one gets a new name, and an older
//! agent then refuses the file and says so. The file is made under another name and gets its own only
//! when it is complete, so that it either is not there or is a store. For the same reason an empty file
//! counts as damaged: no store ever is one.
//!
//! # Durability
//!
//! [`put`](LocalStorageBackend::put) and [`delete`](LocalStorageBackend::delete) return after the
//! transaction that carries them was committed with an `fdatasync`; the killing of the process or a power
//! cut cannot undo them. Concurrent writes share a transaction (`writer.rs`). A write whose caller went
//! away, or got an error other than `Busy` or one of a limit, may or may not have been done.
//!
//! Commits have one phase: pages, commit slot and the switch to it are written, then synced once. After
//! a crash redb takes the newest slot whose pages all match their checksums. Two phases would cost a
//! second sync a commit, and guard against somebody who chooses the data, knows the file and can crash the
//! machine inside that one sync; redb's quick repair needs two phases as well and would only shorten the
//! opening after a crash, which reads the whole file here in any case.
//!
//! Assumed of the disk: a completed `fdatasync` lasts, and a write does not change bytes outside its own
//! range. Nothing is assumed about the order or the atomicity of writes between two syncs.
//!
//! # Damage
//!
//! Opening verifies the checksum of every page, which costs one read of the whole file (2.4 s a GiB were
//! measured; `storage.local.check_on_open: false` trusts a file that was closed cleanly), and writes nothing
//! to it until everything was found good (`file.rs`): a file that is refused keeps its bytes. What
//! redb could not survive (it asserts in places) is caught and refused the same way. Two things are out of
//! reach: bytes that changed in unused pages, which matter to nobody, and, after a crash, damage to the last
//! commit, which looks like a commit that the crash cut short and is rolled back.
//!
//! # A full disk
//!
//! A batch of writes that might not fit is refused with [`Error::DiskFull`] before it begins. If the disk
//! fills up within a commit all the same, or fails, the failed write is kept in memory, so that redb
//! never sees the error and goes on serving reads; the batch's callers get the error, the database is opened
//! anew from what the disk holds, and takes the place of the old one. Writes work again by themselves once
//! there is room. The component `storage` is not ready in the meantime.

mod file;
mod open;
mod writer;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use redb::{ReadOnlyTable, StorageError, TableDefinition};
use tokio::sync::{oneshot, watch};

use self::open::Options;
use super::{Error, LocalConfig, OpenError};
use crate::metrics::labels::Component;
use crate::metrics::{Health, MetricsCollector};
use writer::{Job, Write, Writer};

/// The name of the one table; the number is the version of the layout.
const TABLE_NAME: &str = "peerscope.v1";
const TABLE: TableDefinition<&[u8], &[u8]> = TableDefinition::new(TABLE_NAME);

/// The last committed state, as readers see it.
type Snapshot = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// How many writes may wait for the writer: more than the callers of a busy agent have in flight, and
/// what the writer does in about 30 ms.
const QUEUE_WRITES: usize = 1024;

/// How many bytes the waiting writes may hold together, so that a queue full of the largest values does not
/// eat the machine: eight of the largest batches.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// The embedded store. Dropping it closes it, some time later; [`close`](Self::close) waits.
#[derive(Debug)]
pub struct LocalStorageBackend {
    path: PathBuf,
    shared: Arc<Shared>,
    // `None` once closed. A std lock: held for a `try_send`, never across an await.
    queue: RwLock<Option<SyncSender<Job>>>,
    // The writer holds the other end until the file is closed.
    ended: watch::Receiver<()>,
}

/// What the callers and the writer share.
#[derive(Default)]
struct Shared {
    /// Replaced after every commit, before the commit is acknowledged: a caller that was told of a write
    /// can read it. Keeping the snapshot open between commits saves every read the opening of a transaction
    /// and of the table, which cost more than the look-up itself. It delays the reuse of freed pages by one
    /// commit. `None` while the store is closed.
    snapshot: RwLock<Option<Arc<Snapshot>>>,
    queued_bytes: AtomicUsize,
    queued_writes: AtomicUsize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A table's own `Debug` reads from the disk.
        f.debug_struct("Shared").field("queued_writes", &self.queued_writes).finish_non_exhaustive()
    }
}

impl LocalStorageBackend {
    /// Opens the store at `path`, or makes it, with its folders (mode 0700, the file 0600), when there is
    /// nothing there. Of `config`, the path is not used.
    ///
    /// # Errors
    ///
    /// [`OpenError::InUse`], [`OpenError::Damaged`] (also for a file that is something else) and
    /// [`OpenError::Io`].
    pub async fn open(
        path: PathBuf,
        config: &LocalConfig,
        metrics: MetricsCollector,
        health: Health,
    ) -> Result<Self, OpenError> {
        let task_path = path.clone();
        let options = Options { cache_size: config.cache_size, check: config.check_on_open };
        let opened = tokio::task::spawn_blocking(move || {
            let path = task_path;
            let generation = open::open(&path, options)?;
            let shared = Arc::new(Shared::default());
            let (queue, jobs) = std::sync::mpsc::sync_channel(QUEUE_WRITES);
            let (alive, ended) = watch::channel(());
            let after = health.clone();
            let writer = Writer::new(generation, options, shared.clone(), metrics, health.clone());
            std::thread::Builder::new()
                .name("peerscope-store".into())
                .spawn(move || {
                    // What redb asserts in a place where nobody catches it ends the writer. That has to show.
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| writer.run(&jobs))) {
                        let reason = format!("the store's writer failed: {}", open::panic_text(&*panic));
                        tracing::error!(reason, "The store takes no more writes; restart the agent");
                        after.not_ready(Component::Storage, reason);
                    }
                    drop(alive);
                })
                .map_err(|source| OpenError::Io { path: path.clone(), source })?;
            health.ready(Component::Storage);
            Ok(Self { path, shared, queue: RwLock::new(Some(queue)), ended })
        });
        opened.await.unwrap_or_else(|error| Err(OpenError::Io { path, source: std::io::Error::other(error) }))
    }

    /// Reads the value under `key`, on the calling thread: about a microsecond from the page cache, one or
    /// more disk reads otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] once closed, [`Error::Backend`] when the disk cannot be read.
    #[allow(clippy::unused_async, reason = "the backends have one API, and the other one waits for a network")]
    pub async fn get(&self, key: &Bytes) -> Result<Option<Bytes>, Error> {
        // Cloned, so that a read that waits for the disk holds no lock.
        let snapshot = self.shared.snapshot.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(snapshot) = snapshot else { return Err(closed()) };
        let found = || Ok(snapshot.get(&**key)?.map(|value| Bytes::copy_from_slice(value.value())));
        // redb asserts what it believes of its pages. A look-up that trips over damage must not take the
        // caller's task with it.
        match catch_unwind(AssertUnwindSafe(found)).unwrap_or_else(|panic| Err(corrupted(&*panic))) {
            Ok(value) => Ok(value),
            Err(StorageError::DatabaseClosed) => Err(closed()),
            Err(error) => {
                // redb serves nothing more after a failed read; the writer opens the database anew. When
                // its queue is full, the next write or read tells it.
                if let Some(queue) = &*self.queue.read().unwrap_or_else(PoisonError::into_inner) {
                    let _told_later = queue.try_send(Job::Recover);
                }
                Err(Error::Backend(format!("cannot read {}: {error}", self.path.display())))
            }
        }
    }

    /// Writes `value` under `key`, and returns when it is durable.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] at once when the queue is full: waiting belongs to the caller, who knows its own
    /// deadline. [`Error::DiskFull`], [`Error::Backend`] when the disk fails, [`Error::Unavailable`] once
    /// closed.
    pub async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Error> {
        self.write(key, Some(value)).await.map(drop)
    }

    /// Removes `key`, and returns when that is durable; `true` when there was a value.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put).
    pub async fn delete(&self, key: Bytes) -> Result<bool, Error> {
        self.write(key, None).await
    }

    /// One line for people: what and where the store is.
    pub fn describe(&self) -> String {
        format!("local {}", self.path.display())
    }

    /// Refuses new work, waits until every write in the queue is durable, and closes the file. It can be
    /// opened again at once. Closing twice is no error.
    pub async fn close(&self) {
        drop(self.queue.write().unwrap_or_else(PoisonError::into_inner).take());
        // The only change that this channel ever sees is its end.
        let _end = self.ended.clone().changed().await;
    }

    async fn write(&self, key: Bytes, value: Option<Bytes>) -> Result<bool, Error> {
        let (done, outcome) = oneshot::channel();
        self.enqueue(Write { key, value, done })?;
        outcome.await.unwrap_or_else(|_| Err(closed()))
    }

    fn enqueue(&self, write: Write) -> Result<(), Error> {
        let queue = self.queue.read().unwrap_or_else(PoisonError::into_inner);
        let Some(queue) = &*queue else { return Err(closed()) };
        let size = write.size();
        // Counted before it is sent: the writer may take it off again at any moment after.
        let bytes = self.shared.queued_bytes.fetch_add(size, Ordering::Relaxed);
        let writes = self.shared.queued_writes.fetch_add(1, Ordering::Relaxed);
        let sent = if bytes > 0 && bytes + size > QUEUE_BYTES {
            Err(Error::Busy(writes))
        } else {
            queue.try_send(Job::Write(write)).map_err(|error| match error {
                TrySendError::Full(_) => Error::Busy(QUEUE_WRITES),
                TrySendError::Disconnected(_) => closed(),
            })
        };
        if sent.is_err() {
            self.shared.left_queue(size);
        }
        sent
    }
}

impl Shared {
    /// A write of `size` bytes is not in the queue any more.
    fn left_queue(&self, size: usize) {
        self.queued_bytes.fetch_sub(size, Ordering::Relaxed);
        self.queued_writes.fetch_sub(1, Ordering::Relaxed);
    }

    /// Shows readers another state, and returns the one that they saw before.
    fn publish(&self, snapshot: Option<Arc<Snapshot>>) -> Option<Arc<Snapshot>> {
        std::mem::replace(&mut *self.snapshot.write().unwrap_or_else(PoisonError::into_inner), snapshot)
    }
}

fn corrupted(panic: &(dyn Any + Send)) -> StorageError {
    StorageError::Corrupted(open::panic_text(panic))
}

fn closed() -> Error {
    Error::Unavailable("the store is closed".into())
}

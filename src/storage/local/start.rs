//! Opens a store in the background, so that the agent can be observed while the store is checked, migrated, or cannot
//! be read yet.

use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Stage;
use super::disk::Disk;
use super::file::DiskActivity;
use super::flush::Flusher;
use super::log::{Log, Replay, Segments};
use super::open::{self, Opened, Options, Progress};
use super::queue::Refuser;
use super::state::{Frozen, MemoryTable, Source, StoreState};
use super::writer::Writer;
use crate::metrics::MetricsCollector;
use crate::panics;
use crate::storage::{OpenError, StorageError};

/// The pause after an I/O error before the next attempt to open the store.
const PAUSE: Duration = Duration::from_secs(1);

/// An opening that takes at least this long is logged.
const WORTH_SAYING: Duration = Duration::from_secs(1);

/// The result of an opening.
pub(super) struct Parts {
    pub(super) flusher: Flusher,
    pub(super) writer: Writer,
    /// The contents of the log that redb does not have.
    pub(super) frozen: Option<Frozen>,
}

/// Starts the threads of a store. They end after its queue is closed.
pub(super) fn start(
    disk: Arc<dyn Disk>,
    options: Options,
    shared: Arc<StoreState>,
    metrics: MetricsCollector,
) -> watch::Receiver<Stage> {
    let (stage, told) = watch::channel(Stage::Starting);
    shared.troubles.set(Source::Opening, "the store is being opened");
    let watched = Arc::new(super::watch::Watched::default());
    let failed = stage.clone();
    let path = shared.path.clone();
    let spawned = spawn_watch(&shared, &watched, told.clone()).and_then(|()| {
        let run = move || {
            let ended = guarded(&shared, || run(disk, options, &shared, metrics, &stage, &watched));
            stage.send_modify(|stage| {
                *stage = match (ended, &*stage) {
                    (Ok(Err(error)), _) => Stage::Failed(error),
                    (Err(reason), Stage::Starting) => {
                        Stage::Failed(OpenError::io(&shared.path, io::Error::other(reason)))
                    }
                    (Err(reason), _) => Stage::Died { reason, ended: true },
                    // The flusher had already died.
                    (_, Stage::Died { reason, .. }) => Stage::Died { reason: reason.clone(), ended: true },
                    _ => Stage::Ended,
                }
            });
        };
        Builder::new().name("peerscope-store".into()).spawn(run).map(drop)
    });
    if let Err(source) = spawned {
        failed.send_replace(Stage::Failed(OpenError::io(&path, source)));
    }
    told
}

fn spawn_watch(
    shared: &Arc<StoreState>,
    watched: &Arc<super::watch::Watched>,
    stage: watch::Receiver<Stage>,
) -> io::Result<()> {
    let (shared, watched) = (shared.clone(), watched.clone());
    let watch = move || {
        let _said = guarded(&shared, || super::watch::run(&shared, &watched, &stage));
    };
    Builder::new().name("store-watch".into()).spawn(watch).map(drop)
}

/// Runs `work`. If it panics, reports the reason and makes the store refuse all writes.
fn guarded<T>(shared: &StoreState, work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let reason = format!("the store has failed: {}; restart the agent", panics::text(&*panic));
        shared.troubles.set(Source::Thread, reason.clone());
        let refused = reason.clone();
        shared.queue.refuse(Refuser::Dead, move || StorageError::Backend(refused.clone()));
        let lost = || StorageError::Uncertain { path: shared.path.clone(), reason: reason.clone() };
        shared.queue.give_up(Duration::ZERO, lost, lost);
        reason
    })
}

/// Opens the store, reports this, and writes until the queue is closed.
fn run(
    disk: Arc<dyn Disk>,
    options: Options,
    shared: &Arc<StoreState>,
    metrics: MetricsCollector,
    stage: &watch::Sender<Stage>,
    watched: &super::watch::Watched,
) -> Result<(), OpenError> {
    let began = Instant::now();
    let Some(Parts { flusher, writer, frozen }) = open_until_done(&disk, options, shared, &metrics, watched)? else {
        return Ok(());
    };
    let (flush, tables) = sync_channel(1);
    let (flushed, done) = channel();
    if let Some(frozen) = frozen {
        let _there_is_room = flush.try_send(frozen);
    }
    spawn_flusher(shared, flusher, tables, flushed, stage.clone())
        .map_err(|source| OpenError::io(&shared.path, source))?;
    if began.elapsed() >= WORTH_SAYING {
        tracing::info!(took = ?began.elapsed(), "The store is open");
    }
    shared.queue.open();
    // Both changes at once, for the watch, which reports the progress of an opening, and for callers that wait for it.
    stage.send_modify(|stage| {
        shared.troubles.clear(Source::Opening);
        *stage = Stage::Open;
    });
    writer.run(flush, &done);
    shared.troubles.set(Source::Opening, "the store is closed");
    Ok(())
}

fn spawn_flusher(
    shared: &Arc<StoreState>,
    flusher: Flusher,
    tables: Receiver<Frozen>,
    flushed: Sender<Segments>,
    stage: watch::Sender<Stage>,
) -> io::Result<()> {
    let shared = shared.clone();
    let run = move || {
        if let Err(reason) = guarded(&shared, || flusher.run(&tables, &flushed)) {
            // redb is gone with the thread. The last reader releases the lock of its file.
            drop(shared.publish(None, false));
            // A final stage, which the writer's thread sets, must not be overwritten.
            stage.send_if_modified(|stage| {
                let dies = !stage.is_final();
                if dies {
                    *stage = Stage::Died { reason, ended: false };
                }
                dies
            });
        }
    };
    Builder::new().name("store-flush".into()).spawn(run).map(drop)
}

/// `None` if the store was closed before it was open.
fn open_until_done(
    disk: &Arc<dyn Disk>,
    options: Options,
    shared: &Arc<StoreState>,
    metrics: &MetricsCollector,
    watched: &super::watch::Watched,
) -> Result<Option<Parts>, OpenError> {
    let mut said = None;
    loop {
        match open_all(disk, options, shared, metrics, watched) {
            Ok(parts) => return Ok(Some(parts)),
            Err(error) if mends_itself(&error) => {
                let text = error.to_string();
                if said.as_ref() != Some(&text) {
                    tracing::warn!(error = text, "The store cannot be opened; trying again every second");
                    said = Some(text);
                }
                watched.nothing();
                shared.troubles.set(Source::Opening, error.to_string());
                if shared.queue.wait_closed(PAUSE) {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether the error comes from the disk and may go away by itself. A missing permission or a file that is not a store
/// does not.
fn mends_itself(error: &OpenError) -> bool {
    use rustix::io::Errno;
    let OpenError::Io { source, .. } = error else { return false };
    matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::TimedOut)
        || source.raw_os_error().is_some_and(|code| {
            [Errno::IO, Errno::STALE, Errno::NXIO, Errno::AGAIN].iter().any(|errno| errno.raw_os_error() == code)
        })
}

/// Opens redb and the log, and makes the contents of both visible to readers.
pub(super) fn open_all(
    disk: &Arc<dyn Disk>,
    options: Options,
    shared: &Arc<StoreState>,
    metrics: &MetricsCollector,
    progress: &dyn Progress,
) -> Result<Parts, OpenError> {
    let Opened { generation, store, applied } = open::open(&**disk, &shared.path, options, progress)?;
    let file = generation.file.clone();
    let snapshot = generation.snapshot().map_err(|error| open::failed(&shared.path, error))?;
    let Replay { log, frames, segments, .. } = Log::replay(disk, &shared.path, store, applied, progress.disk())?;
    let mut table = MemoryTable::default();
    for frame in &frames {
        table.apply(frame);
    }
    let frozen = (!table.is_empty()).then(|| Frozen { table: Arc::new(table), segments });
    shared.open(snapshot, frozen.as_ref().map(|frozen| frozen.table.clone()));
    let frozen_bytes = frozen.is_some().then(|| frames.iter().map(|frame| frame.bytes.len() as u64).sum());
    let writer = Writer::new(log, frozen_bytes, shared.clone(), metrics.clone(), file.disk_file().clone());
    let flusher = Flusher::new(generation, options, shared.clone());
    Ok(Parts { flusher, writer, frozen })
}

impl Progress for super::watch::Watched {
    fn disk(&self) -> &Arc<DiskActivity> {
        self.disk()
    }

    fn opening(&self) {
        self.reading();
    }

    fn carrying(&self, left: u64) {
        self.left(left);
    }
}

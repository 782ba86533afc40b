//! The writer: one thread that appends concurrent writes to the log, with one sync for all of them.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::disk::DiskFile;
use super::log::{AppendError, Frame, FrameBuilder, Log, Refused, Segments};
use super::queue::{Refuser, Taken};
use super::state::{Before, Frozen, Source, StoreState};
use crate::metrics::MetricsCollector;
use crate::storage::StorageError;

/// The maximum memory, in bytes, of the active table (the last frame may exceed it); then writes wait. As much again
/// may be on its way to redb. This bounds the memory, the log on the disk, and the data that a start reads. The
/// larger a table, the less each value costs redb.
const LOG_BYTES: u64 = 80 * 1024 * 1024;

/// The initial bound of a store, and the lowest one. The bound doubles whenever redb takes a large table within
/// [`QUICK`], and halves if it takes longer than [`SLOW`], so that writes wait for redb about equally long on any disk.
const FIRST_LOG_BYTES: u64 = 8 * 1024 * 1024;
const LEAST_LOG_BYTES: u64 = 1024 * 1024;
const QUICK: Duration = Duration::from_millis(950);
const SLOW: Duration = Duration::from_secs(2);

/// The active table goes to redb as soon as redb is free and the table has reached this fraction (1/N) of the bound.
const FREEZE_PART: u64 = 4;

/// After [`IDLE`] without a write, or [`OLD`] after its first write, the active table goes to redb however small it is.
const IDLE: Duration = Duration::from_secs(1);
const OLD: Duration = Duration::from_secs(10);

/// How often a writer that cannot write checks whether it can again.
const PROBE: Duration = Duration::from_millis(250);

/// The minimum pause after a failed write.
const PAUSE: Duration = Duration::from_secs(1);

/// How many bytes of disk redb may need for a transaction in addition to its values.
const ROOM: u64 = 256 * 1024;

/// How many bytes of disk redb may need for a byte of the log: small values share pages, and a value that is slightly
/// too long for a page takes two.
const ROOM_IN_REDB: u64 = 2;

/// While there is room for this many bytes, only writes that do not fit are refused.
const SMALL: u64 = 4096;

/// The memory that a record takes in addition to its bytes: two handles in a half-full hash table.
const RECORD_IN_MEMORY: u64 = 128;

/// Why writes fail. Each caller gets its own error made from this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WriteFailure {
    DiskFull,
    /// The write may still take effect.
    Uncertain(String),
    /// redb's file does not contain what was written.
    Damaged(String),
    /// The log is full: its contents cannot be moved to redb, for this reason.
    LogFull(String),
    Backend(String),
}

impl WriteFailure {
    pub(super) fn from_io(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::Backend(error.to_string()),
        }
    }

    pub(super) fn to_error(&self, path: &Path) -> StorageError {
        match self {
            Self::DiskFull => StorageError::DiskFull(path.to_owned()),
            Self::Uncertain(reason) => StorageError::Uncertain { path: path.to_owned(), reason: reason.clone() },
            Self::LogFull(reason) => StorageError::Backend(format!("the log is full: {reason}")),
            Self::Damaged(reason) => StorageError::Backend(format!(
                "{} is damaged ({reason}); stop the agent, keep a copy of the store and its log, and restore a backup",
                path.display()
            )),
            Self::Backend(reason) => StorageError::Backend(format!("cannot write {}: {reason}", path.display())),
        }
    }
}

/// Owns the log.
pub(super) struct Writer {
    log: Log,
    /// The segments of the log that contain the active table.
    segments: Segments,
    /// The size of the active table's frames, in bytes.
    active_bytes: u64,
    /// The memory that the active table takes, in bytes.
    active_memory: u64,
    /// The size of the frozen table's frames, in bytes.
    frozen_bytes: u64,
    /// Whether the frozen table is large enough to tell how fast redb is.
    frozen_is_large: bool,
    /// When the active table got its first write.
    active_since: Option<Instant>,
    shared: Arc<StoreState>,
    metrics: MetricsCollector,
    /// redb's file, to check that it is still in place.
    store: Arc<dyn DiskFile>,
    /// Whether the frozen table is on its way to redb.
    flushing: bool,
    /// When it was sent.
    flushing_since: Instant,
    /// How many bytes of memory the active table may take while another table is on its way to redb.
    log_bytes: u64,
    /// The frame that may or may not be on the disk. It must be written before anything else.
    unknown: Option<Frame>,
    trouble: Option<Trouble>,
    last_batch: usize,
}

struct Trouble {
    /// The failure that callers get in the meantime.
    failure: WriteFailure,
    /// The earliest time of the next attempt.
    retry_at: Instant,
}

impl Writer {
    /// Writes to `log`. `frozen` is the size of the frames of a table that is already on its way to redb.
    pub(super) fn new(
        log: Log,
        frozen: Option<u64>,
        shared: Arc<StoreState>,
        metrics: MetricsCollector,
        store: Arc<dyn DiskFile>,
    ) -> Self {
        Self {
            log,
            segments: Segments::default(),
            active_bytes: 0,
            active_memory: 0,
            frozen_bytes: frozen.unwrap_or(0),
            frozen_is_large: false,
            active_since: None,
            shared,
            metrics,
            store,
            flushing: frozen.is_some(),
            flushing_since: Instant::now(),
            log_bytes: FIRST_LOG_BYTES,
            unknown: None,
            trouble: None,
            last_batch: 0,
        }
    }

    /// Writes until the queue is closed and empty. Tables are sent to `flush`, and their segments come back through
    /// `flushed` once redb has them. At the end redb has everything, unless its disk fails.
    pub(super) fn run(mut self, flush: SyncSender<Frozen>, flushed: &Receiver<Segments>) {
        loop {
            let patience = if self.trouble.is_some() { PROBE } else { IDLE };
            let taken = self.shared.clone().queue.take(self.last_batch, patience);
            while let Ok(segments) = flushed.try_recv() {
                self.in_redb(&segments);
            }
            match taken {
                Taken::Batch(batch) => {
                    self.wait_for_room(flushed);
                    self.commit(&batch);
                    if self.is_due() {
                        self.send(&flush);
                    }
                }
                Taken::Nothing => {
                    self.tick();
                    self.send(&flush);
                }
                Taken::Closed => break,
            }
        }
        // Anything that redb cannot take now stays in the log for the next start.
        while self.flushing {
            let Ok(segments) = flushed.recv() else { return };
            self.in_redb(&segments);
        }
        self.send(&flush);
        drop(flush);
        while let Ok(segments) = flushed.recv() {
            self.in_redb(&segments);
        }
        self.end();
    }

    /// Removes the log if redb has everything.
    pub(super) fn end(self) {
        if self.store.is_at(&self.shared.path).is_ok_and(|in_place| !in_place) {
            // The log stays, so that the next start does not mistake this for a new store.
            tracing::error!(
                path = %self.shared.path.display(),
                "The store was removed or replaced while in use, and its contents are lost; restore a backup"
            );
        } else if !self.flushing && self.unknown.is_none() {
            self.log.remove();
        }
    }

    /// Makes `batch` durable and answers its callers.
    pub(super) fn commit(&mut self, batch: &[(Bytes, Option<Bytes>)]) {
        let shared = self.shared.clone();
        self.last_batch = batch.len();
        let failed = |failure: &WriteFailure| Err(failure.to_error(&shared.path));
        match self.try_commit(batch) {
            Ok(before) => shared.queue.finish(before.into_iter().map(Ok)),
            // Writes that fit must not fail because of those that do not.
            Err(WriteFailure::DiskFull) if self.trouble.is_none() => {
                let fits = self.fitting(batch);
                let chosen: Vec<_> =
                    batch.iter().zip(&fits).filter(|(_, fits)| **fits).map(|(write, _)| write.clone()).collect();
                let mut written = self.try_commit(&chosen).map(Vec::into_iter);
                shared.queue.finish(fits.into_iter().map(|fits| match &mut written {
                    _ if !fits => failed(&WriteFailure::DiskFull),
                    Ok(before) => Ok(before.next().unwrap_or(Before::NotAsked)),
                    Err(failure) => failed(failure),
                }));
            }
            Err(failure) => shared.queue.finish(batch.iter().map(|_| failed(&failure))),
        }
    }

    /// Which of the writes, in order, the disk has room for.
    fn fitting(&self, batch: &[(Bytes, Option<Bytes>)]) -> Vec<bool> {
        let room = self.store.room().ok();
        let mut size = 0;
        let fits = |write: &(Bytes, Option<Bytes>)| {
            let with = size + record_size(write);
            let fits = room.is_none_or(|room| room >= self.needed(with));
            if fits {
                size = with;
            }
            fits
        };
        batch.iter().map(fits).collect()
    }

    /// Makes a batch durable. Returns, for each delete, whether the key had a value before.
    fn try_commit(&mut self, batch: &[(Bytes, Option<Bytes>)]) -> Result<Vec<Before>, WriteFailure> {
        if let Some(trouble) = &self.trouble {
            // These writes were queued before the trouble was known.
            return Err(trouble.failure.clone());
        }
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let size = batch.iter().map(record_size).sum();
        if let Ok(room) = self.store.room()
            && room < self.needed(size)
        {
            let nothing_fits = room < self.needed(SMALL);
            return Err(if nothing_fits { self.report(WriteFailure::DiskFull) } else { WriteFailure::DiskFull });
        }
        let mut builder = FrameBuilder::with_capacity(usize::try_from(size).unwrap_or(0));
        for (key, value) in batch {
            builder.push(key, value.as_deref());
        }
        match self.log.append(builder, &mut self.segments) {
            Ok(frame) => {
                if let Some(failure) = self.misplaced(Log::is_in_place) {
                    // It is durable, but in a file that the next start will not find.
                    return Err(self.report_unknown(failure, frame));
                }
                let asked: Vec<bool> = batch.iter().map(|(_, value)| value.is_none()).collect();
                self.metrics.local_commit(batch.len());
                let mut before = self.apply(&frame, &asked);
                before.resize_with(batch.len(), || Before::NotAsked);
                Ok(before)
            }
            Err(Refused { error: AppendError::Full, .. }) => Err(self.report(self.log_full())),
            Err(Refused { error: AppendError::NotWritten(error), .. }) => {
                Err(self.report(WriteFailure::from_io(&error)))
            }
            Err(Refused { error: AppendError::Unknown(error), frame }) => {
                Err(self.report_unknown(WriteFailure::from_io(&error), frame))
            }
        }
    }

    /// The disk space, in bytes, that a frame of `size` bytes may need: in the log, and in redb together with all
    /// frames before it.
    fn needed(&self, size: u64) -> u64 {
        ROOM + self.log.growth(size) + ROOM_IN_REDB * (size + self.active_bytes + self.frozen_bytes)
    }

    /// Checks whether writing works again, and whether the files are still in place.
    pub(super) fn tick(&mut self) {
        self.log.shrink();
        let Some(trouble) = &self.trouble else {
            if let Some(failure) = self.misplaced(Log::is_all_in_place) {
                self.report(failure);
            } else if self.store.room().is_ok_and(|room| room < self.needed(SMALL)) {
                // Reported before the next write fails.
                self.report(WriteFailure::DiskFull);
            }
            return;
        };
        let size = self.unknown.as_ref().map_or(SMALL, |frame| frame.bytes.len() as u64);
        if Instant::now() < trouble.retry_at {
            return;
        }
        if self.store.room().is_ok_and(|room| room < self.needed(size)) {
            if trouble.failure != WriteFailure::DiskFull {
                // Whatever the reason was before, the writer now waits for free space.
                self.report(WriteFailure::DiskFull);
            }
            return;
        }
        if let Some(failure) = self.misplaced(Log::is_all_in_place) {
            self.report(failure);
            return;
        }
        if self.is_full() && self.shared.troubles.of(Source::Flush).is_some() {
            return;
        }
        let written = match self.unknown.take() {
            None => self.log.reserve(size),
            Some(frame) => match self.log.append_again(&frame, &mut self.segments) {
                Ok(frame) => {
                    // Its callers were told that it may still take effect. Now it has.
                    self.apply(&frame, &[]);
                    Ok(())
                }
                Err(error) => {
                    self.unknown = Some(frame);
                    Err(error)
                }
            },
        };
        if let Err(error) = written {
            let failure = match error {
                AppendError::Full => self.log_full(),
                AppendError::NotWritten(error) | AppendError::Unknown(error) => WriteFailure::from_io(&error),
            };
            self.report(failure);
            return;
        }
        self.trouble = None;
        self.shared.troubles.clear(Source::Log);
        self.shared.queue.allow(Refuser::Writer);
    }

    /// Retries without waiting for the pause.
    #[cfg(test)]
    pub(super) fn retry_now(&mut self) {
        if let Some(trouble) = &mut self.trouble {
            trouble.retry_at = Instant::now();
        }
        self.tick();
    }

    /// Freezes the active table and returns it, if redb is free and the table is not empty.
    pub(super) fn freeze(&mut self) -> Option<Frozen> {
        if self.flushing {
            return None;
        }
        let table = self.shared.freeze()?;
        self.log.end_segment();
        self.frozen_bytes = std::mem::take(&mut self.active_bytes);
        self.frozen_is_large = std::mem::take(&mut self.active_memory) >= self.log_bytes / FREEZE_PART;
        self.active_since = None;
        self.flushing = true;
        self.flushing_since = Instant::now();
        Some(Frozen { table, segments: std::mem::take(&mut self.segments) })
    }

    /// redb has the contents of `segments`.
    pub(super) fn in_redb(&mut self, segments: &Segments) {
        self.log.release(segments);
        self.flushing = false;
        match self.flushing_since.elapsed() {
            // The time for a small table does not predict that for a large one.
            took if took < QUICK && self.frozen_is_large => self.log_bytes *= 2,
            took if took > SLOW => self.log_bytes /= 2,
            _ => {}
        }
        self.log_bytes = self.log_bytes.clamp(LEAST_LOG_BYTES, LOG_BYTES);
        self.frozen_bytes = 0;
    }

    fn apply(&mut self, frame: &Frame, asked: &[bool]) -> Vec<Before> {
        self.active_since.get_or_insert_with(Instant::now);
        let bytes = frame.bytes.len() as u64;
        self.active_bytes += bytes;
        self.active_memory += bytes + RECORD_IN_MEMORY * u64::from(frame.records);
        self.shared.apply(frame, asked)
    }

    fn send(&mut self, flush: &SyncSender<Frozen>) {
        if let Some(frozen) = self.freeze() {
            // At most one table is on its way, and the channel has room for it. Without a receiver, the flusher has
            // died, which has been reported.
            let _died = flush.try_send(frozen);
        }
    }

    fn is_due(&self) -> bool {
        self.active_memory >= self.log_bytes / FREEZE_PART
            || self.active_since.is_some_and(|since| since.elapsed() >= OLD)
    }

    fn is_full(&self) -> bool {
        self.flushing && (self.active_memory >= self.log_bytes || !self.log.has_free_slot())
    }

    /// Waits for redb while the log is full, as long as redb makes progress.
    fn wait_for_room(&mut self, flushed: &Receiver<Segments>) {
        while self.is_full() && self.trouble.is_none() {
            match flushed.recv_timeout(PROBE) {
                Ok(segments) => self.in_redb(&segments),
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(reason) = self.shared.troubles.of(Source::Flush) {
                        self.report(WriteFailure::LogFull(reason));
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.report(WriteFailure::LogFull("the thread that empties it has failed".into()));
                }
            }
        }
    }

    /// The failure if a file of the store was removed or replaced. Data written to it would be lost once no process has
    /// it open.
    fn misplaced(&mut self, log_is_in_place: impl FnOnce(&mut Log) -> io::Result<bool>) -> Option<WriteFailure> {
        let store: &PathBuf = &self.shared.path;
        let gone = |what: &str| {
            let process = std::process::id();
            WriteFailure::Backend(format!(
                "{what} was removed or replaced while in use; put it back. Its contents are in /proc/{process}/fd, but \
                 only as long as this agent runs"
            ))
        };
        match (self.store.is_at(store), log_is_in_place(&mut self.log)) {
            (Ok(false), _) => Some(gone("the file")),
            (_, Ok(false)) => Some(gone("its log")),
            _ => None,
        }
    }

    fn log_full(&self) -> WriteFailure {
        let reason = self.shared.troubles.of(Source::Flush);
        WriteFailure::LogFull(reason.unwrap_or_else(|| "it is still being emptied".into()))
    }

    /// Keeps `frame`, which the next opening may or may not find, for another attempt. Returns the failure for its
    /// callers.
    fn report_unknown(&mut self, failure: WriteFailure, frame: Frame) -> WriteFailure {
        self.unknown = Some(frame);
        let reason = match self.report(failure) {
            WriteFailure::DiskFull => "no space left on its disk".into(),
            WriteFailure::Uncertain(reason)
            | WriteFailure::Damaged(reason)
            | WriteFailure::LogFull(reason)
            | WriteFailure::Backend(reason) => reason,
        };
        WriteFailure::Uncertain(reason)
    }

    /// Reports `failure` and refuses all writes until the next attempt succeeds.
    fn report(&mut self, failure: WriteFailure) -> WriteFailure {
        let path = self.shared.path.clone();
        self.shared.troubles.set(Source::Log, failure.to_error(&path).to_string());
        let refused = failure.clone();
        self.shared.queue.refuse(Refuser::Writer, move || refused.to_error(&path));
        let pause = if failure == WriteFailure::DiskFull { Duration::ZERO } else { PAUSE };
        self.trouble = Some(Trouble { failure: failure.clone(), retry_at: Instant::now() + pause });
        failure
    }
}

/// How many bytes a write takes in the log.
fn record_size((key, value): &(Bytes, Option<Bytes>)) -> u64 {
    FrameBuilder::record_size(key, value.as_deref()) as u64
}

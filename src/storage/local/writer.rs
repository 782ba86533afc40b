//! The writer: one thread that owns the database and carries concurrent writes in one transaction.

use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use redb::{Durability, ReadableDatabase as _};
use tokio::sync::oneshot;

use super::open::{Generation, panic_text, verify};
use super::{Shared, TABLE};
use crate::metrics::labels::Component;
use crate::metrics::{Health, MetricsCollector};
use crate::storage::Error;

/// At most this many writes share a transaction, so that the first of them does not wait long for the last.
const BATCH_WRITES: usize = 512;

/// At most this many bytes of keys and values share a transaction (the last write may go beyond).
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// How long a batch waits for callers that were just acknowledged and are about to write again. It is a
/// fraction of a commit, and only spent when the batch before was larger than this one is.
const GATHER: Duration = Duration::from_micros(100);

/// How often the writer looks, while it cannot write, whether it can again.
const PROBE: Duration = Duration::from_millis(250);

/// The shortest pause after a failed commit. What follows it verifies the whole file, so when that fails too,
/// the pause is at least ten times as long as it took.
const PAUSE: Duration = Duration::from_secs(1);

/// What a small write may take on the disk besides its own bytes: copies of the pages on its path.
const PATH_BYTES: u64 = 16 * 1024;

/// What a commit may take on the disk besides its writes: redb's own tables.
const COMMIT_BYTES: u64 = 256 * 1024;

/// Failed commits ask for at most this much room, so that no number of them shuts out writes for good.
const MOST_RESERVE: u64 = 64 * 1024 * 1024;

/// What the callers send.
pub(super) enum Job {
    Write(Write),
    /// A read failed: open the database anew.
    Recover,
}

/// One put or delete.
pub(super) struct Write {
    pub(super) key: Bytes,
    /// `None` removes the key.
    pub(super) value: Option<Bytes>,
    /// Told whether there was a value before.
    pub(super) done: oneshot::Sender<Result<bool, Error>>,
}

impl Write {
    /// Its bytes.
    pub(super) fn size(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// Why a batch failed; every caller in it gets its own copy.
#[derive(Debug, Clone)]
enum Failure {
    DiskFull,
    Backend(String),
}

impl Failure {
    fn from_io(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::Backend(error.to_string()),
        }
    }

    fn to_error(&self, path: &Path) -> Error {
        match self {
            Self::DiskFull => Error::DiskFull(path.to_owned()),
            Self::Backend(reason) => Error::Backend(format!("cannot write {}: {reason}", path.display())),
        }
    }
}

/// Owns the database and everything that changes it.
pub(super) struct Writer {
    generation: Generation,
    cache_size: usize,
    shared: Arc<Shared>,
    metrics: MetricsCollector,
    health: Health,
    /// Why writes are refused at present.
    trouble: Option<Trouble>,
    /// How much room commits have shown to need beyond the estimate, in bytes.
    reserve: u64,
    last_batch: usize,
}

struct Trouble {
    failure: Failure,
    /// How much room there has to be before the next attempt, in bytes.
    needed: u64,
    /// Not to be tried again before.
    retry_at: Instant,
    /// Whether the database has to be opened anew first.
    broken: bool,
}

impl Writer {
    pub(super) fn new(
        generation: Generation,
        cache_size: usize,
        shared: Arc<Shared>,
        metrics: MetricsCollector,
        health: Health,
    ) -> Self {
        let mut writer =
            Self { generation, cache_size, shared, metrics, health, trouble: None, reserve: 0, last_batch: 0 };
        if let Err(error) = writer.publish() {
            writer.fail(Failure::Backend(error.to_string()), 0);
        }
        writer
    }

    /// Writes what comes through `jobs` until its senders are gone and it is empty, then closes the file.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        let mut batch = Vec::with_capacity(BATCH_WRITES);
        while self.gather(jobs, &mut batch) {
            if !batch.is_empty() {
                self.write(&mut batch);
            }
        }
        drop(self.shared.publish(None));
        self.health.not_ready(Component::Storage, "the store is closed");
        let Self { generation: Generation { database, view, file }, .. } = self;
        if let Err(error) = database.close() {
            tracing::warn!(%error, path = %file.path().display(), "The store was not closed cleanly; the next start checks it");
        }
        // The last owners of the file: its locks end here.
        drop((view, file));
    }

    /// Fills `batch` with what waits. `false` when there will be nothing more.
    fn gather(&mut self, jobs: &Receiver<Job>, batch: &mut Vec<Write>) -> bool {
        let first = if self.trouble.is_some() {
            match jobs.recv_timeout(PROBE) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => {
                    self.probe();
                    return true;
                }
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        } else {
            let Ok(job) = jobs.recv() else { return false };
            job
        };
        let mut bytes = 0;
        self.accept(first, batch, &mut bytes);
        let deadline = Instant::now() + GATHER;
        while batch.len() < BATCH_WRITES && bytes < BATCH_BYTES {
            if let Ok(job) = jobs.try_recv() {
                self.accept(job, batch, &mut bytes);
                continue;
            }
            // Those who were in the batch before have just been told and are on their way back. To commit
            // the few that are here already would make all others wait for a whole commit.
            if batch.len() >= self.last_batch {
                break;
            }
            match jobs.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(job) => self.accept(job, batch, &mut bytes),
                Err(_) => break,
            }
        }
        self.last_batch = batch.len();
        true
    }

    fn accept(&mut self, job: Job, batch: &mut Vec<Write>, bytes: &mut usize) {
        match job {
            Job::Write(write) => {
                self.shared.left_queue(write.size());
                *bytes += write.size();
                batch.push(write);
            }
            // Several readers may have failed on the same database; the first one brought a new one.
            Job::Recover if self.trouble.is_none() && self.generation.database.begin_read().is_err() => {
                self.fail(Failure::Backend("a read failed".into()), 0);
            }
            Job::Recover => {}
        }
    }

    /// Makes `batch` durable and tells its callers.
    fn write(&mut self, batch: &mut Vec<Write>) {
        match self.try_write(batch) {
            Ok(existed) => {
                self.metrics.local_commit(batch.len());
                for (write, existed) in batch.drain(..).zip(existed) {
                    // A caller that has gone away wants no answer.
                    let _gone = write.done.send(Ok(existed));
                }
            }
            Err(failure) => {
                for write in batch.drain(..) {
                    let _gone = write.done.send(Err(failure.to_error(self.generation.file.path())));
                }
            }
        }
    }

    fn try_write(&mut self, batch: &[Write]) -> Result<Vec<bool>, Failure> {
        let needed = batch.iter().map(|write| 2 * write.size() as u64 + PATH_BYTES).sum::<u64>() + COMMIT_BYTES;
        self.prepare(needed)?;
        // redb asserts what it believes of its pages. A batch that trips over damage must not take the
        // thread with it.
        let committed = catch_unwind(AssertUnwindSafe(|| self.commit(batch)))
            .unwrap_or_else(|panic| Err(Failure::Backend(panic_text(&*panic))));
        match &committed {
            Ok(_) => self.reserve = 0,
            Err(failure) => self.fail(failure.clone(), needed),
        }
        committed
    }

    /// Refuses what would fail: the disk is too full for `needed` bytes, or the last failure is too recent.
    fn prepare(&mut self, needed: u64) -> Result<(), Failure> {
        if let Some(trouble) = &self.trouble
            && Instant::now() < trouble.retry_at
        {
            return Err(trouble.failure.clone());
        }
        let needed = needed.max(self.reserve);
        if !self.has_room(needed) {
            let broken = self.is_broken();
            self.report(Trouble { failure: Failure::DiskFull, needed, retry_at: Instant::now(), broken });
            return Err(Failure::DiskFull);
        }
        if self.is_broken() {
            self.recover()?;
        }
        self.end_trouble();
        Ok(())
    }

    /// Looks whether writing works again, when nobody writes and finds out that way.
    fn probe(&mut self) {
        let Some(trouble) = &self.trouble else { return };
        if Instant::now() < trouble.retry_at || !self.has_room(trouble.needed) {
            return;
        }
        if !trouble.broken || self.recover().is_ok() {
            self.end_trouble();
        }
    }

    fn has_room(&self, needed: u64) -> bool {
        // Where the system cannot tell, the attempt will.
        self.generation.file.room().map_or(true, |room| room >= needed)
    }

    fn is_broken(&self) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.broken)
    }

    fn commit(&self, batch: &[Write]) -> Result<Vec<bool>, Failure> {
        let existed = self.transact(batch).map_err(|error| self.explain(&error))?;
        match self.generation.view.take_failure() {
            Some(error) => Err(Failure::from_io(&error)),
            None => self.publish().map(|()| existed).map_err(|error| self.explain(&error)),
        }
    }

    fn transact(&self, batch: &[Write]) -> Result<Vec<bool>, redb::Error> {
        let mut transaction = self.generation.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        let mut existed = Vec::with_capacity(batch.len());
        {
            let mut table = transaction.open_table(TABLE)?;
            for write in batch {
                existed.push(match &write.value {
                    Some(value) => table.insert(&*write.key, &**value)?.is_some(),
                    None => table.remove(&*write.key)?.is_some(),
                });
            }
        }
        transaction.commit()?;
        Ok(existed)
    }

    /// Shows readers what is committed.
    fn publish(&self) -> Result<(), redb::Error> {
        let snapshot = self.generation.snapshot()?;
        drop(self.shared.publish(Some(snapshot)));
        Ok(())
    }

    /// The failed write behind redb's error, if there is one: it says more.
    fn explain(&self, error: &redb::Error) -> Failure {
        match (self.generation.view.take_failure(), error) {
            (Some(failed), _) => Failure::from_io(&failed),
            (None, redb::Error::Io(failed)) => Failure::from_io(failed),
            (None, error) => Failure::Backend(error.to_string()),
        }
    }

    /// The database cannot be written any more. Readers keep the last state that was committed.
    fn fail(&mut self, failure: Failure, needed: u64) {
        self.generation.view.freeze();
        if matches!(failure, Failure::DiskFull) {
            // The estimate was too low. Until a commit succeeds, each failure asks for twice as much.
            self.reserve = self.reserve.max(needed).saturating_mul(2).min(MOST_RESERVE);
        }
        let needed = self.reserve;
        self.report(Trouble { failure, needed, retry_at: Instant::now() + PAUSE, broken: true });
    }

    /// Opens the database anew from what the disk holds, and lets it take the place of the broken one.
    fn recover(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        let next = verify(self.generation.file.clone(), self.cache_size).map_err(|error| error.to_string());
        let opened = next.and_then(|next| match next.snapshot() {
            Ok(snapshot) => Ok((next, snapshot)),
            Err(error) => Err(error.to_string()),
        });
        match opened {
            Ok((next, snapshot)) => {
                let before = self.shared.publish(Some(snapshot));
                // The new database knows nothing of the old one's readers and would write over the pages
                // that they read. They are not many, and each is at one look-up.
                while before.as_ref().is_some_and(|before| Arc::strong_count(before) > 1) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                drop(before);
                self.generation = next;
                tracing::info!(took = ?began.elapsed(), "The store was opened anew");
                Ok(())
            }
            Err(reason) => {
                let failure = Failure::Backend(reason);
                let retry_at = Instant::now() + PAUSE.max(began.elapsed().saturating_mul(10));
                self.report(Trouble { failure: failure.clone(), needed: self.reserve, retry_at, broken: true });
                Err(failure)
            }
        }
    }

    fn report(&mut self, trouble: Trouble) {
        let error = trouble.failure.to_error(self.generation.file.path());
        if self.trouble.is_none() {
            tracing::warn!(%error, "The store cannot write; it goes on serving reads");
        }
        self.health.not_ready(Component::Storage, error.to_string());
        self.trouble = Some(trouble);
    }

    fn end_trouble(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!("The store can write again");
            self.health.ready(Component::Storage);
        }
    }
}

//! The flusher: one thread that owns the database and moves the contents of the log into it.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use redb::WriteTransaction;

use super::file::ReadRetry;
use super::log::Segments;
use super::open::{Generation, Options, inspect, set_applied};
use super::queue::Refuser;
use super::state::{Entry, Frozen, Source, StoreState};
use super::writer::WriteFailure;
use super::{TABLE, value};
use crate::panics;
use crate::storage::OpenError;

/// The minimum pause after a failed attempt.
const PAUSE: Duration = Duration::from_secs(1);

/// How often a file that could not be read is checked again.
const PROBE: Duration = Duration::from_secs(1);

/// The pages of one transaction may take up this fraction (1/N) of the cache: redb uses half of it for writing,
/// including branch pages and pages of the previous transaction.
const PART_OF_CACHE: usize = 4;

/// The size of redb's pages; a larger value gets a page of the next power of two.
const PAGE: usize = 4096;

/// Owns the database and makes all changes to it.
pub(super) struct Flusher {
    generation: Generation,
    options: Options,
    shared: Arc<StoreState>,
    /// Whether the database has failed and must be reopened first.
    broken: bool,
    /// Decides what happens when a page cannot be read.
    retry_read: Option<ReadRetry>,
}

impl Flusher {
    pub(super) fn new(generation: Generation, options: Options, shared: Arc<StoreState>) -> Self {
        // Only the first opening checks every page.
        let options = Options { check: false, ..options };
        Self { generation, options, shared, broken: false, retry_read: None }
    }

    /// Flushes tables until the sender is dropped, then closes the file. The segments of each table are sent to
    /// `flushed` once redb has it.
    pub(super) fn run(mut self, tables: &Receiver<Frozen>, flushed: &Sender<Segments>) {
        let shared = Arc::downgrade(&self.shared);
        self.retry_reads(Arc::new(move |error| {
            // A truncated file does not grow back by itself.
            let Some(shared) = shared.upgrade().filter(|_| error.kind() != ErrorKind::UnexpectedEof) else {
                return false;
            };
            shared.troubles.set(Source::Flush, format!("cannot read {}: {error}", shared.path.display()));
            !shared.queue.wait_closed(PAUSE)
        }));
        loop {
            match tables.recv_timeout(PROBE) {
                Ok(frozen) => {
                    if !self.flush_until_done(&frozen) {
                        break;
                    }
                    // Without a receiver the writer has ended and does not need to know.
                    let _ended = flushed.send(frozen.segments);
                    self.look_again();
                }
                Err(RecvTimeoutError::Timeout) => self.look_again(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.close();
    }

    /// Closes the database and releases the file.
    pub(super) fn close(self) {
        drop(self.shared.publish(None, false));
        let is_broken = self.broken || self.check_length().is_err();
        let Generation { view, database, file } = self.generation;
        if is_broken {
            view.end();
        }
        let path = file.path().to_owned();
        // A failed assertion in redb must not suppress the log message.
        let closed = panics::caught(|| database.close().map_err(|error| error.to_string()));
        let closed = closed.unwrap_or_else(|panic| Err(panics::text(&*panic)));
        let closed = closed.and(view.take_failure().map_or(Ok(()), |error| Err(error.to_string())));
        if let Err(error) = closed {
            tracing::warn!(%error, path = %path.display(), "The store was not closed cleanly; every acknowledged write is in it or in its log");
        }
        // The last owners of the file: this releases its lock.
        drop((view, file));
    }

    /// `false` if the store is closing and redb does not have the table; it stays in the log.
    fn flush_until_done(&mut self, frozen: &Frozen) -> bool {
        loop {
            match self.flush(frozen) {
                Ok(()) => {
                    self.shared.troubles.clear(Source::Flush);
                    self.shared.queue.allow(Refuser::Flusher);
                    return true;
                }
                Err(failure) => {
                    self.report(failure);
                    if self.shared.queue.wait_closed(PAUSE) {
                        return false;
                    }
                }
            }
        }
    }

    fn report(&self, failure: WriteFailure) {
        let path = self.shared.path.clone();
        self.shared.troubles.set(Source::Flush, failure.to_error(&path).to_string());
        // The log has room for more, but there may never be a working store to move it to.
        if matches!(failure, WriteFailure::Damaged(_)) {
            self.shared.queue.refuse(Refuser::Flusher, move || failure.to_error(&path));
        }
    }

    /// Fails if another program has truncated the file. redb, which has pages in memory, would extend it again.
    fn check_length(&self) -> Result<(), WriteFailure> {
        let file = &self.generation.file;
        match file.disk_file().len() {
            Ok(len) if len < file.expected_len() => {
                Err(WriteFailure::Damaged(format!("it has only {len} of {} bytes", file.expected_len())))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(WriteFailure::from_io(&error)),
        }
    }

    /// Moves `frozen` into redb, in one durable transaction.
    pub(super) fn flush(&mut self, frozen: &Frozen) -> Result<(), WriteFailure> {
        self.check_length()?;
        // A reader's look-up writes too when redb evicts from its cache, and that may fail unnoticed.
        if self.broken || self.generation.view.has_failed() {
            self.renew()?;
        }
        // redb asserts invariants of its pages. A damaged page must not end this thread.
        let flushed = panics::caught(|| self.transact(frozen))
            .unwrap_or_else(|panic| Err(WriteFailure::Damaged(panics::text(&*panic))));
        if flushed.is_err() {
            self.generation.view.freeze();
            self.broken = true;
        }
        flushed
    }

    fn transact(&self, frozen: &Frozen) -> Result<(), WriteFailure> {
        self.write(frozen).map_err(|error| self.explain(&error))?;
        let snapshot = self.generation.snapshot().map_err(|error| self.explain(&error))?;
        drop(self.shared.publish(Some(snapshot), true));
        Ok(())
    }

    /// Writes in parts whose pages fit into redb's cache for writing. A page that does not fit is written at once, then
    /// read and written again when the commit puts its checksum into its parent.
    fn write(&self, frozen: &Frozen) -> Result<(), redb::Error> {
        let entries = frozen.table.sorted();
        let mut rest = &*entries;
        loop {
            let (part, later) = rest.split_at(fitting(rest, self.options.cache_size / PART_OF_CACHE));
            if later.is_empty() {
                return self.generation.transact(|transaction| {
                    self.insert(transaction, part)?;
                    set_applied(transaction, frozen.segments.last)
                });
            }
            self.generation.prepare(|transaction| self.insert(transaction, part))?;
            rest = later;
        }
    }

    fn insert(&self, transaction: &WriteTransaction, entries: &[Entry<'_>]) -> Result<(), redb::Error> {
        let mut table = transaction.open_table(TABLE)?;
        for (key, value) in entries {
            match value {
                Some(value) => value::insert(&mut table, key, value)?,
                None => drop(table.remove(&***key)?),
            }
            // After a failure, redb writes only to memory.
            if self.generation.view.has_failed() {
                return Err(redb::Error::PreviousIo);
            }
        }
        Ok(())
    }

    /// Prefers the error of the failed write behind redb's error, because it is more specific.
    fn explain(&self, error: &redb::Error) -> WriteFailure {
        match (self.generation.view.take_failure(), error) {
            (Some(failed), _) => WriteFailure::from_io(&failed),
            (None, redb::Error::Io(failed)) if failed.kind() == ErrorKind::UnexpectedEof => {
                WriteFailure::Damaged("it has become shorter".into())
            }
            (None, redb::Error::Io(failed)) => WriteFailure::from_io(failed),
            (None, redb::Error::Corrupted(reason)) => WriteFailure::Damaged(reason.clone()),
            (None, error) => WriteFailure::Backend(error.to_string()),
        }
    }

    /// Reopens the database, and replaces the broken one with it. Until then readers use the broken one.
    fn renew(&mut self) -> Result<(), WriteFailure> {
        let began = Instant::now();
        self.generation.file.forget_failed().map_err(|error| WriteFailure::from_io(&error))?;
        let opened = inspect(self.generation.file.clone(), self.options);
        let opened = opened.and_then(|(next, _)| next.release().map(|()| next));
        let next = opened.map_err(|error| match error {
            OpenError::Io { source, .. } => WriteFailure::from_io(&source),
            OpenError::Damaged { reason, .. } => WriteFailure::Damaged(reason),
            error => WriteFailure::Backend(error.to_string()),
        })?;
        let snapshot = next.snapshot().map_err(|error| WriteFailure::Backend(error.to_string()))?;
        let before = self.shared.publish(Some(snapshot), false);
        // The new database does not know the old one's readers and would overwrite pages that they read. There are only
        // a few, each in a single look-up. While one of them waits for the disk, writes still go to the log.
        while before.as_ref().is_some_and(|before| Arc::strong_count(before) > 1) {
            if self.shared.queue.is_closed() {
                drop(self.shared.publish(None, false));
                return Err(WriteFailure::Backend("a read is still waiting for the disk".into()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(before);
        self.generation = next;
        self.broken = false;
        if let Some(retry) = self.retry_read.clone() {
            self.retry_reads(retry);
        }
        tracing::info!(took = ?began.elapsed(), "The store was reopened");
        Ok(())
    }

    /// Makes an unreadable page delay only the flush, instead of shutting down the database for everyone: `retry`
    /// decides whether to try again, and may pause first.
    pub(super) fn retry_reads(&mut self, retry: ReadRetry) {
        self.generation.view.on_failed_read(retry.clone());
        self.retry_read = Some(retry);
    }

    /// Checks the length of the file, and whether the part that a caller could not read can be read by now.
    fn look_again(&self) {
        if let Err(failure) = self.check_length() {
            self.report(failure);
        }
        let Some((offset, len)) = self.shared.failed_read() else { return };
        let file = &self.generation.file;
        // redb may have shortened the file, and then this part no longer matters.
        let is_gone = offset + len as u64 > file.expected_len();
        if is_gone || file.read(offset, &mut vec![0; len]).is_ok() {
            self.shared.can_read((offset, len));
        }
    }
}

/// How many entries, at least one, fit into `bytes` bytes of pages if no two of them share a page.
fn fitting(entries: &[Entry<'_>], bytes: usize) -> usize {
    let page = |(key, value): &Entry<'_>| (key.len() + value.map_or(0, Bytes::len)).next_power_of_two().max(PAGE);
    let mut pages = 0;
    let fits = entries.iter().position(|entry| {
        pages += page(entry);
        pages > bytes
    });
    fits.unwrap_or(entries.len()).max(1).min(entries.len())
}

#[cfg(test)]
mod tests {
    use super::super::disk::LinuxDisk;
    use super::super::log::FrameBuilder;
    use super::super::open::open;
    use super::super::state::MemoryTable;
    use super::super::watch::Watched;
    use super::*;
    use crate::metrics::Health;

    /// A table of `count` values that fill a page each.
    fn table(count: u32, byte: u8) -> Frozen {
        let mut frame = FrameBuilder::with_capacity(0);
        for key in 0..count {
            frame.push(&key.to_be_bytes(), Some(&[byte; 3000]));
        }
        let mut table = MemoryTable::default();
        table.apply(&frame.finish(1, 1));
        Frozen { table: Arc::new(table), segments: Segments::default() }
    }

    #[test]
    fn a_table_larger_than_the_cache_reads_each_page_only_once() {
        const COUNT: u32 = 5000;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.redb");
        let watched = Watched::default();
        let options = Options { cache_size: 8 << 20, check: false };
        let generation = open(&LinuxDisk, &path, options, &watched).unwrap().generation;
        let shared = Arc::new(StoreState::new(path, Health::default()));
        let mut flusher = Flusher::new(generation, options, shared.clone());
        flusher.flush(&table(COUNT, 1)).unwrap();

        let before = watched.disk().bytes_read();
        flusher.flush(&table(COUNT, 2)).unwrap();
        let pages = (watched.disk().bytes_read() - before) / PAGE as u64;
        assert!(pages < u64::from(COUNT) * 5 / 4, "{pages} pages were read for {COUNT} values");

        let mut next = flusher.generation.snapshot().unwrap();
        let last = Arc::get_mut(&mut next).unwrap().get(&(COUNT - 1).to_be_bytes()[..]).unwrap().unwrap();
        assert_eq!(value::verified(&(COUNT - 1).to_be_bytes(), last.value()), Some(&[2; 3000][..]));
        drop(last);
        drop(next);
        flusher.close();
    }
}

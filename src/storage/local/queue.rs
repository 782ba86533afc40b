//! The writes that wait for the writer, and those that it is writing.

use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::state::{Before, closed};
use crate::storage::StorageError;

/// How many writes may wait for the writer, and so the size of the largest batch: more than a busy agent has in flight.
const QUEUE_WRITES: usize = 1024;

/// The maximum size of all waiting writes, in bytes, so that a queue of the largest values does not exhaust the memory:
/// eight of the largest batches.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// At most this many bytes of keys and values share a frame of the log (the last write may exceed it).
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// How long a batch waits for callers that were just acknowledged and are about to write again. It is a fraction of the
/// time of a sync, and is spent only if the previous batch was larger than this one so far.
const GATHER: Duration = Duration::from_micros(100);

type Done = oneshot::Sender<Result<Before, StorageError>>;

/// One put or delete.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) key: Bytes,
    /// `None` removes the key.
    pub(super) value: Option<Bytes>,
    pub(super) done: Done,
}

impl Write {
    /// The size of its key and value, in bytes.
    fn size(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// Shared by the callers, which add writes, and the writer, which takes them.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Only the writer waits here.
    wake: Condvar,
    /// For threads that wait for the queue to be closed.
    closing: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<Write>,
    bytes: usize,
    /// How many writes the writer waits for; 0 if it does not wait.
    wanted: usize,
    /// The callers of the batch that is being written.
    flying: Vec<Done>,
    /// When the writer began its current work.
    since: Option<Instant>,
    /// Why writes are refused at present, indexed by [`Refuser`].
    refusals: [Option<Refusal>; 4],
    opened: bool,
    closed: bool,
}

/// Makes the error with which a write is refused.
type Refusal = Box<dyn Fn() -> StorageError + Send>;

/// A part of the store that may refuse writes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Refuser {
    /// A store with a thread that has panicked.
    Dead,
    /// The flusher, because its database is damaged.
    Flusher,
    /// The writer, because it cannot write.
    Writer,
    /// The watch, because the writer hangs.
    Watch,
}

/// The next task of the writer.
pub(super) enum Taken {
    /// Write these. The queue knows their callers.
    Batch(Vec<(Bytes, Option<Bytes>)>),
    /// No write arrived in time.
    Nothing,
    /// The queue is closed and empty.
    Closed,
}

impl Queue {
    /// Accepts writes from now on.
    pub(super) fn open(&self) {
        self.state.lock().opened = true;
    }

    pub(super) fn is_open(&self) -> bool {
        let state = self.state.lock();
        state.opened && !state.closed
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Accepts no more writes. Those already in the queue are still written.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_one();
        self.closing.notify_all();
    }

    /// Refuses all writes from now on, until [`allow`](Self::allow).
    pub(super) fn refuse(&self, who: Refuser, why: impl Fn() -> StorageError + Send + 'static) {
        if let Some(refusal) = self.state.lock().refusals.get_mut(who as usize) {
            *refusal = Some(Box::new(why));
        }
    }

    pub(super) fn allow(&self, who: Refuser) {
        if let Some(refusal) = self.state.lock().refusals.get_mut(who as usize) {
            *refusal = None;
        }
    }

    /// Waits at most `time` for the queue to be closed; `true` if it is.
    pub(super) fn wait_closed(&self, time: Duration) -> bool {
        let mut state = self.state.lock();
        self.closing.wait_while_for(&mut state, |state| !state.closed, time);
        state.closed
    }

    /// Adds a write. Its caller gets the outcome through `done`.
    ///
    /// # Errors
    ///
    /// If it is not accepted: [`StorageError::Busy`], [`StorageError::Unavailable`], or the error given to
    /// [`refuse`](Self::refuse).
    pub(super) fn add(&self, write: Write) -> Result<(), StorageError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(closed());
        }
        if let Some(refusal) = state.refusals.iter().flatten().next() {
            return Err(refusal());
        }
        let size = write.size();
        if state.waiting.len() >= QUEUE_WRITES || (state.bytes > 0 && state.bytes + size > QUEUE_BYTES) {
            return Err(StorageError::Busy(state.waiting.len()));
        }
        state.bytes += size;
        state.waiting.push(write);
        let enough = state.wanted > 0 && state.waiting.len() >= state.wanted;
        if enough {
            state.wanted = 0;
            drop(state);
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Waits for something to write, but at most `patience`, or until the queue is closed. Then waits up to [`GATHER`]
    /// for as many writes as the last batch had.
    pub(super) fn take(&self, last_batch: usize, patience: Duration) -> Taken {
        let mut state = self.state.lock();
        state.since = None;
        let deadline = Instant::now() + patience;
        while state.waiting.is_empty() {
            if state.closed {
                return Taken::Closed;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.since = Some(Instant::now());
                return Taken::Nothing;
            }
            self.wait(&mut state, 1, left);
        }
        // The callers of the previous batch have just been answered and are about to write again. Syncing only the few
        // writes that are already here would make all others wait for a whole sync.
        let deadline = Instant::now() + GATHER;
        while state.waiting.len() < last_batch && state.bytes < BATCH_BYTES && !state.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.wait(&mut state, last_batch, left);
        }
        state.batch()
    }

    fn wait(&self, state: &mut MutexGuard<'_, State>, wanted: usize, time: Duration) {
        state.wanted = wanted;
        self.wake.wait_for(state, time);
        state.wanted = 0;
    }

    /// Answers the callers of the current batch. Those that were given up have already been answered.
    pub(super) fn finish(&self, outcomes: impl IntoIterator<Item = Result<Before, StorageError>>) {
        let callers = std::mem::take(&mut self.state.lock().flying);
        for (done, outcome) in callers.into_iter().zip(outcomes) {
            let _gone = done.send(outcome);
        }
    }

    /// How long the writer has been working on what it took last.
    pub(super) fn waiting(&self) -> Option<Duration> {
        self.state.lock().since.map(|since| since.elapsed())
    }

    /// If the writer has been at its current work for `time`, answers all callers with an error: `flying` for writes
    /// that may still take effect, `waiting` for those that will not.
    pub(super) fn give_up(
        &self,
        time: Duration,
        flying: impl Fn() -> StorageError,
        waiting: impl Fn() -> StorageError,
    ) {
        let (given_up, refused) = {
            let mut state = self.state.lock();
            if !time.is_zero() && state.since.is_none_or(|since| since.elapsed() < time) {
                return;
            }
            state.bytes = 0;
            (std::mem::take(&mut state.flying), std::mem::take(&mut state.waiting))
        };
        for done in given_up {
            let _gone = done.send(Err(flying()));
        }
        for write in refused {
            let _gone = write.done.send(Err(waiting()));
        }
    }
}

impl State {
    fn batch(&mut self) -> Taken {
        let mut bytes = 0;
        let fits = |write: &Write| {
            let fits = bytes < BATCH_BYTES;
            bytes += write.size();
            fits
        };
        let count = self.waiting.iter().map(fits).take_while(|&fits| fits).count();
        let rest = self.waiting.split_off(count);
        let taken = std::mem::replace(&mut self.waiting, rest);
        self.since = Some(Instant::now());
        self.flying.clear();
        let mut batch = Vec::with_capacity(taken.len());
        for write in taken {
            self.bytes = self.bytes.saturating_sub(write.size());
            self.flying.push(write.done);
            batch.push((write.key, write.value));
        }
        Taken::Batch(batch)
    }
}

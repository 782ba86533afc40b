//! The writes that wait for the writer, and those that it has in its hands.

use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::state::{Before, closed};
use crate::storage::StorageError;

/// How many writes may wait for the writer: more than the callers of a busy agent have in flight, and what the writer
/// takes in one batch.
const QUEUE_WRITES: usize = 1024;

/// How many bytes the waiting writes may hold together, so that a queue full of the largest values does not
/// eat the machine: eight of the largest batches.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// At most this many bytes of keys and values share a frame of the log (the last write may go beyond).
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// How long a batch waits for callers that were just acknowledged and are about to write again. It is a
/// fraction of a sync, and only spent when the batch before was larger than this one is.
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
    /// Its bytes.
    fn size(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// StoreState by the callers, who add, and the writer, who takes.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// The writer waits here, and nobody else: it is woken alone.
    wake: Condvar,
    /// Who waits for a closing.
    closing: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<Write>,
    bytes: usize,
    /// How many writes the writer waits for; 0 when it waits for none.
    wanted: usize,
    /// The callers of the batch that is being written.
    flying: Vec<Done>,
    /// Since when the writer is at something.
    since: Option<Instant>,
    /// Why no write is taken at present, by who says so.
    refusals: [Option<Refusal>; 4],
    opened: bool,
    closed: bool,
}

/// Why no write is taken; every caller gets an error of its own.
type Refusal = Box<dyn Fn() -> StorageError + Send>;

/// Who may refuse writes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Refuser {
    /// What is left of a store one of whose threads has died.
    Dead,
    /// The flusher, whose database is damaged.
    Flusher,
    /// The writer, which knows why it cannot write.
    Writer,
    /// The watch, which sees that the writer hangs.
    Watch,
}

/// What the writer is to do.
pub(super) enum Taken {
    /// Write these. The queue knows their callers.
    Batch(Vec<(Bytes, Option<Bytes>)>),
    /// Nobody came within the time.
    Nothing,
    /// There will be nothing more.
    Closed,
}

impl Queue {
    /// From now on writes are taken.
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

    /// Takes no more writes; those that are in it are still written.
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

    /// Waits for a closing, but no longer than `time`; whether it came.
    pub(super) fn wait_closed(&self, time: Duration) -> bool {
        let mut state = self.state.lock();
        self.closing.wait_while_for(&mut state, |state| !state.closed, time);
        state.closed
    }

    /// Adds a write. Its caller hears of it through `done`.
    ///
    /// # Errors
    ///
    /// When it is not taken: [`StorageError::Busy`], [`StorageError::Unavailable`], or what [`refuse`](Self::refuse) says.
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

    /// Waits until there is something to write, but no longer than `patience`; then a moment longer, for as many as
    /// the last batch had. `patience` is cut short by a closing.
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
        // Those who were in the batch before have just been told and are on their way back. To sync the few that are
        // here already would make all others wait for a whole sync.
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

    /// Tells the callers of the batch that is being written; those that were given up heard already.
    pub(super) fn finish(&self, outcomes: impl IntoIterator<Item = Result<Before, StorageError>>) {
        let callers = std::mem::take(&mut self.state.lock().flying);
        for (done, outcome) in callers.into_iter().zip(outcomes) {
            // A caller that has gone away wants no answer.
            let _gone = done.send(outcome);
        }
    }

    /// How long the writer has been at what it took last.
    pub(super) fn waiting(&self) -> Option<Duration> {
        self.state.lock().since.map(|since| since.elapsed())
    }

    /// Tells everybody who waits that it takes too long, if the writer has been at it for `time`: `flying` those whose
    /// write may still happen, `waiting` those whose write will not.
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

//! Which slot the running thread owns.
//!
//! A thread gets the lowest free slot when it first records, and returns it when it ends. Slots belong to the
//! process, not to an instrument: a slot is only a number that says which row of each instrument its owner
//! may write. So two nodes in one process share slots but no cells.
//!
//! The slot itself is in a thread-local without a destructor, which can be read at any time in a thread's
//! life, also from the destructors of other thread-locals. A second thread-local has a destructor, which
//! returns the slot. A thread that still records after that no longer owns a slot and uses the cells that all
//! such threads share.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::pool::Pool;

/// The value for no slot. No instrument has that many rows, so looking up a row fails and leaves the rest to
/// the slow path.
const NONE: usize = usize::MAX;

static POOL: Pool = Pool::new();

/// How many slots have been returned so far: a thread that got none tries again once this has changed.
static GIVEN_BACK: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SLOT: Cell<usize> = const { Cell::new(NONE) };
    static OWNED: Owned = const { Owned { slot: Cell::new(NONE), missed_at: Cell::new(NONE) } };
}

/// How many slots there are: for each core a worker and half a helper, plus eight for the threads that a
/// process has on any number of cores. Fixed at the first call.
pub(crate) fn capacity() -> usize {
    static CAPACITY: OnceLock<usize> = OnceLock::new();
    *CAPACITY.get_or_init(|| capacity_for(std::thread::available_parallelism().map_or(1, usize::from)))
}

pub(crate) const fn capacity_for(cores: usize) -> usize {
    8 + cores + cores / 2
}

/// The running thread's slot; past the last row of every instrument if the thread has none (yet).
#[inline]
pub(super) fn current() -> usize {
    SLOT.get()
}

/// The running thread's slot, assigned now if needed; `None` if no slot is free.
#[cold]
pub(super) fn claim() -> Option<usize> {
    let slot = SLOT.get();
    if slot != NONE {
        return Some(slot);
    }
    // Fails if the thread is ending and has already returned its slot.
    OWNED.try_with(Owned::claim).ok().flatten()
}

/// Returns the slot when the thread ends.
struct Owned {
    slot: Cell<usize>,
    /// [`GIVEN_BACK`] when no slot was free: until it changes, taking the lock again would be in vain.
    missed_at: Cell<usize>,
}

impl Owned {
    fn claim(&self) -> Option<usize> {
        let given_back = GIVEN_BACK.load(Ordering::Relaxed);
        if self.missed_at.get() == given_back {
            return None;
        }
        let Some(slot) = POOL.take(capacity()) else {
            self.missed_at.set(given_back);
            return None;
        };
        self.slot.set(slot);
        SLOT.set(slot);
        Some(slot)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let slot = self.slot.get();
        if slot != NONE {
            SLOT.set(NONE);
            POOL.give_back(slot);
            GIVEN_BACK.fetch_add(1, Ordering::Relaxed);
        }
    }
}

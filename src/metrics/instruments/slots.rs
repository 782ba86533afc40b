//! Which slot the running thread owns.
//!
//! A thread gets the lowest free slot when it records for the first time, and gives it back when it ends.
//! The slots are the process's, not an instrument's: a slot is only a number, and says which row of each
//! instrument its owner may write. So two nodes in one process share slots but no cell.
//!
//! The slot itself stands in a thread-local without a destructor, which can be read at any time in a
//! thread's life, also from the destructors of other thread-locals. Giving it back is the work of a second
//! thread-local, which has one. A thread that goes on recording after that has run owns nothing any more
//! and uses the cells that all such threads share.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::pool::Pool;

/// What a thread without a slot has. No instrument has so many rows, so looking one up fails, and what is
/// done then finds out the rest.
const NONE: usize = usize::MAX;

static POOL: Pool = Pool::new();

/// How many slots were given back so far: a thread that got none tries again when it has changed.
static GIVEN_BACK: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SLOT: Cell<usize> = const { Cell::new(NONE) };
    static OWNED: Owned = const { Owned { slot: Cell::new(NONE), missed_at: Cell::new(NONE) } };
}

/// How many slots there are: for each core a worker and half a helper, and eight for the threads that a
/// process has however many cores it runs on. Fixed when it is first asked for.
pub(crate) fn capacity() -> usize {
    static CAPACITY: OnceLock<usize> = OnceLock::new();
    *CAPACITY.get_or_init(|| capacity_for(std::thread::available_parallelism().map_or(1, usize::from)))
}

pub(crate) const fn capacity_for(cores: usize) -> usize {
    8 + cores + cores / 2
}

/// The running thread's slot. It is past every instrument's last row when the thread has none (yet).
#[inline]
pub(super) fn current() -> usize {
    SLOT.get()
}

/// The running thread's slot, which it is given now if it has none; `None` when there is none to be had.
#[cold]
pub(super) fn claim() -> Option<usize> {
    let slot = SLOT.get();
    if slot != NONE {
        return Some(slot);
    }
    // It fails when the thread ends and its slot is back already.
    OWNED.try_with(Owned::claim).ok().flatten()
}

/// Gives the slot back when the thread ends.
struct Owned {
    slot: Cell<usize>,
    /// What [`GIVEN_BACK`] was when there was no slot to be had: taking the lock again would be in vain.
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

//! Counts and sums that belong together, in one word.
//!
//! # One word per observation
//!
//! A cell holds the count and the sum of the observations in one fine bucket, packed into 64 bits: 16 bits
//! of count above 48 bits of sum. Recording is one load, one addition and one store of a cell that only the
//! running thread writes. A reader of the cell gets a count and a sum that belong together. In every reading,
//! count, sum and buckets therefore cover exactly the same observations, without a lock and without making
//! the recording thread wait.
//!
//! Values below 2^32 are packed, so that 65,535 of them fit. When the count would overflow, the cell is
//! emptied into wide cells, which all threads share, under a lock. Larger values (durations of more than
//! 4.3 s, compared with which the lock costs nothing) go there directly, as do the values of threads without
//! a slot.
//!
//! # Emptying a cell while it is read
//!
//! Moving a cell's content writes to two cells, so it happens between two steps of a version number (a
//! sequence lock): a reading during which the version was odd or changed is repeated. The fences are those
//! of H. Boehm, "Can seqlocks get along with programming language memory models?" (2012). A cell is emptied
//! once in 65,536 observations, so hardly any reading is affected. To bound the repetitions all the same, a
//! reading that has failed [`READINGS`] times takes the lock while it copies.
//!
//! `loom/` checks this with a model checker.

use std::sync::{OnceLock, PoisonError};

use super::sync::{AtomicU64, Mutex, Ordering, fence};

/// Bits of a packed cell that hold the sum.
const SUM_BITS: u32 = 48;
/// One observation, without its value.
pub(super) const ONE: u64 = 1 << SUM_BITS;

/// How many readings are tried without the lock.
const READINGS: usize = if cfg!(loom) { 1 } else { 64 };

/// Adds an observation to a packed cell that only the running thread writes. Returns `None`, and adds nothing,
/// if the count is full. `value` is below 2^32.
#[inline]
pub(super) fn add(cell: &AtomicU64, value: u64) -> Option<()> {
    let packed = cell.load(Ordering::Relaxed).checked_add(ONE + value)?;
    // Release, which costs nothing on x86-64: a reader that sees this store must also see that a previous owner of
    // the slot emptied the cell.
    cell.store(packed, Ordering::Release);
    Some(())
}

/// A number of values, and their sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Total {
    pub(super) count: u64,
    pub(super) sum: u128,
}

impl Total {
    /// The content of a packed cell.
    #[inline]
    pub(super) fn of(cell: &AtomicU64) -> Self {
        let word = cell.load(Ordering::Relaxed);
        Self { count: word >> SUM_BITS, sum: u128::from(word & (ONE - 1)) }
    }
}

impl std::ops::AddAssign for Total {
    #[inline]
    fn add_assign(&mut self, other: Self) {
        self.count = self.count.wrapping_add(other.count);
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// What is not packed: for each series, one cell per fine bucket, shared by all threads and written under a lock.
#[derive(Debug)]
pub(super) struct Wide {
    series: Box<[OnceLock<Box<[WideCell]>>]>,
    writer: Mutex<()>,
    /// Odd while something is being moved.
    version: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct WideCell {
    count: AtomicU64,
    sum_low: AtomicU64,
    sum_high: AtomicU64,
}

impl WideCell {
    pub(super) fn load(&self) -> Total {
        let [count, low, high] = [&self.count, &self.sum_low, &self.sum_high].map(|cell| cell.load(Ordering::Relaxed));
        Total { count, sum: u128::from(high) << 64 | u128::from(low) }
    }

    #[allow(clippy::cast_possible_truncation, reason = "the two halves")]
    fn store(&self, total: Total) {
        self.count.store(total.count, Ordering::Relaxed);
        self.sum_low.store(total.sum as u64, Ordering::Relaxed);
        self.sum_high.store((total.sum >> 64) as u64, Ordering::Relaxed);
    }
}

impl Wide {
    pub(super) fn new(series: usize) -> Self {
        Self {
            series: (0..series).map(|_| OnceLock::new()).collect(),
            writer: Mutex::new(()),
            version: AtomicU64::new(0),
        }
    }

    /// The cells of one series, allocated now if needed.
    pub(super) fn cells(&self, series: usize, buckets: usize) -> &[WideCell] {
        let cells = self.series.get(series);
        cells.map_or(&[], |cells| cells.get_or_init(|| (0..buckets).map(|_| WideCell::default()).collect()))
    }

    /// The cells of one series; empty if nothing was added to it yet.
    pub(super) fn made(&self, series: usize) -> &[WideCell] {
        self.series.get(series).and_then(OnceLock::get).map_or(&[], |cells| cells)
    }

    /// Adds `value` to `wide`, and moves the content of `full`, a packed cell of the running thread, there.
    pub(super) fn add(&self, wide: &WideCell, value: u64, full: Option<&AtomicU64>) {
        let _one_at_a_time = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        let mut total = wide.load();
        total += Total { count: 1, sum: u128::from(value) };
        if let Some(full) = full {
            total += Total::of(full);
            full.store(0, Ordering::Relaxed);
        }
        wide.store(total);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// Repeats `reading` until nothing was moved while it ran.
    pub(super) fn read<T>(&self, mut reading: impl FnMut() -> T) -> T {
        for _ in 0..READINGS {
            let before = self.version.load(Ordering::Acquire);
            let read = reading();
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return read;
            }
        }
        let _nobody_moves = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        reading()
    }
}

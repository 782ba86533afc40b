//! Counters, and gauges of what is in progress.

use std::marker::PhantomData;
use std::sync::Arc;

use super::cells::Cells;
use super::family::LabelSet;
use super::sync::{AtomicU64, Ordering};

/// Sums to which many threads add, each in its own cells.
#[derive(Debug)]
pub(super) struct Sums {
    cells: Cells,
    /// For threads without a slot.
    shared: Box<[AtomicU64]>,
}

impl Sums {
    pub(super) fn new(width: usize) -> Self {
        Self { cells: Cells::new(width), shared: (0..width).map(|_| AtomicU64::new(0)).collect() }
    }

    #[inline]
    pub(super) fn add(&self, index: usize, n: u64) {
        match self.cells.own().and_then(|row| row.cell(index)) {
            Some(cell) => bump(cell, n),
            None => self.add_slowly(index, n),
        }
    }

    #[cold]
    fn add_slowly(&self, index: usize, n: u64) {
        if let Some(cell) = self.cells.claim().and_then(|row| row.cell(index)) {
            bump(cell, n);
        } else if let Some(cell) = self.shared.get(index) {
            // Release here and acquire in the reader: a reader that sees the end of something must also see its
            // beginning, which another thread may have counted.
            cell.fetch_add(n, Ordering::Release);
        }
    }

    /// The sum so far. It wraps around at 2^64.
    pub(super) fn sum(&self, index: usize) -> u64 {
        let own = self.cells.rows().filter_map(|row| row.cell(index));
        own.chain(self.shared.get(index)).fold(0, |sum, cell| sum.wrapping_add(cell.load(Ordering::Acquire)))
    }

    #[cfg(test)]
    pub(super) const fn footprint(width: usize, slots: usize) -> usize {
        Cells::footprint(width, slots) + width * size_of::<AtomicU64>()
    }
}

/// Adds to a cell that only the running thread writes, so no locked instruction is needed. On x86-64 both
/// accesses are plain moves; the release is for [`InFlight`], as above.
#[inline]
fn bump(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Release);
}

/// A family of counters over the closed label set `L`; `()` for a single one. Clones share the numbers.
///
/// Every event is counted exactly once, whichever thread counts it, and successive readings never go
/// backwards. A counter wraps around at 2^64, which Prometheus treats as a restart.
#[derive(Debug)]
pub struct Counter<L> {
    sums: Arc<Sums>,
    labels: PhantomData<fn(L)>,
}

impl<L> Clone for Counter<L> {
    fn clone(&self) -> Self {
        Self { sums: Arc::clone(&self.sums), labels: PhantomData }
    }
}

impl<L: LabelSet> Default for Counter<L> {
    fn default() -> Self {
        Self::new()
    }
}

impl<L: LabelSet> Counter<L> {
    /// All at zero.
    pub fn new() -> Self {
        Self { sums: Arc::new(Sums::new(L::COUNT)), labels: PhantomData }
    }

    /// Adds one.
    #[inline]
    pub fn inc(&self, labels: L) {
        self.add(labels, 1);
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, labels: L, n: u64) {
        self.sums.add(labels.index(), n);
    }

    /// The sum so far.
    pub fn get(&self, labels: L) -> u64 {
        self.sums.sum(labels.index())
    }

    pub(crate) fn at(&self, index: usize) -> u64 {
        self.sums.sum(index)
    }

    #[cfg(test)]
    /// The bytes of one family when every one of `slots` threads has recorded.
    pub(crate) const fn footprint(slots: usize) -> usize {
        Sums::footprint(L::COUNT, slots)
    }
}

/// A family of gauges of how many things are in progress. Clones share the numbers.
///
/// A thing may end on a different thread from the one on which it began. Beginnings and ends are counted
/// separately, and the ends are read first. A reading is therefore never negative, but may include what
/// began while it was taken.
#[derive(Debug)]
pub struct InFlight<L> {
    began: Counter<L>,
    ended: Counter<L>,
}

impl<L> Clone for InFlight<L> {
    fn clone(&self) -> Self {
        Self { began: self.began.clone(), ended: self.ended.clone() }
    }
}

impl<L: LabelSet> Default for InFlight<L> {
    fn default() -> Self {
        Self::new()
    }
}

impl<L: LabelSet> InFlight<L> {
    /// Nothing is in progress.
    pub fn new() -> Self {
        Self { began: Counter::new(), ended: Counter::new() }
    }

    /// Counts one more until the guard is dropped.
    #[inline]
    pub fn enter(&self, labels: L) -> UnderWay<'_> {
        let index = labels.index();
        self.began.sums.add(index, 1);
        UnderWay { ended: &self.ended.sums, index }
    }

    /// How many are in progress.
    pub fn get(&self, labels: L) -> u64 {
        self.at(labels.index())
    }

    pub(crate) fn at(&self, index: usize) -> u64 {
        let ended = self.ended.at(index);
        self.began.at(index).wrapping_sub(ended)
    }
}

/// One thing in progress; it ends when this is dropped.
#[derive(Debug)]
#[must_use = "the gauge falls again when this is dropped"]
pub struct UnderWay<'a> {
    ended: &'a Sums,
    index: usize,
}

impl Drop for UnderWay<'_> {
    #[inline]
    fn drop(&mut self) {
        self.ended.add(self.index, 1);
    }
}

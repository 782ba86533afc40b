//! Rows of cells: one row for each slot, written only by the slot's owner.

use std::sync::OnceLock;

use super::slots;
use super::sync::AtomicU64;

/// Unused cells before and after a row, a cache line each. What one thread writes therefore shares no cache line with
/// what another thread writes, and is two lines away from it, since processors fetch lines in pairs.
const GUARD: usize = 8;

/// A row of `width` cells for each slot. A row is allocated when its slot's owner first records, so only
/// threads that record take memory.
#[derive(Debug)]
pub(super) struct Cells {
    rows: Box<[OnceLock<Row>]>,
    width: usize,
}

/// One slot's cells.
#[derive(Debug)]
pub(super) struct Row(Box<[AtomicU64]>);

impl Row {
    fn new(width: usize) -> Self {
        Self((0..GUARD + width + GUARD).map(|_| AtomicU64::new(0)).collect())
    }

    #[inline]
    pub(super) fn cell(&self, index: usize) -> Option<&AtomicU64> {
        self.0.get(GUARD + index)
    }

    /// `count` cells from `start` on.
    pub(super) fn cells(&self, start: usize, count: usize) -> &[AtomicU64] {
        self.0.get(GUARD + start..GUARD + start + count).unwrap_or_default()
    }
}

impl Cells {
    pub(super) fn new(width: usize) -> Self {
        Self { rows: (0..slots::capacity()).map(|_| OnceLock::new()).collect(), width }
    }

    /// The running thread's row, if it already has one.
    #[inline]
    pub(super) fn own(&self) -> Option<&Row> {
        self.rows.get(slots::current())?.get()
    }

    /// The running thread's row, allocated now if needed; `None` if the thread has no slot.
    #[cold]
    pub(super) fn claim(&self) -> Option<&Row> {
        Some(self.rows.get(slots::claim()?)?.get_or_init(|| Row::new(self.width)))
    }

    /// All rows allocated so far.
    pub(super) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter_map(OnceLock::get)
    }

    #[cfg(test)]
    /// The most memory that can be allocated, in bytes.
    pub(super) const fn footprint(width: usize, slots: usize) -> usize {
        slots * (size_of::<OnceLock<Row>>() + (GUARD + width + GUARD) * size_of::<AtomicU64>())
    }
}

//! Rows of cells: one row for each slot, written by the slot's owner alone.

use std::sync::OnceLock;

use super::slots;
use super::sync::AtomicU64;

/// Cells before and after a row that nobody uses: a cache line of each. So what one thread writes shares no
/// line with what another one writes, and lies two lines apart from it, since processors fetch lines in pairs.
const GUARD: usize = 8;

/// A row of `width` cells for each slot. A row is made when its slot's owner records for the first time, so
/// that only threads which record cost memory.
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

    /// The row of the running thread, if it has one already.
    #[inline]
    pub(super) fn own(&self) -> Option<&Row> {
        self.rows.get(slots::current())?.get()
    }

    /// The row of the running thread, which is made now if there is none; `None` when it has no slot.
    #[cold]
    pub(super) fn claim(&self) -> Option<&Row> {
        Some(self.rows.get(slots::claim()?)?.get_or_init(|| Row::new(self.width)))
    }

    /// All rows that there are.
    pub(super) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter_map(OnceLock::get)
    }

    #[cfg(test)]
    /// The memory of everything that could be allocated, in bytes.
    pub(super) const fn footprint(width: usize, slots: usize) -> usize {
        slots * (size_of::<OnceLock<Row>>() + (GUARD + width + GUARD) * size_of::<AtomicU64>())
    }
}

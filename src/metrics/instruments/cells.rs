//! Rows of cells: one row for each slot, written by the slot's owner alone.

use std::sync::OnceLock;

use super::slots;
use super::sync::AtomicU64;

/// Two cache lines, since processors fetch them in pairs: what one thread writes shares neither with what
/// another one writes.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Line([AtomicU64; Line::CELLS]);

impl Line {
    const CELLS: usize = 16;
}

/// A row of `width` cells for each slot. A row is made when its slot's owner records for the first time, so
/// that only threads which record cost memory.
#[derive(Debug)]
pub(super) struct Cells {
    rows: Box<[OnceLock<Row>]>,
    width: usize,
}

/// One slot's cells.
#[derive(Debug)]
pub(super) struct Row(Box<[Line]>);

impl Row {
    fn new(width: usize) -> Self {
        Self((0..width.div_ceil(Line::CELLS)).map(|_| Line::default()).collect())
    }

    #[inline]
    pub(super) fn cell(&self, index: usize) -> Option<&AtomicU64> {
        self.0.get(index / Line::CELLS)?.0.get(index % Line::CELLS)
    }

    /// `count` cells from `start` on.
    pub(super) fn cells(&self, start: usize, count: usize) -> impl Iterator<Item = &AtomicU64> {
        self.0.iter().flat_map(|line| &line.0).skip(start).take(count)
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
        slots * (size_of::<OnceLock<Row>>() + width.div_ceil(Line::CELLS) * size_of::<Line>())
    }
}

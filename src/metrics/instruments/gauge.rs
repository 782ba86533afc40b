//! Gauges that are set.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::family::LabelSet;

/// A family of gauges that are set to a value. Clones share the values.
///
/// For values that one part of the program knows and sets. For values that many threads change, use
/// [`InFlight`](super::InFlight).
#[derive(Debug)]
pub struct Gauge<L> {
    values: Arc<[AtomicI64]>,
    labels: PhantomData<fn(L)>,
}

impl<L> Clone for Gauge<L> {
    fn clone(&self) -> Self {
        Self { values: Arc::clone(&self.values), labels: PhantomData }
    }
}

impl<L: LabelSet> Default for Gauge<L> {
    fn default() -> Self {
        Self::new()
    }
}

impl<L: LabelSet> Gauge<L> {
    /// All at zero.
    pub fn new() -> Self {
        Self { values: (0..L::COUNT).map(|_| AtomicI64::new(0)).collect(), labels: PhantomData }
    }

    /// Sets the value.
    pub fn set(&self, labels: L, value: i64) {
        if let Some(cell) = self.values.get(labels.index()) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// The value that was set last.
    pub fn get(&self, labels: L) -> i64 {
        self.at(labels.index())
    }

    pub(crate) fn at(&self, index: usize) -> i64 {
        self.values.get(index).map_or(0, |cell| cell.load(Ordering::Relaxed))
    }
}

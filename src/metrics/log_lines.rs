//! What the log has lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts lines of the log that were left out. Clones share the count.
///
/// The log is older than the agent whose metrics show it, and of the whole process: so whoever has one makes this, and
/// gives it to both.
#[derive(Debug, Clone, Default)]
pub struct MissingLines(Arc<AtomicU64>);

impl MissingLines {
    /// So many more are missing.
    pub fn add(&self, lines: u64) {
        self.0.fetch_add(lines, Ordering::Relaxed);
    }

    /// How many are.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

//! How many lines the log has dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the lines that the log has dropped. Clones share the count.
///
/// The log belongs to the whole process and exists before the agent whose metrics show the count. The program
/// therefore creates this and passes it to both.
#[derive(Debug, Clone, Default)]
pub struct MissingLines(Arc<AtomicU64>);

impl MissingLines {
    /// Adds `lines` dropped lines.
    pub fn add(&self, lines: u64) {
        self.0.fetch_add(lines, Ordering::Relaxed);
    }

    /// The count itself, for the page.
    #[cfg(feature = "metrics-prometheus")]
    pub(super) fn shared(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0)
    }

    /// The number of dropped lines.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

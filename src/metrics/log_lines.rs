//! How many lines the log has dropped, and a limit for lines that others can cause.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

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

/// When a problem that others can cause at will was last logged.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// Calls `say`, unless that happened less than a minute ago.
    pub(crate) fn at_most_once_a_minute(&self, say: impl FnOnce()) {
        let mut last = self.0.lock();
        if last.is_none_or(|last| last.elapsed() >= Duration::from_secs(60)) {
            *last = Some(Instant::now());
            say();
        }
    }
}

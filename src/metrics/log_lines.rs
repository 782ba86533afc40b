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

#[cfg(feature = "metrics-prometheus")]
mod family {
    use super::MissingLines;
    use crate::metrics::catalogue::LOG_LINES_DROPPED;
    use crate::metrics::exposition::{Metadata, Number, Page, Series};
    use crate::metrics::registry::{Expose, metadata};

    /// Shows them.
    #[derive(Debug)]
    pub(in crate::metrics) struct LogFamily {
        missing: MissingLines,
        family: Metadata,
    }

    impl LogFamily {
        pub(in crate::metrics) fn new(missing: MissingLines) -> Self {
            Self { missing, family: metadata(&LOG_LINES_DROPPED) }
        }
    }

    impl Expose for LogFamily {
        fn families(&self) -> Vec<&Metadata> {
            vec![&self.family]
        }

        fn expose(&self, page: &mut Page<'_>) {
            let Some(mut out) = page.family(&self.family) else { return };
            out.number(&Series::new(&[]), Number::Unsigned(self.missing.get()));
        }
    }
}
#[cfg(feature = "metrics-prometheus")]
pub(super) use self::family::LogFamily;

//! Why a scrape has no page.

use crate::metrics::labels::ScrapeOutcome;

/// Why there is no page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ScrapeFailure {
    /// The outcome. Never [`ScrapeOutcome::Ok`].
    pub outcome: ScrapeOutcome,
    /// One sentence for people.
    pub text: String,
}

impl ScrapeFailure {
    pub(super) fn new(outcome: ScrapeOutcome, text: impl Into<String>) -> Self {
        Self { outcome, text: text.into() }
    }
}

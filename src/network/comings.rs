//! Limits the log lines about peers that connect and disconnect: strangers can do so hundreds of times a second.

use std::time::{Duration, Instant};

/// How many lines may be logged at once.
const AT_ONCE: u32 = 100;
/// How often one more line is allowed.
const EVERY: Duration = Duration::from_secs(1);
/// How often the number of omitted lines is logged.
const SUMMARY_EVERY: Duration = Duration::from_secs(60);

/// The limit, and what it left out.
#[derive(Debug)]
pub(super) struct Comings {
    left: u32,
    refilled: Instant,
    left_out: u64,
    summary_at: Option<Instant>,
}

impl Comings {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: AT_ONCE, refilled: now, left_out: 0, summary_at: None }
    }

    /// Whether a line may be logged. The caller must then log it: it counts against the limit.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let new = u32::try_from(now.duration_since(self.refilled).as_secs() / EVERY.as_secs()).unwrap_or(AT_ONCE);
        self.refilled += EVERY * new;
        self.left = self.left.saturating_add(new).min(AT_ONCE);
        let has_one = self.left > 0;
        self.left -= u32::from(has_one);
        if !has_one {
            self.left_out += 1;
            self.summary_at.get_or_insert(now + SUMMARY_EVERY);
        }
        has_one
    }

    /// When to log how many lines were left out; `None` if none were.
    pub(super) fn summary_at(&self) -> Option<Instant> {
        self.summary_at
    }

    /// How many lines were left out since the last call.
    pub(super) fn take_left_out(&mut self) -> u64 {
        self.summary_at = None;
        std::mem::take(&mut self.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_over_the_limit_are_only_counted() {
        let start = Instant::now();
        let mut comings = Comings::new(start);
        assert_eq!((0..1000).filter(|_| comings.take(start)).count(), 100);
        let later = |seconds| start + Duration::from_secs(seconds);
        assert_eq!((0..1000).filter(|_| comings.take(later(10))).count(), 10);
        assert_eq!(comings.summary_at(), Some(later(60)));
        assert_eq!(comings.take_left_out(), 900 + 990);
        assert_eq!((comings.summary_at(), comings.take_left_out()), (None, 0));
        assert_eq!((0..1000).filter(|_| comings.take(later(86_400))).count(), 100);
        assert_eq!(comings.summary_at(), Some(later(86_460)));
    }
}

//! Which comings and goings of peers the log tells: strangers can come and go hundreds of times a second.

use std::time::{Duration, Instant};

/// So many lines at once,
const AT_ONCE: u32 = 100;
/// and one more each time that so much has passed.
const EVERY: Duration = Duration::from_secs(1);
/// How often it is told that there were more.
const SUMMARY_EVERY: Duration = Duration::from_secs(60);

/// What the log may still tell.
#[derive(Debug)]
pub(super) struct Comings {
    left: u32,
    refilled: Instant,
    left_out: u64,
    summarized: Option<Instant>,
}

impl Comings {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: AT_ONCE, refilled: now, left_out: 0, summarized: None }
    }

    /// Whether a line may be written, which it is then taken to be.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let new = u32::try_from(now.duration_since(self.refilled).as_secs() / EVERY.as_secs()).unwrap_or(AT_ONCE);
        self.refilled += EVERY * new;
        self.left = self.left.saturating_add(new).min(AT_ONCE);
        let has_one = self.left > 0;
        self.left -= u32::from(has_one);
        self.left_out += u64::from(!has_one);
        has_one
    }

    /// How many lines were left out, when it is time to tell.
    pub(super) fn left_out(&mut self, now: Instant) -> Option<u64> {
        let is_due = self.summarized.is_none_or(|summarized| now.duration_since(summarized) >= SUMMARY_EVERY);
        if self.left_out == 0 || !is_due {
            return None;
        }
        self.summarized = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_by_its_number() {
        let start = Instant::now();
        let mut comings = Comings::new(start);
        assert_eq!((0..1000).filter(|_| comings.take(start)).count(), 100);
        assert_eq!(comings.left_out(start), Some(900));
        let later = |seconds| start + Duration::from_secs(seconds);
        assert_eq!((0..1000).filter(|_| comings.take(later(10))).count(), 10);
        assert_eq!(comings.left_out(later(59)), None, "not yet");
        assert_eq!(comings.left_out(later(60)), Some(990));
        assert_eq!((0..1000).filter(|_| comings.take(later(86_400))).count(), 100);
        assert_eq!(comings.left_out(later(86_401)), Some(900));
        assert_eq!(comings.left_out(later(90_000)), None);
    }
}

//! CPU usage in percent, correct even with several scrapers. Pure arithmetic.

use std::time::Duration;

/// The shortest time over which a percentage is computed. Otherwise, two scrapers that come within a
/// millisecond of each other would get noise.
const SHORTEST_WINDOW: Duration = Duration::from_secs(1);

/// The CPU time that the process had used at a point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    /// That point in time, on a clock that never steps.
    pub(super) at: Duration,
    /// User and system time of all threads.
    pub(super) cpu: Duration,
}

/// The two latest samples that are far enough apart.
#[derive(Debug)]
pub(super) struct CpuUsage {
    last: Sample,
    /// At least [`SHORTEST_WINDOW`] before `last`; equal to `last` until there are two samples.
    previous: Sample,
}

impl CpuUsage {
    /// Starts with `first`, the sample at the start of the process.
    pub(super) fn new(first: Sample) -> Self {
        Self { last: first, previous: first }
    }

    /// Percent of one core since the last sample or, if that is less than a second old, since the one before
    /// it. Only in the first second of the process is the window shorter.
    pub(super) fn at(&mut self, now: Sample) -> f64 {
        if now.at.saturating_sub(self.last.at) >= SHORTEST_WINDOW {
            self.previous = self.last;
            self.last = now;
        }
        let elapsed = now.at.saturating_sub(self.previous.at).as_secs_f64();
        let used = now.cpu.saturating_sub(self.previous.cpu).as_secs_f64();
        if elapsed > 0.0 { used / elapsed * 100.0 } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_ms: u64, cpu_ms: u64) -> Sample {
        Sample { at: Duration::from_millis(at_ms), cpu: Duration::from_millis(cpu_ms) }
    }

    #[track_caller]
    fn assert_percent(actual: f64, expected: f64) {
        assert!((actual - expected).abs() < 1e-9, "{actual} is not {expected}");
    }

    #[test]
    fn one_scraper_sees_the_time_between_its_scrapes() {
        let mut usage = CpuUsage::new(sample(0, 0));
        assert_percent(usage.at(sample(10_000, 1_000)), 10.0);
        assert_percent(usage.at(sample(25_000, 16_000)), 100.0);
        assert_percent(usage.at(sample(40_000, 46_000)), 200.0);
        assert_percent(usage.at(sample(55_000, 46_000)), 0.0);
    }

    #[test]
    fn two_scrapers_right_after_each_other_both_get_a_full_window() {
        let mut usage = CpuUsage::new(sample(0, 0));
        usage.at(sample(15_000, 0));
        // Half a core for 15 s; the second scraper comes 1 ms later, after a fully busy millisecond.
        assert_percent(usage.at(sample(30_000, 7_500)), 50.0);
        assert_percent(usage.at(sample(30_001, 7_501)), 7_501.0 / 15_001.0 * 100.0);
        // The first scraper's next window starts at its own last sample, not at the second scraper's.
        assert_percent(usage.at(sample(45_000, 7_500)), 0.0);
    }

    #[test]
    fn the_first_scrape_covers_the_time_since_the_start_of_the_process() {
        let mut usage = CpuUsage::new(sample(5_000, 0));
        assert_percent(usage.at(sample(5_000, 0)), 0.0);
        assert_percent(usage.at(sample(5_100, 50)), 50.0);
        assert_percent(usage.at(sample(5_200, 100)), 50.0);
    }

    #[test]
    fn no_window_is_shorter_than_a_second_however_frequent_the_scrapes() {
        let mut usage = CpuUsage::new(sample(0, 0));
        // A steady 10 %, scraped every 100 ms.
        for tick in 10..1_000_u64 {
            let at = tick * 100;
            let percent = usage.at(sample(at, at / 10));
            assert_percent(percent, 10.0);
            assert!(at.saturating_sub(u64::try_from(usage.previous.at.as_millis()).unwrap()) >= 1_000);
        }
    }
}

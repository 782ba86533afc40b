//! Determines the length of a tick of the counter by comparing it with the standard clock. Pure arithmetic.

/// Fractional bits of the length of a tick.
pub(super) const FRACTION: u32 = 32;

/// The shortest interval that gives a useful result, in nanoseconds of the standard clock.
pub(super) const FIRST_STRETCH: u64 = 20_000;

/// The longest interval between two comparisons, in nanoseconds: a quarter of an hour.
const LONGEST_STRETCH: u64 = 900_000_000_000;

/// Both clocks, read together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Reading {
    /// Of the standard clock.
    pub(super) nanos: u64,
    /// Of the counter.
    pub(super) ticks: u64,
}

/// What the comparisons so far have shown.
///
/// While a machine sleeps, one of the clocks may keep running while the other stops, and the counter may restart. An
/// interval in which that happened says nothing about the length of a tick. A result that differs from the previous one
/// by more than a sixteenth is therefore believed only if the next interval, a short one, confirms it.
#[derive(Debug)]
pub(super) struct Calibration {
    last: Reading,
    /// In nanoseconds, times 2^32; 0 before the first comparison.
    tick: u64,
    doubted: Option<u64>,
}

impl Calibration {
    pub(super) fn new(first: Reading) -> Self {
        Self { last: first, tick: 0, doubted: None }
    }

    /// The length of a tick in nanoseconds, times 2^32.
    pub(super) fn tick(&self) -> u64 {
        self.tick
    }

    /// Compares the clocks over the time since the last comparison. Returns in how many ticks to compare again.
    pub(super) fn compare(&mut self, now: Reading) -> u64 {
        let last = std::mem::replace(&mut self.last, now);
        let (nanos, ticks) = (now.nanos.saturating_sub(last.nanos), now.ticks.saturating_sub(last.ticks));
        // There is no result if the counter stepped back.
        let found = if ticks > 0 { found(nanos, ticks) } else { 0 };
        if found > 0 && (self.tick == 0 || alike(found, self.tick) || self.doubted.is_some_and(|d| alike(found, d))) {
            (self.tick, self.doubted) = (found, None);
            return (2 * nanos_as_ticks(nanos, found)).clamp(1, nanos_as_ticks(LONGEST_STRETCH, found).max(1));
        }
        self.doubted = (found > 0).then_some(found);
        // This may take much longer, if the counter is much slower than assumed.
        nanos_as_ticks(FIRST_STRETCH, self.tick.max(1)).max(1)
    }
}

fn found(nanos: u64, ticks: u64) -> u64 {
    u64::try_from((u128::from(nanos) << FRACTION) / u128::from(ticks)).unwrap_or(u64::MAX)
}

fn alike(one: u64, other: u64) -> bool {
    one.abs_diff(other) <= other / 16
}

fn nanos_as_ticks(nanos: u64, tick: u64) -> u64 {
    u64::try_from((u128::from(nanos) << FRACTION) / u128::from(tick)).unwrap_or(u64::MAX / 2).min(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A counter with 2.5 ticks per nanosecond, and the standard clock.
    struct Machine {
        now: Reading,
        calibration: Calibration,
        next: u64,
    }

    impl Machine {
        fn new() -> Self {
            let now = Reading { nanos: 0, ticks: 1_000_000 };
            let mut machine = Self { now, calibration: Calibration::new(now), next: 0 };
            machine.run(FIRST_STRETCH);
            machine.compare();
            machine
        }

        fn run(&mut self, nanos: u64) {
            self.now.nanos += nanos;
            self.now.ticks += nanos * 5 / 2;
        }

        fn compare(&mut self) {
            self.next = self.calibration.compare(self.now);
        }

        /// Runs until the next comparison. Returns how long that took, in nanoseconds.
        fn run_to_comparison(&mut self) -> u64 {
            let nanos = self.next * 2 / 5 + 1;
            self.run(nanos);
            self.compare();
            nanos
        }

        #[track_caller]
        fn assert_right(&self) {
            let right = (2 << FRACTION) / 5;
            assert!(self.calibration.tick().abs_diff(right) < right / 1_000, "{}", self.calibration.tick());
        }
    }

    impl Machine {
        fn assert_right_after_comparison(&mut self) {
            self.run_to_comparison();
            self.assert_right();
        }
    }

    const HOUR: u64 = 3_600_000_000_000;

    #[test]
    fn the_interval_between_comparisons_doubles_up_to_a_quarter_of_an_hour() {
        let mut machine = Machine::new();
        let mut stretches = vec![machine.run_to_comparison()];
        while stretches.last().is_none_or(|&last| last < LONGEST_STRETCH) {
            machine.assert_right();
            stretches.push(machine.run_to_comparison());
            let [.., before, last] = stretches[..] else { unreachable!() };
            assert!(last >= 2 * before - 2 || last >= LONGEST_STRETCH, "{stretches:?}");
            assert!(stretches.len() < 40, "{stretches:?}");
        }
        assert!(machine.run_to_comparison() < LONGEST_STRETCH + 1_000);
        machine.assert_right();
    }

    /// The standard clock stands still while the counter keeps running. If that were believed, a tick would seem 480
    /// times shorter for most of a day.
    #[test]
    fn a_sleep_that_only_the_counter_saw_changes_nothing() {
        let mut machine = Machine::new();
        (0..20).for_each(|_| machine.assert_right_after_comparison());
        machine.run(60_000_000_000);
        machine.now.ticks += 8 * HOUR * 5 / 2;
        machine.compare();
        machine.assert_right();
        assert!(machine.run_to_comparison() < 2 * FIRST_STRETCH, "it compares again soon");
        machine.assert_right();
    }

    #[test]
    fn a_sleep_that_only_the_standard_clock_saw_changes_nothing() {
        let mut machine = Machine::new();
        machine.now.nanos += 8 * HOUR;
        machine.run(1_000);
        machine.compare();
        machine.assert_right();
        machine.run_to_comparison();
        machine.assert_right();
    }

    #[test]
    fn a_counter_that_restarts_changes_nothing() {
        let mut machine = Machine::new();
        machine.run(30 * 24 * HOUR);
        machine.compare();
        machine.now.ticks = 17;
        machine.run(1_000_000);
        machine.now.ticks = 17;
        machine.compare();
        machine.assert_right();
        machine.run_to_comparison();
        machine.assert_right();
    }

    #[test]
    fn a_new_speed_is_believed_the_second_time() {
        let mut machine = Machine::new();
        let right = machine.calibration.tick();
        for nanos in [1_000_000, 20_000] {
            assert_eq!(machine.calibration.tick(), right);
            machine.now.nanos += nanos;
            machine.now.ticks += nanos;
            machine.compare();
        }
        assert_eq!(machine.calibration.tick(), 1 << FRACTION);
    }
}

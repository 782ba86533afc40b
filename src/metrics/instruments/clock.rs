//! When something began, and how long ago that is, as cheaply as the machine can tell.
//!
//! On x86-64 the time stamp counter of the processor is read, which costs a third of asking the system's
//! clock, where the Linux kernel itself keeps time by it: then it runs at one speed, in step on all cores.
//! Everywhere else the standard clock is read.
//!
//! How long a tick is, is found out on the way: the counter and the standard clock are read together when the
//! first timer starts, and again after twice as long each time, and at least every quarter of an hour. So no
//! process waits for its clock, and one that slept or moved to another machine is right again after a while.
//! Two clocks cannot be read at the same instant; what lies between the readings (about 0.1 us) is the
//! error of the stretch of time between two comparisons, and a duration has its share of it.

mod tsc;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// When something that is measured began.
///
/// It is a mere moment: one that is dropped, or never asked, records nothing.
#[derive(Debug, Clone, Copy)]
#[must_use = "a timer that nobody asks measures nothing"]
pub struct Timer(u64);

impl Timer {
    /// Starts now.
    #[inline]
    pub fn start() -> Self {
        Self(clock().now())
    }

    /// The nanoseconds since the start. Never negative, whatever the clock does.
    #[inline]
    pub fn nanos(self) -> u64 {
        let clock = clock();
        clock.nanos(clock.now().saturating_sub(self.0))
    }
}

#[inline]
fn clock() -> &'static Clock {
    static CLOCK: OnceLock<Clock> = OnceLock::new();
    CLOCK.get_or_init(|| Clock::new(tsc::is_reliable()))
}

/// Fractional bits of the length of a tick.
const FRACTION: u32 = 32;

/// The first comparison with the standard clock, in its nanoseconds: the shortest that says anything.
const FIRST_COMPARISON: u64 = 20_000;

/// The longest stretch between two comparisons, in nanoseconds: a quarter of an hour.
const LONGEST_STRETCH: u64 = 900_000_000_000;

/// How often both clocks are read to find the closest pair: a thread may be set aside between two readings.
const TRIES: usize = 5;

#[derive(Debug)]
struct Clock {
    /// Whether ticks are those of the time stamp counter; otherwise they are nanoseconds since the start.
    tsc: bool,
    start: Instant,
    /// The length of a tick in nanoseconds, times 2^32.
    tick: AtomicU64,
    /// When to compare with the standard clock again, in ticks.
    compare_at: AtomicU64,
    last: Mutex<Reading>,
}

/// Both clocks, read together.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    /// Of the standard clock, since the start.
    nanos: u64,
    ticks: u64,
}

impl Clock {
    fn new(tsc: bool) -> Self {
        let clock = Self {
            tsc,
            start: Instant::now(),
            tick: AtomicU64::new(1 << FRACTION),
            compare_at: AtomicU64::new(u64::MAX),
            last: Mutex::default(),
        };
        if tsc {
            let first = clock.read_both();
            *clock.last.lock().unwrap_or_else(PoisonError::into_inner) = first;
            while clock.elapsed() < first.nanos + FIRST_COMPARISON {
                std::hint::spin_loop();
            }
            clock.compare();
        }
        clock
    }

    #[inline]
    fn now(&self) -> u64 {
        if !self.tsc {
            return self.elapsed();
        }
        let now = tsc::read();
        if now >= self.compare_at.load(Ordering::Relaxed) {
            self.compare();
        }
        now
    }

    /// Nanoseconds of the standard clock since the start.
    fn elapsed(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The closest of a few pairs of readings.
    fn read_both(&self) -> Reading {
        let read = |_| {
            let before = tsc::read();
            let nanos = self.elapsed();
            let apart = tsc::read().saturating_sub(before);
            (apart, Reading { nanos, ticks: before + apart / 2 })
        };
        (0..TRIES).map(read).min_by_key(|(apart, _)| *apart).map(|(_, reading)| reading).unwrap_or_default()
    }

    /// Finds out how long a tick was since the last comparison. Does nothing while another thread does it.
    #[cold]
    fn compare(&self) {
        let Ok(mut last) = self.last.try_lock() else { return };
        let now = self.read_both();
        let (nanos, ticks) = (now.nanos.saturating_sub(last.nanos), now.ticks.saturating_sub(last.ticks));
        // A counter that stepped back tells nothing about this stretch.
        if nanos > 0 && ticks > 0 {
            let tick = (u128::from(nanos) << FRACTION) / u128::from(ticks);
            self.tick.store(u64::try_from(tick).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        // Twice as many ticks as this time, but no more than fit into the longest stretch at this speed.
        let longest = u128::from(LONGEST_STRETCH) * u128::from(ticks) / u128::from(nanos.max(1));
        let stretch = (2 * u128::from(ticks)).clamp(1, longest.max(1));
        let again = now.ticks.saturating_add(u64::try_from(stretch).unwrap_or(u64::MAX));
        self.compare_at.store(again, Ordering::Relaxed);
        *last = now;
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "more than 500 years of nanoseconds")]
    fn nanos(&self, ticks: u64) -> u64 {
        ((u128::from(ticks) * u128::from(self.tick.load(Ordering::Relaxed))) >> FRACTION) as u64
    }
}

/// Lets the clock compare itself with the standard one when the program starts, and not when the first event
/// is timed.
pub(crate) fn warm_up() {
    let _ = Timer::start().nanos();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Both clocks against the standard one, over several comparisons.
    #[test]
    fn a_timer_agrees_with_the_standard_clock() {
        for tsc in [tsc::is_reliable(), false] {
            let clock = Clock::new(tsc);
            for millis in [0, 1, 2, 20, 50] {
                let outside = Instant::now();
                let ticks = clock.now();
                let inside = Instant::now();
                std::thread::sleep(Duration::from_millis(millis));
                let least = inside.elapsed();
                let measured = Duration::from_nanos(clock.nanos(clock.now().saturating_sub(ticks)));
                let most = outside.elapsed();
                // A microsecond for reading the clocks one after the other, and a hundredth for the first stretches.
                let slack = Duration::from_micros(1) + most / 100;
                assert!(measured + slack >= least && measured <= most + slack, "{least:?} {measured:?} {most:?} {tsc}");
            }
        }
    }

    #[test]
    fn a_clock_that_steps_back_measures_nothing() {
        assert_eq!(Timer(u64::MAX).nanos(), 0);
    }

    #[test]
    fn a_counter_that_steps_back_is_right_again_after_the_next_stretch() {
        let clock = Clock::new(tsc::is_reliable());
        let right = clock.tick.load(Ordering::Relaxed);
        *clock.last.lock().unwrap() = Reading { nanos: 0, ticks: u64::MAX };
        clock.compare();
        assert_eq!(clock.tick.load(Ordering::Relaxed), right, "this stretch told nothing");
        assert!(clock.compare_at.load(Ordering::Relaxed) < u64::MAX, "and the next one comes");
    }
}

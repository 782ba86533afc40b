//! Measures durations as cheaply as the machine allows.
//!
//! On x86-64, the time stamp counter of the processor is read, which costs a third of reading the system's
//! clock, provided that the Linux kernel itself keeps time by it: then it runs at a constant speed, in step on
//! all cores. Everywhere else the standard clock is read.
//!
//! The length of a tick is determined at run time (`calibration.rs`). The counter and the standard clock are read
//! together when the first timer starts, again 20 us later (the first timer waits for that), and then at intervals
//! that double each time, up to a quarter of an hour. Two clocks cannot be read at the same instant; the time between
//! the two readings (about 0.1 us) is the error of an interval, and a duration has its share of that error.

mod calibration;
mod tsc;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use self::calibration::{Calibration, FIRST_STRETCH, FRACTION, Reading};

/// The start of a measurement.
///
/// It is only a point in time: dropping it records nothing.
#[derive(Debug, Clone, Copy)]
#[must_use = "a timer measures nothing until it is read"]
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

/// How often both clocks are read to find the closest pair: the thread may be preempted between two readings.
const TRIES: usize = 5;

#[derive(Debug)]
struct Clock {
    /// Whether ticks are those of the time stamp counter; otherwise they are nanoseconds since `start`.
    tsc: bool,
    start: Instant,
    /// The last result of [`Calibration`]: the length of a tick, the counter at the last comparison, and the number
    /// of ticks until the next one.
    tick: AtomicU64,
    compared_at: AtomicU64,
    stretch: AtomicU64,
    calibration: Mutex<Calibration>,
}

impl Clock {
    fn new(tsc: bool) -> Self {
        let start = Instant::now();
        let clock = Self {
            tsc,
            start,
            tick: AtomicU64::new(0),
            compared_at: AtomicU64::new(0),
            stretch: AtomicU64::new(u64::MAX),
            calibration: Mutex::new(Calibration::new(read_both(start))),
        };
        if tsc {
            while clock.elapsed() < FIRST_STRETCH {
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
        // A counter that stepped back looks very far ahead, and is compared at once.
        if now.wrapping_sub(self.compared_at.load(Ordering::Relaxed)) >= self.stretch.load(Ordering::Relaxed) {
            self.compare();
        }
        now
    }

    /// Nanoseconds of the standard clock since `start`.
    fn elapsed(&self) -> u64 {
        nanos_since(self.start)
    }

    /// Updates the length of a tick. Does nothing while another thread is doing so.
    #[cold]
    fn compare(&self) {
        let Ok(mut calibration) = self.calibration.try_lock() else { return };
        let now = read_both(self.start);
        let stretch = calibration.compare(now);
        self.tick.store(calibration.tick(), Ordering::Relaxed);
        self.compared_at.store(now.ticks, Ordering::Relaxed);
        self.stretch.store(stretch, Ordering::Relaxed);
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "more than 500 years of nanoseconds")]
    fn nanos(&self, ticks: u64) -> u64 {
        if self.tsc {
            ((u128::from(ticks) * u128::from(self.tick.load(Ordering::Relaxed))) >> FRACTION) as u64
        } else {
            ticks
        }
    }
}

fn nanos_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// The closest of [`TRIES`] pairs of readings.
fn read_both(start: Instant) -> Reading {
    let read = |_| {
        let before = tsc::read();
        let nanos = nanos_since(start);
        let apart = tsc::read().saturating_sub(before);
        (apart, Reading { nanos, ticks: before.saturating_add(apart / 2) })
    };
    (0..TRIES).map(read).min_by_key(|(apart, _)| *apart).map(|(_, reading)| reading).unwrap_or_default()
}

/// Calibrates the clock when the program starts, not when the first event is timed.
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
                // A microsecond for reading the clocks one after the other, and 1 % for the first intervals.
                let slack = Duration::from_micros(1) + most / 100;
                assert!(measured + slack >= least && measured <= most + slack, "{least:?} {measured:?} {most:?} {tsc}");
            }
        }
    }

    #[test]
    fn a_clock_that_steps_back_measures_zero() {
        assert_eq!(Timer(u64::MAX).nanos(), 0);
    }
}

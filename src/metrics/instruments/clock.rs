//! When something began, and how long ago that is, as cheaply as the machine can tell.
//!
//! On x86-64 the time stamp counter of the processor is read, which costs a third of asking the system's
//! clock, where the Linux kernel itself keeps time by it: then it runs at one speed, in step on all cores.
//! Everywhere else the standard clock is read.
//!
//! How long a tick is, is found out on the way (`calibration.rs`): the counter and the standard clock are read
//! together when the first timer starts, 20 us later, for which it waits, and again after twice as long each time,
//! up to every quarter of an hour. Two clocks cannot be read at the same instant; what lies between the readings
//! (about 0.1 us) is the error of a stretch between two comparisons, and a duration has its share of it.

mod calibration;
mod tsc;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use self::calibration::{Calibration, FIRST_STRETCH, FRACTION, Reading};

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

/// How often both clocks are read to find the closest pair: a thread may be set aside between two readings.
const TRIES: usize = 5;

#[derive(Debug)]
struct Clock {
    /// Whether ticks are those of the time stamp counter; otherwise they are nanoseconds since the start.
    tsc: bool,
    start: Instant,
    /// What [`Calibration`] found last: the length of a tick, where the last comparison was, and how many ticks
    /// behind it the next one is.
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
        // A counter that stepped back seems to be very far ahead, and is compared at once.
        if now.wrapping_sub(self.compared_at.load(Ordering::Relaxed)) >= self.stretch.load(Ordering::Relaxed) {
            self.compare();
        }
        now
    }

    /// Nanoseconds of the standard clock since the start.
    fn elapsed(&self) -> u64 {
        nanos_since(self.start)
    }

    /// Finds out how long a tick is. Does nothing while another thread does it.
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

/// The closest of a few pairs of readings.
fn read_both(start: Instant) -> Reading {
    let read = |_| {
        let before = tsc::read();
        let nanos = nanos_since(start);
        let apart = tsc::read().saturating_sub(before);
        (apart, Reading { nanos, ticks: before.saturating_add(apart / 2) })
    };
    (0..TRIES).map(read).min_by_key(|(apart, _)| *apart).map(|(_, reading)| reading).unwrap_or_default()
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
}

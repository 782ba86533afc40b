//! Closed loops: a fixed number of callers, each of which begins its next operation when the last one is done.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::{Error, Result};

/// The figures of one contender in one round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// The window of a measurement: operations that end in `from..to` count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) from: Instant,
    pub(crate) to: Instant,
}

impl Window {
    pub(crate) fn new(warm_up: Duration, length: Duration) -> Self {
        let from = Instant::now() + warm_up;
        Self { from, to: from + length }
    }

    pub(crate) fn contains(&self, end: Instant) -> bool {
        self.from <= end && end < self.to
    }

    /// The figures for operations that ended in the window, from their durations in nanoseconds.
    pub(crate) fn round(&self, mut nanos: Vec<u32>) -> Result<Round> {
        if nanos.is_empty() {
            return Err("no operation finished within the round".into());
        }
        nanos.sort_unstable();
        let quantile = |q: f64| {
            let index = ((nanos.len() - 1) as f64 * q).round() as usize;
            nanos.get(index).map_or(f64::NAN, |nanos| f64::from(*nanos) / 1000.0)
        };
        Ok(Round {
            per_second: nanos.len() as f64 / (self.to - self.from).as_secs_f64(),
            p50_us: quantile(0.50),
            p99_us: quantile(0.99),
        })
    }
}

/// Nanoseconds, saturating at the 4 seconds that a `u32` holds.
pub(crate) fn nanos(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos()).unwrap_or(u32::MAX)
}

/// The processor time that a thread or process has used.
pub(crate) fn cpu_time(of: ClockId) -> Duration {
    let time = clock_gettime(of);
    // Neither part is ever negative.
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// Runs `callers` tasks that each call `operation` (with a number that differs from call to call) until the window
/// ends.
pub(crate) async fn closed_loop<C, F>(callers: usize, window: Window, operation: C) -> Result<Round>
where
    C: Fn(usize) -> F + Clone + Send + 'static,
    F: Future<Output = Result<()>> + Send,
{
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let operation = operation.clone();
            tokio::spawn(async move {
                let mut taken = Vec::with_capacity(1 << 16);
                let mut begin = Instant::now();
                let mut number = caller;
                while begin < window.to {
                    operation(number).await?;
                    number += callers;
                    let end = Instant::now();
                    if window.contains(end) {
                        taken.push(nanos(end - begin));
                    }
                    begin = end;
                }
                Ok::<_, Error>(taken)
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await??);
    }
    window.round(all)
}

/// Like [`closed_loop`] with a thread per caller, for operations that block.
pub(crate) fn closed_loop_of_threads(
    callers: usize,
    window: Window,
    operation: impl Fn(usize) -> Result<()> + Sync,
) -> Result<Round> {
    let call = &|caller: usize| {
        let mut taken = Vec::with_capacity(1 << 16);
        let mut begin = Instant::now();
        let mut number = caller;
        while begin < window.to {
            operation(number)?;
            number += callers;
            let end = Instant::now();
            if window.contains(end) {
                taken.push(nanos(end - begin));
            }
            begin = end;
        }
        Ok::<_, Error>(taken)
    };
    let mut all = Vec::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..callers).map(|caller| scope.spawn(move || call(caller))).collect();
        for thread in threads {
            all.extend(thread.join().map_err(|_| "a caller's thread panicked")??);
        }
        Ok::<_, Error>(())
    })?;
    window.round(all)
}

/// The median; for an even number of values, the mean of the middle two. NaN without values.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN);
    let lower = sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN);
    (lower + upper) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_odd_and_an_even_number_of_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_round_has_throughput_and_quantiles() {
        let window = Window::new(Duration::ZERO, Duration::from_secs(2));
        let round = window.round((1..=101).map(|us| us * 1000).collect()).unwrap();
        assert_eq!((round.per_second, round.p50_us, round.p99_us), (50.5, 51.0, 100.0));
        assert!(window.round(Vec::new()).is_err());
    }
}

//! The durations to record: a table, so that they cost nothing to generate, and a varied one, so that the branch
//! predictor cannot learn the search for the bucket.

use std::time::Duration;

/// The upper bounds of every histogram, in seconds: the agent's own, from 10 us to 10 s.
pub(crate) const BUCKETS: [f64; 16] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5,
    10.0,
];

/// The number of durations in the table.
pub(crate) const LAP: usize = 1024;
/// The shortest duration in nanoseconds, and the ratio of the longest to it: 1 us to 50 ms.
const SHORTEST: f64 = 1_000.0;
const SPREAD: f64 = 50_000.0;

/// One duration in the units of all libraries, so that none pays for a conversion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    pub(crate) nanos: u64,
    pub(crate) seconds: f64,
}

impl Sample {
    fn new(nanos: u64) -> Self {
        Self { nanos, seconds: nanos as f64 / 1e9 }
    }

    /// Adds the measured time, which hardly varies, to this duration, which does. The compiler removes the sum in the
    /// unit that the library does not use.
    #[inline]
    pub(crate) fn plus(self, elapsed: Duration) -> Self {
        Self { nanos: self.nanos + elapsed.as_nanos() as u64, seconds: self.seconds + elapsed.as_secs_f64() }
    }
}

/// The table, the same in every run: unsorted, and spread evenly over the orders of magnitude.
pub(crate) fn table() -> Vec<Sample> {
    // Knuth's MMIX generator; any that does not repeat within a lap would do.
    let mut state: u64 = 42;
    (0..LAP)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 11) as f64 / (1_u64 << 53) as f64;
            Sample::new((SHORTEST * SPREAD.powf(unit)) as u64)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reaches_every_bucket_within_its_range() {
        let table = table();
        let mut below = 0.0;
        for bound in BUCKETS.into_iter().filter(|&bound| bound <= 0.1) {
            let within = table.iter().filter(|sample| sample.seconds > below && sample.seconds <= bound).count();
            assert!(within > 20, "{within} durations up to {bound} s");
            below = bound;
        }
        assert!(table.iter().all(|sample| (1_000..=50_000_000).contains(&sample.nanos)));
    }
}

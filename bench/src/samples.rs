//! The durations that are recorded: a table, so that making one up costs nothing, and a varied one, so that neither a
//! branch predictor nor a search for the bucket gets used to it.

use std::time::Duration;

/// The upper bounds, in seconds, of every histogram: the agent's own, for durations from 10 us to 10 s.
pub(crate) const BUCKETS: [f64; 16] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5,
    10.0,
];

/// How many durations the table has.
pub(crate) const LAP: usize = 1024;
/// The shortest of them, and how many times longer the longest is: 1 us to 50 ms.
const SHORTEST: f64 = 1_000.0;
const SPREAD: f64 = 50_000.0;

/// One duration in both units: some libraries take one, some the other, and none is to pay for a conversion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    pub(crate) nanos: u64,
    pub(crate) seconds: f64,
}

impl Sample {
    fn new(nanos: u64) -> Self {
        Self { nanos, seconds: nanos as f64 / 1e9 }
    }

    /// The measured time, which hardly varies, on top of one that does. Of the two sums the compiler leaves out the one
    /// that a library does not take.
    #[inline]
    pub(crate) fn plus(self, elapsed: Duration) -> Self {
        Self { nanos: self.nanos + elapsed.as_nanos() as u64, seconds: self.seconds + elapsed.as_secs_f64() }
    }
}

/// The table, the same in every run: spread evenly over the orders of magnitude, in no order.
pub(crate) fn table() -> Vec<Sample> {
    // Knuth's MMIX generator: any that does not repeat within a lap would do.
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
    fn the_table_visits_every_bucket_it_can_reach() {
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

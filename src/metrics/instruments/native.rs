//! Native histograms: exponential buckets as Prometheus stores them.
//!
//! With schema `s`, bucket `i` holds the values above 2^((i-1)/2^s) and at most 2^(i/2^s), in base units.
//! The next coarser schema merges pairs of neighbours: bucket `i` becomes part of bucket `i / 2`, rounded up.
//! The sources are the description of native histograms in Prometheus's documentation and the message
//! `Histogram` of its `metrics.proto`.

use crate::metrics::NativeHistograms;

/// The coarsest schema that Prometheus knows: each bucket spans a factor of 65,536.
const COARSEST: i32 = -4;

/// Values at most this far from zero are in the zero bucket, as in client_golang: 2^-128. Among whole numbers
/// of nanoseconds, that is only zero itself.
pub(crate) const ZERO_THRESHOLD: f64 = 2.938_735_877_055_719e-39;

/// For each fine bucket, the native bucket that it is part of.
#[derive(Debug)]
pub(crate) struct Native {
    schema: i32,
    max_buckets: usize,
    /// By fine bucket, without the first one, which is the zero bucket.
    index: Box<[i32]>,
}

/// The native buckets of one reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NativeSnapshot {
    pub(crate) schema: i32,
    pub(crate) zero_count: u64,
    /// Index and count of each bucket that holds something, ascending.
    pub(crate) buckets: Vec<(i32, u64)>,
}

impl Native {
    pub(super) fn new(settings: NativeHistograms, fine: &[u64], native: &[(i32, u64)]) -> Self {
        let index = fine.iter().skip(1).map(|&bound| {
            let at = native.partition_point(|&(_, native)| native < bound);
            // Beyond the last bound that a whole number can reach, one more bucket holds the rest.
            native.get(at).or(native.last()).map_or(0, |&(index, native)| index + i32::from(native < bound))
        });
        Self {
            schema: settings.schema.clamp(*NativeHistograms::SCHEMAS.start(), *NativeHistograms::SCHEMAS.end()),
            max_buckets: settings.max_buckets.max(*NativeHistograms::MAX_BUCKETS.start()) as usize,
            index: index.collect(),
        }
    }

    /// The native buckets for these counts of the fine buckets.
    pub(crate) fn snapshot(&self, fine: &[u64]) -> NativeSnapshot {
        let mut fine = fine.iter().copied();
        let zero_count = fine.next().unwrap_or(0);
        let mut buckets: Vec<(i32, u64)> = Vec::with_capacity(self.max_buckets);
        for (&index, count) in self.index.iter().zip(fine).filter(|(_, count)| *count > 0) {
            add(&mut buckets, index, count);
        }
        let mut schema = self.schema;
        while buckets.len() > self.max_buckets && schema > COARSEST {
            schema -= 1;
            let finer = std::mem::take(&mut buckets);
            for (index, count) in finer {
                // Half, rounded up, also for negative numbers.
                add(&mut buckets, (index + 1) >> 1, count);
            }
        }
        NativeSnapshot { schema, zero_count, buckets }
    }
}

fn add(buckets: &mut Vec<(i32, u64)>, index: i32, count: u64) {
    match buckets.last_mut() {
        Some((last, sum)) if *last == index => *sum += count,
        _ => buckets.push((index, count)),
    }
}

impl NativeSnapshot {
    /// Runs of neighbouring buckets as (offset, length), and the difference of each count from the one before
    /// it. The offset is the distance from the end of the previous run; for the first run, it is the index. A
    /// gap of up to two empty buckets costs less as zeros than as a new run.
    pub(crate) fn spans_and_deltas(&self) -> (Vec<(i32, u32)>, Vec<i64>) {
        let mut spans: Vec<(i32, u32)> = Vec::new();
        let mut deltas = Vec::with_capacity(self.buckets.len());
        let (mut next, mut before) = (0, 0_i64);
        for &(index, count) in &self.buckets {
            let gap = index - next;
            match spans.last_mut() {
                Some((_, length)) if gap <= 2 => {
                    for _ in 0..gap {
                        *length += 1;
                        deltas.push(-std::mem::take(&mut before));
                    }
                    *length += 1;
                }
                _ => spans.push((gap, 1)),
            }
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            deltas.push(count - before);
            (next, before) = (index + 1, count);
        }
        (spans, deltas)
    }
}

/// The index and the upper bound, rounded down to whole units, of each native bucket that can hold a whole
/// number of units above zero.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "between 1 and 2^64"
)]
pub(super) fn bounds(schema: i32, per_unit: u64) -> Vec<(i32, u64)> {
    let schema = schema.clamp(*NativeHistograms::SCHEMAS.start(), *NativeHistograms::SCHEMAS.end());
    let per_octave = f64::from(1 << schema);
    // 2^-30 s is just below a nanosecond.
    (-30 << schema..=64 << schema)
        .map(|index| (index, (f64::from(index) / per_octave).exp2() * per_unit as f64))
        .filter(|&(_, bound)| (1.0..u64::MAX as f64).contains(&bound))
        .map(|(index, bound)| (index, bound.floor() as u64))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(buckets: &[(i32, u64)]) -> NativeSnapshot {
        NativeSnapshot { schema: 3, zero_count: 0, buckets: buckets.to_vec() }
    }

    #[test]
    fn spans_bridge_small_gaps_and_deltas_add_up() {
        assert_eq!(snapshot(&[]).spans_and_deltas(), (vec![], vec![]));
        assert_eq!(snapshot(&[(-5, 7)]).spans_and_deltas(), (vec![(-5, 1)], vec![7]));
        assert_eq!(
            snapshot(&[(-2, 3), (-1, 5), (2, 4), (6, 1), (7, 1)]).spans_and_deltas(),
            (vec![(-2, 5), (3, 2)], vec![3, 2, -5, 0, 4, -3, 0])
        );
        // The distance to the first bucket is not a gap.
        assert_eq!(snapshot(&[(2, 1)]).spans_and_deltas(), (vec![(2, 1)], vec![1]));
    }

    #[test]
    fn every_bound_is_the_power_of_two_that_the_schema_defines() {
        let bounds = bounds(3, 1_000_000_000);
        assert_eq!(bounds.first(), Some(&(-239, 1)));
        assert!(bounds.contains(&(0, 1_000_000_000)) && bounds.contains(&(8, 2_000_000_000)));
        assert!(bounds.contains(&(1, 1_090_507_732)), "2^(1/8) s, rounded down");
        assert!(bounds.contains(&(-80, 976_562)), "2^-10 s");
    }
}

//! Where the buckets of a histogram end, and how to find the bucket of a value.
//!
//! A value is a whole number: nanoseconds for durations. The classic bounds, which are whole as well, and the
//! bounds of the native (exponential) schema are merged into one list of *fine* bounds. The native bounds are
//! rounded down to whole numbers, which changes nothing: a whole number is at most 2.5 exactly if it is at most 2.
//! So an observation goes into one fine bucket, and both kinds of buckets are sums of fine ones.
//!
//! To find the fine bucket, the exponent and the leading mantissa bits of the value select an entry of a table. The
//! entries are so narrow that at most two fine bounds lie within one, so two comparisons settle the rest. The table
//! ends at [`PACKED_BELOW`]; for larger values the bounds are searched.

use super::native::{self, Native};
use crate::metrics::NativeHistograms;

/// Values below this one are counted in packed cells (see `packed.rs`): 4.3 s in nanoseconds.
pub(super) const PACKED_BELOW: u64 = 1 << 32;

/// The most classic bounds of a histogram.
const MAX_CLASSIC: usize = 256;

/// Why buckets cannot be made from these bounds.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum BucketsError {
    /// A bound is not a number, not above zero, not finite or not above the one before it.
    #[error("bucket bound {0} is not finite, not above zero, or not above the bound before it")]
    Bound(f64),
    /// A bound is not a whole number in the unit of the values, or is larger than any value.
    #[error("bucket bound {0} is not a whole number in the unit of the values (nanoseconds for durations)")]
    NotWhole(f64),
    /// Three bounds, including those of the native buckets, lie within 1.6 %.
    #[error("bucket bound {0} is too close to its neighbours: bounds have to be at least 1.6 % apart")]
    TooClose(f64),
    /// There are too many bounds.
    #[error("there are {0} bucket bounds; at most 256 are allowed")]
    TooMany(usize),
}

/// The buckets of one or more histograms. Made once and shared behind an `Arc`: they take 32 KiB.
#[derive(Debug)]
pub struct Buckets {
    /// The upper bound of each fine bucket, inclusive, ascending; the last one is `u64::MAX`.
    bounds: Box<[u64]>,
    /// How many fine buckets begin below [`PACKED_BELOW`].
    packed: usize,
    /// Not behind its own pointer: that would be one more load for each observation.
    table: [Entry; ENTRIES],
    classic: Box<[Classic]>,
    native: Native,
    /// How many units of the values make one base unit: 10^9 for nanoseconds and seconds.
    per_unit: u64,
}

/// One entry of the table: what is known about the values that fall into it. All values are increased by
/// one here, so that 0 has a logarithm.
#[derive(Debug, Clone, Copy)]
#[repr(align(16))] // no entry lies across two cache lines
struct Entry {
    /// How many fine bounds lie below all of its values.
    below: u32,
    /// The bounds among its values, also increased by one; `u32::MAX` for none.
    bounds: [u32; 2],
}

/// A classic bucket, cumulative as `le` is.
#[derive(Debug)]
pub(crate) struct Classic {
    /// The bound in base units.
    pub(crate) bound: f64,
    /// The bound as written in `le`.
    pub(crate) text: Box<str>,
    /// How many fine buckets it includes.
    pub(crate) fine: usize,
}

impl Buckets {
    /// Buckets for durations in nanoseconds, which are shown in seconds. `bounds` are in seconds.
    ///
    /// # Errors
    ///
    /// If the bounds are not finite, above zero and ascending, if they are not whole numbers of nanoseconds, if there
    /// are more than 256, or if three bounds, including those of the native buckets, lie within 1.6 %.
    pub fn durations(bounds: &[f64], native: NativeHistograms) -> Result<Self, BucketsError> {
        Self::try_new(1_000_000_000, bounds, native)
    }

    /// Buckets for whole numbers, shown as they are.
    ///
    /// # Errors
    ///
    /// As [`Buckets::durations`].
    pub fn numbers(bounds: &[f64], native: NativeHistograms) -> Result<Self, BucketsError> {
        Self::try_new(1, bounds, native)
    }

    fn try_new(per_unit: u64, classic: &[f64], native: NativeHistograms) -> Result<Self, BucketsError> {
        let classic_bounds = whole(classic, per_unit)?;
        let native_bounds = native::bounds(native.schema, per_unit);
        let mut bounds: Vec<u64> = native_bounds.iter().map(|&(_, bound)| bound).chain([0, u64::MAX]).collect();
        bounds.extend(&classic_bounds);
        bounds.sort_unstable();
        bounds.dedup();

        let classic = classic.iter().zip(&classic_bounds).map(|(&bound, &whole)| Classic {
            bound,
            text: le(bound).into(),
            fine: bounds.partition_point(|&fine| fine <= whole),
        });
        let table =
            table(&bounds).ok_or_else(|| BucketsError::TooClose(closest(&classic_bounds) as f64 / per_unit as f64))?;
        Ok(Self {
            packed: bounds.partition_point(|&bound| bound < PACKED_BELOW - 1) + 1,
            table: *table,
            classic: classic.collect(),
            native: Native::new(native, &bounds, &native_bounds),
            bounds: bounds.into(),
            per_unit,
        })
    }

    /// The fine bucket of a value below [`PACKED_BELOW`]; `None` for a larger one.
    #[inline]
    #[allow(
        clippy::cast_possible_wrap,
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "a value that the casts change gets an index past the end of the table"
    )]
    pub(super) fn packed_index(&self, value: u64) -> Option<usize> {
        let above = value.wrapping_add(1);
        let entry = ((above as i64 as f64).to_bits() >> SHIFT).wrapping_sub(OFFSET) as usize;
        let Entry { below, bounds: [first, second] } = *self.table.get(entry)?;
        Some(below as usize + usize::from(above > u64::from(first)) + usize::from(above > u64::from(second)))
    }

    /// The fine bucket of any value.
    pub(super) fn index(&self, value: u64) -> usize {
        self.bounds.partition_point(|&bound| bound < value)
    }

    /// How many fine buckets there are.
    pub(super) fn len(&self) -> usize {
        self.bounds.len()
    }

    /// How many fine buckets a packed row has.
    pub(super) fn packed_len(&self) -> usize {
        self.packed
    }

    /// The bytes that all histograms with these buckets share.
    #[cfg(test)]
    pub(crate) fn footprint(&self) -> usize {
        size_of_val(&*self.bounds) + size_of_val(&self.table) + self.bounds.len() * size_of::<i32>()
    }

    pub(crate) fn classic(&self) -> &[Classic] {
        &self.classic
    }

    pub(crate) fn native(&self) -> &Native {
        &self.native
    }

    pub(crate) fn per_unit(&self) -> u64 {
        self.per_unit
    }

    /// `value`, in base units, as the whole number to observe; `None` if it is not a number. Halves are
    /// rounded away from zero, negative values become 0, and values that are too large become `u64::MAX`.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "the cast saturates, as documented"
    )]
    pub(super) fn whole(&self, value: f64) -> Option<u64> {
        (!value.is_nan()).then(|| (value * self.per_unit as f64).round() as u64)
    }
}

/// The leading mantissa bits that select an entry: 64 entries for each power of two, at most 1.6 % wide, while even
/// the finest schema's bounds are 2.2 % apart.
const BITS: u32 = 6;
const ENTRIES: usize = (PACKED_BELOW.trailing_zeros() as usize) << BITS;
/// How far the bits of a value, as a float, are shifted to select an entry.
const SHIFT: u32 = f64::MANTISSA_DIGITS - 1 - BITS;
/// What is subtracted after that, so that the value 1 has the first entry.
const OFFSET: u64 = 1023 << BITS;

/// The table; `None` if more than two bounds lie in one entry.
fn table(bounds: &[u64]) -> Option<Box<[Entry; ENTRIES]>> {
    let first_of = |entry: u64| {
        let (exponent, mantissa) = (entry >> BITS, entry & ((1 << BITS) - 1));
        // The smallest whole number of the entry: 2^exponent (1 + mantissa / 2^BITS), rounded up.
        (((1 << BITS) + mantissa) << exponent).div_ceil(1 << BITS)
    };
    let entries: Option<Box<[Entry]>> = (0..ENTRIES as u64)
        .map(|entry| {
            let (first, after) = (first_of(entry), first_of(entry + 1));
            // The bounds as they are; the entry's values are one larger.
            let below = bounds.partition_point(|&bound| bound + 1 < first);
            let mut within = bounds.iter().skip(below).take_while(|&&bound| bound + 1 < after);
            let mut next = || within.next().map_or(u32::MAX, |&bound| u32::try_from(bound + 1).unwrap_or(u32::MAX));
            let bounds = [next(), next()];
            within.next().is_none().then(|| Entry { below: u32::try_from(below).unwrap_or(u32::MAX), bounds })
        })
        .collect();
    entries?.try_into().ok()
}

/// Classic bounds as whole numbers in the unit of the values.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "finite, above zero, and saturating beyond all values"
)]
fn whole(bounds: &[f64], per_unit: u64) -> Result<Vec<u64>, BucketsError> {
    if bounds.len() > MAX_CLASSIC {
        return Err(BucketsError::TooMany(bounds.len()));
    }
    let mut before = (0.0, 0);
    bounds
        .iter()
        .map(|&bound| {
            if !bound.is_finite() || bound <= before.0 {
                return Err(BucketsError::Bound(bound));
            }
            let scaled = bound * per_unit as f64;
            let whole = scaled.round();
            // As floats, 0.07 s are 70,000,000.00000001 ns; the nearest whole number is meant.
            if (scaled - whole).abs() > scaled * 1e-12 || whole < 1.0 || whole >= u64::MAX as f64 {
                return Err(BucketsError::NotWhole(bound));
            }
            let whole = whole as u64;
            if whole == before.1 {
                return Err(BucketsError::TooClose(bound));
            }
            before = (bound, whole);
            Ok(whole)
        })
        .collect()
}

/// The bound that is closest to the one before it, by their ratio.
fn closest(bounds: &[u64]) -> u64 {
    let pairs = bounds.iter().zip(bounds.iter().skip(1));
    #[allow(clippy::cast_precision_loss, reason = "a ratio does not need the last digit")]
    let closest = pairs.min_by(|a, b| (*a.1 as f64 / *a.0 as f64).total_cmp(&(*b.1 as f64 / *b.0 as f64)));
    closest.map_or(0, |(_, &bound)| bound)
}

/// A bound as the value of `le`: as Go writes a float, with `.0` added if it would look like an integer.
///
/// client_golang does so in OpenMetrics, and Prometheus itself does so with bounds that arrive by protobuf or, from
/// version 3 on, in any format. Written differently, the same bucket would become another series when a scraper changes
/// its format or its version.
pub(crate) fn le(bound: f64) -> String {
    let scientific = format!("{bound:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return "+Inf".into() };
    match exponent.parse::<i32>() {
        Ok(exponent @ (..-4 | 6..)) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ if bound.fract() == 0.0 => format!("{bound}.0"),
        _ => bound.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{BATCH_BOUNDS, DURATION_BOUNDS};
    use super::*;

    fn schema(schema: i32) -> NativeHistograms {
        NativeHistograms { schema, ..NativeHistograms::default() }
    }

    /// Boxed one by one: a table is large for the stack.
    fn all() -> Vec<Box<Buckets>> {
        let mut all = Vec::new();
        for s in 0..=5 {
            all.push(Box::new(Buckets::durations(&DURATION_BOUNDS, schema(s)).unwrap()));
            all.push(Box::new(Buckets::numbers(&BATCH_BOUNDS, schema(s)).unwrap()));
            all.push(Box::new(Buckets::durations(&[], schema(s)).unwrap()));
        }
        all
    }

    fn check(buckets: &Buckets, value: u64) {
        let expected = buckets.index(value);
        assert!(value <= buckets.bounds[expected], "{value} {expected}");
        assert!(expected == 0 || value > buckets.bounds[expected - 1], "{value} {expected}");
        match buckets.packed_index(value) {
            Some(index) => {
                assert_eq!(index, expected, "{value}");
                assert!(index < buckets.packed_len(), "{value}");
            }
            None => assert!(value >= PACKED_BELOW - 1, "{value}"),
        }
    }

    #[test]
    fn the_table_agrees_with_a_search_at_and_next_to_every_bound() {
        for buckets in all() {
            for &bound in &buckets.bounds {
                for value in [bound.saturating_sub(1), bound, bound.saturating_add(1)] {
                    check(&buckets, value);
                }
            }
            for bit in 0..64 {
                for value in [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1] {
                    check(&buckets, value);
                }
            }
            (0..10_000).for_each(|value| check(&buckets, value));
            check(&buckets, u64::MAX);
        }
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_search_everywhere(value in any::<u64>(), bits in 0..64_u32, which in 0..18_usize) {
            check(&all()[which], value >> bits);
        }
    }

    #[test]
    fn a_value_that_equals_a_bound_is_in_its_bucket() {
        let buckets = Buckets::durations(&DURATION_BOUNDS, NativeHistograms::default()).unwrap();
        for (classic, nanos) in buckets.classic().iter().zip([10_000_u64, 25_000, 50_000, 100_000, 250_000, 500_000]) {
            assert_eq!(buckets.bounds[classic.fine - 1], nanos);
            assert!(buckets.index(nanos) < classic.fine && buckets.index(nanos + 1) >= classic.fine, "{nanos}");
        }
    }

    #[test]
    fn invalid_bounds_are_rejected() {
        let native = NativeHistograms::default();
        for (bounds, error) in [
            (&[1.0, f64::NAN][..], "NaN"),
            (&[0.0], "0 is not"),
            (&[-1.0], "-1 is not"),
            (&[2.0, 1.0], "1 is not"),
            (&[1.0, 1.0], "1 is not"),
            (&[f64::INFINITY], "inf is not"),
            (&[1e-10], "not a whole number"),
            (&[1.0, 1.000_000_000_1], "not a whole number"),
            (&[1e300], "not a whole number"),
            (&[1.0, 1.000_1, 1.000_2, 1.000_3], "too close"),
        ] {
            let message = Buckets::durations(bounds, native).unwrap_err().to_string();
            assert!(message.contains(error), "{bounds:?}: {message}");
        }
        assert_eq!(Buckets::numbers(&[2.5], native).unwrap_err(), BucketsError::NotWhole(2.5));
        let many: Vec<f64> = (1..=257).map(f64::from).collect();
        assert_eq!(Buckets::numbers(&many, native).unwrap_err(), BucketsError::TooMany(257));
        Buckets::durations(&[0.07, 0.3, 1.1], native).unwrap();
    }

    #[test]
    fn bounds_are_written_as_go_writes_them() {
        for (bound, text) in [
            (0.000_01, "1e-05"),
            (0.000_025, "2.5e-05"),
            (0.000_1, "0.0001"),
            (0.002_5, "0.0025"),
            (1.0, "1.0"),
            (512.0, "512.0"),
            (999_999.0, "999999.0"),
            (1_000_000.0, "1e+06"),
            (11_622_614.67, "1.162261467e+07"),
            (22.168_378_200_531_007, "22.168378200531006"),
            (f64::INFINITY, "+Inf"),
        ] {
            assert_eq!(le(bound), text);
        }
    }
}

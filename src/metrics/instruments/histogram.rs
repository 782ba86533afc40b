//! Histograms with classic and native buckets, and events that are both counted and timed.

use std::marker::PhantomData;
use std::sync::Arc;

use super::buckets::Buckets;
use super::cells::{Cells, Row};
use super::clock::Timer;
use super::family::LabelSet;
#[cfg(test)]
use super::packed::WideCell;
use super::packed::{Total, Wide, add};
use super::sync::AtomicU64;

/// A family of histograms over the closed label set `L`; `()` for a single one. Clones share the numbers.
///
/// Values are whole numbers: nanoseconds for durations. Counts are exact up to 2^64 and sums up to 2^128.
/// A value that equals a bound is in that bound's bucket, zero is in every classic bucket and in the native
/// zero bucket, and no value is too large.
#[derive(Debug)]
pub struct Histogram<L> {
    shared: Arc<HistogramCells>,
    labels: PhantomData<fn(L)>,
}

#[derive(Debug)]
struct HistogramCells {
    buckets: Arc<Buckets>,
    packed: Cells,
    wide: Wide,
}

/// The counts of one series, all from the same point in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// How many values were observed.
    pub count: u64,
    /// Their sum, in whole units: nanoseconds for durations.
    pub sum: u128,
    /// How many are in each fine bucket.
    pub(crate) fine: Vec<u64>,
}

impl Snapshot {
    /// The classic buckets: each bound in base units with the number of values up to it, +Inf last.
    pub(crate) fn cumulative<'a>(&'a self, buckets: &'a Buckets) -> impl Iterator<Item = (f64, u64)> + 'a {
        let (mut done, mut sum) = (0, 0_u64);
        let classic = buckets.classic().iter().map(move |classic| {
            let more = self.fine.get(done..classic.fine).unwrap_or_default();
            sum = more.iter().fold(sum, |sum, &count| sum.wrapping_add(count));
            done = classic.fine;
            (classic.bound, sum)
        });
        classic.chain([(f64::INFINITY, self.count)])
    }

    /// The sum in base units, rounded to the nearest float.
    pub(crate) fn sum_in_base_units(&self, buckets: &Buckets) -> f64 {
        if buckets.per_unit() == 1 || self.sum < 1 << f64::MANTISSA_DIGITS {
            // Both are exact, so only the quotient is rounded.
            #[allow(clippy::cast_precision_loss, reason = "see above")]
            return self.sum as f64 / buckets.per_unit() as f64;
        }
        // Its decimal digits are exact, so only parsing them rounds.
        self.decimal(buckets).parse().unwrap_or(f64::INFINITY)
    }

    /// The sum in base units, with all its digits.
    pub(crate) fn decimal(&self, buckets: &Buckets) -> String {
        let per_unit = u128::from(buckets.per_unit());
        let digits = buckets.per_unit().ilog10() as usize;
        match self.sum % per_unit {
            0 => format!("{}.0", self.sum / per_unit),
            part => format!("{}.{part:0digits$}", self.sum / per_unit).trim_end_matches('0').to_owned(),
        }
    }
}

impl<L> Clone for Histogram<L> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), labels: PhantomData }
    }
}

impl<L: LabelSet> Histogram<L> {
    /// Nothing observed yet.
    pub fn new(buckets: &Arc<Buckets>) -> Self {
        let shared = HistogramCells {
            buckets: Arc::clone(buckets),
            packed: Cells::new(L::COUNT * buckets.packed_len()),
            wide: Wide::new(L::COUNT),
        };
        Self { shared: Arc::new(shared), labels: PhantomData }
    }

    /// Records a whole number: nanoseconds for durations.
    #[inline]
    pub fn observe(&self, labels: L, value: u64) {
        self.shared.observe(labels.index(), value);
    }

    /// Records a value in base units: seconds for durations. It is rounded to the nearest whole number
    /// (nanosecond). A negative value counts as zero, and one that is too large as the largest number. NaN is
    /// not recorded.
    pub fn observe_f64(&self, labels: L, value: f64) {
        if let Some(value) = self.shared.buckets.whole(value) {
            self.observe(labels, value);
        }
    }

    /// What was observed so far.
    pub fn get(&self, labels: L) -> Snapshot {
        self.at(labels.index())
    }

    pub(crate) fn at(&self, index: usize) -> Snapshot {
        self.shared.snapshot(index)
    }

    pub(crate) fn buckets(&self) -> &Buckets {
        &self.shared.buckets
    }

    #[cfg(test)]
    /// The bytes of one family when every one of `slots` threads has recorded: those of the packed cells, and
    /// those for values that are not packed (24 for each fine bucket of a series with such values).
    pub(crate) fn footprint(buckets: &Buckets, slots: usize) -> (usize, usize) {
        (Cells::footprint(L::COUNT * buckets.packed_len(), slots), L::COUNT * buckets.len() * size_of::<WideCell>())
    }
}

impl HistogramCells {
    #[inline]
    fn observe(&self, series: usize, value: u64) {
        let cell = self.packed_cell(self.packed.own(), series, value);
        if cell.and_then(|cell| add(cell, value)).is_none() {
            self.observe_slowly(series, value);
        }
    }

    /// The cell for `value`; `None` if it is not packed or there is no row.
    #[inline]
    fn packed_cell<'a>(&self, row: Option<&'a Row>, series: usize, value: u64) -> Option<&'a AtomicU64> {
        let bucket = self.buckets.packed_index(value)?;
        row?.cell(series * self.buckets.packed_len() + bucket)
    }

    #[cold]
    fn observe_slowly(&self, series: usize, value: u64) {
        let cell = self.packed_cell(self.packed.claim(), series, value);
        if cell.and_then(|cell| add(cell, value)).is_some() {
            return;
        }
        if let Some(wide) = self.wide.cells(series, self.buckets.len()).get(self.buckets.index(value)) {
            self.wide.add(wide, value, cell);
        }
    }

    fn snapshot(&self, series: usize) -> Snapshot {
        let mut fine = vec![0_u64; self.buckets.len()];
        let packed = self.buckets.packed_len();
        let total = self.wide.read(|| {
            let mut total = Total::default();
            fine.fill(0);
            let mut tally = |count: &mut u64, more: Total| {
                *count = count.wrapping_add(more.count);
                total += more;
            };
            for (count, cell) in fine.iter_mut().zip(self.wide.made(series)) {
                tally(count, cell.load());
            }
            for row in self.packed.rows() {
                for (count, cell) in fine.iter_mut().zip(row.cells(series * packed, packed)) {
                    tally(count, Total::of(cell));
                }
            }
            total
        });
        Snapshot { count: total.count, sum: total.sum, fine }
    }
}

/// A family of events that are counted and timed: a counter and a histogram of durations in one.
///
/// An event is recorded once, and the counter is the histogram's count. The two families that show it
/// therefore agree in every scrape, and counting costs nothing in addition to timing.
#[derive(Debug)]
pub struct Events<L>(Histogram<L>);

impl<L> Clone for Events<L> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<L: LabelSet> Events<L> {
    /// No events yet. `buckets` are for durations.
    pub fn new(buckets: &Arc<Buckets>) -> Self {
        Self(Histogram::new(buckets))
    }

    /// Records one event that took `nanos` nanoseconds.
    #[inline]
    pub fn record(&self, labels: L, nanos: u64) {
        self.0.observe(labels, nanos);
    }

    /// Records one event that began when `timer` started and ends now.
    #[inline]
    pub fn record_since(&self, labels: L, timer: Timer) {
        self.0.observe(labels, timer.nanos());
    }

    /// What was recorded so far.
    pub fn get(&self, labels: L) -> Snapshot {
        self.0.get(labels)
    }

    pub(crate) fn durations(&self) -> &Histogram<L> {
        &self.0
    }
}

//! The recording types with threads that come and go, and against a naive reference.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::metrics::labels::{Backend, MessageType, Operation};

/// How often things are repeated: rarely under an interpreter that checks every access.
const fn times(many: usize) -> usize {
    if cfg!(miri) { many / 200 } else { many }
}

fn durations() -> Arc<Buckets> {
    Arc::new(Buckets::durations(&DURATION_BOUNDS, NativeHistograms::default()).unwrap())
}

#[test]
fn nothing_is_lost_when_thousands_of_short_lived_threads_record() {
    let (counter, events) = (Counter::<MessageType>::new(), Events::<MessageType>::new(&durations()));
    let mut expected = 0;
    // More at once than there are slots, so that some threads have one and some have none.
    let at_once = slots::capacity() * 2;
    for _ in 0..times(10_000).div_ceil(at_once) {
        thread::scope(|scope| {
            for _ in 0..at_once {
                scope.spawn(|| {
                    for value in 0..10 {
                        counter.inc(MessageType::Get);
                        events.record(MessageType::Get, value);
                    }
                });
            }
        });
        expected += at_once as u64 * 10;
        assert_eq!(counter.get(MessageType::Get), expected);
        let snapshot = events.get(MessageType::Get);
        assert_eq!((snapshot.count, snapshot.sum), (expected, u128::from(expected / 10 * 45)));
    }
    assert_eq!(counter.get(MessageType::Put), 0);
}

#[test]
fn nothing_is_lost_when_more_threads_record_at_once_than_there_are_slots() {
    let threads = slots::capacity() + 5;
    let counter = Counter::<()>::new();
    let histogram = Histogram::<()>::new(&durations());
    let barrier = Barrier::new(threads);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                // All have recorded before the first one ends.
                counter.inc(());
                barrier.wait();
                for _ in 0..times(10_000) {
                    counter.add((), 2);
                    histogram.observe((), 1_000);
                }
                barrier.wait();
            });
        }
    });
    let (each, threads) = (times(10_000) as u64, threads as u64);
    assert_eq!(counter.get(()), threads * (1 + 2 * each));
    let snapshot = histogram.get(());
    assert_eq!((snapshot.count, snapshot.sum), (threads * each, u128::from(threads * each * 1_000)));
}

/// Readers run while writers record one value per bucket, so that the sum shows which observations it includes.
#[test]
fn in_every_reading_count_sum_and_buckets_cover_the_same_observations() {
    // Two are packed and one is not; the first one overflows the count of its packed cell again and again.
    const VALUES: [u64; 3] = [1_000, 70_000_000, 60_000_000_000];
    let events = Events::<()>::new(&durations());
    let done = AtomicBool::new(false);
    let readings = AtomicU64::new(0);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for round in 0..times(2_000_000) {
                        events.record((), VALUES[0]);
                        if round % 16 == 0 {
                            events.record((), VALUES[1]);
                            events.record((), VALUES[2]);
                        }
                    }
                })
            })
            .collect();
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = (0, vec![0; events.durations().buckets().len()]);
                while !done.load(Ordering::Relaxed) {
                    let reading = events.get(());
                    let buckets = events.durations().buckets();
                    let of = |value| reading.fine[buckets.index(value)];
                    assert_eq!(reading.count, reading.fine.iter().sum::<u64>());
                    assert_eq!(reading.sum, VALUES.iter().map(|&v| u128::from(v) * u128::from(of(v))).sum::<u128>());
                    assert_eq!(reading.cumulative(buckets).last(), Some((f64::INFINITY, reading.count)));
                    assert!(reading.count >= last.0, "the count went backwards");
                    assert!(reading.fine.iter().zip(&last.1).all(|(now, before)| now >= before));
                    last = (reading.count, reading.fine);
                    readings.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
    });
    assert!(readings.load(Ordering::Relaxed) > 2, "{readings:?} readings");
    let rounds = times(2_000_000) as u64;
    assert_eq!(events.get(()).count, 2 * (rounds + 2 * rounds.div_ceil(16)));
}

#[test]
fn a_counter_never_goes_backwards_between_two_readings() {
    let counter = Counter::<()>::new();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut last = 0;
            while !done.load(Ordering::Relaxed) {
                let now = counter.get(());
                assert!(now >= last, "{now} after {last}");
                last = now;
            }
        });
        for _ in 0..times(2_000) {
            thread::scope(|scope| {
                scope.spawn(|| (0..50).for_each(|_| counter.inc(())));
            });
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    assert_eq!(counter.get(()), times(2_000) as u64 * 50);
}

#[test]
fn the_number_in_progress_is_never_negative_and_returns_to_zero() {
    let gauge = InFlight::<Backend>::new();
    let done = AtomicBool::new(false);
    let (sender, receiver) = std::sync::mpsc::sync_channel(64);
    thread::scope(|scope| {
        let done = &done;
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // A reading may include what began while it was taken, but it is never negative.
                assert!(gauge.get(Backend::Local) < 1 << 40);
            }
        });
        scope.spawn(move || {
            // They end on a different thread from the one on which they began.
            receiver.iter().for_each(drop::<UnderWay<'_>>);
            done.store(true, Ordering::Relaxed);
        });
        let sender = sender;
        (0..times(100_000)).for_each(|_| sender.send(gauge.enter(Backend::Local)).unwrap());
    });
    assert_eq!((gauge.get(Backend::Local), gauge.get(Backend::Redis)), (0, 0));
    let _one = gauge.enter(Backend::Redis);
    assert_eq!((gauge.get(Backend::Local), gauge.get(Backend::Redis)), (0, 1));
}

struct RecordsWhenItEnds(Counter<()>, Events<()>);

impl Drop for RecordsWhenItEnds {
    fn drop(&mut self) {
        self.0.inc(());
        self.1.record((), 7);
    }
}

thread_local! {
    static FIRST: RefCell<Option<RecordsWhenItEnds>> = const { RefCell::new(None) };
    static SECOND: RefCell<Option<RecordsWhenItEnds>> = const { RefCell::new(None) };
}

/// Thread-locals are destroyed in the order in which they were created, so one of the two is destroyed before the
/// slot is returned and one after.
#[test]
fn destructors_of_thread_locals_can_record() {
    let (counter, events) = (Counter::<()>::new(), Events::<()>::new(&durations()));
    let records = || Some(RecordsWhenItEnds(counter.clone(), events.clone()));
    for recorded_before in [true, false] {
        // Joined explicitly: a scope ends when its threads' closures do, before their thread-locals are destroyed.
        let (records, counter, events) = (&records, &counter, &events);
        let work = move || {
            FIRST.set(records());
            if recorded_before {
                counter.inc(());
                events.record((), 7);
            }
            SECOND.set(records());
        };
        thread::scope(|scope| scope.spawn(work).join().unwrap());
    }
    assert_eq!((counter.get(()), events.get(()).count, events.get(()).sum), (5, 5, 35));
}

#[test]
fn slots_are_returned() {
    let mut seen = Vec::new();
    for _ in 0..slots::capacity() * 3 {
        seen.push(thread::spawn(slots::claim).join().unwrap());
    }
    // Other tests run at the same time and may hold all slots briefly, but not for as long as this takes.
    assert!(seen.iter().flatten().count() > slots::capacity(), "{seen:?}");
    assert!(seen.iter().flatten().all(|slot| *slot < slots::capacity()));
}

#[test]
fn a_thread_that_got_no_slot_gets_one_when_one_is_free_again() {
    let counter = Counter::<()>::new();
    let (all_taken, missed) = (Barrier::new(slots::capacity() + 1), Barrier::new(slots::capacity() + 1));
    thread::scope(|scope| {
        for _ in 0..slots::capacity() {
            scope.spawn(|| {
                counter.inc(());
                all_taken.wait();
                missed.wait();
            });
        }
        scope.spawn(|| {
            all_taken.wait();
            // No slot is free, unless a thread of another test has just ended.
            counter.inc(());
            missed.wait();
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while slots::claim().is_none() {
                assert!(std::time::Instant::now() < deadline, "it never tries again");
                thread::yield_now();
            }
            counter.inc(());
        });
    });
    assert_eq!(counter.get(()), slots::capacity() as u64 + 2);
}

#[test]
fn a_timer_that_is_never_read_records_nothing() {
    let events = Events::<MessageType>::new(&durations());
    let _ = Timer::start();
    assert!(MessageType::ALL.iter().all(|&kind| events.get(kind).count == 0));
    let timer = Timer::start();
    thread::sleep(std::time::Duration::from_millis(2));
    events.record_since(MessageType::Get, timer);
    let snapshot = events.get(MessageType::Get);
    assert!(snapshot.count == 1 && snapshot.sum >= 2_000_000 && snapshot.sum < 1_000_000_000, "{}", snapshot.sum);
}

use crate::metrics::labels::Label;

#[test]
fn nan_and_values_out_of_range_are_handled_as_documented() {
    let histogram = Histogram::<()>::new(&durations());
    let after = |value: f64| {
        let before = histogram.get(());
        histogram.observe_f64((), value);
        let after = histogram.get(());
        (after.count - before.count, after.sum - before.sum)
    };
    assert_eq!(after(f64::NAN), (0, 0));
    assert_eq!(after(0.0), (1, 0));
    assert_eq!(after(-0.0), (1, 0));
    assert_eq!(after(-1.0), (1, 0));
    assert_eq!(after(f64::NEG_INFINITY), (1, 0));
    assert_eq!(after(0.4e-9), (1, 0));
    assert_eq!(after(0.5e-9), (1, 1));
    assert_eq!(after(1e-9), (1, 1));
    assert_eq!(after(1.5), (1, 1_500_000_000));
    assert_eq!(after(4.294_967_296), (1, 1 << 32));
    assert_eq!(after(1e300), (1, u128::from(u64::MAX)));
    assert_eq!(after(f64::INFINITY), (1, u128::from(u64::MAX)));
    let buckets = histogram.buckets();
    let native = buckets.native().snapshot(&histogram.get(()).fine);
    assert_eq!(native.zero_count, 5);
    assert_eq!(native.buckets.iter().map(|(_, count)| count).sum::<u64>(), 6);
    assert!(histogram.get(()).sum_in_base_units(buckets) > 3.6e10);
}

#[test]
fn sums_are_shown_with_every_digit_and_as_the_nearest_float() {
    let histogram = Histogram::<()>::new(&durations());
    for (value, text, float) in [
        (0, "0.0", 0.0),
        (1, "0.000000001", 1e-9),
        (299_999_999, "0.3", 0.3),
        (700_000_000, "1.0", 1.0),
        (u64::MAX, "18446744074.709551615", 18_446_744_074.709_553),
    ] {
        histogram.observe((), value);
        let snapshot = histogram.get(());
        assert_eq!(snapshot.decimal(histogram.buckets()), text);
        assert_eq!(snapshot.sum_in_base_units(histogram.buckets()), float);
        assert_eq!(text.parse::<f64>().unwrap(), float);
    }
}

/// What a histogram of these values should contain, computed as simply as possible.
struct Naive<'a>(&'a [u64]);

impl Naive<'_> {
    fn classic(&self) -> Vec<u64> {
        let up_to = |bound: f64| {
            // The bounds are whole numbers of nanoseconds.
            let bound = (bound * 1e9).round() as u64;
            self.0.iter().filter(|&&value| value <= bound).count() as u64
        };
        DURATION_BOUNDS.iter().map(|&bound| up_to(bound)).chain([self.0.len() as u64]).collect()
    }

    /// By definition, the smallest index whose bound is not below the value.
    fn native(&self, schema: i32) -> BTreeMap<i32, u64> {
        let mut buckets = BTreeMap::new();
        for &value in self.0.iter().filter(|&&value| value > 0) {
            let per_octave = f64::from(schema).exp2();
            let bound = |index: i32| (f64::from(index) / per_octave).exp2() * 1e9;
            let mut index = ((value as f64 / 1e9).log2() * per_octave).floor() as i32 - 2;
            while bound(index) < value as f64 {
                index += 1;
            }
            *buckets.entry(index).or_default() += 1;
        }
        buckets
    }
}

/// Values of all sizes, and bounds with their neighbours.
fn value() -> impl Strategy<Value = u64> {
    let bound = proptest::sample::select(DURATION_BOUNDS.to_vec());
    prop_oneof![
        (any::<u64>(), 11..64_u32).prop_map(|(value, bits)| value >> bits),
        (bound, 0..3_u64).prop_map(|(bound, beside)| (bound * 1e9).round() as u64 + beside - 1),
        (0..63_u32).prop_map(|bit| 1 << bit),
        Just(0),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 }))]

    #[test]
    fn a_histogram_agrees_with_a_naive_one(values in proptest::collection::vec(value(), 0..200)) {
        let histogram = Histogram::<(Operation, Backend)>::new(&durations());
        let series = (Operation::Put, Backend::Redis);
        values.iter().for_each(|&value| histogram.observe(series, value));
        let snapshot = histogram.get(series);
        prop_assert_eq!(snapshot.count, values.len() as u64);
        prop_assert_eq!(snapshot.sum, values.iter().map(|&value| u128::from(value)).sum::<u128>());
        let buckets = histogram.buckets();
        let classic: Vec<_> = snapshot.cumulative(buckets).map(|(_, count)| count).collect();
        prop_assert_eq!(classic, Naive(&values).classic());
        let native = buckets.native().snapshot(&snapshot.fine);
        prop_assert_eq!(native.zero_count, values.iter().filter(|&&value| value == 0).count() as u64);
        prop_assert_eq!(native.buckets.into_iter().collect::<BTreeMap<_, _>>(), Naive(&values).native(native.schema));
    }

    #[test]
    fn native_buckets_stay_within_their_limit_and_merge_into_a_coarser_schema(
        values in proptest::collection::vec(value(), 0..200),
        schema in 0..=5,
        max_buckets in 8..40_u32,
    ) {
        let native = NativeHistograms { schema, max_buckets };
        let buckets = Arc::new(Buckets::durations(&DURATION_BOUNDS, native).unwrap());
        let histogram = Histogram::<()>::new(&buckets);
        values.iter().for_each(|&value| histogram.observe((), value));
        let native = buckets.native().snapshot(&histogram.get(()).fine);
        prop_assert!(native.buckets.len() <= max_buckets as usize);
        prop_assert!(native.schema == schema || Naive(&values).native(native.schema + 1).len() > max_buckets as usize);
        let (spans, deltas) = native.spans_and_deltas();
        prop_assert_eq!(spans.iter().map(|(_, length)| *length as usize).sum::<usize>(), deltas.len());
        prop_assert_eq!(from_spans(&spans, &deltas), native.buckets.iter().copied().collect::<BTreeMap<_, _>>());
        prop_assert_eq!(native.buckets.into_iter().collect::<BTreeMap<_, _>>(), Naive(&values).native(native.schema));
    }
}

/// The buckets that a reader gets from spans and deltas, without the empty ones.
fn from_spans(spans: &[(i32, u32)], deltas: &[i64]) -> BTreeMap<i32, u64> {
    let (mut index, mut count, mut deltas) = (0, 0, deltas.iter());
    let mut buckets = BTreeMap::new();
    for &(offset, length) in spans {
        index += offset;
        for _ in 0..length {
            count += deltas.next().unwrap();
            if count != 0 {
                buckets.insert(index, u64::try_from(count).unwrap());
            }
            index += 1;
        }
    }
    buckets
}

#[test]
fn two_instruments_of_the_same_type_share_no_numbers() {
    let (one, other) = (Counter::<()>::new(), Counter::<()>::new());
    one.inc(());
    assert_eq!((one.get(()), other.get(())), (1, 0));
}

#[test]
fn memory_is_as_documented() {
    let figures = |cores| {
        let slots = slots::capacity_for(cores);
        let (histogram, wide) = Histogram::<()>::footprint(&durations(), slots);
        (slots, Counter::<()>::footprint(slots), histogram, wide)
    };
    assert_eq!(figures(2), (11, 1_768, 23_936, 12_240));
    assert_eq!(figures(8), (20, 3_208, 43_520, 12_240));
    assert_eq!(figures(64), (104, 16_648, 226_304, 12_240));
}

//! Models of what threads do with the recording types, in all interleavings within a bound.
//!
//! The thread that creates a model is the one that writes: the checker runs it first, and then lets a reader's
//! loads return every value that they may. The other way round, it would miss orders in which a thread that reads and
//! then writes a cell comes before another one that reads it.
#![cfg(all(loom, test))]
// Only part of what the files provide is used here.
#![allow(dead_code)]

#[path = "../../src/metrics/instruments/packed.rs"]
mod packed;
#[path = "../../src/metrics/instruments/pool.rs"]
mod pool;
#[path = "../../src/metrics/instruments/sync.rs"]
mod sync;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use self::packed::{ONE, Total, Wide, add};
use self::pool::Pool;

/// Runs `run` in every interleaving with at most two preemptions; loads return every value that they may. Without that
/// bound it takes hours.
fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(run);
}

/// What a cell's owner does: a load and a store, which lose increments if two threads own the cell at once, or if
/// the next owner does not see the last one's increments.
fn bump(cell: &AtomicU64) {
    cell.store(cell.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

#[test]
fn the_next_owner_of_a_slot_continues_where_the_last_one_stopped() {
    model(|| {
        let (pool, cell, shared) = (Arc::new(Pool::new()), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let work = {
            let (pool, cell, shared) = (Arc::clone(&pool), Arc::clone(&cell), Arc::clone(&shared));
            move || match pool.take(1) {
                Some(slot) => {
                    bump(&cell);
                    pool.give_back(slot);
                }
                None => {
                    shared.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        let threads: Vec<_> = (0..2).map(|_| thread::spawn(work.clone())).collect();
        work();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(cell.load(Ordering::Relaxed) + shared.load(Ordering::Relaxed), 3);
    });
}

/// A reading of a packed cell and of the wide cell that it is emptied into.
fn read(wide: &Wide, cell: &AtomicU64) -> Total {
    wide.read(|| {
        let mut total = wide.made(0).first().map(packed::WideCell::load).unwrap_or_default();
        total += Total::of(cell);
        total
    })
}

/// Records a value of 7, as the cell's owner does.
fn record(wide: &Wide, cell: &AtomicU64) {
    if add(cell, 7).is_none() {
        wide.add(&wide.cells(0, 1)[0], 7, Some(cell));
    }
}

#[test]
fn a_reader_sees_a_cell_either_before_or_after_it_is_emptied() {
    model(|| {
        let wide = Arc::new(Wide::new(1));
        // Allocated beforehand: the allocation is synchronized by the standard library.
        let _ = wide.cells(0, 1);
        // The count is full.
        let cell = Arc::new(AtomicU64::new(65_535 * (ONE + 7)));
        let reader = thread::spawn({
            let (wide, cell) = (Arc::clone(&wide), Arc::clone(&cell));
            move || {
                let Total { count, sum } = read(&wide, &cell);
                assert!((65_535..=65_537).contains(&count), "{count}");
                assert_eq!(sum, u128::from(count) * 7);
            }
        });
        (0..2).for_each(|_| record(&wide, &cell));
        reader.join().unwrap();
        assert_eq!(read(&wide, &cell), Total { count: 65_537, sum: 65_537 * 7 });
    });
}

/// The owner empties the cell and ends, and the slot's next owner continues with the cell: a reader that sees what the
/// second one stored must not miss what the first one moved.
#[test]
fn a_reader_misses_nothing_when_a_cell_changes_owner_after_it_was_emptied() {
    model(|| {
        let (wide, pool) = (Arc::new(Wide::new(1)), Arc::new(Pool::new()));
        let _ = wide.cells(0, 1);
        let cell = Arc::new(AtomicU64::new(65_535 * (ONE + 7)));
        let slot = pool.take(1).unwrap();
        let reader = thread::spawn({
            let (wide, cell) = (Arc::clone(&wide), Arc::clone(&cell));
            move || {
                let Total { count, sum } = read(&wide, &cell);
                assert!((65_535..=65_537).contains(&count), "{count}");
                assert_eq!(sum, u128::from(count) * 7);
            }
        });
        let next = thread::spawn({
            let (wide, cell, pool) = (Arc::clone(&wide), Arc::clone(&cell), Arc::clone(&pool));
            move || {
                if pool.take(1).is_some() {
                    record(&wide, &cell);
                }
            }
        });
        record(&wide, &cell);
        pool.give_back(slot);
        reader.join().unwrap();
        next.join().unwrap();
    });
}

#[test]
fn threads_without_a_slot_lose_no_observations() {
    model(|| {
        let wide = Arc::new(Wide::new(1));
        let _ = wide.cells(0, 1);
        let cell = Arc::new(AtomicU64::new(0));
        let reader = thread::spawn({
            let (wide, cell) = (Arc::clone(&wide), Arc::clone(&cell));
            move || {
                let Total { count, sum } = read(&wide, &cell);
                assert!(count <= 2);
                assert_eq!(sum, u128::from(count) * u128::from(u64::MAX));
            }
        });
        let writer = thread::spawn({
            let wide = Arc::clone(&wide);
            move || wide.add(&wide.cells(0, 1)[0], u64::MAX, None)
        });
        wide.add(&wide.cells(0, 1)[0], u64::MAX, None);
        reader.join().unwrap();
        writer.join().unwrap();
        assert_eq!(read(&wide, &cell).count, 2);
    });
}

//! The recording types, built to make recording an event as cheap as possible.
//!
//! A thread that records owns a numbered slot. An instrument has a row of cells for each slot, which only the
//! slot's owner writes. Recording therefore takes no lock and no locked instruction, touches no cache line
//! that another thread writes, and costs the same however many threads do it. Reading adds up the rows.
//!
//! ```
//! use std::sync::Arc;
//! use peerscope::metrics::instruments::{Buckets, DURATION_BOUNDS, Events, NativeHistograms, Timer};
//! use peerscope::metrics::labels::MessageType;
//!
//! let buckets = Arc::new(Buckets::durations(&DURATION_BOUNDS, NativeHistograms::default())?);
//! let handled = Events::<MessageType>::new(&buckets);
//! let timer = Timer::start();
//! handled.record_since(MessageType::Get, timer);
//! assert_eq!(handled.get(MessageType::Get).count, 1);
//! # Ok::<(), peerscope::metrics::instruments::BucketsError>(())
//! ```
//!
//! # Exactness
//!
//! - An increment by a slot's owner is a load and a store, which is exact because nobody else writes the cell.
//!   The next owner of the slot continues with the same cells: the lock of the slot pool, through which the slot
//!   was returned and handed out again, orders the last store of the previous owner before the first load of the
//!   next. For readers, the stores themselves release what came before them.
//! - A thread without a slot (there are more threads than slots, or the thread is ending and has returned its
//!   slot) uses cells that all such threads share: a counter's with an atomic addition, a histogram's under a
//!   lock.
//! - A cell is read as a whole. Successive readings of a counter therefore never go backwards, and the count, sum
//!   and buckets of a histogram always match (`packed.rs`).
//!
//! # Memory
//!
//! A row has a word for each cell and a cache line before and after them, and is allocated when its slot's owner
//! first records. The bytes with the default buckets, once every slot has recorded (there are 8, plus 1.5 for each
//! core):
//!
//! | | 2 cores | 8 cores | 64 cores |
//! | --- | --- | --- | --- |
//! | slots | 11 | 20 | 104 |
//! | a counter | 1,768 | 3,208 | 16,648 |
//! | a duration histogram | 23,936 | 43,520 | 226,304 |
//!
//! A histogram that has observed a value of 4.3 s or more, or 65,536 values in one fine bucket by one thread,
//! takes 12 KiB more. Tests check these figures, and that a whole node stays below 1.25 MiB on 8 cores.

mod buckets;
mod cells;
mod clock;
mod counter;
mod family;
mod gauge;
mod histogram;
mod native;
mod packed;
mod pool;
mod slots;
mod sync;

pub use super::NativeHistograms;
pub(crate) use buckets::le;
pub use buckets::{Buckets, BucketsError};
pub use clock::Timer;
pub(crate) use clock::warm_up;
pub use counter::{Counter, InFlight, UnderWay};
pub use family::LabelSet;
pub use gauge::Gauge;
pub use histogram::{Events, Histogram, Snapshot};
pub(crate) use native::{NativeSnapshot, ZERO_THRESHOLD};
#[cfg(test)]
pub(crate) use slots::capacity_for;

/// The upper bounds, in seconds, of every duration histogram: 10 us to 10 s. An operation on the
/// embedded store takes microseconds; one that waits for three Redis retries takes seconds.
pub const DURATION_BOUNDS: [f64; 16] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5,
    10.0,
];

/// The upper bounds of the commit batch sizes: powers of two up to the largest batch.
pub const BATCH_BOUNDS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// The classic bounds of the sizes of metrics pages, in bytes: 1 KiB to 16 MiB.
pub const SIZE_BOUNDS: [f64; 8] = [1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];

#[cfg(test)]
mod tests;

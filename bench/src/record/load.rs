//! The recording loop, the same for every contender and compiled for each, so that it makes no indirect calls.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use rustix::time::ClockId;

use crate::library::Recorder;
use crate::measure::cpu_time;
use crate::samples::{LAP, Sample};
use crate::{Error, Result};

/// The load of one round.
pub(crate) struct Load<'a> {
    pub(crate) threads: usize,
    pub(crate) clock: bool,
    pub(crate) table: &'a [Sample],
    pub(crate) warm_up: Duration,
    pub(crate) length: Duration,
}

/// The work done in one round.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Work {
    /// How often each duration of the table was recorded, by all threads and including the warm-up.
    pub(crate) laps: u64,
    /// The events that were timed, and the time that they took, summed over all threads.
    events: u64,
    taken: Duration,
    /// The processor time within `taken`.
    cpu: Duration,
}

impl Work {
    /// The number of events by which the contender's page must have grown.
    pub(crate) fn recorded(&self) -> u64 {
        self.laps * LAP as u64
    }

    pub(crate) fn nanos_per_event(&self) -> f64 {
        self.taken.as_nanos() as f64 / self.events as f64
    }

    /// Excludes the time in which a thread waited for a lock or a processor.
    pub(crate) fn cpu_nanos_per_event(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.events as f64
    }

    fn plus(self, other: Self) -> Self {
        Self {
            laps: self.laps + other.laps,
            events: self.events + other.events,
            taken: self.taken + other.taken,
            cpu: self.cpu + other.cpu,
        }
    }
}

/// Records on each thread until the round ends. The threads are new in every round and begin together.
pub(crate) fn run_threads<R: Recorder>(load: &Load<'_>, recorder: &R) -> Result<Work> {
    let barrier = Barrier::new(load.threads);
    let one = || {
        barrier.wait();
        let begin = Instant::now();
        let (_, warm_up) = laps(recorder, load, begin + load.warm_up);
        let cpu = cpu_time(ClockId::ThreadCPUTime);
        let (taken, timed) = laps(recorder, load, begin + load.warm_up + load.length);
        let cpu = cpu_time(ClockId::ThreadCPUTime).saturating_sub(cpu);
        Work { laps: warm_up + timed, events: timed * LAP as u64, taken, cpu }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..load.threads).map(|_| scope.spawn(one)).collect();
        let mut work = Work::default();
        for thread in threads {
            work = work.plus(thread.join().map_err(|_| Error::from("a recording thread panicked"))?);
        }
        Ok(work)
    })
}

/// Records the table repeatedly until `until`, which is checked once per lap.
#[inline(never)]
fn laps<R: Recorder>(recorder: &R, load: &Load<'_>, until: Instant) -> (Duration, u64) {
    let begin = Instant::now();
    let mut laps = 0;
    loop {
        if load.clock {
            load.table.iter().for_each(|&sample| recorder.measure(sample));
        } else {
            load.table.iter().for_each(|&sample| recorder.record(sample));
        }
        laps += 1;
        let now = Instant::now();
        if now >= until {
            return (now - begin, laps);
        }
    }
}

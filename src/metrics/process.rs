//! The `process_*` families, read from the kernel at each scrape that wants them.

mod cpu;
mod reading;

use std::sync::atomic::{AtomicBool, Ordering};

use self::cpu::CpuUsage;
use self::reading::Reading;
use super::catalogue as c;
use super::exposition::{Metadata, Number, PageWriter, Series};
use super::registry::{Expose, metadata};
use parking_lot::Mutex;

/// In the order of the values that [`ProcessFamilies::read`] returns.
const FAMILIES: [c::Descriptor; 9] = [
    c::PROCESS_CPU_USAGE,
    c::PROCESS_START_TIME,
    c::PROCESS_MEMORY,
    c::PROCESS_RESIDENT,
    c::PROCESS_VIRTUAL,
    c::PROCESS_THREADS,
    c::PROCESS_OPEN_FDS,
    c::PROCESS_MAX_FDS,
    c::PROCESS_CPU_SECONDS,
];

/// Reads the process at every scrape.
///
/// Values that the kernel does not provide (in a jail without `/proc`, for example) are left out of the
/// page, which is logged once.
#[derive(Debug)]
pub(super) struct ProcessFamilies {
    families: [Metadata; FAMILIES.len()],
    /// When the process started, in seconds since the Unix epoch. Read once, so that setting the clock does
    /// not change it.
    start_time: Option<f64>,
    // Held only for a little arithmetic, never across an await.
    usage: Mutex<CpuUsage>,
    complained: AtomicBool,
}

impl ProcessFamilies {
    pub(super) fn new() -> Self {
        let start = reading::start();
        let usage = CpuUsage::new(start.as_ref().map_or_else(|_| reading::cpu_sample(), |start| start.sample));
        let collector = Self {
            families: FAMILIES.map(|descriptor| metadata(&descriptor)),
            start_time: start.as_ref().ok().map(|start| start.unix_seconds),
            usage: Mutex::new(usage),
            complained: AtomicBool::new(false),
        };
        if let Err(error) = start {
            collector.complain(&error);
        }
        collector
    }

    fn complain(&self, error: &dyn std::fmt::Display) {
        if !self.complained.swap(true, Ordering::Relaxed) {
            tracing::warn!("some process_* metrics are missing: /proc cannot be read ({error})");
        }
    }

    fn known<T, E: std::fmt::Display>(&self, result: Result<T, E>) -> Option<T> {
        result.inspect_err(|error| self.complain(error)).ok()
    }

    fn read(&self) -> [Option<Number>; FAMILIES.len()] {
        let sample = reading::cpu_sample();
        let usage = self.usage.lock().at(sample);
        let Reading { memory, threads, open_fds, max_fds } = reading::read();
        let memory = self.known(memory);
        let resident = memory.map(|memory| Number::Unsigned(memory.resident_bytes));
        [
            Some(Number::Float(usage)),
            self.start_time.map(Number::Float),
            resident,
            resident,
            memory.map(|memory| Number::Unsigned(memory.virtual_bytes)),
            self.known(threads).map(Number::Unsigned),
            self.known(open_fds).map(Number::Unsigned),
            max_fds.map(Number::Unsigned),
            Some(Number::Float(sample.cpu.as_secs_f64())),
        ]
    }
}

impl Expose for ProcessFamilies {
    fn families(&self) -> Vec<&Metadata> {
        self.families.iter().collect()
    }

    fn expose(&self, page: &mut PageWriter<'_>) {
        // A scrape of other families only must not shorten the window of the CPU gauge.
        if !page.wants(&self.families) {
            return;
        }
        let unlabelled = Series::default();
        for (family, value) in self.families.iter().zip(self.read()) {
            if let (Some(value), Some(mut out)) = (value, page.family(family)) {
                out.number(&unlabelled, value);
            }
        }
    }
}

#[cfg(test)]
mod tests;

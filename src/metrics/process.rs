//! The `process_*` families, read from the kernel when a scrape asks for them.

mod cpu;
mod reading;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use self::cpu::CpuUsage;
use self::reading::Reading;
use super::catalogue as c;
use super::scrape_time::encode;

/// Reads the process at every scrape.
///
/// What the kernel does not tell (no `/proc` in a jail, for instance) is left out of the exposition, and
/// the log says so once.
#[derive(Debug)]
pub(super) struct ProcessCollector {
    /// When the process started, since the Unix epoch in seconds. Read once: it must not move with the clock.
    start_time: Option<f64>,
    // A std lock: held for a little arithmetic, never across an await.
    usage: Mutex<CpuUsage>,
    complained: AtomicBool,
}

impl ProcessCollector {
    pub(super) fn new() -> Self {
        let start = reading::start();
        let usage = CpuUsage::new(start.as_ref().map_or_else(|_| reading::cpu_sample(), |start| start.sample));
        let collector = Self {
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
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let sample = reading::cpu_sample();
        let usage = self.usage.lock().unwrap_or_else(std::sync::PoisonError::into_inner).at(sample);
        let Reading { stat, open_fds, max_fds } = reading::read();
        let stat = self.known(stat);
        let resident = stat.as_ref().map(|stat| stat.resident_bytes);

        let mut gauge = |descriptor: &'static c::Descriptor, value: Option<f64>| match value {
            Some(value) => encode(&mut encoder, descriptor, &ConstGauge::new(value)),
            None => Ok(()),
        };
        gauge(&c::PROCESS_CPU_USAGE, Some(usage))?;
        gauge(&c::PROCESS_START_TIME, self.start_time)?;
        let mut gauge = |descriptor: &'static c::Descriptor, value: Option<u64>| match value {
            Some(value) => encode(&mut encoder, descriptor, &ConstGauge::new(value)),
            None => Ok(()),
        };
        gauge(&c::PROCESS_MEMORY, resident)?;
        gauge(&c::PROCESS_RESIDENT, resident)?;
        gauge(&c::PROCESS_VIRTUAL, stat.as_ref().map(|stat| stat.virtual_bytes))?;
        gauge(&c::PROCESS_THREADS, stat.as_ref().map(|stat| stat.threads))?;
        gauge(&c::PROCESS_OPEN_FDS, self.known(open_fds))?;
        gauge(&c::PROCESS_MAX_FDS, self.known(max_fds).flatten())?;
        encode(&mut encoder, &c::PROCESS_CPU_SECONDS, &ConstCounter::new(sample.cpu.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests;

//! What the kernel says about this process, read once per scrape.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use procfs::process::{LimitValue, Process};
use procfs::{ProcResult, WithCurrentSystemInfo};
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::cpu::Sample;

/// One reading of `/proc/self`. Each part fails by itself.
pub(super) struct Reading {
    pub(super) stat: ProcResult<Stat>,
    pub(super) open_fds: io::Result<u64>,
    /// `None` inside: there is no limit.
    pub(super) max_fds: ProcResult<Option<u64>>,
}

/// From `/proc/self/stat`.
pub(super) struct Stat {
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) threads: u64,
}

/// When the process started.
pub(super) struct Start {
    pub(super) unix_seconds: f64,
    /// The start as a sample: no CPU time used yet.
    pub(super) sample: Sample,
}

pub(super) fn read() -> Reading {
    // Each handle on /proc/self is a descriptor, too: it is closed before the descriptors are counted.
    let stat = Process::myself().and_then(|process| stat(&process));
    let max_fds = Process::myself().and_then(|process| max_fds(&process));
    Reading { stat, max_fds, open_fds: open_fds() }
}

/// CPU time used so far, and when that is. The clock counts from the boot, as start times in `/proc` do.
pub(super) fn cpu_sample() -> Sample {
    Sample { at: duration(clock_gettime(ClockId::Boottime)), cpu: duration(clock_gettime(ClockId::ProcessCPUTime)) }
}

/// The start to the clock tick (10 ms). `/proc/stat` gives the boot time in whole seconds only, so the
/// time since the boot is taken off the present instead.
pub(super) fn start() -> ProcResult<Start> {
    let ticks = Process::myself()?.stat()?.starttime;
    #[allow(clippy::cast_precision_loss, reason = "ticks since the boot are far below 2^52")]
    let after_boot = Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64);
    let age = duration(clock_gettime(ClockId::Boottime)).saturating_sub(after_boot);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Start {
        unix_seconds: now.saturating_sub(age).as_secs_f64(),
        sample: Sample { at: after_boot, cpu: Duration::ZERO },
    })
}

fn stat(process: &Process) -> ProcResult<Stat> {
    let stat = process.stat()?;
    Ok(Stat {
        resident_bytes: stat.rss_bytes().get(),
        virtual_bytes: stat.vsize,
        threads: u64::try_from(stat.num_threads).unwrap_or(0),
    })
}

fn max_fds(process: &Process) -> ProcResult<Option<u64>> {
    Ok(match process.limits()?.max_open_files.soft_limit {
        LimitValue::Value(limit) => Some(limit),
        LimitValue::Unlimited => None,
    })
}

/// Linux 6.2 and later tell the number as the size of the directory; before, its entries are counted.
/// (procfs's own `fd_count` counts `.` and `..` as well.)
fn open_fds() -> io::Result<u64> {
    const FDS: &str = "/proc/self/fd";
    let size = std::fs::metadata(FDS)?.len();
    if size > 0 {
        return Ok(size);
    }
    let entries = std::fs::read_dir(FDS)?.count();
    // The listing itself holds one descriptor.
    Ok(u64::try_from(entries.saturating_sub(1)).unwrap_or(u64::MAX))
}

fn duration(time: Timespec) -> Duration {
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

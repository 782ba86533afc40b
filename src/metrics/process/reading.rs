//! What the kernel reports about this process, read once per scrape.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use procfs::ProcResult;
use procfs::process::Process;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::cpu::Sample;

/// One reading of `/proc/self`. Each part can fail on its own.
///
/// It is taken at every scrape, so it reads no more than is shown: `/proc/self/stat` and `/proc/self/limits` have
/// the same numbers among many others, but take the kernel ten times as long to write.
pub(super) struct Reading {
    pub(super) memory: io::Result<Memory>,
    pub(super) threads: io::Result<u64>,
    pub(super) open_fds: io::Result<u64>,
    /// `None`: unlimited.
    pub(super) max_fds: Option<u64>,
}

/// From `/proc/self/statm`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    pub(super) virtual_bytes: u64,
    pub(super) resident_bytes: u64,
}

/// When the process started.
pub(super) struct Start {
    pub(super) unix_seconds: f64,
    /// The start as a sample, with no CPU time used yet.
    pub(super) sample: Sample,
}

pub(super) fn read() -> Reading {
    let max_fds = getrlimit(Resource::Nofile).current;
    Reading { memory: memory(), threads: threads(), open_fds: open_fds(), max_fds }
}

/// The CPU time used until now. The clock counts from boot, as the start times in `/proc` do.
pub(super) fn cpu_sample() -> Sample {
    Sample { at: duration(clock_gettime(ClockId::Boottime)), cpu: duration(clock_gettime(ClockId::ProcessCPUTime)) }
}

/// The start of the process, to the clock tick (10 ms). `/proc/stat` gives the boot time in whole seconds
/// only, so the age of the process is subtracted from the current time instead.
pub(super) fn start() -> ProcResult<Start> {
    let ticks = Process::myself()?.stat()?.starttime;
    #[allow(clippy::cast_precision_loss, reason = "ticks since boot are far below 2^52")]
    let after_boot = Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64);
    let age = duration(clock_gettime(ClockId::Boottime)).saturating_sub(after_boot);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Start {
        unix_seconds: now.saturating_sub(age).as_secs_f64(),
        sample: Sample { at: after_boot, cpu: Duration::ZERO },
    })
}

/// `proc_pid_statm(5)`: total and resident size, in pages.
fn memory() -> io::Result<Memory> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let mut bytes = statm.split(' ').map(|pages| pages.parse::<u64>().map(|pages| pages * procfs::page_size()));
    match (bytes.next(), bytes.next()) {
        (Some(Ok(virtual_bytes)), Some(Ok(resident_bytes))) => Ok(Memory { virtual_bytes, resident_bytes }),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "/proc/self/statm does not begin with two numbers")),
    }
}

/// Each thread is a subdirectory, which adds one link to the directory's own two.
fn threads() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/self/task")?.nlink().saturating_sub(2))
}

/// Linux 6.2 and later report the number as the size of the directory; on older kernels its entries are
/// counted. (procfs's own `fd_count` counts `.` and `..` as well.)
fn open_fds() -> io::Result<u64> {
    const FDS: &str = "/proc/self/fd";
    let size = std::fs::metadata(FDS)?.len();
    if size > 0 {
        return Ok(size);
    }
    let entries = std::fs::read_dir(FDS)?.count();
    // The listing itself uses one descriptor.
    Ok(u64::try_from(entries.saturating_sub(1)).unwrap_or(u64::MAX))
}

fn duration(time: Timespec) -> Duration {
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

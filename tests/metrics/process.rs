//! `process_*` against what the system reports about this process.

use std::fs::File;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use peerscope::metrics::exposition::{FamilyFilter, Format};
use peerscope::metrics::{Health, MissingLines, Registry, register_scrape_time};
use rustix::time::{ClockId, clock_gettime};

use crate::support::metrics::value;

fn registry() -> Registry {
    let registry = Registry::default();
    register_scrape_time(&registry, &Health::default(), &MissingLines::default());
    registry
}

fn text(registry: &Registry) -> String {
    String::from_utf8(registry.render(Format::Text, &FamilyFilter::all()).to_vec()).unwrap()
}

/// A field of `/proc/self/status`, for instance `VmRSS` in kB.
fn status(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn memory_and_threads_are_what_the_kernel_reports() {
    let registry = registry();
    // Touched, so that it is resident.
    let ballast = vec![1_u8; 64 * 1024 * 1024];
    let text = text(&registry);
    let resident = value(&text, "process_resident_memory_bytes", &[]);
    let expected = status("VmRSS") * 1024.0;
    assert!(resident > ballast.len() as f64, "{resident}");
    // Other tests run in this process, so the two readings may differ a little.
    assert!((resident / expected - 1.0).abs() < 0.5, "{resident} {expected}");
    assert_eq!(value(&text, "process_memory_bytes", &[]), resident, "one reading for both");
    assert!((value(&text, "process_virtual_memory_bytes", &[]) / (status("VmSize") * 1024.0) - 1.0).abs() < 0.5);
    let threads = value(&text, "process_threads", &[]);
    // Other tests start and end threads meanwhile.
    assert!(threads >= 2.0 && (threads - status("Threads")).abs() <= 16.0, "{threads}");
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let limit: f64 = limit.split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(value(&text, "process_max_fds", &[]), limit);
    drop(ballast);
}

/// The other tests of this binary open and close descriptors as well, so this one runs alone in its own
/// process: the binary starts itself with only this test.
#[test]
fn open_descriptors_are_counted_exactly() {
    const ALONE: &str = "PEERSCOPE_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "metrics::process::open_descriptors_are_counted_exactly",
                "--test-threads=1",
                "--nocapture",
            ])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && out.contains("1 passed"),
            "{out}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    let registry = registry();
    let open = || value(&text(&registry), "process_open_fds", &[]);
    let before = open();
    let listed = std::fs::read_dir("/proc/self/fd").unwrap().count() - 1;
    assert_eq!(before, listed as f64, "the reading does not count its own descriptors");
    let files: Vec<_> = (0..17).map(|_| File::open("/proc/self/exe").unwrap()).collect();
    assert_eq!(open(), before + 17.0);
    drop(files);
    assert_eq!(open(), before);
}

#[test]
fn the_start_time_is_correct_and_does_not_change() {
    let text_now = text(&registry());
    let started = value(&text_now, "process_start_time_seconds", &[]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    // The age of this process according to the kernel, from a different clock than the one under test.
    let age = now - started;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let ticks: f64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    let expected = uptime - ticks / 100.0;
    assert!((age - expected).abs() < 0.5, "{age} {expected}");
    let registry = registry();
    let first = value(&text(&registry), "process_start_time_seconds", &[]);
    assert_eq!(value(&text(&registry), "process_start_time_seconds", &[]), first);
}

#[test]
fn cpu_usage_matches_the_cpu_time_that_was_used() {
    let cpu = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let registry = registry();
    // A sample that is sure to be kept starts the window.
    std::thread::sleep(Duration::from_millis(1100));
    let _ = text(&registry);
    let (cpu_before, started) = (cpu(), Instant::now());
    // More than 1 s of this thread's CPU time, however busy the machine is.
    let thread_start = clock_gettime(ClockId::ThreadCPUTime);
    while clock_gettime(ClockId::ThreadCPUTime).tv_sec - thread_start.tv_sec < 2 {
        std::hint::black_box((0..10_000_u64).fold(0, u64::wrapping_add));
    }
    let text = text(&registry);
    let (used, elapsed) = (cpu() - cpu_before, started.elapsed().as_secs_f64());
    assert!(used > 1.0 && elapsed > 1.0, "{used} {elapsed}");
    let (percent, expected) = (value(&text, "process_cpu_usage", &[]), used / elapsed * 100.0);
    assert!((percent - expected).abs() < 5.0, "{percent} is not {expected}");
    let seconds = value(&text, "process_cpu_seconds_total", &[]);
    assert!((seconds - cpu()).abs() < 0.5, "{seconds} {}", cpu());
}

//! The cost of recording: the same paths in two builds, with and without the cargo feature `metrics-prometheus`,
//! measured as wall-clock time, interleaved, and as instructions counted by callgrind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::report::{OURS, Report, Unit};
use crate::{Plan, Result, cargo};

/// The build without the feature.
const OFF: &str = "peerscope, metrics off";

/// One path through the driver.
struct Case {
    /// The driver's name for it.
    name: &'static str,
    /// The report's name for it.
    shown: &'static str,
    /// Operations of one timed run: about half a second.
    timed: usize,
    /// Operations of the shorter and the longer counted run, whose difference excludes start, set-up and end. `None` if
    /// threads race, because the count would then differ between runs.
    counted: Option<[usize; 2]>,
}

const CASES: [Case; 9] = [
    Case { name: "handler-ping", shown: "message, handler, ping", timed: 1_500_000, counted: Some([1_000, 21_000]) },
    Case { name: "handler-get", shown: "message, handler, get", timed: 800_000, counted: Some([1_000, 21_000]) },
    Case { name: "link-ping-1", shown: "message, link, ping, 1", timed: 25_000, counted: Some([500, 4_500]) },
    Case { name: "link-ping-128", shown: "message, link, ping, 128", timed: 300_000, counted: Some([1_280, 26_880]) },
    Case { name: "link-get-128", shown: "message, link, get, 128", timed: 250_000, counted: Some([1_280, 26_880]) },
    Case {
        name: "link-ping-128-two-threads",
        shown: "message, link, ping, 128, 2 threads",
        timed: 300_000,
        counted: None,
    },
    Case { name: "storage-get", shown: "storage, get", timed: 2_000_000, counted: Some([1_000, 21_000]) },
    Case { name: "storage-put-1", shown: "storage, put, 1 caller", timed: 2_500, counted: Some([100, 1_100]) },
    Case { name: "storage-put-64", shown: "storage, put, 64 callers", timed: 64_000, counted: Some([640, 7_040]) },
];

/// The driver's two builds.
struct Drivers {
    on: PathBuf,
    off: PathBuf,
}

impl Drivers {
    fn build() -> Result<Self> {
        let folder = cargo::target_dir()?.join("overhead");
        let build = |name: &str, arguments: &[&str]| {
            // Both builds have the same path in the target directory, so each is copied to its own.
            let built = cargo::build("overhead-driver", arguments)?;
            let path = folder.join(name).join("overhead-driver");
            fs::create_dir_all(folder.join(name))?;
            fs::copy(built, &path)?;
            Ok::<_, crate::Error>(path)
        };
        Ok(Self {
            off: build("off", &["-p", "peerscope-bench", "--no-default-features"])?,
            on: build("on", &["-p", "peerscope-bench"])?,
        })
    }
}

pub(crate) fn run(plan: &Plan) -> Result<Report> {
    let drivers = Drivers::build()?;
    let mut report = Report::new("overhead");
    let share = if plan.quick { 5 } else { 1 };
    for round in 1..=plan.rounds {
        eprintln!("round {round} of {}", plan.rounds);
        for case in CASES.iter().filter(|case| plan.wants_case(case.shown)) {
            // The order alternates between rounds, so that a machine that slows down or speeds up favours neither.
            let time = |driver| nanos(driver, case.name, case.timed / share);
            let (on, off) = match round % 2 {
                0 => (time(&drivers.on)?, time(&drivers.off)?),
                _ => {
                    let off = time(&drivers.off)?;
                    (time(&drivers.on)?, off)
                }
            };
            report.add(case.shown, OURS, Unit::Nanoseconds, on);
            report.add(case.shown, OFF, Unit::Nanoseconds, off);
            // Of runs next to each other, so that slow drifts of the machine cancel out.
            report.add(case.shown, OURS, Unit::PercentOfTime, percent_more(on, off));
        }
    }
    for case in CASES.iter().filter(|case| plan.wants_case(case.shown)) {
        let Some(counts) = case.counted else { continue };
        eprintln!("callgrind: {}", case.shown);
        let on = instructions_per_operation(&drivers.on, case.name, counts)?;
        let off = instructions_per_operation(&drivers.off, case.name, counts)?;
        report.add(case.shown, OURS, Unit::Instructions, on);
        report.add(case.shown, OFF, Unit::Instructions, off);
        report.add(case.shown, OURS, Unit::PercentOfInstructions, percent_more(on, off));
    }
    Ok(report)
}

fn percent_more(on: f64, off: f64) -> f64 {
    (on - off) / off * 100.0
}

/// The nanoseconds per operation, as printed by the driver.
fn nanos(driver: &Path, case: &str, count: usize) -> Result<f64> {
    let output = Command::new(driver).arg(case).arg(count.to_string()).output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    match printed.trim().parse() {
        Ok(nanos) if output.status.success() => Ok(nanos),
        _ => Err(format!("the driver failed on {case}: {}", String::from_utf8_lossy(&output.stderr).trim()).into()),
    }
}

fn instructions_per_operation(driver: &Path, case: &str, counts: [usize; 2]) -> Result<f64> {
    let [fewer, more] = counts;
    let difference = instructions(driver, case, more)? - instructions(driver, case, fewer)?;
    Ok(difference / (more - fewer) as f64)
}

/// The instructions of a whole run, of all threads, without the kernel.
fn instructions(driver: &Path, case: &str, count: usize) -> Result<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(driver)
        .arg(case)
        .arg(count.to_string())
        .output()
        .map_err(|error| format!("cannot start valgrind: {error}; on Debian, install `valgrind`"))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    match collected(&messages) {
        Some(count) if output.status.success() => Ok(count),
        _ => Err(format!("callgrind failed on {case}: {}", messages.trim()).into()),
    }
}

/// The count in callgrind's final line, `==PID== Collected : 12345`.
fn collected(messages: &str) -> Option<f64> {
    let (_, rest) = messages.rsplit_once("Collected :")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overhead_is_relative_to_the_build_without_metrics() {
        assert_eq!(percent_more(202.0, 200.0), 1.0);
        assert_eq!(percent_more(198.0, 200.0), -1.0);
    }

    #[test]
    fn the_count_is_found_in_the_output_of_callgrind() {
        let output = "==7== Events    : Ir\n==7== Collected : 1234567\n==7==\n==7== I   refs:      1,234,567\n";
        assert_eq!(collected(output), Some(1_234_567.0));
        assert_eq!(collected("==7== Fatal error"), None);
    }

    #[test]
    fn the_longer_counted_run_has_more_operations_and_puts_fill_whole_rounds() {
        for case in &CASES {
            assert!(case.counted.is_none_or(|[fewer, more]| fewer < more), "{}", case.name);
            if case.name == "storage-put-64" {
                assert!(case.counted.unwrap().iter().chain([&case.timed]).all(|count| count % 64 == 0));
            }
        }
    }
}

//! The page that every peer and every listener serves.

use std::fmt::Write as _;

/// About the size of an agent's own page, in bytes.
const LENGTH: usize = 30_000;

/// Its `Content-Type`, the same as the agent's.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A classic text exposition of 30 KB: counters with two labels, and every fifth family a histogram.
pub(super) fn page() -> String {
    let mut page = String::with_capacity(LENGTH + 1024);
    let mut number = 0;
    while page.len() < LENGTH {
        // Writing to a string cannot fail.
        let _ = match number % 5 {
            4 => histogram(&mut page, number),
            _ => counter(&mut page, number),
        };
        number += 1;
    }
    page
}

fn counter(page: &mut String, number: usize) -> std::fmt::Result {
    let name = format!("bench_events_{number}_total");
    writeln!(page, "# HELP {name} Events of kind {number} since the start.\n# TYPE {name} counter")?;
    for shard in 0..5 {
        for outcome in ["ok", "failed"] {
            writeln!(page, "{name}{{shard=\"{shard}\",outcome=\"{outcome}\"}} {}", number * 7919 + shard)?;
        }
    }
    Ok(())
}

fn histogram(page: &mut String, number: usize) -> std::fmt::Result {
    let name = format!("bench_duration_{number}_seconds");
    writeln!(page, "# HELP {name} How long events of kind {number} took.\n# TYPE {name} histogram")?;
    let bounds = ["0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "+Inf"];
    for (index, bound) in bounds.iter().enumerate() {
        writeln!(page, "{name}_bucket{{le=\"{bound}\"}} {}", (index + 1) * 11)?;
    }
    writeln!(page, "{name}_sum 12.25\n{name}_count {}", bounds.len() * 11)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_30_kb_of_whole_lines() {
        let page = page();
        assert!((LENGTH..LENGTH + 1024).contains(&page.len()), "{}", page.len());
        assert!(page.ends_with('\n'));
        let names: Vec<_> = page.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let mut distinct = names.clone();
        distinct.dedup();
        assert_eq!(names, distinct);
    }
}

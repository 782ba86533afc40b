//! Compares the totals on a contender's page with the work done: figures of a contender that loses events, or whose
//! work was optimized away, are worthless.

use super::load::{Load, Work};
use crate::exposition::samples;
use crate::library::{DURATION, EVENTS, RECORDED, TYPE};
use crate::{Error, Result};

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Totals {
    events: f64,
    count: f64,
    sum: f64,
    /// Each bound with the number of durations up to it.
    buckets: Vec<(f64, f64)>,
}

impl Totals {
    /// Reads the recorded series of a text page.
    pub(crate) fn read(page: &[u8]) -> Result<Self> {
        let mut totals = Self::default();
        for line in samples(std::str::from_utf8(page)?) {
            let line = line?;
            let of_histogram = line.name.strip_prefix(DURATION);
            match of_histogram {
                _ if line.label(TYPE) != Some(RECORDED) => {}
                None if line.name == EVENTS => totals.events = line.value,
                Some("_count") => totals.count = line.value,
                Some("_sum") => totals.sum = line.value,
                Some("_bucket") => {
                    let bound = line.label("le").and_then(|bound| bound.parse().ok());
                    totals.buckets.push((bound.ok_or("a bucket has no bound")?, line.value));
                }
                _ => {}
            }
        }
        Ok(totals)
    }

    pub(crate) fn minus(&self, before: &Self) -> Self {
        let was = |bound| before.buckets.iter().find(|(other, _)| *other == bound).map_or(0.0, |(_, count)| *count);
        Self {
            events: self.events - before.events,
            count: self.count - before.count,
            sum: self.sum - before.sum,
            buckets: self.buckets.iter().map(|&(bound, count)| (bound, count - was(bound))).collect(),
        }
    }

    /// Fails if the totals do not match the work.
    pub(crate) fn check(&self, work: &Work, load: &Load<'_>) -> Result<()> {
        let recorded = work.recorded() as f64;
        if self.events != recorded || self.count != recorded {
            let (events, count) = (self.events, self.count);
            return Err(format!("{recorded} events were recorded, but {events} counted and {count} observed").into());
        }
        if load.clock {
            // The measured times are not known beforehand.
            return Ok(());
        }
        let lap: f64 = load.table.iter().map(|sample| sample.seconds).sum();
        let sum = lap * work.laps as f64;
        if (self.sum - sum).abs() > sum * 1e-6 {
            return Err(format!("durations of {sum} s were recorded, but the page's sum is {} s", self.sum).into());
        }
        for &(bound, count) in &self.buckets {
            let within = load.table.iter().filter(|sample| sample.seconds <= bound).count() as f64 * work.laps as f64;
            if count != within {
                return Err(Error::from(format!("{within} durations are at most {bound} s, but {count} were counted")));
            }
        }
        if self.buckets.is_empty() { Err("the page has no buckets".into()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::samples::table;

    #[test]
    fn totals_that_do_not_match_the_work_are_rejected() {
        let table = table();
        let time = Duration::ZERO;
        let load = Load { threads: 1, clock: false, table: &table, warm_up: time, length: time };
        let mut work = Work::default();
        work.laps = 2;
        let page = |events: u32, in_bucket: usize, sum: f64| {
            format!(
                "{EVENTS}{{type=\"put\"}} 7\n{EVENTS}{{type=\"get\"}} {events}\n\
                 {DURATION}_bucket{{type=\"get\",le=\"0.001\"}} {in_bucket}\n\
                 {DURATION}_sum{{type=\"get\"}} {sum}\n{DURATION}_count{{type=\"get\"}} 2048\n"
            )
        };
        let check = |page: String| Totals::read(page.as_bytes()).unwrap().minus(&Totals::default()).check(&work, &load);
        let within = 2 * table.iter().filter(|sample| sample.seconds <= 0.001).count();
        let sum = 2.0 * table.iter().map(|sample| sample.seconds).sum::<f64>();
        check(page(2048, within, sum)).unwrap();
        assert!(check(page(2047, within, sum)).is_err(), "an event was lost");
        assert!(check(page(2048, within + 1, sum)).is_err(), "a duration is in the wrong bucket");
        assert!(check(page(2048, within, sum * 1.01)).is_err(), "the sum is wrong");
        assert!(check("".into()).is_err(), "nothing was recorded");
    }
}

//! The cost of recording one event, which increments a counter and observes a duration in a histogram with the same
//! label.

pub(crate) mod load;
mod totals;

use std::sync::Arc;

use self::load::{Load, run_threads};
use self::totals::Totals;
#[cfg(feature = "all-contenders")]
use crate::library::fastmetrics::Fastmetrics;
#[cfg(feature = "all-contenders")]
use crate::library::measured::Measured;
use crate::library::peerscope::{OwnClock, Peerscope};
use crate::library::prometheus::Prometheus;
use crate::library::prometheus_client::PrometheusClient;
use crate::library::{Format, Nothing, Page, Recorder, metrics};
use crate::report::{OURS, Report, Unit};
use crate::samples::table;
use crate::shape::Shape;
use crate::{Error, Plan, Result};

/// How the events of a case are recorded.
struct Case {
    name: &'static str,
    threads: usize,
    /// Whether each event reads the clock twice, as a timed event does.
    clock: bool,
}

const CASES: [Case; 4] = [
    Case { name: "no clock, 1 thread", threads: 1, clock: false },
    Case { name: "no clock, 2 threads, same series", threads: 2, clock: false },
    Case { name: "two clock reads, 1 thread", threads: 1, clock: true },
    Case { name: "two clock reads, 2 threads", threads: 2, clock: true },
];

/// A way of recording, verified by the contender's page.
trait Contender {
    /// Records for the time in `load` and returns the nanoseconds per event.
    fn run(&self, load: &Load<'_>) -> Result<f64>;
}

struct Recording<R> {
    recorder: R,
    page: Arc<dyn Page>,
}

impl<R: Recorder> Contender for Recording<R> {
    fn run(&self, load: &Load<'_>) -> Result<f64> {
        let format = self.page.formats().first().copied().unwrap_or(Format::Text);
        let before = Totals::read(&self.page.encode(format)?)?;
        let work = run_threads(load, &self.recorder)?;
        Totals::read(&self.page.encode(format)?)?.minus(&before).check(&work, load)?;
        Ok(work.nanos_per_event())
    }
}

/// Records nothing, so it has no page.
struct Idle<R>(R);

impl<R: Recorder> Contender for Idle<R> {
    fn run(&self, load: &Load<'_>) -> Result<f64> {
        Ok(run_threads(load, &self.0)?.nanos_per_event())
    }
}

/// All contenders, in the order in which they are measured.
fn contenders() -> Result<Vec<(&'static str, Box<dyn Contender>)>> {
    fn recording<R: Recorder + 'static>(recorder: R, page: impl Page + 'static) -> Box<dyn Contender> {
        Box::new(Recording { recorder, page: Arc::new(page) })
    }
    let (mut together, mut separate) = (Peerscope::new()?, Peerscope::new()?);
    let prometheus_client = |lookup: bool| {
        let mut library = PrometheusClient::default();
        if lookup { recording(library.lookup(), library) } else { recording(library.handles(), library) }
    };
    let prometheus = |lookup: bool| {
        let library = Prometheus::default();
        Ok::<_, Error>(if lookup {
            recording(library.lookup()?, library)
        } else {
            recording(library.handles()?, library)
        })
    };
    let metrics = |macros: bool| {
        let recorder = metrics::builder(&Shape::default())?.build_recorder();
        let page = recorder.handle();
        Ok::<_, Error>(if macros {
            recording(metrics::Macros::install(recorder)?, page)
        } else {
            recording(metrics::Handles::new(&recorder), page)
        })
    };
    let mut contenders: Vec<(_, Box<dyn Contender>)> = vec![
        (OURS, recording(together.together()?, together)),
        ("peerscope, separate", recording(separate.separate()?, separate)),
        ("prometheus-client, handles", prometheus_client(false)),
        ("prometheus-client, lookup", prometheus_client(true)),
        ("prometheus, handles", prometheus(false)?),
        ("prometheus, lookup", prometheus(true)?),
        ("metrics, handles", metrics(false)?),
        ("metrics, macros", metrics(true)?),
    ];
    #[cfg(feature = "all-contenders")]
    {
        let mut fastmetrics = Fastmetrics::default();
        contenders.push(("fastmetrics, handles", recording(fastmetrics.handles()?, fastmetrics)));
        let (page, recorder) = Measured::handles();
        contenders.push(("measured, handles", Box::new(Recording { recorder, page })));
    }
    contenders.push(("nothing", Box::new(Idle(Nothing))));
    contenders.push(("nothing, peerscope's clock", Box::new(Idle(OwnClock))));
    Ok(contenders)
}

/// Measures every case with every contender in each round.
pub(crate) fn run(plan: &Plan) -> Result<Report> {
    let contenders: Vec<_> = contenders()?.into_iter().filter(|(who, _)| plan.wants(who)).collect();
    let table = table();
    let mut report = Report::new("record");
    for round in 1..=plan.rounds {
        eprintln!("round {round} of {}", plan.rounds);
        for case in CASES.iter().filter(|case| plan.wants_case(case.name)) {
            let load = Load {
                threads: case.threads,
                clock: case.clock,
                table: &table,
                // A quarter of the plan's round is enough for millions of events.
                warm_up: plan.warm_up / 4,
                length: plan.length / 4,
            };
            for (who, contender) in &contenders {
                let nanos = contender.run(&load).map_err(|error| format!("{who}: {error}"))?;
                report.add(case.name, who, Unit::Nanoseconds, nanos);
            }
        }
    }
    Ok(report)
}

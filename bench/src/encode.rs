//! The cost of writing a page: the encoders alone, in memory, each writing a new page.

use std::hint::black_box;
use std::time::Instant;

use crate::exposition::{messages, samples};
#[cfg(feature = "all-contenders")]
use crate::library::fastmetrics::Fastmetrics;
use crate::library::peerscope::Peerscope;
use crate::library::prometheus::Prometheus;
use crate::library::prometheus_client::PrometheusClient;
use crate::library::{Format, Page, metrics};
use crate::report::{OURS, Report, Unit};
use crate::shape::Shape;
use crate::size::Size;
use crate::{Plan, Result};

/// Ours without the families that are read from `/proc` for each page, which the others do not have.
const WITHOUT_PROC: &str = "peerscope, without /proc";

/// The filled registry of a library.
struct Filled {
    who: &'static str,
    page: Box<dyn Page>,
}

fn filled(size: Size, shape: &Shape) -> Result<Vec<Filled>> {
    let mut ours = Peerscope::new()?;
    let mut contenders = Vec::new();
    match size {
        Size::Agent => {
            ours.add_agent();
            let mut without = Peerscope::new()?;
            without.add_collector();
            contenders.push(Filled { who: WITHOUT_PROC, page: Box::new(without) });
        }
        Size::Generated(_) => ours.fill(shape)?,
    }
    contenders.insert(0, Filled { who: OURS, page: Box::new(ours) });
    let prometheus = Prometheus::default();
    prometheus.fill(shape)?;
    let mut prometheus_client = PrometheusClient::default();
    prometheus_client.fill(shape);
    let metrics = metrics::builder(shape)?.build_recorder();
    metrics::fill(&metrics, shape);
    contenders.extend([
        Filled { who: "prometheus-client", page: Box::new(prometheus_client) },
        Filled { who: "prometheus", page: Box::new(prometheus) },
        Filled { who: "metrics", page: Box::new(metrics.handle()) },
    ]);
    #[cfg(feature = "all-contenders")]
    {
        let mut fastmetrics = Fastmetrics::default();
        fastmetrics.fill(shape)?;
        contenders.push(Filled { who: "fastmetrics", page: Box::new(fastmetrics) });
    }
    Ok(contenders)
}

/// Fails if the page is incomplete: writing half a page fast is worth nothing.
pub(crate) fn check(page: &[u8], format: Format, shape: &Shape) -> Result<()> {
    let (found, expected) = match format {
        Format::Protobuf => (messages(page)?, shape.families.len()),
        Format::Text | Format::OpenMetrics => {
            let mut found = 0;
            for line in samples(std::str::from_utf8(page)?) {
                line?;
                found += 1;
            }
            (found, shape.samples())
        }
    };
    if found == expected { Ok(()) } else { Err(format!("the page has {found} entries instead of {expected}").into()) }
}

/// Measures every case with every contender in each round.
pub(crate) fn run(plan: &Plan) -> Result<Report> {
    let mut report = Report::new("encode");
    let mut sizes = Vec::new();
    for size in Size::ALL {
        let shape = size.shape()?;
        let mut contenders = filled(size, &shape)?;
        contenders.retain(|contender| plan.wants(contender.who));
        for contender in contenders.iter().filter(|contender| contender.who != WITHOUT_PROC) {
            for &format in contender.page.formats() {
                let page = contender.page.encode(format)?;
                check(&page, format, &shape).map_err(|error| format!("{}: {error}", contender.who))?;
            }
        }
        sizes.push((size, contenders));
    }
    for round in 1..=plan.rounds {
        eprintln!("round {round} of {}", plan.rounds);
        for (size, contenders) in &sizes {
            for format in Format::ALL {
                let case = format!("{}, {}", size.name(), format.name());
                let writes = |contender: &&Filled| contender.page.formats().contains(&format);
                if !plan.wants_case(&case) {
                    continue;
                }
                for contender in contenders.iter().filter(writes) {
                    let (nanos, bytes) = measure(plan, contender.page.as_ref(), format)?;
                    report.add(&case, contender.who, Unit::Microseconds, nanos / 1_000.0);
                    report.add(&case, contender.who, Unit::Bytes, bytes);
                    report.add(&case, contender.who, Unit::NanosecondsPerByte, nanos / bytes);
                }
            }
        }
    }
    Ok(report)
}

/// The nanoseconds per page, and its size in bytes: the mean over a quarter of the plan's round.
fn measure(plan: &Plan, page: &dyn Page, format: Format) -> Result<(f64, f64)> {
    let pages = |length| {
        let begin = Instant::now();
        let mut pages = 0;
        loop {
            let bytes = black_box(page.encode(format)?).len();
            pages += 1;
            let taken = begin.elapsed();
            if taken >= length {
                return Ok::<_, crate::Error>((taken.as_nanos() as f64 / f64::from(pages), bytes as f64));
            }
        }
    };
    pages(plan.warm_up / 4)?;
    pages(plan.length / 4)
}

//! A gateway on one core, whose peers are scraped as by Prometheus: each at its own offset within the interval.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::client::{Connection, request};
use super::gateway::Gateway;
use super::{PEERS, one_thread, page, peers, quantile, raise_descriptors};
use crate::measure::nanos;
use crate::process::Server;
use crate::report::{OURS, Report, Unit};
use crate::{Plan, Result, cargo};

const INTERVAL: Duration = Duration::from_secs(15);
/// Measured intervals, after one to warm up.
const INTERVALS: usize = 3;
/// The gateway's core, and the core of all others.
const CORES: (usize, usize) = (0, 1);

pub(crate) fn run(plan: &Plan, sizes: &[usize]) -> Result<Report> {
    raise_descriptors()?;
    let program = cargo::build("peerscope", &["-p", "peerscope"])?;
    // Processes and threads started from here inherit it.
    let mut others = CpuSet::new();
    others.set(CORES.1);
    sched_setaffinity(None, &others)?;
    let runtime = one_thread()?;
    let mut report = Report::new("steady");
    let (intervals, interval) = if plan.quick { (1, INTERVAL / 5) } else { (INTERVALS, INTERVAL) };
    for &size in sizes {
        runtime.block_on(measure(&program, size, intervals, interval, &mut report))?;
    }
    Ok(report)
}

async fn measure(
    program: &std::path::Path,
    size: usize,
    intervals: usize,
    interval: Duration,
    report: &mut Report,
) -> Result<()> {
    eprintln!("{size} peers");
    let ids = peers::ids(size)?;
    let mut gateway = Gateway::start(program, &ids, size, Some(CORES.0)).await?;
    let mut peers = Server::start(PEERS, &format!("{size} {}", gateway.for_peers))?;
    let [_] = peers.ask("dial")?;
    let taken = gateway.connected(size).await?;
    report.add(&format!("{size}, until all are connected"), OURS, Unit::Milliseconds, taken.as_secs_f64() * 1000.0);
    let requests: Vec<_> = ids.iter().map(|id| request(&format!("/peers/{id}/metrics"), &gateway.endpoint)).collect();
    let page = page::page();
    let idle = RefCell::new(Vec::new());
    for number in 0..=intervals {
        eprintln!("{size} peers, interval {number} of {intervals}");
        let (cpu, begin) = (gateway.process.cpu()?, Instant::now());
        let mut scrapes: FuturesUnordered<_> = (requests.iter().enumerate())
            .map(|(index, request)| {
                let at = begin + interval.mul_f64(index as f64 / size as f64);
                scrape(&gateway.endpoint, request, at, &page, &idle)
            })
            .collect();
        let (mut taken, mut failed) = (Vec::with_capacity(size), 0_u32);
        while let Some(scraped) = scrapes.next().await {
            match scraped {
                Ok(nanos) => taken.push(nanos),
                Err(error) => {
                    eprintln!("a scrape failed: {error}");
                    failed += 1;
                }
            }
        }
        drop(scrapes);
        tokio::time::sleep_until((begin + interval).into()).await;
        if number == 0 {
            continue;
        }
        let share = (gateway.process.cpu()? - cpu) / begin.elapsed().as_secs_f64() * 100.0;
        taken.sort_unstable();
        let at = |q| quantile(&taken, q).unwrap_or(f64::NAN);
        report.add(&format!("{size}, gateway"), OURS, Unit::PercentOfACore, share);
        report.add(&format!("{size}, scrape, p50"), OURS, Unit::Microseconds, at(0.50));
        report.add(&format!("{size}, scrape, p99"), OURS, Unit::Microseconds, at(0.99));
        report.add(&format!("{size}, scrape, slowest"), OURS, Unit::Microseconds, at(1.0));
        report.add(&format!("{size}, scrapes that failed"), OURS, Unit::Count, failed.into());
        report.add(&format!("{size}, interval"), OURS, Unit::Milliseconds, begin.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(())
}

/// One scrape at its time, over an idle connection or a new one, as in Go's HTTP client.
async fn scrape(address: &str, request: &str, at: Instant, page: &str, idle: &RefCell<Vec<Connection>>) -> Result<u32> {
    tokio::time::sleep_until(at.into()).await;
    let kept = idle.borrow_mut().pop();
    let begin = Instant::now();
    let mut connection = match kept {
        Some(connection) => connection,
        None => Connection::open(address).await?,
    };
    let answer = connection.get(request).await?;
    let taken = nanos(begin.elapsed());
    if answer.status != 200 || answer.body != page.as_bytes() {
        return Err(format!("{}: {}", answer.status, String::from_utf8_lossy(answer.body)).into());
    }
    idle.borrow_mut().push(connection);
    Ok(taken)
}

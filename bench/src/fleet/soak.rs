//! Hours' worth of scrapes at full speed while peers constantly leave and come back: the gateway's resources must not
//! grow over time.

use std::time::{Duration, Instant};

use super::client::{AT_ONCE, Connection, request};
use super::gateway::Gateway;
use super::{PEERS, one_thread, page, peers, raise_descriptors};
use crate::process::Server;
use crate::report::{OURS, Report, Unit};
use crate::{Error, Plan, Result, cargo};

/// The pause before resources are measured, so that connections being closed are gone.
const SETTLE: Duration = Duration::from_secs(2);

pub(crate) fn run(plan: &Plan, sizes: &[usize], scrapes: usize) -> Result<Report> {
    raise_descriptors()?;
    let program = cargo::build("peerscope", &["-p", "peerscope"])?;
    let runtime = one_thread()?;
    let mut report = Report::new("soak");
    let scrapes = if plan.quick { scrapes / 20 } else { scrapes };
    for &size in sizes {
        runtime.block_on(measure(&program, size, scrapes, &mut report))?;
    }
    Ok(report)
}

async fn measure(program: &std::path::Path, size: usize, scrapes: usize, report: &mut Report) -> Result<()> {
    let ids = peers::ids(size)?;
    // With any peer as a target, arrivals and departures cost the gateway the most.
    let mut gateway = Gateway::start(program, &[], size, None).await?;
    let mut peers = Server::start(PEERS, &format!("{size} {}", gateway.for_peers))?;
    let [_] = peers.ask("dial")?;
    gateway.connected(size).await?;
    gateway.listed(size).await?;
    let requests: Vec<_> = ids.iter().map(|id| request(&format!("/peers/{id}/metrics"), &gateway.endpoint)).collect();
    let page = page::page();
    // A tenth to warm up, then four quarters.
    let mut total = Outcomes::default();
    for (part, share) in [(0, 0.1), (1, 0.25), (2, 0.25), (3, 0.25), (4, 0.25)] {
        let begin = Instant::now();
        let [_] = peers.ask("churn")?;
        let count = (scrapes as f64 * share) as usize;
        let outcomes = scrape(&gateway.endpoint, &requests, &page, count).await?;
        let [left] = peers.ask("calm")?;
        let taken = begin.elapsed();
        gateway.connected(size).await?;
        gateway.listed(size).await?;
        tokio::time::sleep(SETTLE).await;
        eprintln!("part {part} of 4: {outcomes:?} in {taken:.1?}, {left} departures");
        if part > 0 {
            total = Outcomes { pages: total.pages + outcomes.pages, away: total.away + outcomes.away };
            report.add(&format!("{size}, scrapes, in all"), OURS, Unit::PerSecond, count as f64 / taken.as_secs_f64());
            report.add(&format!("{size}, peers that go"), OURS, Unit::PerSecond, left / taken.as_secs_f64());
        }
        let series = gateway.page("/metrics").await?.lines().filter(|line| !line.starts_with('#')).count();
        let listed = gateway.page("/sd").await?;
        let when = if part == 0 { "after a tenth to warm up".into() } else { format!("after quarter {part}") };
        let mut add = |what: &str, unit, value| report.add(&format!("{size}, {what}, {when}"), OURS, unit, value);
        add("memory", Unit::MiB, gateway.process.resident()? as f64 / f64::from(1 << 20));
        add("open files", Unit::Count, gateway.descriptors()? as f64);
        add("series of its own", Unit::Count, series as f64);
        add("targets in /sd", Unit::Count, listed.matches("\"targets\"").count() as f64);
    }
    report.add(&format!("{size}, pages"), OURS, Unit::Count, total.pages as f64);
    report.add(&format!("{size}, told that the peer is away"), OURS, Unit::Count, total.away as f64);
    let counted = gateway.number("gateway_scrapes_total").await?;
    report.add(&format!("{size}, scrapes that the gateway counted"), OURS, Unit::Count, counted);
    let log = gateway.log();
    if log.contains("panicked") || log.contains("ERROR") {
        return Err(format!("the gateway's log has errors: {log}").into());
    }
    Ok(())
}

#[derive(Debug, Default, Clone, Copy)]
struct Outcomes {
    pages: u64,
    /// Scrapes answered with 502 because the peer left before or during them.
    away: u64,
}

/// Makes `count` scrapes at full speed, [`AT_ONCE`] at a time, of one peer after the other.
async fn scrape(address: &str, requests: &[String], page: &str, count: usize) -> Result<Outcomes> {
    let callers = (0..AT_ONCE).map(async |caller: usize| {
        let mut connection = Connection::open(address).await?;
        let mut outcomes = Outcomes::default();
        let turns = (caller..count).step_by(AT_ONCE);
        for request in turns.filter_map(|turn| requests.get(turn % requests.len())) {
            let answer = connection.get(request).await?;
            match answer.status {
                200 if answer.body == page.as_bytes() => outcomes.pages += 1,
                502 => outcomes.away += 1,
                status => return Err(format!("{status}: {}", String::from_utf8_lossy(answer.body)).into()),
            }
        }
        Ok::<_, Error>(outcomes)
    });
    let all = futures::future::try_join_all(callers).await?;
    Ok(Outcomes { pages: all.iter().map(|one| one.pages).sum(), away: all.iter().map(|one| one.away).sum() })
}

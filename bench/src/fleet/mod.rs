//! The cost of scraping a whole fleet through a gateway, compared with the same pages over plain HTTP, where every
//! target can be reached, and over bare substreams.

mod client;
mod gateway;
mod listeners;
mod page;
mod peers;
mod soak;
mod steady;
mod substreams;

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};

use self::client::Targets;
use self::gateway::Gateway;
pub(crate) use self::soak::run as soak;
pub(crate) use self::steady::run as steady;
use crate::measure::median;
use crate::process::{Process, Server, wait_for};
use crate::report::{OURS, Report, Unit};
use crate::{Plan, Result, cargo};

/// The prefix of this benchmark's server sides in `--serve`.
pub(crate) const SERVED: &str = "fleet ";

const PEERS: &str = "fleet peers";
const LISTENERS: &str = "fleet listeners";
const BARE_GATEWAY: &str = "fleet bare-gateway";
const BARE_PEERS: &str = "fleet bare-peers";

const PLAIN_HTTP: &str = "plain HTTP";
const SUBSTREAMS: &str = "substreams";

/// The least number of scrapes in a round: enough for the 10 ms resolution of `/proc`.
const SCRAPES_OF_A_ROUND: usize = 5000;
/// How long a gateway is left alone before it is measured.
const SETTLE: Duration = Duration::from_secs(3);
/// How long to watch a gateway with idle peers: each asks for a sign of life after 16 s.
const IDLE: Duration = Duration::from_secs(32);

/// Runs a process that the bench starts for this benchmark.
pub(crate) fn serve(role: &str, at: Option<&str>) -> Result<()> {
    let at = at.unwrap_or_default();
    match role {
        "peers" => peers::serve(at),
        "listeners" => listeners::serve(at),
        "bare-gateway" => substreams::serve_gateway(),
        "bare-peers" => substreams::serve_peers(at),
        _ => Err(format!("a fleet has no role `{role}`").into()),
    }
}

/// Measures the sizes one after the other, with all contenders in each round of a size.
pub(crate) fn run(plan: &Plan, sizes: &[usize]) -> Result<Report> {
    raise_descriptors()?;
    let program = cargo::build("peerscope", &["-p", "peerscope"])?;
    let runtime = one_thread()?;
    let mut report = Report::new("fleet");
    for &size in sizes {
        let mut contenders = Vec::new();
        if plan.wants(OURS) {
            contenders.push(Contender::Ours(Box::new(runtime.block_on(Ours::start(&program, size, &mut report))?)));
        }
        if plan.wants(PLAIN_HTTP) {
            contenders.push(Contender::PlainHttp(PlainHttp::start(size)?));
        }
        if plan.wants(SUBSTREAMS) {
            contenders.push(Contender::Substreams(Substreams::start(size, &mut report)?));
        }
        let sweeps = if plan.quick { 1 } else { SCRAPES_OF_A_ROUND.div_ceil(size) };
        for contender in &mut contenders {
            runtime.block_on(contender.sweep())?; // to warm up
        }
        for round in 1..=plan.rounds {
            eprintln!("{size} peers, round {round} of {}", plan.rounds);
            for contender in &mut contenders {
                runtime.block_on(contender.round(size, sweeps, &mut report))?;
            }
        }
        for contender in &contenders {
            contender.end(size, &mut report)?;
        }
    }
    Ok(report)
}

/// One sweep over all targets: the time of the sweep, and quantiles of its scrapes in microseconds.
#[derive(Debug, Clone, Copy)]
struct Sweep {
    seconds: f64,
    p50: f64,
    p99: f64,
}

impl Sweep {
    fn new(taken: Duration, mut nanos: Vec<u32>) -> Result<Self> {
        nanos.sort_unstable();
        let quantile = |q| quantile(&nanos, q).ok_or("a sweep without targets");
        Ok(Self { seconds: taken.as_secs_f64(), p50: quantile(0.50)?, p99: quantile(0.99)? })
    }
}

/// A quantile, in microseconds, of sorted nanoseconds.
fn quantile(nanos: &[u32], q: f64) -> Option<f64> {
    let index = (nanos.len().checked_sub(1)? as f64 * q).round() as usize;
    nanos.get(index).map(|&nanos| f64::from(nanos) / 1000.0)
}

enum Contender {
    Ours(Box<Ours>),
    PlainHttp(PlainHttp),
    Substreams(Substreams),
}

impl Contender {
    fn who(&self) -> &'static str {
        match self {
            Self::Ours(_) => OURS,
            Self::PlainHttp(_) => PLAIN_HTTP,
            Self::Substreams(_) => SUBSTREAMS,
        }
    }

    async fn sweep(&mut self) -> Result<Sweep> {
        let targets = match self {
            Self::Ours(ours) => &ours.targets,
            Self::PlainHttp(plain) => &plain.targets,
            Self::Substreams(substreams) => {
                let [seconds, p50, p99] = substreams.gateway.ask("sweep")?;
                return Ok(Sweep { seconds, p50, p99 });
            }
        };
        let begin = Instant::now();
        let taken = targets.sweep().await?;
        Sweep::new(begin.elapsed(), taken)
    }

    async fn round(&mut self, size: usize, sweeps: usize, report: &mut Report) -> Result<()> {
        let before = self.gateway().map(Process::cpu).transpose()?;
        let mut all = Vec::with_capacity(sweeps);
        for _ in 0..sweeps {
            all.push(self.sweep().await?);
        }
        let after = self.gateway().map(Process::cpu).transpose()?;
        let who = self.who();
        let of_all = |read: fn(&Sweep) -> f64| median(&all.iter().map(read).collect::<Vec<_>>());
        report.add(&format!("{size}, sweep"), who, Unit::Milliseconds, of_all(|sweep| sweep.seconds * 1000.0));
        report.add(&format!("{size}, scrape, p50"), who, Unit::Microseconds, of_all(|sweep| sweep.p50));
        report.add(&format!("{size}, scrape, p99"), who, Unit::Microseconds, of_all(|sweep| sweep.p99));
        if let (Some(before), Some(after)) = (before, after) {
            let cpu = (after - before) * 1e6 / (sweeps * size) as f64;
            report.add(&format!("{size}, scrape, CPU of the gateway"), who, Unit::Microseconds, cpu);
        }
        Ok(())
    }

    /// The process through which all scrapes go.
    fn gateway(&self) -> Option<&Process> {
        match self {
            Self::Ours(ours) => Some(&ours.gateway.process),
            Self::Substreams(substreams) => Some(&substreams.gateway.process),
            Self::PlainHttp(_) => None,
        }
    }

    fn end(&self, size: usize, report: &mut Report) -> Result<()> {
        let Resident { alone, connected } = match self {
            Self::Ours(ours) => ours.resident,
            Self::Substreams(substreams) => substreams.resident,
            Self::PlainHttp(_) => return Ok(()),
        };
        let mut add = |when: &str, bytes: u64| {
            let kib = bytes.saturating_sub(alone) as f64 / 1024.0 / size as f64;
            report.add(&format!("{size}, memory a peer, {when}"), self.who(), Unit::KiB, kib);
        };
        add("connected", connected);
        if let Some(gateway) = self.gateway() {
            add("after sweeps", gateway.resident()?);
        }
        Ok(())
    }
}

/// A gateway's memory in bytes: without peers, and with them before the first sweep.
#[derive(Debug, Clone, Copy)]
struct Resident {
    alone: u64,
    connected: u64,
}

/// The gateway, its peers, and their pages on its endpoint as targets.
struct Ours {
    gateway: Gateway,
    _peers: Server,
    targets: Targets,
    resident: Resident,
}

impl Ours {
    async fn start(program: &std::path::Path, size: usize, report: &mut Report) -> Result<Self> {
        eprintln!("{size} peers");
        let ids = peers::ids(size)?;
        let mut gateway = Gateway::start(program, &ids, size, None).await?;
        let mut peers = Server::start(PEERS, &format!("{size} {}", gateway.for_peers))?;
        tokio::time::sleep(SETTLE).await;
        let alone = gateway.process.resident()?;
        let cpu = gateway.process.cpu()?;
        let begin = Instant::now();
        let [_] = peers.ask("dial")?;
        gateway.connected(size).await?;
        report.add(&format!("{size}, until all are connected"), OURS, Unit::Milliseconds, milliseconds(begin));
        let taken = (gateway.process.cpu()? - cpu) * 1e6 / size as f64;
        report.add(&format!("{size}, connect, CPU of the gateway"), OURS, Unit::Microseconds, taken);
        gateway.listed(size).await?;
        report.add(&format!("{size}, until all are listed"), OURS, Unit::Milliseconds, milliseconds(begin));
        for _ in 0..5 {
            let begin = Instant::now();
            let listed = gateway.page("/sd").await?;
            report.add(&format!("{size}, /sd"), OURS, Unit::Milliseconds, milliseconds(begin));
            report.add(&format!("{size}, /sd"), OURS, Unit::KiB, listed.len() as f64 / 1024.0);
            let begin = Instant::now();
            gateway.page("/metrics").await?;
            report.add(&format!("{size}, its own page"), OURS, Unit::Milliseconds, milliseconds(begin));
        }
        tokio::time::sleep(SETTLE).await;
        let cpu = gateway.process.cpu()?;
        tokio::time::sleep(IDLE).await;
        let share = (gateway.process.cpu()? - cpu) / IDLE.as_secs_f64() * 100.0;
        report.add(&format!("{size}, idle"), OURS, Unit::PercentOfACore, share);
        let resident = Resident { alone, connected: gateway.process.resident()? };
        let paths = ids.iter().map(|id| format!("/peers/{id}/metrics"));
        let targets = Targets::behind(&gateway.endpoint, paths, &page::page());
        Ok(Self { gateway, _peers: peers, targets, resident })
    }
}

/// The same number of endpoints, each reached directly.
struct PlainHttp {
    _listeners: Server,
    targets: Targets,
}

impl PlainHttp {
    fn start(size: usize) -> Result<Self> {
        let listeners = Server::start(LISTENERS, &size.to_string())?;
        let addresses = listeners.address.split(' ').map(|port| format!("127.0.0.1:{port}"));
        let targets = Targets::at(addresses, &page::page());
        Ok(Self { _listeners: listeners, targets })
    }
}

/// The same number of bare swarms connected to a central one.
struct Substreams {
    gateway: Server,
    _peers: Server,
    resident: Resident,
}

impl Substreams {
    fn start(size: usize, report: &mut Report) -> Result<Self> {
        let mut gateway = Server::start(BARE_GATEWAY, "")?;
        let alone = gateway.process.resident()?;
        let mut peers = Server::start(BARE_PEERS, &format!("{size} {}", gateway.address))?;
        let begin = Instant::now();
        let [_] = peers.ask("dial")?;
        wait_for("the last bare connection", || {
            let [connected] = gateway.ask("connected").ok()?;
            (connected >= size as f64).then_some(())
        })?;
        report.add(&format!("{size}, until all are connected"), SUBSTREAMS, Unit::Milliseconds, milliseconds(begin));
        let resident = Resident { alone, connected: gateway.process.resident()? };
        Ok(Self { gateway, _peers: peers, resident })
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// The scraper's runtime has one thread, so that it disturbs the measurement little.
fn one_thread() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// Each connection takes a descriptor, and the default limit is usually 1024.
fn raise_descriptors() -> Result<()> {
    let found = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: found.maximum, ..found })?)
}

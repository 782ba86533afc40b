//! Complete scrapes over loopback on one keep-alive connection, from servers in separate processes, and the effect of
//! scrapes on a thread that records in the server's process.

mod client;
mod serve;
mod tls;

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;

use self::client::{Access, Client, Scrape};
pub(crate) use self::serve::serve;
use crate::library::Format;
use crate::measure::{Window, nanos};
use crate::process::Server;
use crate::report::{OURS, Report, Unit};
use crate::size::Size;
use crate::{Plan, Result, encode};

/// Scrapes that each open a connection.
const NEW_CONNECTIONS: &str = "agent, new connections";

/// The prefix of this benchmark's server sides in `--serve`.
pub(crate) const SERVED: &str = "endpoint ";

/// A contender, and the formats that its server supports.
struct Contender {
    who: &'static str,
    formats: &'static [Format],
    gzip: bool,
    access: Access,
}

const OPEN: Access = Access { tls: false, user: false };

const CONTENDERS: [Contender; 7] = [
    Contender { who: OURS, formats: &Format::ALL, gzip: true, access: OPEN },
    Contender { who: WITH_USER, formats: &[Format::Text], gzip: true, access: Access { tls: false, user: true } },
    Contender { who: WITH_TLS, formats: &[Format::Text], gzip: true, access: Access { tls: true, user: false } },
    Contender { who: WITH_BOTH, formats: &[Format::Text], gzip: true, access: Access { tls: true, user: true } },
    Contender { who: "prometheus-client", formats: &[Format::OpenMetrics, Format::Protobuf], gzip: true, access: OPEN },
    Contender { who: "prometheus", formats: &[Format::Text, Format::Protobuf], gzip: true, access: OPEN },
    Contender { who: "metrics", formats: &[Format::Text], gzip: false, access: OPEN },
];

/// Ours, with a web configuration.
const WITH_USER: &str = "peerscope, user";
const WITH_TLS: &str = "peerscope, TLS";
const WITH_BOTH: &str = "peerscope, TLS, user";

/// A contender with its running server side.
struct Running {
    contender: &'static Contender,
    size: Size,
    server: Server,
}

/// Measures every case with every contender in each round.
pub(crate) fn run(plan: &Plan) -> Result<Report> {
    let mut running = Vec::new();
    for size in Size::ALL {
        for contender in CONTENDERS.iter().filter(|contender| plan.wants(contender.who)) {
            let server = Server::start(&format!("{SERVED}{}", contender.who), size.name())?;
            running.push(Running { contender, size, server });
        }
    }
    let mut report = Report::new("endpoint");
    for round in 1..=plan.rounds {
        eprintln!("round {round} of {}", plan.rounds);
        for size in Size::ALL {
            for scrape in scrapes() {
                let case = case(size, scrape);
                if !plan.wants_case(&case) {
                    continue;
                }
                for running in running.iter_mut().filter(|running| running.size == size && running.answers(scrape)) {
                    running.scrape(plan, scrape, &case, &mut report)?;
                }
            }
        }
        if plan.wants_case(NEW_CONNECTIONS) {
            for running in running.iter_mut().filter(|running| running.size == Size::Agent) {
                running.connect(plan, &mut report)?;
            }
        }
        for size in Size::ALL {
            let case = format!("recording, {}", size.name());
            if !plan.wants_case(&case) {
                continue;
            }
            for running in running.iter_mut().filter(|running| running.size == size) {
                running.record(plan, &case, &mut report)?;
            }
        }
    }
    Ok(report)
}

/// Every format, uncompressed and compressed.
fn scrapes() -> impl Iterator<Item = Scrape> {
    Format::ALL.into_iter().flat_map(|format| [false, true].map(|gzip| Scrape { format, gzip }))
}

fn case(size: Size, scrape: Scrape) -> String {
    format!("{}, {}{}", size.name(), scrape.format.name(), if scrape.gzip { ", gzip" } else { "" })
}

impl Running {
    fn answers(&self, scrape: Scrape) -> bool {
        self.contender.formats.contains(&scrape.format) && (self.contender.gzip || !scrape.gzip)
    }

    /// One round of scrapes, each begun when the last response has arrived.
    fn scrape(&mut self, plan: &Plan, scrape: Scrape, case: &str, report: &mut Report) -> Result<()> {
        let who = self.contender.who;
        let mut client = Client::connect(&self.server.address, self.contender.access, scrape)?;
        let mut bytes =
            check(client.scrape()?, scrape, self.size).map_err(|error| format!("{who}, {case}: {error}"))?;
        let warm = Instant::now() + plan.warm_up / 4;
        while Instant::now() < warm {
            client.scrape()?;
        }
        let [before] = self.server.ask("cpu")?;
        let window = Window::new(Duration::ZERO, plan.length / 2);
        let mut taken = Vec::with_capacity(1 << 14);
        let mut begin = Instant::now();
        while begin < window.to || taken.is_empty() {
            bytes = client.scrape()?.len();
            let end = Instant::now();
            taken.push(nanos(end - begin));
            begin = end;
        }
        let [after] = self.server.ask("cpu")?;
        let cpu = (after - before) / 1_000.0 / taken.len() as f64;
        let round = window.round(taken)?;
        report.add(&format!("{case}, p50"), who, Unit::Microseconds, round.p50_us);
        report.add(&format!("{case}, p99"), who, Unit::Microseconds, round.p99_us);
        report.add(&format!("{case}, CPU"), who, Unit::Microseconds, cpu);
        report.add(case, who, Unit::Bytes, bytes as f64);
        Ok(())
    }

    /// One round of scrapes, each over a connection of its own.
    fn connect(&mut self, plan: &Plan, report: &mut Report) -> Result<()> {
        let format = self.contender.formats.first().copied().unwrap_or(Format::Text);
        let (address, access) = (self.server.address.clone(), self.contender.access);
        let scrape = || Client::connect(&address, access, Scrape { format, gzip: false })?.scrape().map(drop);
        scrape()?;
        let [before] = self.server.ask("cpu")?;
        let window = Window::new(Duration::ZERO, plan.length / 4);
        let (mut taken, mut begin) = (Vec::new(), Instant::now());
        while begin < window.to || taken.is_empty() {
            scrape()?;
            let end = Instant::now();
            taken.push(nanos(end - begin));
            begin = end;
        }
        let [after] = self.server.ask("cpu")?;
        let cpu = (after - before) / 1_000.0 / taken.len() as f64;
        let round = window.round(taken)?;
        report.add(&format!("{NEW_CONNECTIONS}, p50"), self.contender.who, Unit::Microseconds, round.p50_us);
        report.add(&format!("{NEW_CONNECTIONS}, CPU"), self.contender.who, Unit::Microseconds, cpu);
        Ok(())
    }

    /// One round of recording alone, and one while the server is scraped without a pause.
    fn record(&mut self, plan: &Plan, case: &str, report: &mut Report) -> Result<()> {
        let who = self.contender.who;
        let question = format!("record {}", (plan.length / 4).as_millis());
        let mut add = |how: &str, [wall, cpu]: [f64; 2]| {
            report.add(&format!("{case}, {how}"), who, Unit::Nanoseconds, wall);
            report.add(&format!("{case}, {how}, CPU"), who, Unit::Nanoseconds, cpu);
        };
        add("alone", self.server.ask(&question)?);
        let format = self.contender.formats.first().copied().unwrap_or(Format::Text);
        let mut client = Client::connect(&self.server.address, self.contender.access, Scrape { format, gzip: false })?;
        let recorded = AtomicBool::new(false);
        let (begin, mut scrapes) = (Instant::now(), 0_u32);
        std::thread::scope(|scope| {
            let scraper = scope.spawn(|| {
                while !recorded.load(Ordering::Relaxed) {
                    client.scrape()?;
                    scrapes += 1;
                }
                Ok::<_, crate::Error>(())
            });
            let answer = self.server.ask(&question);
            recorded.store(true, Ordering::Relaxed);
            scraper.join().map_err(|_| "the scraper panicked")??;
            add("scraped", answer?);
            Ok::<_, crate::Error>(())
        })?;
        let per_second = f64::from(scrapes) / begin.elapsed().as_secs_f64();
        report.add(&format!("{case}, scrapes"), who, Unit::PerSecond, per_second);
        Ok(())
    }
}

/// The length of a page as received. Fails if the page lacks a series.
fn check(page: &[u8], scrape: Scrape, size: Size) -> Result<usize> {
    let whole = if scrape.gzip {
        let mut whole = Vec::new();
        GzDecoder::new(page).read_to_end(&mut whole)?;
        whole
    } else {
        page.to_vec()
    };
    encode::check(&whole, scrape.format, &size.shape()?.and_events())?;
    Ok(page.len())
}

//! Measures Peerscope side by side with the usual alternatives. `bench/README.md` describes each case.

mod cargo;
mod encode;
mod endpoint;
mod exposition;
mod fleet;
mod footprint;
mod library;
mod measure;
mod messages;
mod overhead;
mod process;
mod record;
mod report;
mod samples;
mod shape;
mod size;
mod storage;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Any error ends the run with one line on stderr.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Measures Peerscope and its contenders, interleaved, and prints the medians.
#[derive(Parser)]
#[command(name = "peerscope-bench")]
struct Args {
    /// What to measure.
    #[arg(required_unless_present = "serve")]
    bench: Option<Bench>,
    /// Print one JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
    /// How many times to measure every contender; the median is reported.
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Run three short rounds to check that everything works; do not quote these figures.
    #[arg(long)]
    quick: bool,
    /// Measure only this contender (may be repeated).
    #[arg(long, value_name = "WHO")]
    only: Vec<String>,
    /// Measure only the cases whose names contain this text (may be repeated).
    #[arg(long, value_name = "CASE")]
    case: Vec<String>,
    /// The number of peers of `fleet`, `steady` and `soak`; several sizes are measured in turn.
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=15_000))]
    peers: Vec<u32>,
    /// The number of scrapes of `soak`; 200 peers scraped every 15 s make 48,000 an hour.
    #[arg(long, value_name = "N", default_value_t = 480_000)]
    scrapes: usize,
    /// Runs the server side of a contender, which the bench starts itself. It prints its address and ends when its
    /// stdin closes.
    #[arg(long, hide = true, value_name = "CONTENDER")]
    serve: Option<String>,
    /// An argument of the server side, such as its broker's address.
    #[arg(long, hide = true, value_name = "ADDRESS", requires = "serve")]
    at: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Requests between two processes over loopback.
    Messages,
    /// Puts and gets on the embedded store (durable) and on Redis.
    Storage,
    /// The time and instructions that metrics add to the same paths (needs valgrind).
    Overhead,
    /// The cost of recording one event, in memory.
    Record,
    /// The cost of writing a metrics page, in memory.
    Encode,
    /// Complete scrapes over loopback, and their effect on a recording thread.
    Endpoint,
    /// Scrapes of a fleet through a gateway, over plain HTTP and over bare substreams.
    Fleet,
    /// A gateway on one core, with every peer scraped every 15 s.
    Steady,
    /// Hours' worth of scrapes while peers come and go, and the gateway's resources meanwhile.
    Soak,
    /// Program size, time to the first scrape, and memory of an idle agent.
    Footprint,
}

/// What to measure, how long and how often.
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    pub(crate) quick: bool,
    pub(crate) warm_up: Duration,
    pub(crate) length: Duration,
    only: Vec<String>,
    case: Vec<String>,
}

impl Plan {
    fn new(args: &Args) -> Self {
        let (rounds, warm_up, length) = if args.quick {
            (3, Duration::from_millis(50), Duration::from_millis(200))
        } else {
            (args.rounds, Duration::from_millis(200), Duration::from_secs(1))
        };
        Self { rounds, quick: args.quick, warm_up, length, only: args.only.clone(), case: args.case.clone() }
    }

    pub(crate) fn wants(&self, who: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| who == name)
    }

    pub(crate) fn wants_case(&self, case: &str) -> bool {
        self.case.is_empty() || self.case.iter().any(|part| case.contains(part))
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peerscope-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if let Some(contender) = &args.serve {
        if let Some(role) = contender.strip_prefix(fleet::SERVED) {
            return fleet::serve(role, args.at.as_deref());
        }
        return match contender.strip_prefix(endpoint::SERVED) {
            Some(who) => endpoint::serve(who, args.at.as_deref().ok_or("an endpoint needs --at SIZE")?),
            None => messages::serve(contender, args.at.as_deref()),
        };
    }
    let plan = Plan::new(args);
    let report = match args.bench {
        Some(Bench::Messages) => messages::run(&plan)?,
        Some(Bench::Storage) => storage::run(&plan)?,
        Some(Bench::Overhead) => overhead::run(&plan)?,
        Some(Bench::Record) => record::run(&plan)?,
        Some(Bench::Encode) => encode::run(&plan)?,
        Some(Bench::Endpoint) => endpoint::run(&plan)?,
        Some(Bench::Fleet) => fleet::run(&plan, &sizes(args, &[100, 1000, 5000]))?,
        Some(Bench::Steady) => fleet::steady(&plan, &sizes(args, &[5000]))?,
        Some(Bench::Soak) => fleet::soak(&plan, &sizes(args, &[200]), args.scrapes)?,
        Some(Bench::Footprint) => footprint::run(&plan)?,
        None => return Ok(()),
    };
    report.print(args.json)
}

/// The sizes from `--peers`, by default `usual`.
fn sizes(args: &Args, usual: &[u32]) -> Vec<usize> {
    let told = if args.peers.is_empty() { usual } else { &args.peers };
    told.iter().map(|&size| size as usize).collect()
}

//! The footprint of an idle agent: its program's size, the time from start to the first scrape, and its memory.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::process::Process;
use crate::report::{OURS, Report, Unit};
use crate::{Plan, Result, cargo};

/// How long to wait before reading the agent's memory.
const SETTLE: Duration = Duration::from_secs(3);
/// How long a start may take.
const START: Duration = Duration::from_secs(10);

pub(crate) fn run(plan: &Plan) -> Result<Report> {
    let agent = cargo::build("peerscope", &["-p", "peerscope"])?;
    let mut report = Report::new("footprint");
    // Stripped, by the release profile.
    report.add("size of the program", OURS, Unit::MiB, mebibytes(fs::metadata(&agent)?.len()));
    for round in 1..=plan.rounds {
        eprintln!("round {round} of {}", plan.rounds);
        let dir = tempfile::tempdir()?;
        for (case, settle) in [("first start to scrape", None), ("later start to scrape", Some(SETTLE))] {
            let (process, taken) = start(&agent, dir.path())?;
            report.add(case, OURS, Unit::Milliseconds, taken.as_secs_f64() * 1000.0);
            if let Some(settle) = settle {
                std::thread::sleep(settle);
                report.add("resident memory, idle", OURS, Unit::MiB, mebibytes(process.resident()?));
            }
        }
    }
    Ok(report)
}

/// Starts an agent and scrapes it as soon as possible.
fn start(agent: &Path, dir: &Path) -> Result<(Process, Duration)> {
    // Another process could take the port before the agent does; the check of the page below would then fail.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut command = Command::new(agent);
    command.args(["run", "--listen", "/ip4/127.0.0.1/tcp/0", "--metrics-port", &address.port().to_string()]);
    command.arg("--data-dir").arg(dir).env_clear().stdout(Stdio::null()).stderr(Stdio::null());
    let begin = Instant::now();
    let process = Process::spawn(&mut command)?;
    loop {
        if let Ok(stream) = TcpStream::connect(address) {
            let page = scrape(stream)?;
            let taken = begin.elapsed();
            if !page.starts_with("HTTP/1.1 200") || !page.contains("\nagent_peers_connected 0\n") {
                return Err(format!("not an agent's metrics: {page}").into());
            }
            return Ok((process, taken));
        }
        if begin.elapsed() > START {
            return Err(format!("the agent cannot be scraped within {START:?} of its start").into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn scrape(mut stream: TcpStream) -> Result<String> {
    stream.set_read_timeout(Some(START))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

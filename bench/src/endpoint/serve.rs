//! The server sides: each is a process that serves one registry and records into it on request.

mod axum;
mod hyper;
mod metrics;
mod peerscope;

use std::any::Any;
use std::time::Duration;

use rustix::time::ClockId;

use super::client::Access;
use super::{WITH_BOTH, WITH_TLS, WITH_USER, tls};
use crate::Result;
use crate::library::Recorder;
use crate::measure::cpu_time;
use crate::process::announce_and_answer;
use crate::record::load::{Load, Work, run_threads};
use crate::report::OURS;
use crate::samples::table;
use crate::size::Size;

/// A running server and its recorder.
struct Serving {
    address: String,
    /// Records on a separate thread for the given time.
    record: Box<dyn Fn(Duration) -> Result<Work>>,
    /// The server, which ends when it is dropped.
    _server: Box<dyn Any>,
}

impl Serving {
    fn new(address: impl ToString, recorder: impl Recorder + 'static, server: impl Any) -> Self {
        let table = table();
        let record = move |length| {
            let load = Load { threads: 1, clock: false, table: &table, warm_up: length / 5, length };
            run_threads(&load, &recorder)
        };
        Self { address: address.to_string(), record: Box::new(record), _server: Box::new(server) }
    }
}

/// Serves `who`'s registry until stdin closes.
pub(crate) fn serve(who: &str, size: &str) -> Result<()> {
    let serving = start(who, Size::named(size)?)?;
    announce_and_answer(&serving.address, |question| match question.split_once(' ') {
        Some(("record", milliseconds)) => {
            let work = (serving.record)(Duration::from_millis(milliseconds.parse()?))?;
            Ok(format!("{} {}", work.nanos_per_event(), work.cpu_nanos_per_event()))
        }
        _ => Ok(cpu_time(ClockId::ProcessCPUTime).as_nanos().to_string()),
    })
}

fn start(who: &str, size: Size) -> Result<Serving> {
    match who {
        OURS => peerscope::start(size, Access::default()),
        WITH_USER => peerscope::start(size, Access { tls: false, user: true }),
        WITH_TLS => peerscope::start(size, Access { tls: true, user: false }),
        WITH_BOTH => peerscope::start(size, Access { tls: true, user: true }),
        "prometheus-client" => hyper::start(&size.shape()?),
        "prometheus" => axum::start(&size.shape()?),
        "metrics" => metrics::start(&size.shape()?),
        _ => Err(format!("`{who}` does not serve an endpoint").into()),
    }
}

/// Whether a header's list of values contains this one.
fn names(header: Option<&::hyper::header::HeaderValue>, value: &str) -> bool {
    header.and_then(|header| header.to_str().ok()).is_some_and(|header| header.contains(value))
}

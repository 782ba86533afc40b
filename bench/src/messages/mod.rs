//! Requests between two processes over loopback: a 256-byte echo (`ping`) and a lookup that returns 256 bytes (`get`).
//!
//! Every contender returns the same bytes; only the transport differs. One file per contender.

mod nats;
mod peerscope;
#[cfg(feature = "all-contenders")]
mod request_response;
mod substream;

use std::collections::HashMap;

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};

use crate::measure::{Round, Window};
use crate::process::{self, Process};
use crate::report::{OURS, Report, Unit};
use crate::{Plan, Result};

/// The size of an echo's payload and of a stored value, in bytes.
const PAYLOAD: usize = 256;
/// The number of keys on the server side.
const KEYS: usize = 1000;
/// The numbers of requests in flight.
const IN_FLIGHT: [usize; 3] = [1, 16, 128];

/// The kind of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Ping,
    Get,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Get => "get",
        }
    }

    /// The bytes of the request; for a lookup, the key. An echo begins with a byte with which no key begins.
    fn request(self, number: usize) -> Bytes {
        match self {
            Self::Ping => Bytes::from_static(&[0; PAYLOAD]),
            Self::Get => key(number % KEYS),
        }
    }
}

fn key(number: usize) -> Bytes {
    format!("key-{number:06}").into()
}

/// The data of contenders without a store.
struct Answers(HashMap<Bytes, Bytes>);

impl Answers {
    fn new() -> Self {
        Self((0..KEYS).map(|number| (key(number), Bytes::from(vec![7; PAYLOAD]))).collect())
    }

    fn answer<'a>(&'a self, request: &'a [u8]) -> &'a [u8] {
        match request.first() {
            Some(b'k') => self.0.get(request).map_or(&[], |value| value),
            _ => request,
        }
    }
}

/// Fails if the answer does not have the expected 256 bytes: a fast wrong answer is worth nothing.
fn check(answer: &[u8]) -> Result<()> {
    if answer.len() == PAYLOAD {
        Ok(())
    } else {
        Err(format!("the answer has {} bytes instead of {PAYLOAD}", answer.len()).into())
    }
}

/// The load of one round.
struct Load {
    operation: Operation,
    in_flight: usize,
    window: Window,
}

/// The client side of a contender, connected to its server side in another process.
trait Contender {
    fn round(&mut self, load: &Load) -> Result<Round>;
}

/// The runtime of both sides of a contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flavour {
    MultiThread,
    CurrentThread,
}

impl Flavour {
    fn runtime(self) -> Result<Runtime> {
        let mut builder = match self {
            Self::MultiThread => Builder::new_multi_thread(),
            Self::CurrentThread => Builder::new_current_thread(),
        };
        Ok(builder.enable_all().build()?)
    }
}

/// The names of the contenders, in the order in which they are measured.
const CONTENDERS: &[&str] = &[
    OURS,
    #[cfg(feature = "all-contenders")]
    "request-response",
    "nats",
    "substream, two tasks",
    "substream, callers",
    "substream, one task",
    "substream, one thread",
];

/// The server side of a contender, in its own process.
pub(crate) fn serve(contender: &str, at: Option<&str>) -> Result<()> {
    match contender {
        OURS => peerscope::serve(at.ok_or("peerscope needs --at PEER_ID")?),
        #[cfg(feature = "all-contenders")]
        "request-response" => request_response::serve(),
        "nats" => nats::serve(at.ok_or("nats needs --at URL")?),
        _ => match substream::Variant::named(contender) {
            Some(variant) => substream::serve(variant),
            None => Err(format!("`{contender}` is not one of {CONTENDERS:?}").into()),
        },
    }
}

/// A contender with its processes, which end when it is dropped.
struct Running {
    who: &'static str,
    client: Box<dyn Contender>,
    _processes: Vec<Process>,
}

impl Running {
    fn start(who: &'static str, dir: &std::path::Path) -> Result<Self> {
        let mut processes = Vec::new();
        let mut at = None;
        let mut identity = None;
        if who == OURS {
            let (dir, peer) = peerscope::identity()?;
            identity = Some(dir);
            at = Some(peer.to_string());
        }
        if who == "nats" {
            let (broker, url) = process::nats_server(dir)?;
            processes.push(broker);
            at = Some(url);
        }
        let (server, address) = process::serve(who, at.as_deref())?;
        processes.push(server);
        let client: Box<dyn Contender> = match who {
            OURS => Box::new(peerscope::Client::connect(&address, identity.ok_or("no identity was made")?)?),
            #[cfg(feature = "all-contenders")]
            "request-response" => Box::new(request_response::Client::connect(&address)?),
            "nats" => Box::new(nats::Client::connect(&address)?),
            _ => {
                let variant = substream::Variant::named(who).ok_or("no such contender")?;
                Box::new(substream::Client::connect(&address, variant)?)
            }
        };
        Ok(Self { who, client, _processes: processes })
    }
}

/// Measures every case with every contender in each round.
pub(crate) fn run(plan: &Plan) -> Result<Report> {
    let dir = tempfile::tempdir()?;
    let mut contenders = Vec::new();
    for who in CONTENDERS.iter().copied().filter(|who| plan.wants(who)) {
        contenders.push(Running::start(who, dir.path())?);
    }
    let mut report = Report::new("messages");
    for round in 1..=plan.rounds {
        eprintln!("round {round} of {}", plan.rounds);
        for operation in [Operation::Ping, Operation::Get] {
            for in_flight in IN_FLIGHT {
                let case = format!("{}, {in_flight} in flight", operation.name());
                if !plan.wants_case(&case) {
                    continue;
                }
                for contender in &mut contenders {
                    let window = Window::new(plan.warm_up, plan.length);
                    let measured = contender.client.round(&Load { operation, in_flight, window })?;
                    report.add(&case, contender.who, Unit::PerSecond, measured.per_second);
                    report.add(&format!("{case}, p50"), contender.who, Unit::Microseconds, measured.p50_us);
                    report.add(&format!("{case}, p99"), contender.who, Unit::Microseconds, measured.p99_us);
                }
            }
        }
    }
    Ok(report)
}

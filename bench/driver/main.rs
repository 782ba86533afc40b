//! The cases of `peerscope-bench overhead`, in a program small enough to build twice: with and without the cargo
//! feature `metrics-prometheus`. `overhead-driver CASE COUNT` warms up, runs the case's operation COUNT times and
//! prints the nanoseconds per operation.

mod handler;
mod link;
mod storage;

use std::process::ExitCode;
use std::time::Instant;

use peerscope::metrics::{AgentInfo, MetricsCollector, Registry};
use tokio::runtime::{Builder, Runtime};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The size of a payload or value, in bytes.
const PAYLOAD: usize = 256;
/// The number of keys.
const KEYS: usize = 1000;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let result = match (arguments.next(), arguments.next().and_then(|count| count.parse().ok())) {
        (Some(case), Some(count)) => run(&case, count),
        _ => Err("usage: overhead-driver CASE COUNT".into()),
    };
    match result {
        Ok(nanos) => {
            println!("{nanos:.2}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("overhead-driver: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(case: &str, count: usize) -> Result<f64> {
    match case {
        "handler-ping" => handler::run(false, count),
        "handler-get" => handler::run(true, count),
        "link-ping-1" => link::run(&one_thread()?, false, 1, count),
        "link-ping-128" => link::run(&one_thread()?, false, 128, count),
        "link-get-128" => link::run(&one_thread()?, true, 128, count),
        "link-ping-128-two-threads" => link::run(&two_threads()?, false, 128, count),
        "storage-get" => storage::get(count),
        "storage-put-1" => storage::put(1, count),
        "storage-put-64" => storage::put(64, count),
        _ => Err(format!("unknown case `{case}`").into()),
    }
}

/// A current-thread runtime: the same work in the same order each time.
fn one_thread() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// As in the agent, where callers and the connection's task run on different threads.
fn two_threads() -> Result<Runtime> {
    Ok(Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

fn collector() -> MetricsCollector {
    MetricsCollector::new(&Registry::default(), &AgentInfo { peer_id: "bench".into(), name: "bench".into() })
}

fn key(number: usize) -> bytes::Bytes {
    format!("key-{:06}", number % KEYS).into()
}

/// The nanoseconds since `begin` per operation, of `count` operations.
fn per_operation(begin: Instant, count: usize) -> f64 {
    begin.elapsed().as_nanos() as f64 / count as f64
}

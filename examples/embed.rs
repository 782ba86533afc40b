//! An agent embedded in another program, with a metrics page that also shows the program's own families.
//!
//! ```sh
//! cargo run --example embed
//! ```
//!
//! There are two ways to add families: Peerscope's own instruments, which take nanoseconds to record and are shown in
//! every format, and an existing registry of prometheus-client.

#![allow(clippy::print_stdout, reason = "an example for a terminal")]

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use peerscope::config::Config;
use peerscope::metrics::catalogue::{Descriptor, Kind};
use peerscope::metrics::instruments::Counter;
use peerscope::metrics::{MissingLines, Registry};
use peerscope::node::Node;
use prometheus_client::metrics::gauge::Gauge;
use tokio::signal::unix::{SignalKind, signal};

const JOBS: Descriptor = Descriptor::new(Kind::Counter, "jobs_done_total", &[], "Jobs done");

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let mut config = Config::default();
    config.node.data_dir = dir.path().to_owned();
    config.network.listen = Vec::new();
    config.metrics.port = 0;

    let registry = Arc::new(Registry::new(config.metrics.native_histograms));
    let jobs = Counter::<()>::new();
    registry.register(&JOBS, &jobs)?;
    let temperature = Gauge::<f64, AtomicU64>::default();
    let mut others = prometheus_client::registry::Registry::default();
    others.register("temperature_celsius", "Temperature", temperature.clone());
    registry.add_foreign("thermometer", others);

    let mut interrupt = signal(SignalKind::interrupt())?;
    let node = Node::bind_with(&config, &MissingLines::default(), registry).await?;
    let url = node.metrics_url().ok_or("the metrics endpoint is not listening")?;
    jobs.inc(());
    temperature.set(21.5);
    println!("{url} shows jobs_done_total 1 and temperature_celsius 21.5; press Ctrl-C to stop");
    node.serve(async { while interrupt.recv().await.is_none() {} }).await?;
    Ok(())
}

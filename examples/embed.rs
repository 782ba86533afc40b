//! An agent inside a program of one's own, whose page also shows what that program counts.
//!
//! ```sh
//! cargo run --example embed
//! ```
//!
//! There are two ways to add families: instruments of Peerscope's own, which cost nanoseconds to record with and are shown
//! in every format, and a registry of prometheus-client that is there already.

#![allow(clippy::print_stdout, reason = "an example for a terminal")]

use std::error::Error;
use std::sync::atomic::AtomicU64;

use peerscope::config::Config;
use peerscope::metrics::catalogue::{Descriptor, Kind};
use peerscope::metrics::instruments::Counter;
use peerscope::metrics::{MissingLines, Registry};
use peerscope::node::Node;
use prometheus_client::metrics::gauge::Gauge;

const JOBS: Descriptor = Descriptor::new(Kind::Counter, "jobs_done_total", &[], "Jobs done");

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let mut config = Config::default();
    config.node.data_dir = dir.path().to_owned();
    config.metrics.port = 0;

    let registry = Registry::new(config.metrics.native_histograms);
    let jobs = Counter::<()>::new();
    registry.register(&JOBS, &jobs)?;
    let temperature = Gauge::<f64, AtomicU64>::default();
    let mut others = prometheus_client::registry::Registry::default();
    others.register("temperature_celsius", "How warm it is", temperature.clone());
    registry.add_foreign("thermometer", others);

    let node = Node::bind_with(&config, &MissingLines::default(), registry).await?;
    let url = node.metrics_url().ok_or("the endpoint does not listen")?;
    jobs.inc(());
    temperature.set(21.5);
    println!("{url} has jobs_done_total 1 and temperature_celsius 21.5; Ctrl-C ends it");
    node.serve(async { drop(tokio::signal::ctrl_c().await) }).await?;
    Ok(())
}

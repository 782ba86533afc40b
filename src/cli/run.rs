//! `peerscope run`: the agent itself.

use std::time::{Duration, Instant};

use clap::Args;
use sd_notify::NotifyState;

use super::{Failure, descriptors, logging};
use crate::config::Config;
use crate::node::Node;
use crate::signal::Signals;
use crate::storage::{self, BackendKind};

/// A second signal this soon after the first is its echo and not somebody's second wish.
const ECHO: Duration = Duration::from_millis(250);

/// The keys that have a flag of their own.
#[derive(Debug, Default, Args)]
pub(super) struct Flags {
    /// What people call this agent [default: the host's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Listen for peers here; may be given several times [default: /ip4/0.0.0.0/tcp/4001]
    #[arg(long, value_name = "MULTIADDR")]
    listen: Vec<String>,
    /// Stay connected to this peer, an address that ends in /p2p/PEER_ID; may be given several times
    #[arg(long, value_name = "MULTIADDR")]
    bootstrap: Vec<String>,
    /// The port of the metrics endpoint; 0 lets the system choose [default: 8080]
    #[arg(long, value_name = "PORT")]
    metrics_port: Option<String>,
    /// The address of the metrics endpoint [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    metrics_address: Option<String>,
    /// Serve no metrics
    #[arg(long, conflicts_with_all = ["metrics_port", "metrics_address"])]
    no_metrics: bool,
    /// Where the data is: local or redis [default: local]
    #[arg(long, value_name = "BACKEND")]
    storage: Option<String>,
    /// The Redis server, or several times the seeds of a cluster; a URL with a password belongs into the
    /// configuration, since others can read this command line [default: redis://127.0.0.1:6379]
    #[arg(long, value_name = "URL")]
    redis_url: Vec<String>,
    /// How much to log: off, error, warn, info, debug, trace, or directives [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How to log: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl Flags {
    /// Refuses a flag that would have no effect.
    pub(super) fn checked(&self, config: Config) -> Result<Config, Failure> {
        if !self.redis_url.is_empty() && config.storage.backend == BackendKind::Local {
            return Err(Failure::usage(
                "--redis-url has no effect while the data is in the local store; add --storage redis",
            ));
        }
        Ok(config)
    }

    /// The dotted keys that the flags set, with their values as YAML.
    pub(super) fn overrides(&self) -> Vec<(&'static str, String, &'static str)> {
        let one = |key, value: &Option<String>, flag| value.as_deref().map(|value| (key, text(value), flag));
        let many = |key, values: &[String], flag| {
            let list: Vec<_> = values.iter().map(|value| text(value)).collect();
            (!values.is_empty()).then(|| (key, format!("[{}]", list.join(", ")), flag))
        };
        // Numbers and words are left as typed, so that a wrong one is reported as it was typed.
        let raw = |key, value: &Option<String>, flag| value.clone().map(|value| (key, value, flag));
        [
            one("node.name", &self.name, "--name"),
            many("network.listen", &self.listen, "--listen"),
            many("network.bootstrap", &self.bootstrap, "--bootstrap"),
            raw("metrics.port", &self.metrics_port, "--metrics-port"),
            one("metrics.address", &self.metrics_address, "--metrics-address"),
            self.no_metrics.then(|| ("metrics.enabled", "false".into(), "--no-metrics")),
            one("storage.backend", &self.storage, "--storage"),
            many("storage.redis.urls", &self.redis_url, "--redis-url"),
            one("log.level", &self.log_level, "--log-level"),
            one("log.format", &self.log_format, "--log-format"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// `value` as a YAML string, whatever it looks like. JSON's strings are YAML's double-quoted ones.
pub(super) fn text(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

pub(super) fn run(config: &Config) -> Result<(), Failure> {
    logging::init(&config.log);
    let storage = &config.storage;
    if storage.backend == BackendKind::Local && storage.redis.urls != storage::RedisConfig::default().urls {
        tracing::warn!("storage.redis.urls has no effect while storage.backend is local");
    }
    descriptors::raise(
        config.network.max_peers,
        if config.gateway.enabled { 3 * config.gateway.max_scrapes } else { 0 },
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("peerscope").build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("cannot start the runtime: {error}")))?;
    let result = runtime.block_on(agent(config));
    // Everything has ended or had its time; nothing that hangs on a disk may hold the exit.
    runtime.shutdown_background();
    result
}

async fn agent(config: &Config) -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(|error| Failure::failed(format!("cannot watch signals: {error}")))?;
    // Opening a large store can take minutes, and until it was checked it is not written to.
    let node = tokio::select! {
        node = Node::bind(config) => node.map_err(|error| Failure::failed(error.to_string()))?,
        signal = signals.next() => {
            tracing::info!("{signal} while starting: stopped");
            return Ok(());
        }
    };
    notify(&[NotifyState::Ready]);
    let stop = async move {
        let signal = signals.next().await;
        tracing::info!("{signal}: stopping; what is in flight may finish, a second signal exits at once");
        notify(&[NotifyState::Stopping]);
        tokio::spawn(async move {
            // Tools such as timeout(1) send the one signal twice, to the process and to its group.
            while tokio::time::timeout(ECHO, signals.next()).await.is_ok() {}
            let signal = signals.next().await;
            tracing::warn!("{signal} again: exiting at once");
            std::process::exit(i32::from(super::exit::FAILED));
        });
        Instant::now()
    };
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let served = node.serve(async {
        let _ = stopping.send(stop.await);
    });
    served.await.map_err(|error| Failure::failed(error.to_string()))?;
    if let Ok(since) = stopped.await {
        tracing::info!("Stopped after {:?}", since.elapsed());
    }
    Ok(())
}

/// Tells systemd; elsewhere `NOTIFY_SOCKET` is not set and this does nothing.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

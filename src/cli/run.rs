//! `peerscope run`: the agent itself.

use std::time::{Duration, Instant};

use clap::Args;
use sd_notify::NotifyState;

use super::{CommandError, descriptors, logging};
use crate::config::Config;
use crate::metrics::{Health, MissingLines};
use crate::node::Node;
use crate::signal::Signals;
use crate::storage::{self, BackendKind};

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
    pub(super) fn checked(&self, config: Config) -> Result<Config, CommandError> {
        if !self.redis_url.is_empty() && config.storage.backend == BackendKind::Local {
            return Err(CommandError::usage(
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

pub(super) fn run(config: &Config) -> Result<(), CommandError> {
    let missing = MissingLines::default();
    // To the end of this function, when everything was said.
    let last_lines = logging::init(&config.log, missing.clone())?;
    let exits = last_lines.clone();
    let signals = Signals::start(move |signal| {
        tracing::warn!("{signal} again: exiting at once");
        exits.wait();
        super::exit::FAILED
    });
    let signals = signals.map_err(|error| CommandError::failed(format!("cannot watch signals: {error}")))?;
    let storage = &config.storage;
    if storage.backend == BackendKind::Local && storage.redis.urls != storage::RedisConfig::default().urls {
        tracing::warn!("storage.redis.urls has no effect while storage.backend is local");
    }
    descriptors::raise(&config.network, if config.gateway.enabled { 3 * config.gateway.max_scrapes } else { 0 });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("peerscope").build();
    let runtime = runtime.map_err(|error| CommandError::failed(format!("cannot start the runtime: {error}")))?;
    // The kernel gives a signal to the first thread if it can, and that is lost on one that hangs. So this one only waits.
    let result = std::thread::scope(|scope| {
        let run = || runtime.block_on(agent(config, signals, &missing));
        let agent = std::thread::Builder::new().name("agent".into()).spawn_scoped(scope, run);
        let agent = agent.map_err(|error| CommandError::failed(format!("cannot start a thread: {error}")))?;
        // A panic was logged.
        agent
            .join()
            .unwrap_or_else(|_| Err(CommandError::failed("the agent has failed, which is a defect worth a report")))
    });
    // Everything has ended or had its time; nothing that hangs on a disk may hold the exit.
    runtime.shutdown_background();
    last_lines.wait();
    result
}

async fn agent(config: &Config, mut signals: Signals, missing: &MissingLines) -> Result<(), CommandError> {
    let node = tokio::select! {
        node = Node::bind(config, missing) => node.map_err(|error| CommandError::failed(error.to_string()))?,
        signal = signals.first() => {
            tracing::info!("{signal} while starting: stopped");
            return Ok(());
        }
    };
    let _waits = tokio::time::timeout(TOLD, notify(NotifyState::Ready)).await;
    tokio::spawn(tell_systemd(node.health()));
    let stop = async move {
        let signal = signals.first().await;
        tracing::info!("{signal}: stopping; what is in flight may finish, a second signal exits at once");
        let _waits = tokio::time::timeout(TOLD, notify(NotifyState::Stopping)).await;
        Instant::now()
    };
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let served = node.serve(async {
        let _ = stopping.send(stop.await);
    });
    served.await.map_err(|error| CommandError::failed(error.to_string()))?;
    if let Ok(since) = stopped.await {
        tracing::info!("Stopped after {:?}", since.elapsed());
    }
    Ok(())
}

/// How often it is looked whether systemd's line about the agent is still true.
const STATUS: Duration = Duration::from_secs(1);

/// Keeps `systemctl status` informed of what is not ready, as long as anything was not, and feeds the watchdog. From the
/// runtime: when that hangs, systemd is to start the agent anew.
async fn tell_systemd(health: Health) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watchdog = sd_notify::watchdog_enabled();
    // Twice in the time that it waits, as sd_watchdog_enabled(3) asks for.
    let pause = watchdog.map_or(STATUS, |time| STATUS.min(time / 2));
    let mut said = None;
    loop {
        if watchdog.is_some() {
            notify(NotifyState::Watchdog).await;
        }
        let problem = health.snapshot().into_iter().find_map(|state| Some((state.component, state.problem?)));
        let now = problem.map(|(component, problem)| format!("not ready: {component}: {problem}"));
        if now != said {
            notify(NotifyState::Status(now.as_deref().unwrap_or("ready"))).await;
            said = now;
        }
        tokio::time::sleep(pause).await;
    }
}

/// How long the start and the stop wait for a supervisor that does not read.
const TOLD: Duration = Duration::from_millis(500);

/// Tells systemd; elsewhere `NOTIFY_SOCKET` is not set and this does nothing.
async fn notify(state: NotifyState<'_>) {
    let message = state.to_string();
    // On a thread that may wait: the socket holds some ten messages, and the next one waits until somebody reads.
    let told = tokio::task::spawn_blocking(move || {
        if let Err(error) = sd_notify::notify(&[NotifyState::Custom(&message)]) {
            tracing::warn!(%error, "cannot notify systemd");
        }
    });
    let _told = told.await;
}

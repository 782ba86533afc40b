//! `peerscope run`: runs the agent.

use std::time::{Duration, Instant};

use clap::Args;
use sd_notify::NotifyState;

use super::{CommandError, descriptors, logging};
use crate::config::{Config, Sources};
use crate::control::Reload as _;
use crate::metrics::{Health, MissingLines};
use crate::node::{Node, NodeError, SetLogLevel};
use crate::signal::Signals;
use crate::storage::{self, BackendKind};

/// The configuration keys that have a flag.
#[derive(Debug, Default, Args)]
pub(super) struct Flags {
    /// A name for this agent [default: the host name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Listen for peers on this address; may be repeated [default: /ip4/0.0.0.0/tcp/4001 and
    /// /ip6/::/tcp/4001]
    #[arg(long, value_name = "MULTIADDR")]
    listen: Vec<String>,
    /// Stay connected to the peer at this address, which must end in /p2p/PEER_ID; may be repeated
    #[arg(long, value_name = "MULTIADDR")]
    bootstrap: Vec<String>,
    /// The port of the metrics endpoint; 0 lets the system choose [default: 8080]
    #[arg(long, value_name = "PORT")]
    metrics_port: Option<String>,
    /// The address of the metrics endpoint [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    metrics_address: Option<String>,
    /// Disable the metrics endpoint
    #[arg(long, conflicts_with_all = ["metrics_port", "metrics_address"])]
    no_metrics: bool,
    /// The storage backend: local or redis [default: local]
    #[arg(long, value_name = "BACKEND")]
    storage: Option<String>,
    /// The Redis server; repeat it for the seeds of a cluster. A URL with a password belongs in the configuration
    /// file, because other users can read this command line [default: redis://127.0.0.1:6379]
    #[arg(long, value_name = "URL")]
    redis_url: Vec<String>,
    /// The log level: off, error, warn, info, debug, trace, or directives such as info,peerscope=debug [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// The log format: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl Flags {
    /// Rejects a flag that would have no effect.
    pub(super) fn checked(&self, config: Config) -> Result<Config, CommandError> {
        if !self.redis_url.is_empty() && config.storage.backend == BackendKind::Local {
            return Err(CommandError::usage(
                "--redis-url has no effect while storage.backend is local; add --storage redis",
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
        // Numbers are passed on as typed, so that errors show them as typed.
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

/// `value` as a YAML string, whatever it looks like. JSON strings are valid double-quoted YAML.
pub(super) fn text(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

/// Runs until a signal stops it. `sources` are read again when the configuration is reloaded.
pub(super) fn run(config: &Config, sources: Sources) -> Result<(), CommandError> {
    let missing = MissingLines::default();
    // Waited for at the end of this function, when everything has been logged.
    let (last_lines, set_level) = logging::init(&config.log, missing.clone())?;
    let exits = last_lines.clone();
    let signals = Signals::start(move |signal| {
        tracing::warn!("{signal} again: exiting at once");
        exits.wait();
        super::exit::FAILED
    });
    let signals = signals.map_err(|error| CommandError::failed(format!("cannot handle signals: {error}")))?;
    let storage = &config.storage;
    if storage.backend == BackendKind::Local && storage.redis.urls != storage::RedisConfig::default().urls {
        tracing::warn!("storage.redis.urls has no effect while storage.backend is local");
    }
    descriptors::raise(&config.network, if config.gateway.enabled { 3 * config.gateway.max_scrapes } else { 0 });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("peerscope").build();
    let runtime = runtime.map_err(|error| CommandError::failed(format!("cannot start the runtime: {error}")))?;
    // The kernel prefers the main thread for signals, which would be lost if it hung. So the main thread only waits.
    let result = std::thread::scope(|scope| {
        let run = || runtime.block_on(agent(config, sources, set_level, signals, &missing));
        let agent = std::thread::Builder::new().name("agent".into()).spawn_scoped(scope, run);
        let agent = agent.map_err(|error| CommandError::failed(format!("cannot start a thread: {error}")))?;
        // The panic has been logged.
        agent.join().unwrap_or_else(|_| {
            Err(CommandError::failed("the agent panicked, which is a bug; please report it with the log"))
        })
    });
    // Everything has ended or used up its time; a thread that hangs on a disk must not delay the exit.
    runtime.shutdown_background();
    last_lines.wait();
    result
}

async fn agent(
    config: &Config,
    sources: Sources,
    set_level: SetLogLevel,
    mut signals: Signals,
    missing: &MissingLines,
) -> Result<(), CommandError> {
    let mut hangups = signals.clone();
    let node = tokio::select! {
        node = Node::bind(config, missing) => node.map_err(|error| match error {
            // As if it were part of the configuration file: a restart does not help.
            NodeError::WebConfig(error) => error.into(),
            error => CommandError::failed(error.to_string()),
        })?,
        signal = signals.first() => {
            tracing::info!("{signal} while starting: stopped");
            return Ok(());
        }
    };
    let reloader = node.reloader();
    reloader.set_log_level(set_level);
    reloader.set_source(Box::new(move |text| {
        let text = text.map(|text| ("the configuration".to_owned(), text));
        Config::load(&Sources { text, refuse_empty: true, ..sources.clone() }).map_err(|error| error.to_string())
    }));
    let _waits = tokio::time::timeout(TOLD, notify(NotifyState::Ready)).await;
    tokio::spawn(async move {
        loop {
            hangups.hangup().await;
            // It logs the result.
            let _logged = reloader.reload(None).await;
        }
    });
    tokio::spawn(tell_systemd(node.health()));
    let stop = async move {
        let signal = signals.first().await;
        tracing::info!("{signal}: stopping; requests in flight may finish, but a second signal exits at once");
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

/// How often the status that systemd shows is updated.
const STATUS: Duration = Duration::from_secs(1);

/// Tells `systemctl status` what is not ready, and feeds the watchdog. Runs on the runtime, so that systemd restarts
/// the agent when the runtime hangs.
async fn tell_systemd(health: Health) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watchdog = sd_notify::watchdog_enabled();
    // At least twice within the watchdog's timeout, as sd_watchdog_enabled(3) recommends.
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

/// How long starting and stopping wait for a supervisor that does not read.
const TOLD: Duration = Duration::from_millis(500);

/// Notifies systemd; does nothing where `NOTIFY_SOCKET` is not set.
async fn notify(state: NotifyState<'_>) {
    let message = state.to_string();
    // On a thread that may block: the socket holds about ten messages, and the next one blocks until one is read.
    let told = tokio::task::spawn_blocking(move || {
        if let Err(error) = sd_notify::notify(&[NotifyState::Custom(&message)]) {
            tracing::warn!(%error, "cannot notify systemd");
        }
    });
    let _told = told.await;
}

//! Takes over a changed configuration while the agent runs.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use libp2p::PeerId;
use tokio::sync::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use super::handler::Policy;
use crate::config::{Config, LogLevel, check_web_config};
use crate::control::{ConfigState, Reload, ReloadError, Reloaded};
use crate::gateway::{Fleet, Pages, Scraper};
use crate::metrics::{AgentInfo, EndpointHandle, MetricsCollector};
use crate::network::{Network, Reconfigured};

/// How long reading the file may take, and how long the network may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Reads the configuration again. With a text, that takes the place of the file.
pub type Source = Box<dyn Fn(Option<String>) -> Result<Config, String> + Send + Sync>;

/// Changes the level of the log.
pub type SetLogLevel = Box<dyn Fn(&LogLevel) + Send + Sync>;

/// The parts of a running agent that can change.
pub(super) struct Changing {
    pub(super) policy: Arc<ArcSwap<Policy>>,
    pub(super) peer_id: PeerId,
    pub(super) network: Network,
    pub(super) collector: MetricsCollector,
    pub(super) endpoint: Option<EndpointHandle>,
    pub(super) gateway: Option<ChangingGateway>,
}

pub(super) struct ChangingGateway {
    pub(super) fleet: Arc<Fleet>,
    pub(super) scraper: Scraper,
    pub(super) pages: Arc<Pages>,
}

/// Takes over changed configurations. Clones share everything.
#[derive(Clone)]
pub struct Reloader {
    shared: Arc<Shared>,
}

struct Shared {
    parts: Changing,
    source: OnceLock<Arc<Source>>,
    set_log_level: OnceLock<SetLogLevel>,
    /// `gateway.max_scrapes` at the start.
    most_scrapes: u32,
    /// What is in use. Held for a whole reload, so that there is one at a time.
    running: Mutex<Config>,
    state: parking_lot::Mutex<State>,
}

struct State {
    name: String,
    config: ConfigState,
}

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").finish_non_exhaustive()
    }
}

impl Reloader {
    pub(super) fn new(config: &Config, parts: Changing) -> Self {
        let hash = hash(config);
        parts.collector.config_read(hash);
        let config_state = ConfigState {
            hash,
            last_reload_successful: true,
            last_reload_success_seconds: now(),
            restart_needed: Vec::new(),
        };
        let state = State { name: config.node.name.clone(), config: config_state };
        Self {
            shared: Arc::new(Shared {
                parts,
                source: OnceLock::new(),
                set_log_level: OnceLock::new(),
                most_scrapes: config.gateway.max_scrapes,
                running: Mutex::new(config.clone()),
                state: parking_lot::Mutex::new(state),
            }),
        }
    }

    /// Says how to read the configuration again; only the first call counts.
    pub fn set_source(&self, source: Source) {
        let _ = self.shared.source.set(Arc::new(source));
    }

    /// Says how to change the level of the log; only the first call counts. Without this, `log.level` needs a restart.
    pub fn set_log_level(&self, set: SetLogLevel) {
        let _ = self.shared.set_log_level.set(set);
    }

    async fn read(&self, text: Option<String>) -> Result<Config, ReloadError> {
        let source = Arc::clone(self.shared.source.get().ok_or(ReloadError::NoSource)?);
        let read = tokio::task::spawn_blocking(move || {
            let config = source(text)?;
            if let Some(path) = config.metrics.web_config.as_deref().filter(|_| config.metrics.enabled) {
                check_web_config(path).map_err(|error| error.to_string())?;
            }
            Ok(config)
        });
        match tokio::time::timeout(PATIENCE, read).await {
            Ok(Ok(config)) => config.map_err(ReloadError::Invalid),
            // The panic hook has logged it.
            Ok(Err(_)) => Err(ReloadError::Invalid("reading the configuration failed, see the log".into())),
            Err(_) => Err(ReloadError::DiskHangs(PATIENCE)),
        }
    }

    /// Takes over a valid configuration, as far as that is possible without a restart.
    ///
    /// # Errors
    ///
    /// [`ReloadError::NetworkHangs`]
    pub async fn apply(&self, new: &Config) -> Result<Reloaded, ReloadError> {
        self.take_over(new, &mut *self.shared.running.lock().await).await
    }

    async fn take_over(&self, new: &Config, running: &mut Config) -> Result<Reloaded, ReloadError> {
        let parts = &self.shared.parts;
        let merged = merged(running, new, self.shared.set_log_level.get().is_some(), self.shared.most_scrapes);
        let changed = running.differences(&merged);
        let restart_needed = merged.differences(new);
        if !changed.is_empty() {
            // First, so that nothing has changed if the network hangs.
            let turn = tokio::time::timeout(PATIENCE, parts.network.turn()).await;
            turn.map_err(|_| ReloadError::NetworkHangs)?;
            let policy = Arc::new(Policy::new(&merged));
            let old = parts.policy.swap(Arc::clone(&policy));
            let agent = AgentInfo { peer_id: parts.peer_id.to_string(), name: merged.node.name.clone() };
            parts.collector.set_agent(&agent);
            if let Some(endpoint) = &parts.endpoint {
                endpoint.configure(&merged.metrics, &agent, merged.gateway.external_url.clone());
            }
            if let Some(ChangingGateway { fleet, scraper, pages }) = &parts.gateway {
                fleet.configure(&merged.gateway);
                scraper.configure(&merged.gateway);
                pages.configure(merged.gateway.external_url.clone());
            }
            if let Some(set_log_level) = self.shared.set_log_level.get() {
                set_log_level(&merged.log.level);
            }
            let peers = Reconfigured {
                bootstrap: merged.network.bootstrap.clone(),
                allow_peers: merged.network.allow_peers.clone(),
                affected: Some(Box::new(move |peer| policy.differs_for(&old, peer))),
            };
            if tokio::time::timeout(PATIENCE, parts.network.reconfigure(peers)).await.is_err() {
                // It has the command, and carries it out if it ever goes on.
                tracing::error!("the network hangs, and has not taken over the new configuration yet");
            }
        }
        let hash = hash(&merged);
        parts.collector.config_read(hash);
        let mut state = self.shared.state.lock();
        state.name.clone_from(&merged.node.name);
        state.config = ConfigState {
            hash,
            last_reload_successful: true,
            last_reload_success_seconds: now(),
            restart_needed: restart_needed.clone(),
        };
        *running = merged;
        Ok(Reloaded { changed, restart_needed, hash })
    }

    async fn reload_and_log(self, text: Option<String>) -> Result<Reloaded, ReloadError> {
        // Held from the reading on: what was read first must not be taken over last.
        let mut running = self.shared.running.lock().await;
        let result = match self.read(text).await {
            Ok(config) => self.take_over(&config, &mut running).await,
            Err(error) => Err(error),
        };
        match &result {
            Ok(reloaded) if reloaded.restart_needed.is_empty() => tracing::info!("Configuration reloaded: {reloaded}"),
            Ok(reloaded) => tracing::warn!("Configuration reloaded: {reloaded}"),
            Err(error) => {
                tracing::error!("The configuration is not reloaded, the agent goes on with what it has: {error}");
                self.shared.parts.collector.config_rejected();
                self.shared.state.lock().config.last_reload_successful = false;
            }
        }
        result
    }
}

impl Reload for Reloader {
    /// The result is logged. A reload that has begun is completed, whether or not anybody waits for it.
    fn reload(&self, text: Option<String>) -> BoxFuture<'_, Result<Reloaded, ReloadError>> {
        let reloaded = tokio::spawn(self.clone().reload_and_log(text));
        // The panic hook has logged a panic.
        let failed = |_| Err(ReloadError::Invalid("the reload failed, see the log".into()));
        reloaded.map(move |reloaded| reloaded.unwrap_or_else(failed)).boxed()
    }

    fn state(&self) -> ConfigState {
        self.shared.state.lock().config.clone()
    }

    fn name(&self) -> String {
        self.shared.state.lock().name.clone()
    }
}

/// What is in use after a reload: `new` where that can count at once, `running` elsewhere. `most_scrapes` is
/// `gateway.max_scrapes` at the start, for which descriptors are kept.
fn merged(running: &Config, new: &Config, log_level: bool, most_scrapes: u32) -> Config {
    let mut merged = running.clone();
    merged.node.name.clone_from(&new.node.name);
    if log_level {
        merged.log.level.clone_from(&new.log.level);
    }
    merged.metrics.host_names.clone_from(&new.metrics.host_names);
    merged.metrics.open_probes = new.metrics.open_probes;
    merged.network.bootstrap.clone_from(&new.network.bootstrap);
    merged.network.allow_peers.clone_from(&new.network.allow_peers);
    merged.access.clone_from(&new.access);
    merged.expose.clone_from(&new.expose);
    // A gateway that is to be switched off is one until the restart, with what it was told as one.
    if running.gateway.enabled == new.gateway.enabled {
        merged.gateway.clone_from(&new.gateway);
        merged.gateway.max_scrapes = new.gateway.max_scrapes.min(most_scrapes);
    }
    merged
}

/// The hash that `agent_config_hash` shows: 48 bits, which a sample can hold. Passwords are not part of it.
fn hash(config: &Config) -> u64 {
    xxh3_64(&serde_json::to_vec(config).unwrap_or_default()) >> 16
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics;

    #[test]
    fn what_is_in_use_is_the_new_configuration_where_that_needs_no_restart() {
        let running = Config::default();
        let yaml = "node: {name: new, data_dir: /new}\nlog: {level: warn, format: json}\nmetrics: {port: 1, open_probes: true}\n\
                    network: {mdns: true, allow_peers: []}\naccess: [{peer: '*', allow: [get]}]\n\
                    storage: {redis: {urls: ['redis://:new@127.0.0.1']}}\ngateway: {enabled: true}\n";
        let new = if metrics::BUILT_IN { yaml.to_owned() } else { yaml.replace("enabled: true", "") };
        let new = Config::from_yaml("new", &new).unwrap();
        let merged = merged(&running, &new, true, 512);
        let changed = ["access", "log.level", "metrics.open_probes", "network.allow_peers", "node.name"];
        assert_eq!(running.differences(&merged), changed);
        let mut waiting = vec![
            "gateway.enabled",
            "log.format",
            "metrics.port",
            "network.mdns",
            "node.data_dir",
            "storage.redis.urls",
        ];
        waiting.retain(|key| metrics::BUILT_IN || *key != "gateway.enabled");
        assert_eq!(merged.differences(&new), waiting);
        assert_eq!(super::merged(&merged, &new, true, 512), merged, "the second time, nothing changes");
        assert!(hash(&merged) != hash(&running) && hash(&merged) < 1 << 48);
        // Only the password differs.
        let other = Config::from_yaml("other", "storage: {redis: {urls: ['redis://:other@127.0.0.1']}}").unwrap();
        assert!(new.differences(&other).contains(&"storage.redis.urls".to_owned()));
    }
}

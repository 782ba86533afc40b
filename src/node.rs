//! The composition root: the only file that knows everything. [`Node::bind`] opens everything that can fail,
//! [`Node::serve`] runs until it is told to stop and then stops in order.
//!
//! Nothing here is global: two nodes in one process share no metric, no store and no socket.

mod handler;
mod parts;
mod pulse;
mod reload;

use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};
use tokio::sync::watch;

pub use self::handler::{Handler, Policy, ScrapeSources};
use self::parts::Parts;
use self::pulse::{Listening, Pulse};
use self::reload::{Changing, ChangingGateway};
pub use self::reload::{Reloader, SetLogLevel, Source};
use crate::config::{self, Config};
use crate::control::{self, ControlServer};
use crate::gateway::{self, Fleet, Pages, Scraper};
use crate::identity;
use crate::metrics::{
    self, AgentInfo, EndpointOptions, Exposer, GatewayMetrics, GuestPages, Health, MetricsCollector, MetricsServer,
    MissingLines, Registry, UrlReader, WebAccess, WebConfigError, WebConfigSource,
};
use crate::network::{self, Driver, Network};
use crate::storage::{self, Storage};

/// How long running requests may take to finish while stopping.
pub const DRAIN: Duration = Duration::from_secs(10);

/// The least time that peers' requests get, even if local callers have used up [`DRAIN`]. Also the limit for a network
/// or a disk that hangs.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// How many metrics pages are made for peers at once.
const PEER_EXPOSITIONS: usize = 4;

/// How many metrics pages are made for the control socket at once.
const CONTROL_EXPOSITIONS: usize = 2;

/// How long [`Node::bind`] waits for the store before it goes on without it.
const OPENING: Duration = Duration::from_millis(100);

/// How long the store may take to close.
const CLOSE: Duration = Duration::from_secs(5);

/// Why the agent could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory cannot be created or used.
    #[error("cannot use the data directory {} (node.data_dir): {source}", .path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another agent uses the directory.
    #[error("another agent is running on the data directory {}; stop it, or give this one its own node.data_dir (--data-dir)", .0.display())]
    InUse(PathBuf),
    /// The key cannot be used.
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    /// The store cannot be opened.
    #[error(transparent)]
    Storage(#[from] storage::OpenError),
    /// The network cannot be started.
    #[error(transparent)]
    Network(#[from] network::NetworkError),
    /// A part of the running agent ended unexpectedly, which is a bug.
    #[error("{0} of this agent failed unexpectedly, which is a bug; please report it with the log")]
    Died(&'static str),
    /// The web configuration cannot be used.
    #[error(transparent)]
    WebConfig(#[from] WebConfigError),
    /// The control socket cannot be opened.
    #[error(transparent)]
    Control(#[from] control::ControlError),
}

/// An agent whose listeners are open.
#[derive(Debug)]
pub struct Node {
    peer_id: PeerId,
    storage: Storage,
    network: Network,
    driver: Driver,
    reloader: Reloader,
    control: ControlServer,
    endpoint: Option<MetricsServer>,
    /// The gateway's peers, if this agent is a gateway.
    fleet: Option<Arc<Fleet>>,
    health: Health,
    parts: Parts,
    pulse: Pulse,
    /// Held while the agent lives: keeps the thread running that notices when the runtime hangs.
    listening: Option<Listening>,
    /// Held while the agent lives: only one agent may use the data directory.
    lock: File,
}

const NETWORK: &str = "the network";
const CONTROL: &str = "the control socket";

impl Node {
    /// Loads or creates the identity, begins to open the store, and opens the listeners, the endpoint and the control
    /// socket, in this order. Logs the PeerId, the listeners, the store and the endpoint. `missing` counts the lines
    /// that the log of this process drops, for the metrics.
    ///
    /// # Errors
    ///
    /// If any of them cannot be opened, except for the endpoint, which is tried again later, and a store that takes
    /// long to open: if that turns out to be unusable, [`serve`](Self::serve) returns the error.
    pub async fn bind(config: &Config, missing: &MissingLines) -> Result<Self, NodeError> {
        Self::bind_with(config, missing, Arc::new(Registry::new(config.metrics.native_histograms))).await
    }

    /// Like [`bind`](Self::bind), with the caller's own families in `registry`, which are shown together with the
    /// agent's. If names collide, the
    /// caller's instruments are shown before the agent's, and those before foreign registries. Families can still be added
    /// while the agent runs.
    ///
    /// # Errors
    ///
    /// Those of [`bind`](Self::bind).
    pub async fn bind_with(
        config: &Config,
        missing: &MissingLines,
        registry: Arc<Registry>,
    ) -> Result<Self, NodeError> {
        let started = Instant::now();
        let data_dir = &config.node.data_dir;
        // Checked before anything is created there, although the socket itself comes last.
        control::socket_path(data_dir)?;
        prepare(data_dir).map_err(|source| NodeError::DataDir { path: data_dir.clone(), source })?;
        let lock = lock(data_dir)?;
        let keypair = identity::load_or_create(data_dir)?;
        let peer_id = keypair.public().to_peer_id();
        tracing::info!(name = %config.node.name, "PeerId {peer_id}");

        // Early, so that a mistake in it is found before anything is opened.
        let source = config.metrics.web_config.clone().filter(|_| config.metrics.enabled);
        let web = source.map(|path| WebAccess::open(web_config_source(path), &registry)).transpose()?;

        let health = Health::default();
        let mut parts = Parts::default();
        let pulse = Pulse::default();
        let listening = pulse.listen(health.clone()).inspect_err(|error| {
            tracing::warn!("cannot start a thread to watch the runtime: {error}; a hang will not be noticed");
        });
        parts.run("the heartbeat of the runtime", pulse.clone().beat_runtime());
        let agent = AgentInfo { peer_id: peer_id.to_string(), name: config.node.name.clone() };
        let collector = MetricsCollector::new(&registry, &agent);
        metrics::register_scrape_time(&registry, &health, missing);

        let default_store = data_dir.join("store.redb");
        // In the background: a store that takes long to open must not hold up the rest.
        let storage = Storage::start(&config.storage, default_store, collector.clone(), health.clone()).await?;
        let gateway_metrics = config.gateway.enabled.then(|| GatewayMetrics::new(&registry));
        let fleet = gateway_metrics
            .as_ref()
            .map(|metrics| Arc::new(Fleet::open(&config.gateway, peer_id, metrics.clone(), data_dir)));
        // Separate from the endpoint's, so that peers take no place from local scrapers.
        let exposer = Exposer::new(Arc::clone(&registry), collector.clone(), PEER_EXPOSITIONS);
        let sources = ScrapeSources::new(exposer, fleet.clone());
        let handler = Handler::new(Policy::new(config), storage.clone(), collector.clone(), sources);
        let policy = handler.policy();
        let max_payload = config.storage.max_key_size + config.storage.max_value_size;
        let clients = if config.gateway.enabled { 3 * config.gateway.max_scrapes } else { 0 };
        let beside_peers = config.network.beside_peers.saturating_add(clients);
        let (network, driver) = Network::bind(
            &network::Config { beside_peers, ..config.network.clone() },
            keypair,
            max_payload,
            Arc::new(handler),
            collector.clone(),
            &registry,
            health.clone(),
        )
        .await?;
        log_listeners(&network.listen_addresses(), peer_id);
        tracing::info!("Store {}", storage.describe());

        let scraper = fleet
            .clone()
            .zip(gateway_metrics)
            .map(|(fleet, metrics)| Scraper::new(&config.gateway, network.clone(), fleet, metrics));
        let pages = scraper.clone().map(|scraper| {
            let address = SocketAddr::new(config.metrics.address.first(), config.metrics.port);
            Arc::new(Pages::new(scraper, address.to_string(), config.gateway.external_url.clone()))
        });
        let endpoint = if config.metrics.enabled {
            let registry = Arc::clone(&registry);
            warn_if_open(config, web.as_ref());
            Some(MetricsServer::start(
                &config.metrics,
                &agent,
                registry,
                collector.clone(),
                health.clone(),
                EndpointOptions {
                    guest: pages.clone().map(|pages| pages as Arc<dyn GuestPages>),
                    web,
                    external_url: config.gateway.external_url.clone(),
                },
            ))
        } else {
            tracing::info!("Metrics endpoint disabled");
            None
        };
        if let Some(url) = endpoint.as_ref().and_then(MetricsServer::url) {
            tracing::info!("Metrics at {url}");
            if config.gateway.enabled {
                let base = url.strip_suffix(config.metrics.path.as_str()).unwrap_or(&url);
                tracing::info!("Gateway: targets for Prometheus at {base}/sd");
            }
        }
        let gateway = fleet.clone().zip(scraper.clone()).zip(pages);
        let reloader = Reloader::new(
            config,
            Changing {
                policy,
                peer_id,
                network: network.clone(),
                collector: collector.clone(),
                endpoint: endpoint.as_ref().map(MetricsServer::handle),
                gateway: gateway.map(|((fleet, scraper), pages)| ChangingGateway { fleet, scraper, pages }),
            },
        );
        let api = control::Api {
            peer_id,
            reloader: Arc::new(reloader.clone()),
            started,
            network: network.clone(),
            storage: storage.clone(),
            health: health.clone(),
            exposer: Exposer::new(registry, collector, CONTROL_EXPOSITIONS),
            gateway: scraper,
            metrics_url: endpoint.as_ref().map_or_else(UrlReader::default, MetricsServer::url_reader),
        };
        let control = ControlServer::bind(data_dir, api)?;
        // By now most stores are open, or are known to be unusable.
        if let Ok(opened) = tokio::time::timeout(OPENING, storage.opened()).await {
            opened?;
        }
        Ok(Self {
            peer_id,
            storage,
            network,
            driver,
            reloader,
            control,
            endpoint,
            fleet,
            health,
            parts,
            pulse,
            listening: listening.ok(),
            lock,
        })
    }

    /// The PeerId of this agent.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// The addresses on which it listens for peers.
    pub fn listen_addresses(&self) -> Vec<Multiaddr> {
        self.network.listen_addresses()
    }

    /// The URL of the metrics page; `None` if the endpoint is off or could not listen yet.
    pub fn metrics_url(&self) -> Option<String> {
        self.endpoint.as_ref().and_then(MetricsServer::url)
    }

    /// Takes over a changed configuration.
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// A handle to its network.
    pub fn network(&self) -> Network {
        self.network.clone()
    }

    /// A handle to its store.
    pub fn storage(&self) -> Storage {
        self.storage.clone()
    }

    /// The readiness of its components.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Serves until `stop` completes. Then it accepts nothing new, finishes what is in flight within [`DRAIN`], closes
    /// the store and returns. The endpoint is closed last, so that the shutdown can be observed.
    ///
    /// # Errors
    ///
    /// [`NodeError::Died`] if a part of the agent ended unexpectedly, and [`NodeError::Storage`] if the store cannot be
    /// opened. The rest has been stopped in order.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
        let Self { storage, network, driver, control, endpoint, fleet, mut parts, pulse, listening, lock, .. } = self;
        let (stopping, stopped) = watch::channel(false);
        parts.run(NETWORK, driver.run());
        let turning = network.clone();
        parts.run(
            "the heartbeat of the network",
            pulse.beat_network(async move || turning.turn().await, stopped.clone()),
        );
        if let Some(fleet) = &fleet {
            parts.run("the clock of the gateway", gateway::keep(Arc::clone(fleet)));
        }
        parts.run(CONTROL, control.run(stopped));
        let ended = tokio::select! {
            () = stop => Ok(()),
            // A restart is better than running on without it and looking healthy.
            name = parts.ended() => Err(NodeError::Died(name)),
            _said = storage.died() => Err(NodeError::Died("the store")),
            error = cannot_open(&storage) => Err(error.into()),
        };
        let deadline = Instant::now() + DRAIN;
        // Local callers first: their requests to peers need the links.
        let _ = stopping.send(true);
        let hangs = tokio::time::timeout(LAST_MOMENT, network.drain()).await.is_err();
        if tokio::time::timeout(DRAIN, parts.end_of(CONTROL)).await.is_err() {
            tracing::warn!("stopping although clients of the control socket are still waiting");
        }
        // Peers' requests have been draining in the meantime; any that are left still get `LAST_MOMENT`.
        let left = deadline.saturating_duration_since(Instant::now());
        let grace = if hangs { Duration::ZERO } else { left.max(LAST_MOMENT) };
        let network_ends = async {
            network.shutdown(grace).await;
            parts.end_of(NETWORK).await;
        };
        if tokio::time::timeout(grace + LAST_MOMENT, network_ends).await.is_err() {
            tracing::warn!("stopping although the network hangs");
        }
        // Nobody waits for an acknowledgement any more, so the stop need not wait for a disk that hangs.
        if let Some(fleet) = fleet {
            // The panic hook has logged any panic in it.
            let saving = tokio::task::spawn_blocking(move || fleet.save());
            let _hangs = tokio::time::timeout(LAST_MOMENT, saving).await;
        }
        if tokio::time::timeout(CLOSE, storage.close()).await.is_err() {
            tracing::warn!("the store did not close within {CLOSE:?}; exiting anyway");
        }
        if let Some(endpoint) = endpoint {
            endpoint.shutdown().await;
        }
        drop((listening, parts, lock));
        ended
    }
}

/// Completes only if the store cannot be opened.
async fn cannot_open(storage: &Storage) -> storage::OpenError {
    match storage.opened().await {
        Err(error) => error,
        Ok(()) => std::future::pending().await,
    }
}

fn web_config_source(path: PathBuf) -> WebConfigSource {
    WebConfigSource { path, read: |path| config::load_web_config(path).map_err(|error| error.to_string()) }
}

/// Says what others can read, if they can.
fn warn_if_open(config: &Config, web: Option<&WebAccess>) {
    let Some(address) = config.metrics.address.iter().find(|address| !address.is_loopback()) else { return };
    if web.is_some_and(|web| web.has_users() || web.checks_certificates()) {
        return;
    }
    let what = match config.gateway.enabled {
        true => "the metrics, the list of peers with their addresses, and the peers' pages",
        false => "the metrics",
    };
    tracing::warn!(
        "Anyone who can reach {} can read {what}: metrics.web_config has no users and requires no client certificates",
        SocketAddr::new(*address, config.metrics.port)
    );
}

fn log_listeners(addresses: &[Multiaddr], peer_id: PeerId) {
    if addresses.is_empty() {
        tracing::info!("Not listening for peers (network.listen is empty): this agent only dials");
        return;
    }
    let addresses: Vec<_> = addresses.iter().map(|address| format!("{address}/p2p/{peer_id}")).collect();
    tracing::info!("Listening for peers on {}", addresses.join(", "));
}

/// Makes sure that no other agent uses the directory: two would share one identity and one socket. The system releases
/// the lock when the process ends, however it ends.
fn lock(data_dir: &Path) -> Result<File, NodeError> {
    let path = data_dir.join("agent.lock");
    let error = |source| NodeError::DataDir { path: data_dir.to_owned(), source };
    let file = File::options().create(true).write(true).truncate(false).mode(0o600).open(path).map_err(error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(NodeError::InUse(data_dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(error(source)),
    }
}

/// Creates the data directory, for its owner only. An existing one keeps its mode.
fn prepare(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(io::Error::new(io::ErrorKind::NotADirectory, "it is not a directory")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            // The umask may have taken bits away from the owner; the agent needs them.
            std::fs::set_permissions(path, Permissions::from_mode(0o700))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::Node;

    /// A program that embeds an agent spawns it as a task.
    #[test]
    fn an_agent_can_be_spawned() {
        fn assert_send<T: Send>(_: impl FnOnce(Node) -> T) {}
        assert_send(|node| node.serve(std::future::pending()));
    }
}

//! The control socket: HTTP and JSON on a Unix socket in the data directory, for the short commands
//! of the command line and for `curl --unix-socket`. Who may open the socket's file may do everything
//! that the operator may.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /v1/status` | [`Status`] |
//! | `GET /v1/peers` | a list of [`Peer`] |
//! | `GET /v1/metrics` | the exposition, in the format that `Accept` asks for |
//! | `GET /v1/metrics?peer=PEER_ID` | on a gateway, a peer's; with `&exposed=NAME`, that of an exporter behind it |
//! | `GET /v1/keys/KEY` | the value, byte for byte |
//! | `PUT /v1/keys/KEY` | 204 once it is stored |
//! | `DELETE /v1/keys/KEY` | [`Deleted`] |
//!
//! `KEY` is percent-encoded. `?peer=PEER_ID` asks that peer instead of this agent's own store. Every
//! failure is a [`Failure`] with a fitting status.

mod routes;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::metrics::{AgentInfo, Health, Registry, UrlReader};
use crate::network::{Direction, Network};
use crate::storage::Storage;

/// The name of the socket in the data directory.
pub const SOCKET_NAME: &str = "control.sock";

/// Connections at once. The short commands use one each.
const MAX_CONNECTIONS: usize = 64;

/// How long a client may take to say what it wants.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause after a failed accept: out of descriptors, mostly, which only time can heal.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What `sockaddr_un` has room for, less its closing zero (unix(7)).
const MAX_PATH: usize = 107;

/// Why the control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system allows no socket path of this length.
    #[error(
        "the control socket's path {} has {} bytes, and the system allows {MAX_PATH}; choose a shorter node.data_dir",
        .0.display(),
        .0.as_os_str().len()
    )]
    PathTooLong(PathBuf),
    /// The socket cannot be made.
    #[error("cannot open the control socket {}: {source}", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Where the control socket of a data directory is.
///
/// # Errors
///
/// When the system allows no socket path of that length.
pub fn socket_path(data_dir: &Path) -> Result<PathBuf, Error> {
    let path = data_dir.join(SOCKET_NAME);
    if path.as_os_str().len() > MAX_PATH { Err(Error::PathTooLong(path)) } else { Ok(path) }
}

/// What the API works on.
#[derive(Debug)]
pub struct Api {
    /// Who the agent is.
    pub agent: AgentInfo,
    /// When it started.
    pub started: Instant,
    /// Its network.
    pub network: Network,
    /// Its store.
    pub storage: Storage,
    /// What is ready.
    pub health: Health,
    /// Its metrics.
    pub registry: Arc<Registry>,
    /// Its scraper of peers, when it is a gateway.
    #[cfg(feature = "metrics-prometheus")]
    pub gateway: Option<crate::gateway::Scraper>,
    /// Where its endpoint is.
    pub metrics_url: UrlReader,
}

/// The agent at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its PeerId in base58.
    pub peer_id: String,
    /// Its configured name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The commit that it was built from.
    pub revision: String,
    /// How long it has been running, in seconds.
    pub uptime_seconds: u64,
    /// Where it listens for peers, each with its PeerId.
    pub listen: Vec<String>,
    /// Its store, without secrets.
    pub store: String,
    /// Its metrics page; `None` when the endpoint is off or cannot listen.
    pub metrics: Option<String>,
    /// How many peers are connected.
    pub peers_connected: usize,
    /// Whether all components are ready.
    pub ready: bool,
    /// Each component.
    pub components: Vec<ComponentStatus>,
}

/// One component of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentStatus {
    /// `storage`, `network` or `metrics`.
    pub component: String,
    /// Whether it is ready.
    pub ready: bool,
    /// Why it is not.
    pub problem: Option<String>,
}

/// A peer: one that is connected or, on a gateway, one that it offers to Prometheus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its PeerId in base58.
    pub peer_id: String,
    /// The address of its newest connection; `None` when it never had one.
    pub address: Option<String>,
    /// Who opened that connection.
    pub direction: Option<Direction>,
    /// How many connections there are.
    pub connections: usize,
    /// For how long it has been connected, in seconds.
    pub connected_seconds: u64,
    /// The software that it says it runs.
    pub agent: Option<String>,
    /// Whether requests can be sent to it.
    pub link: bool,
    /// What the gateway knows of it; `None` when this agent is no gateway.
    pub gateway: Option<GatewayPeer>,
}

/// What a gateway knows of a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatewayPeer {
    /// What it calls itself, cleaned and cut.
    pub name: Option<String>,
    /// `connected`, `refusing`, `departed` or `waiting`, as the label `state` of `gateway_peers`; `no target` for one
    /// that the gateway does not offer.
    pub state: String,
    /// Why it cannot be scraped now.
    pub problem: Option<String>,
    /// The exporters behind it.
    pub exposed: Vec<String>,
    /// For how long it has been away, in seconds.
    pub departed_seconds: Option<u64>,
    /// Why it left, as far as this agent can tell.
    pub departed_because: Option<String>,
    /// What became of the last scrape of it.
    pub last_scrape: Option<Scrape>,
}

/// What became of a scrape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scrape {
    /// How long ago it ended, in seconds.
    pub seconds_ago: f64,
    /// How long it took, in seconds.
    pub duration_seconds: f64,
    /// The size of the page as it crossed the network.
    pub body_bytes: usize,
    /// As the label `outcome` of `gateway_scrapes_total`.
    pub outcome: String,
    /// Why it failed.
    pub problem: Option<String>,
}

/// The answer to a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Whether there was a value.
    pub deleted: bool,
}

/// The answer when something failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A word for programs: `not_found`, `bad_request`, `refused`, `too_large`, `busy`, `timeout`,
    /// `unreachable`, `unavailable`, `disk_full`, `storage`, `link_lost`, `peer`, `no_metrics`, `no_gateway`, `scrape`.
    pub code: String,
    /// A sentence for people.
    pub error: String,
}

/// The open socket.
#[derive(Debug)]
pub struct ControlServer {
    listener: UnixListener,
    path: PathBuf,
    api: Arc<Api>,
}

impl ControlServer {
    /// Opens the socket in `data_dir`, for its owner only. A socket that is there already is an earlier
    /// run's: the caller holds the lock on the directory.
    ///
    /// # Errors
    ///
    /// When the path is too long or the socket cannot be made.
    pub fn bind(data_dir: &Path, api: Api) -> Result<Self, Error> {
        let path = socket_path(data_dir)?;
        // Made under another name and moved when its mode is right: at no time can others open it.
        let draft = data_dir.join("control.new");
        let bind = || {
            match std::fs::remove_file(&draft) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&draft)?;
            std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600))?;
            std::fs::rename(&draft, &path)?;
            Ok(listener)
        };
        match bind() {
            Ok(listener) => Ok(Self { listener, path, api: Arc::new(api) }),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    /// Serves until `stop` becomes true; then lets the requests under way finish.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = stopped(&mut stop) => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                accepted = self.listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) => drop(connections.spawn(serve(stream, Arc::clone(&self.api), stop.clone()))),
                    Err(error) => {
                        tracing::warn!(%error, "the control socket cannot accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        // Gone before the requests are: who comes now is told that no agent is running.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the control socket");
        }
        drop(self.listener);
        while connections.join_next().await.is_some() {}
    }
}

/// Also when the sender is gone: then nobody else will say so.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|&stop| stop).await;
}

async fn serve(stream: tokio::net::UnixStream, api: Arc<Api>, mut stop: watch::Receiver<bool>) {
    let service = service_fn(move |request| {
        let api = Arc::clone(&api);
        async move { Ok::<_, std::convert::Infallible>(api.answer(request).await) }
    });
    // One request a connection: a short command has no second one.
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        biased; // what has arrived is read before the stop is looked at
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            // Ends at once for a client that has said nothing yet: a stop need not wait for it.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a client of the control socket went away");
    }
}

//! The control socket: HTTP with JSON on a Unix socket in the data directory, for the commands of the command line
//! and for `curl --unix-socket`. It serves the agent's own user and root, who may do everything, and nobody else.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /v1/status` | [`Status`] |
//! | `GET /v1/peers` | a list of [`Peer`] |
//! | `GET /v1/metrics` | the agent's metrics page, in the format that `Accept` asks for |
//! | `GET /v1/metrics?peer=PEER_ID` | on a gateway, a peer's page; with `&exposed=NAME`, an exporter's behind it |
//! | `GET /v1/keys/KEY` | the value, byte for byte |
//! | `PUT /v1/keys/KEY` | 204 once it is stored |
//! | `DELETE /v1/keys/KEY` | [`Deleted`] |
//!
//! `KEY` is percent-encoded. `?peer=PEER_ID` sends the request to that peer instead of this agent's own store.
//! Every failure is an [`ErrorResponse`] with a matching status.

mod reload;
mod routes;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use libp2p::PeerId;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

pub use self::reload::{ConfigState, Reload, ReloadError, Reloaded};
use crate::files;
use crate::metrics::{Exposer, Health, Seldom, UrlReader};
use crate::network::{Direction, Network, PeerContact};
use crate::storage::Storage;

/// The name of the socket in the data directory.
pub const SOCKET_NAME: &str = "control.sock";

/// How many connections are served at once. Each command uses one.
const MAX_CONNECTIONS: usize = 64;

/// How long a client may take to send the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause after a failed accept: mostly no descriptor is left, and only waiting helps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many connections the kernel queues until they are accepted.
const BACKLOG: i32 = 128;

/// How often to check that the socket is still at its path.
const LOOK: Duration = Duration::from_secs(1);

/// How long the removal of the socket may take while stopping: the disk may hang.
const REMOVAL: Duration = Duration::from_secs(1);

/// The longest path, in bytes, that fits in `sockaddr_un` before its terminating zero (unix(7)).
const MAX_PATH: usize = 107;

/// Why the control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The path is longer than the system allows for a socket.
    #[error(
        "the control socket's path {} is {} bytes long, but the system allows {MAX_PATH}; choose a shorter node.data_dir",
        .0.display(),
        .0.as_os_str().len()
    )]
    PathTooLong(PathBuf),
    /// The socket cannot be created.
    #[error("cannot open the control socket {}: {source}", .path.display())]
    Io {
        /// The path of the socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// The path of the control socket in a data directory.
///
/// # Errors
///
/// If the path is longer than the system allows.
pub fn socket_path(data_dir: &Path) -> Result<PathBuf, ControlError> {
    let path = data_dir.join(SOCKET_NAME);
    if path.as_os_str().len() > MAX_PATH { Err(ControlError::PathTooLong(path)) } else { Ok(path) }
}

/// What the API reports on and works with.
#[derive(Debug)]
pub struct Api {
    /// The agent's PeerId.
    pub peer_id: PeerId,
    /// Reads the configuration again, and knows the agent's name.
    pub reloader: Arc<dyn Reload>,
    /// When it started.
    pub started: Instant,
    /// Its network.
    pub network: Network,
    /// Its store.
    pub storage: Storage,
    /// The readiness of its components.
    pub health: Health,
    /// Makes its metrics page for the control socket only, so that no scraper loses its place to a command.
    pub exposer: Exposer,
    /// Scrapes peers, if this agent is a gateway.
    pub gateway: Option<crate::gateway::Scraper>,
    /// The URL of its metrics page.
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
    /// The addresses on which it listens for peers, each with its PeerId.
    pub listen: Vec<String>,
    /// A description of its store, without secrets.
    pub store: String,
    /// The URL of its metrics page; `None` if the endpoint is off or cannot listen.
    pub metrics: Option<String>,
    /// Why the web configuration could not be read the last time; the endpoint uses what it read before.
    pub web_config_problem: Option<String>,
    /// The configuration in use.
    pub config: ConfigState,
    /// How it stands with the peers that the agent stays connected to.
    pub contacts: Vec<ContactReport>,
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
    /// `storage`, `network`, `metrics` or `runtime`.
    pub component: String,
    /// Whether it is ready.
    pub ready: bool,
    /// Why it is not ready.
    pub problem: Option<String>,
}

/// A peer that is connected or, on a gateway, that is offered to Prometheus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its PeerId in base58.
    pub peer_id: String,
    /// The address of its newest connection; `None` if it has not connected since the agent started.
    pub address: Option<String>,
    /// Which side opened that connection.
    pub direction: Option<Direction>,
    /// How many connections it has.
    pub connections: usize,
    /// How long it has been connected, in seconds.
    pub connected_seconds: u64,
    /// The software that it claims to run.
    pub agent: Option<String>,
    /// Whether requests can be sent to it.
    pub link: bool,
    /// What the gateway knows about it; `None` if this agent is not a gateway.
    pub gateway: Option<GatewayPeer>,
    /// How it stands with it, if the agent stays connected to it.
    pub contact: Option<ContactReport>,
}

/// How it stands with a peer that the agent stays connected to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContactReport {
    /// Its PeerId in base58.
    pub peer_id: String,
    /// The state, as in the label `state` of `agent_bootstrap_peers`.
    pub state: String,
    /// The addresses that are dialed.
    pub addresses: Vec<String>,
    /// What happened when it was last tried; `None` while it has a link.
    pub problem: Option<String>,
    /// What the operator can do about that.
    pub advice: Option<String>,
    /// For how long that has been so, in seconds.
    pub problem_seconds: Option<u64>,
    /// How long until the next attempt, in seconds; `None` while it is connected or being dialed.
    pub next_dial_seconds: Option<u64>,
}

impl From<PeerContact> for ContactReport {
    fn from(contact: PeerContact) -> Self {
        let PeerContact { peer, addresses, state, problem, next_dial, .. } = contact;
        Self {
            peer_id: peer.to_string(),
            state: state.to_string(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            advice: problem.as_ref().map(|problem| problem.reason.advice().to_owned()),
            problem_seconds: problem.as_ref().map(|problem| problem.since.elapsed().as_secs()),
            problem: problem.map(|problem| problem.text),
            next_dial_seconds: next_dial.map(|left| left.as_secs()),
        }
    }
}

/// What a gateway knows about a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatewayPeer {
    /// The name that it gives itself, sanitized and truncated.
    pub name: Option<String>,
    /// `connected`, `refusing`, `departed` or `waiting`, as in the label `state` of `gateway_peers`; `no target` for a
    /// peer that is in none of these states.
    pub state: String,
    /// Why it cannot be scraped now.
    pub problem: Option<String>,
    /// The names of the exporters behind it.
    pub exposed: Vec<String>,
    /// How long it has been away, in seconds.
    pub departed_seconds: Option<u64>,
    /// Why it left, as far as this agent can tell.
    pub departed_because: Option<String>,
    /// The result of its last scrape.
    pub last_scrape: Option<Scrape>,
}

/// The result of a scrape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scrape {
    /// How long ago it ended, in seconds.
    pub seconds_ago: f64,
    /// How long it took, in seconds.
    pub duration_seconds: f64,
    /// The size of the page as it crossed the network, in bytes.
    pub body_bytes: usize,
    /// As in the label `outcome` of `gateway_scrapes_total`.
    pub outcome: String,
    /// Why it failed.
    pub problem: Option<String>,
}

/// The answer to a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Whether the key had a value.
    pub deleted: bool,
}

/// The answer to a request that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorResponse {
    /// A code for programs: `not_found`, `bad_request`, `refused`, `too_large`, `busy`, `timeout`, `unreachable`,
    /// `unavailable`, `disk_full`, `damaged`, `storage`, `metrics`, `link_lost`, `peer`, `no_metrics`, `no_gateway` or
    /// `scrape`.
    pub code: String,
    /// A sentence for people.
    pub error: String,
}

/// The open socket.
#[derive(Debug)]
pub struct ControlServer {
    socket: Socket,
    path: PathBuf,
    api: Arc<Api>,
}

/// A listening socket, with the device and inode numbers of its file.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    file: (u64, u64),
}

impl ControlServer {
    /// Opens the socket in `data_dir`, for its owner only. An existing socket was left behind by an earlier run and is
    /// replaced: the caller holds the lock on the directory.
    ///
    /// # Errors
    ///
    /// If the path is too long or the socket cannot be created.
    pub fn bind(data_dir: &Path, api: Api) -> Result<Self, ControlError> {
        let path = socket_path(data_dir)?;
        match Socket::bind(&path) {
            Ok(socket) => Ok(Self { socket, path, api: Arc::new(api) }),
            Err(source) => Err(ControlError::Io { path, source }),
        }
    }

    /// Serves until `stop` becomes true, then lets running requests finish. If the socket's file is removed or
    /// replaced, the socket is recreated.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let Self { mut socket, path, api } = self;
        let mut connections = JoinSet::new();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // One at a time, and in the background: the disk may hang.
        let mut looking: JoinSet<io::Result<Option<Socket>>> = JoinSet::new();
        let said = Seldom::default();
        loop {
            tokio::select! {
                () = stopped(&mut stop) => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                _ = looks.tick(), if looking.is_empty() => {
                    let (path, file) = (path.clone(), socket.file);
                    looking.spawn_blocking(move || Socket::replace_missing(&path, file));
                }
                Some(looked) = looking.join_next(), if !looking.is_empty() => match looked {
                    Ok(Ok(None)) | Err(_) => {}
                    Ok(Ok(Some(new))) => {
                        tracing::warn!(path = %path.display(), "The control socket was missing and has been recreated");
                        socket = new;
                    }
                    Ok(Err(error)) => said.at_most_once_a_minute(|| {
                        tracing::warn!(
                            %error,
                            path = %path.display(),
                            "the control socket is missing and cannot be recreated; trying again every second"
                        );
                    }),
                },
                accepted = socket.listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) if !is_ours(&stream) => said.at_most_once_a_minute(|| {
                        tracing::warn!("another user tried to use the control socket");
                    }),
                    Ok((stream, _)) => drop(connections.spawn(serve(stream, Arc::clone(&api), stop.clone()))),
                    Err(error) => {
                        said.at_most_once_a_minute(|| {
                            tracing::warn!(%error, "the control socket cannot accept connections");
                        });
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        // A socket that is being recreated right now has to be removed, too.
        if let Ok(Some(Ok(Ok(Some(new))))) = tokio::time::timeout(REMOVAL, looking.join_next()).await {
            socket = new;
        }
        // Removed before the requests have finished, so that new clients report that no agent is running.
        let Socket { listener, file: own } = socket;
        let removed = tokio::task::spawn_blocking(move || match file_of(&path) {
            Ok(file) if file == own => std::fs::remove_file(&path),
            _ => Ok(()),
        });
        match tokio::time::timeout(REMOVAL, removed).await {
            Ok(Ok(Err(error))) => tracing::warn!(%error, "cannot remove the control socket"),
            Err(_) => tracing::warn!("the control socket was not removed: the disk does not answer"),
            Ok(_) => {}
        }
        // Clients that have connected in the meantime are told at once, and do not wait for those that are served.
        drop(listener);
        while connections.join_next().await.is_some() {}
    }
}

impl Socket {
    /// Listens at `path`, replacing what is there.
    fn bind(path: &Path) -> io::Result<Self> {
        // Created under another name and renamed once it listens. The mode is set before the file exists, so that
        // others can never open it, and the mode of somebody else's file is never changed.
        let draft = files::draft(path)?;
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))?;
        socket.bind(&socket2::SockAddr::unix(&draft)?)?;
        let file = file_of(&draft)?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        std::fs::rename(&draft, path)?;
        Ok(Self { listener: UnixListener::from_std(OwnedFd::from(socket).into())?, file })
    }

    /// Listens again if `path` no longer refers to `file`.
    fn replace_missing(path: &Path, file: (u64, u64)) -> io::Result<Option<Self>> {
        match file_of(path) {
            Ok(found) if found == file => Ok(None),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Self::bind(path).map(Some),
        }
    }
}

/// The device and inode numbers of the file at `path`.
fn file_of(path: &Path) -> io::Result<(u64, u64)> {
    let found = path.symlink_metadata()?;
    Ok((found.dev(), found.ino()))
}

/// Whether the client runs as this user or as root. Any other is rejected, even if it could open the socket.
fn is_ours(stream: &UnixStream) -> bool {
    let user = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == user || peer.uid() == 0)
}

/// Completes when `stop` is true, and also when its sender is gone and can no longer set it.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|&stop| stop).await;
}

async fn serve(stream: UnixStream, api: Arc<Api>, mut stop: watch::Receiver<bool>) {
    let service = service_fn(move |request| {
        let api = Arc::clone(&api);
        async move { Ok::<_, std::convert::Infallible>(api.answer(request).await) }
    });
    // One request per connection: a command sends no second one.
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        biased; // what has arrived is read before the stop is checked
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            // Ends at once if the client has sent nothing yet, so that a stop need not wait for it.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the control socket failed");
    }
}

//! The control socket: HTTP and JSON on a Unix socket in the data directory, for the short commands
//! of the command line and for `curl --unix-socket`. The agent's own user and root may do everything through
//! it, and nobody else anything.
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
//! failure is a [`ErrorResponse`] with a fitting status.

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
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::files;
use crate::metrics::{AgentInfo, Exposer, Health, UrlReader};
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

/// How long the log is silent after it said that something is wrong with the socket.
const SILENCE: Duration = Duration::from_secs(60);

/// How many connections the kernel holds until they are accepted.
const BACKLOG: i32 = 128;

/// How often it is looked whether the socket is still where the commands look for it.
const LOOK: Duration = Duration::from_secs(1);

/// How long the removal at the end may take: the disk may hang.
const REMOVAL: Duration = Duration::from_secs(1);

/// What `sockaddr_un` has room for, less its closing zero (unix(7)).
const MAX_PATH: usize = 107;

/// Why the control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
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
pub fn socket_path(data_dir: &Path) -> Result<PathBuf, ControlError> {
    let path = data_dir.join(SOCKET_NAME);
    if path.as_os_str().len() > MAX_PATH { Err(ControlError::PathTooLong(path)) } else { Ok(path) }
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
    /// What makes its metrics page, for the control socket alone: it takes no place from a scraper.
    pub exposer: Exposer,
    /// Its scraper of peers, when it is a gateway.
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
pub struct ErrorResponse {
    /// A word for programs: `not_found`, `bad_request`, `refused`, `too_large`, `busy`, `timeout`,
    /// `unreachable`, `unavailable`, `disk_full`, `storage`, `metrics`, `link_lost`, `peer`, `no_metrics`, `no_gateway`,
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

/// A socket that listens, and which file is its name.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    file: (u64, u64),
}

impl ControlServer {
    /// Opens the socket in `data_dir`, for its owner only. A socket that is there already is an earlier
    /// run's: the caller holds the lock on the directory.
    ///
    /// # Errors
    ///
    /// When the path is too long or the socket cannot be made.
    pub fn bind(data_dir: &Path, api: Api) -> Result<Self, ControlError> {
        let path = socket_path(data_dir)?;
        match Socket::bind(&path) {
            Ok(socket) => Ok(Self { socket, path, api: Arc::new(api) }),
            Err(source) => Err(ControlError::Io { path, source }),
        }
    }

    /// Serves until `stop` becomes true; then lets the requests under way finish. A socket whose name is gone, or is
    /// another's, is made anew.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let Self { mut socket, path, api } = self;
        let mut connections = JoinSet::new();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // One at a time, and beside everything else: the disk may hang.
        let mut looking: JoinSet<io::Result<Option<Socket>>> = JoinSet::new();
        let mut said = Said::default();
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
                        tracing::warn!(path = %path.display(), "The control socket was gone, and is made anew");
                        socket = new;
                    }
                    Ok(Err(error)) => said.at_most_once_a_minute(|| {
                        tracing::warn!(%error, path = %path.display(), "the control socket is gone, and cannot be made anew");
                    }),
                },
                accepted = socket.listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) if !is_ours(&stream) => said.at_most_once_a_minute(|| {
                        tracing::warn!("another user tried to use the control socket");
                    }),
                    Ok((stream, _)) => drop(connections.spawn(serve(stream, Arc::clone(&api), stop.clone()))),
                    Err(error) => {
                        said.at_most_once_a_minute(|| tracing::warn!(%error, "the control socket cannot accept"));
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        // What is being made anew at this moment is to be removed, too.
        if let Ok(Some(Ok(Ok(Some(new))))) = tokio::time::timeout(REMOVAL, looking.join_next()).await {
            socket = new;
        }
        // Gone before the requests are: who comes now is told that no agent is running.
        let removed = tokio::task::spawn_blocking(move || match file_of(&path) {
            Ok(file) if file == socket.file => std::fs::remove_file(&path),
            _ => Ok(()),
        });
        match tokio::time::timeout(REMOVAL, removed).await {
            Ok(Ok(Err(error))) => tracing::warn!(%error, "cannot remove the control socket"),
            Err(_) => tracing::warn!("the control socket is not removed: the disk does not answer"),
            Ok(_) => {}
        }
        while connections.join_next().await.is_some() {}
    }
}

impl Socket {
    /// Listens at `path`, in the place of what is there.
    fn bind(path: &Path) -> io::Result<Self> {
        // Made under another name and moved when it listens. The mode comes before the name, so that there is no moment
        // at which others may open it, and nothing is changed that somebody else put there.
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

    /// Listens anew when `path` is not the name of `file` any more.
    fn replace_missing(path: &Path, file: (u64, u64)) -> io::Result<Option<Self>> {
        match file_of(path) {
            Ok(found) if found == file => Ok(None),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Self::bind(path).map(Some),
        }
    }
}

/// Which file this is the name of.
fn file_of(path: &Path) -> io::Result<(u64, u64)> {
    let found = path.symlink_metadata()?;
    Ok((found.dev(), found.ino()))
}

/// Whether the other end is this user, or root: whoever got hold of the socket in another way is not let in.
fn is_ours(stream: &UnixStream) -> bool {
    let user = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == user || peer.uid() == 0)
}

/// What the log says of the socket, at most once a minute.
#[derive(Debug, Default)]
struct Said(Option<Instant>);

impl Said {
    fn at_most_once_a_minute(&mut self, say: impl FnOnce()) {
        if self.0.is_none_or(|said| said.elapsed() >= SILENCE) {
            self.0 = Some(Instant::now());
            say();
        }
    }
}

/// Also when the sender is gone: then nobody else will say so.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|&stop| stop).await;
}

async fn serve(stream: UnixStream, api: Arc<Api>, mut stop: watch::Receiver<bool>) {
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

//! The web configuration in use, read again when one of its files has changed.
//!
//! The files are looked at on a thread of their own: a disk that hangs must not hold up the endpoint. A connection
//! waits for that look, but not for long; after that it uses what was read last.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyper::header::{HeaderName, HeaderValue};
use parking_lot::{Condvar, Mutex, RwLock};
use rustls::ServerConfig;
use tokio::sync::watch;

use super::passwords::Passwords;
use super::tls;
use crate::metrics::catalogue::{self as c, Descriptor};
use crate::metrics::instruments::{Counter, Gauge};
use crate::metrics::registry::log_if_refused;
use crate::metrics::web_config::{
    BcryptHash, ClientAuthType, TlsServerConfig, WebConfig, WebConfigError, WebConfigSource,
};
use crate::metrics::{Instrument, Registry, Seldom};

/// How long a connection waits for the look at the files.
const PATIENCE: Duration = Duration::from_secs(1);

/// How old the last look may be for a further request on an open connection.
const FRESH: Duration = Duration::from_secs(1);

/// How long a file that takes TLS or the last user away must have been unchanged: it may be only half written.
const SETTLED: Duration = Duration::from_secs(1);

/// What a web configuration means for connections and requests.
#[derive(Debug, Default)]
pub(super) struct WebState {
    /// If set, new connections speak TLS.
    pub(super) tls: Option<Arc<ServerConfig>>,
    /// Without any, nobody needs a password.
    pub(super) users: BTreeMap<String, BcryptHash>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// Whether clients need a certificate that is checked.
    checks_certificates: bool,
}

impl WebState {
    /// Whether others can read what they cannot read with `before`.
    fn opens(&self, before: &Self) -> bool {
        (self.tls.is_none() && before.tls.is_some()) || (self.users.is_empty() && !before.users.is_empty())
    }

    /// Whether new connections speak TLS in the same way.
    pub(super) fn speaks_like(&self, other: &Self) -> bool {
        match (&self.tls, &other.tls) {
            (Some(mine), Some(theirs)) => Arc::ptr_eq(mine, theirs),
            (None, None) => true,
            _ => false,
        }
    }

    /// Reads the files that `config` names.
    fn new(config: WebConfig) -> Result<Self, String> {
        let WebConfig { tls_server_config, http_server_config, basic_auth_users, .. } = config;
        let checks = |tls: &TlsServerConfig| tls.client_auth_type == ClientAuthType::RequireAndVerifyClientCert;
        Ok(Self {
            checks_certificates: tls_server_config.as_ref().is_some_and(checks),
            tls: tls_server_config.as_ref().map(tls::server_config).transpose()?.map(Arc::new),
            users: basic_auth_users,
            headers: http_server_config.headers,
        })
    }
}

/// Reads the files that a web configuration names, and checks that they can be used.
///
/// # Errors
///
/// What is wrong.
pub fn check_web_config(config: WebConfig) -> Result<(), String> {
    WebState::new(config).map(drop)
}

/// The web configuration of an endpoint: who may read it and how it is encrypted.
#[derive(Debug)]
pub struct WebAccess {
    shared: Arc<Shared>,
    looked: watch::Receiver<Look>,
    pub(super) passwords: Passwords,
    metrics: WebMetrics,
    tls_failed: Seldom,
    hangs: Seldom,
}

#[derive(Debug)]
struct Shared {
    state: RwLock<Arc<WebState>>,
    /// Whether new connections speak TLS, for the endpoint's URL.
    tls: Arc<AtomicBool>,
    /// Why the files could not be read the last time.
    problem: Arc<Mutex<Option<String>>>,
    /// How many looks have been asked for; `None` once nobody can ask any more.
    asked: Mutex<Option<u64>>,
    asking: Condvar,
    /// When the look that is under way began.
    look_began: Mutex<Option<Instant>>,
}

/// The latest look at the files. It answers everybody who asked up to this number.
#[derive(Debug, Clone, Copy)]
struct Look {
    number: u64,
    at: Instant,
}

impl WebAccess {
    /// Reads the configuration, and starts the thread that reads it again when a file changes. Whether that works is
    /// shown by families in `registry`.
    ///
    /// # Errors
    ///
    /// What is wrong with the configuration, or why a thread cannot start.
    pub fn open(source: WebConfigSource, registry: &Registry) -> Result<Self, WebConfigError> {
        let error = |reason| WebConfigError { path: source.path.clone(), reason };
        let metrics = WebMetrics::new(registry);
        let passwords = Passwords::start().map_err(error)?;
        let mut reader = Reader {
            source: source.clone(),
            metrics: metrics.clone(),
            files: Vec::new(),
            seen: Vec::new(),
            problem: None,
            read_at: Instant::now(),
        };
        let state = reader.read().map_err(error)?;
        metrics.read(true);
        let shared = Arc::new(Shared {
            tls: Arc::new(state.tls.is_some().into()),
            problem: Arc::default(),
            state: RwLock::new(Arc::new(state)),
            asked: Mutex::new(Some(0)),
            asking: Condvar::new(),
            look_began: Mutex::new(None),
        });
        let (looks, looked) = watch::channel(Look { number: 0, at: Instant::now() });
        let of_reader = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("web-config".into())
            .spawn(move || reader.run(&of_reader, &looks))
            .map_err(|failure| error(format!("cannot start its thread: {failure}")))?;
        Ok(Self { shared, looked, passwords, metrics, tls_failed: Seldom::default(), hangs: Seldom::default() })
    }

    /// Whether new connections speak TLS.
    pub fn tls(&self) -> bool {
        self.shared.tls.load(Ordering::Relaxed)
    }

    /// The same, for others to read later.
    pub(super) fn tls_reader(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.shared.tls)
    }

    /// Why the files could not be read the last time, for others to read later.
    pub(super) fn problem_reader(&self) -> Arc<Mutex<Option<String>>> {
        Arc::clone(&self.shared.problem)
    }

    /// Whether readers need a password.
    pub fn has_users(&self) -> bool {
        !self.shared.state.read().users.is_empty()
    }

    /// Whether clients need a certificate that is checked.
    pub fn checks_certificates(&self) -> bool {
        self.shared.state.read().checks_certificates
    }

    /// The configuration as it is now: for a new connection.
    pub(super) async fn fresh(&self) -> Arc<WebState> {
        let asked = {
            let mut asked = self.shared.asked.lock();
            let next = asked.unwrap_or_default() + 1;
            *asked = Some(next);
            next
        };
        self.shared.asking.notify_one();
        // A look that takes longer than this is waiting for a disk that hangs.
        let patience = PATIENCE.saturating_sub(self.shared.look_began.lock().map_or(Duration::ZERO, |at| at.elapsed()));
        let mut looked = self.looked.clone();
        let answered = looked.wait_for(|look| look.number >= asked);
        if tokio::time::timeout(patience, answered).await.is_err() {
            self.metrics.read(false);
            *self.shared.problem.lock() = Some("it cannot be read: the disk hangs".into());
            self.hangs.at_most_once_a_minute(|| {
                tracing::error!(
                    "metrics.web_config cannot be read: the disk hangs; the endpoint goes on with what it read before"
                );
            });
        }
        self.state()
    }

    /// The configuration for a further request on an open connection.
    pub(super) async fn recent(&self) -> Arc<WebState> {
        let at = self.looked.borrow().at;
        if at.elapsed() < FRESH { self.state() } else { self.fresh().await }
    }

    /// A connection ended before TLS was established.
    pub(super) fn tls_failed(&self, client: SocketAddr, error: &str) {
        self.metrics.tls_failures.inc(());
        self.tls_failed.at_most_once_a_minute(|| {
            tracing::warn!(
                "TLS could not be established with {client}: {error} (http_tls_handshake_failures_total counts all)"
            );
        });
    }

    fn state(&self) -> Arc<WebState> {
        Arc::clone(&self.shared.state.read())
    }
}

impl Drop for WebAccess {
    fn drop(&mut self) {
        *self.shared.asked.lock() = None;
        self.shared.asking.notify_one();
    }
}

/// What is shown about the web configuration. The families exist only where there is one.
#[derive(Debug, Clone)]
pub(super) struct WebMetrics {
    successful: Gauge<()>,
    success_time: Gauge<()>,
    tls_failures: Counter<()>,
}

impl WebMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            successful: add(registry, &c::WEB_CONFIG_SUCCESSFUL, Gauge::new()),
            success_time: add(registry, &c::WEB_CONFIG_SUCCESS_TIME, Gauge::new()),
            tls_failures: add(registry, &c::TLS_FAILURES, Counter::new()),
        }
    }

    /// The files were read, with or without success.
    fn read(&self, successful: bool) {
        self.successful.set((), successful.into());
        if successful {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.success_time.set((), i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        }
    }
}

fn add<I: Instrument>(registry: &Registry, descriptor: &Descriptor, instrument: I) -> I {
    log_if_refused(registry.register(descriptor, &instrument));
    instrument
}

/// Looks at the files, on its own thread.
struct Reader {
    source: WebConfigSource,
    metrics: WebMetrics,
    /// The files that the configuration names.
    files: Vec<PathBuf>,
    /// The state of the configuration file and of these files before they were last read.
    seen: Vec<Option<Stamp>>,
    /// Why the last reading failed.
    problem: Option<String>,
    /// When that began.
    read_at: Instant,
}

impl Reader {
    fn run(mut self, shared: &Shared, looks: &watch::Sender<Look>) {
        loop {
            let number = {
                let mut asked = shared.asked.lock();
                loop {
                    match *asked {
                        None => return,
                        Some(number) if number > looks.borrow().number => break number,
                        Some(_) => shared.asking.wait(&mut asked),
                    }
                }
            };
            *shared.look_began.lock() = Some(Instant::now());
            // The panic hook has logged it; the next look tries again.
            if catch_unwind(AssertUnwindSafe(|| self.look(shared))).is_err() {
                self.problem = Some("reading it panicked".into());
                self.metrics.read(false);
            }
            shared.problem.lock().clone_from(&self.problem);
            *shared.look_began.lock() = None;
            looks.send_replace(Look { number, at: Instant::now() });
        }
    }

    fn look(&mut self, shared: &Shared) {
        let unchanged = self.stamps() == self.seen;
        if self.problem.is_none() && unchanged {
            // Also after a look that hung.
            return self.metrics.successful.set((), 1);
        }
        // A reading that failed is repeated: the cause may have been the disk and not the files.
        if unchanged && self.read_at.elapsed() < FRESH {
            return;
        }
        match self.read() {
            // Looked at again at the next look.
            Ok(state) if state.opens(&shared.state.read()) && !self.is_settled() => self.seen.clear(),
            Ok(state) => {
                let had_tls = shared.tls.swap(state.tls.is_some(), Ordering::Relaxed);
                let opened = [
                    (had_tls && state.tls.is_none(), "TLS is off now"),
                    (state.users.is_empty() && !shared.state.read().users.is_empty(), "nobody needs a password now"),
                ];
                *shared.state.write() = Arc::new(state);
                self.problem = None;
                self.metrics.read(true);
                let file = self.source.path.display();
                tracing::info!("Read {file} again (metrics.web_config)");
                for (_, what) in opened.iter().filter(|(opened, _)| *opened) {
                    tracing::warn!("{what}: {file} has changed (metrics.web_config)");
                }
            }
            Err(problem) => {
                if self.problem.as_ref() != Some(&problem) {
                    let error = WebConfigError { path: self.source.path.clone(), reason: problem.clone() };
                    tracing::error!("{error}; the endpoint goes on with what it read before");
                    self.problem = Some(problem);
                }
                self.metrics.read(false);
            }
        }
    }

    fn read(&mut self) -> Result<WebState, String> {
        self.read_at = Instant::now();
        // Before the files are read: a change in the meantime is then noticed by the next look.
        let own = stamp(&self.source.path);
        let config = (self.source.read)(&self.source.path)?;
        self.files = config.files().into_iter().map(Path::to_owned).collect();
        self.seen = std::iter::once(own).chain(self.files.iter().map(|file| stamp(file))).collect();
        WebState::new(config)
    }

    fn is_settled(&self) -> bool {
        let modified = fs::metadata(&self.source.path).and_then(|metadata| metadata.modified());
        // A time in the future says nothing.
        modified.ok().and_then(|at| at.elapsed().ok()).is_none_or(|since| since >= SETTLED)
    }

    fn stamps(&self) -> Vec<Option<Stamp>> {
        std::iter::once(&self.source.path).chain(&self.files).map(|file| stamp(file)).collect()
    }
}

/// What tells a file from its next version, however it is replaced. Follows links, as in a mounted Kubernetes secret.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// `None` if the file cannot be looked at.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    static HANGS: Mutex<bool> = Mutex::new(false);
    static GOES_ON: Condvar = Condvar::new();

    fn read(_: &Path) -> Result<WebConfig, String> {
        let mut hangs = HANGS.lock();
        while *hangs {
            GOES_ON.wait(&mut hangs);
        }
        Ok(WebConfig::default())
    }

    /// Reading from a network file system may block for minutes.
    #[tokio::test]
    async fn only_the_first_connection_waits_for_a_disk_that_hangs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.yml");
        fs::write(&path, "{}").unwrap();
        let access = WebAccess::open(WebConfigSource { path: path.clone(), read }, &Registry::default()).unwrap();
        access.fresh().await;
        *HANGS.lock() = true;
        fs::write(&path, "{ }").unwrap();
        let (problem, began) = (access.problem_reader(), Instant::now());
        access.fresh().await;
        assert!(began.elapsed() >= PATIENCE);
        assert_eq!(problem.lock().as_deref(), Some("it cannot be read: the disk hangs"));
        for _ in 0..100 {
            access.fresh().await;
        }
        assert!(began.elapsed() < 2 * PATIENCE, "{:?}", began.elapsed());
        *HANGS.lock() = false;
        GOES_ON.notify_all();
        while problem.lock().is_some() {
            access.fresh().await;
            assert!(began.elapsed() < 20 * PATIENCE, "it never goes on");
        }
    }
}

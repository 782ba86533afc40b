//! The background task that maintains the connection to Redis: it connects, notices a loss, and reconnects.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::backoff::{REFUSED_WAIT, RETRY_CAPS, reconnect_wait};
use super::connection::{Connected, Connection, Connector, Verdict};
use super::failure::{Kind, RedisFailure};
use super::fence::ServerSide;
use crate::metrics::labels::Component;
use crate::metrics::{Health, MetricsCollector};

/// How often an idle connection is probed.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// After a connection that lasted less than this, the first attempt to reconnect waits.
const STABLE_AFTER: Duration = Duration::from_secs(1);
/// During an outage, failed operations are logged at most once per this interval.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// The connection as the operations see it.
#[derive(Clone)]
pub(super) enum Link {
    /// The first attempt to connect is under way.
    Connecting,
    /// Connected; the number distinguishes successive connections.
    Up(u64, Connection),
    /// Not connected, for this reason.
    Down(RedisFailure),
    /// The storage was closed.
    Closed,
}

/// The state shared by the operations and the background task.
pub(super) struct RedisState {
    /// Written by the background task, by operations that find the connection broken, and finally by `close`. Readers
    /// copy what they need and release its lock before they await.
    pub(super) link: watch::Sender<Link>,
    /// Tells the task to probe the connection now, because an operation has failed in a way that makes it suspect.
    pub(super) suspect: Notify,
    /// When Redis last answered an operation on the connection of the background task, in milliseconds since `began`.
    /// Written at most once per millisecond, so that operations do not contend for its cache line.
    heard_at: AtomicU64,
    began: Instant,
    /// The URLs of Redis, without secrets.
    pub(super) address: String,
    /// Why Redis refuses writes although it answers: the error of the last refused write.
    refusing: Mutex<Option<String>>,
    /// Whether Redis refuses writes. Separate from the reason, so that a successful write does not take the lock.
    is_refusing: AtomicBool,
    /// Why a failed write may still take effect after a later one; see [`fence`](super::fence).
    unfenced: Mutex<Option<String>>,
    /// When a failure was last logged in this outage. Never held across an await.
    last_logged: Mutex<Option<Instant>>,
    /// Makes the background task panic once.
    #[cfg(test)]
    panics: AtomicBool,
}

impl RedisState {
    pub(super) fn new(address: String) -> Self {
        Self {
            link: watch::Sender::new(Link::Connecting),
            suspect: Notify::new(),
            heard_at: AtomicU64::new(0),
            began: Instant::now(),
            address,
            refusing: Mutex::default(),
            is_refusing: AtomicBool::new(false),
            unfenced: Mutex::default(),
            last_logged: Mutex::new(None),
            #[cfg(test)]
            panics: AtomicBool::new(false),
        }
    }

    pub(super) fn answered(&self) {
        let now = self.milliseconds(Instant::now());
        if now > self.heard_at.load(Ordering::Relaxed) {
            self.heard_at.store(now, Ordering::Relaxed);
        }
    }

    /// Whether Redis has answered an operation on the background task's connection after the millisecond of `then`.
    pub(super) fn was_heard_since(&self, then: Instant) -> bool {
        self.heard_at.load(Ordering::Relaxed) > self.milliseconds(then)
    }

    fn milliseconds(&self, time: Instant) -> u64 {
        u64::try_from(time.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    /// An operation has found this connection broken.
    pub(super) fn broke(&self, generation: u64, failure: &RedisFailure) {
        self.link.send_if_modified(|link| {
            let is_this = matches!(link, Link::Up(up, _) if *up == generation);
            if is_this {
                *link = Link::Down(failure.clone());
            }
            is_this
        });
    }

    /// A write was refused for a reason that applies to all writes.
    pub(super) fn write_refused(&self, reason: &str) {
        *self.refusing.lock() = Some(reason.to_owned());
        if !self.is_refusing.swap(true, Ordering::Relaxed) {
            self.suspect.notify_one();
        }
    }

    /// A write succeeded, or Redis reports that the next one will.
    pub(super) fn writes_are_taken(&self) {
        if self.is_refusing.load(Ordering::Relaxed) && self.is_refusing.swap(false, Ordering::Relaxed) {
            self.suspect.notify_one();
        }
    }

    fn refusing(&self) -> Option<String> {
        if !self.is_refusing.load(Ordering::Relaxed) {
            return None;
        }
        self.refusing.lock().clone()
    }

    /// See [`fence`](super::fence).
    pub(super) fn unfenced(&self) -> Option<String> {
        self.unfenced.lock().clone()
    }

    fn set_unfenced(&self, reason: Option<String>) {
        let mut current = self.unfenced.lock();
        if let Some(reason) = &reason
            && current.is_none()
        {
            tracing::warn!(
                address = %self.address,
                cause = %reason,
                "Redis does not let the agent close its old connections: a failed put or delete may still take effect \
                 after a later one. Grant its user `+client|info +client|kill`, or connect without a proxy"
            );
        }
        *current = reason;
    }

    /// Logs that the retries did not help: once per outage, and again every [`LOG_INTERVAL`] while it lasts.
    pub(super) fn log_exhausted(&self, failure: &RedisFailure) {
        if self.may_log() {
            tracing::error!(address = %self.address, cause = %failure.message, "Redis connection failed after 3 retries");
        }
    }

    fn log_refused(&self, failure: &RedisFailure) {
        if self.may_log() {
            tracing::error!(address = %self.address, cause = %failure.message, "Redis refused the connection");
        }
    }

    fn may_log(&self) -> bool {
        let mut last = self.last_logged.lock();
        let due = last.is_none_or(|at| at.elapsed() >= LOG_INTERVAL);
        if due {
            *last = Some(Instant::now());
        }
        due
    }

    fn outage_is_over(&self) {
        *self.last_logged.lock() = None;
    }
}

/// State that outlives a connection.
#[derive(Default)]
struct Kept {
    /// The number of connections so far.
    generation: u64,
    /// The last connection that was used, as its server knows it.
    server_side: Option<ServerSide>,
}

/// The background task.
pub(super) struct Supervisor {
    pub(super) connector: Arc<Connector>,
    pub(super) shared: Arc<RedisState>,
    pub(super) metrics: MetricsCollector,
    pub(super) health: Health,
}

impl Supervisor {
    /// Runs until it is aborted. After a panic it starts again, because otherwise the agent would never reconnect.
    pub(super) async fn run(self) {
        let mut kept = Kept::default();
        loop {
            let keep = self.keep(&mut kept);
            let _panic_was_logged = AssertUnwindSafe(keep).catch_unwind().await;
            self.went_down(RedisFailure::new(Kind::Lost, "the connection task has failed and will be restarted"));
            tokio::time::sleep(REFUSED_WAIT).await;
        }
    }

    async fn keep(&self, kept: &mut Kept) {
        let mut attempt = 0;
        loop {
            let Connected { connection, server_side, unfenced } = self.connect(attempt, kept).await;
            self.shared.set_unfenced(unfenced);
            kept.generation += 1;
            kept.server_side = server_side;
            self.came_up(kept.generation, connection.clone());
            let since = Instant::now();
            let failure = tokio::select! {
                failure = self.watch_over(connection) => failure,
                failure = self.found_broken() => failure,
            };
            tracing::warn!(address = %self.shared.address, cause = %failure.message, "Redis connection lost");
            self.went_down(failure);
            attempt = u32::from(since.elapsed() < STABLE_AFTER);
        }
    }

    /// Retries until a connection serves requests.
    async fn connect(&self, first_attempt: u32, kept: &Kept) -> Connected {
        let mut attempt = first_attempt;
        let mut wait = reconnect_wait(attempt);
        loop {
            tokio::time::sleep(wait).await;
            #[cfg(test)]
            assert!(!self.shared.panics.swap(false, Ordering::Relaxed), "the test asked for this panic");
            let failure = match self.connector.connect(kept.server_side.as_ref()).await {
                Ok(connected) => return connected,
                Err(failure) => failure,
            };
            let refused = failure.kind == Kind::Refused;
            if refused {
                self.shared.log_refused(&failure);
            } else if attempt as usize >= RETRY_CAPS.len() {
                self.shared.log_exhausted(&failure);
            }
            self.went_down(failure);
            attempt = attempt.saturating_add(1);
            wait = if refused { REFUSED_WAIT } else { reconnect_wait(attempt) };
        }
    }

    /// Returns when an operation has found the connection broken. A probe might notice that only much later.
    async fn found_broken(&self) -> RedisFailure {
        let mut link = self.shared.link.subscribe();
        loop {
            if let Link::Down(failure) = &*link.borrow_and_update() {
                return failure.clone();
            }
            if link.changed().await.is_err() {
                return RedisFailure::new(Kind::Lost, "the connection is no longer used");
            }
        }
    }

    /// Returns the reason when the connection is no longer usable.
    async fn watch_over(&self, mut connection: Connection) -> RedisFailure {
        let mut degraded = false;
        let mut replicas = None;
        let mut looked = Instant::now();
        loop {
            let asked = tokio::select! {
                () = self.shared.suspect.notified() => true,
                () = tokio::time::sleep(PROBE_INTERVAL) => false,
            };
            // Answers to operations prove that a single server is alive, but only one node of a cluster.
            let heard = self.shared.was_heard_since(looked);
            looked = Instant::now();
            if heard && !asked && !degraded && matches!(connection, Connection::Single(_)) {
                continue;
            }
            let verdict = match connection.probe(self.connector.classifier()).await {
                Verdict::Healthy => self.probe_writes(&mut connection, &mut replicas).await,
                verdict => verdict,
            };
            match verdict {
                Verdict::Healthy => {
                    if std::mem::take(&mut degraded) {
                        self.recovered(&connection);
                    }
                }
                Verdict::Degraded(reason) => {
                    if !std::mem::replace(&mut degraded, true) {
                        tracing::warn!(address = %self.shared.address, cause = %reason, "Redis is impaired");
                    }
                    self.not_ready(&reason);
                }
                // A probe may wait long behind large values, whose answers show that the connection is alive.
                Verdict::Broken(failure) if failure.kind == Kind::Timeout && self.shared.was_heard_since(looked) => {}
                Verdict::Broken(failure) => return failure,
            }
        }
    }

    /// Whether Redis still refuses writes, after it has refused one.
    async fn probe_writes(&self, connection: &mut Connection, replicas: &mut Option<u64>) -> Verdict {
        let Some(reason) = self.shared.refusing() else {
            *replicas = None;
            return Verdict::Healthy;
        };
        // If this cannot be determined, the next write will show.
        if let Some(headroom) = connection.headroom().await {
            let before = *replicas.get_or_insert(headroom.replicas);
            let mended = if reason.starts_with("OOM") { headroom.has_memory } else { headroom.replicas > before };
            if mended {
                *replicas = None;
                self.shared.writes_are_taken();
                return Verdict::Healthy;
            }
        }
        Verdict::Degraded(reason)
    }

    fn came_up(&self, generation: u64, connection: Connection) {
        if generation > 1 {
            self.metrics.redis_reconnected();
        }
        tracing::info!(address = %self.shared.address, "Redis is available");
        self.shared.outage_is_over();
        self.publish(Link::Up(generation, connection));
        self.health.ready(Component::Storage);
    }

    /// A node of the cluster is back, or the server accepts writes again. The connection was never replaced.
    fn recovered(&self, connection: &Connection) {
        if matches!(connection, Connection::Cluster(_)) {
            self.metrics.redis_reconnected();
        }
        tracing::info!(address = %self.shared.address, "Redis is available");
        self.shared.outage_is_over();
        self.health.ready(Component::Storage);
    }

    fn went_down(&self, failure: RedisFailure) {
        self.not_ready(&failure.message);
        self.publish(Link::Down(failure));
    }

    fn not_ready(&self, reason: &str) {
        self.health.not_ready(Component::Storage, format!("Redis at {}: {reason}", self.shared.address));
    }

    /// The old connection is dropped here, unless operations still hold it.
    fn publish(&self, link: Link) {
        self.shared.link.send_replace(link);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{AgentInfo, Registry};
    use crate::storage::RedisConfig;

    #[tokio::test]
    #[allow(clippy::default_constructed_unit_structs, reason = "without metrics the registry is one")]
    async fn a_supervisor_that_panics_is_reported_and_restarted() {
        let urls = vec!["redis://127.0.0.1:1".parse().unwrap()];
        let config = RedisConfig { urls, ..RedisConfig::default() };
        let shared = Arc::new(RedisState::new("nowhere".into()));
        shared.panics.store(true, Ordering::Relaxed);
        let agent = AgentInfo { peer_id: "a".into(), name: "a".into() };
        let health = Health::default();
        let supervisor = Supervisor {
            connector: Arc::new(Connector::new(&config).unwrap()),
            shared: Arc::clone(&shared),
            metrics: MetricsCollector::new(&Registry::default(), &agent),
            health: health.clone(),
        };
        let mut link = shared.link.subscribe();
        let task = tokio::spawn(supervisor.run());
        let mut next = async || {
            link.changed().await.unwrap();
            health.snapshot().pop().unwrap().problem.unwrap()
        };
        assert_eq!(next().await, "Redis at nowhere: the connection task has failed and will be restarted");
        // It then tries to connect, but nothing listens there.
        assert!(next().await.contains("refused"));
        task.abort();
    }
}

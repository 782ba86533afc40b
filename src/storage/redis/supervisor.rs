//! The background task that keeps the connection to Redis: connects, notices a loss, reconnects.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::backoff::{REFUSED_WAIT, RETRY_CAPS, reconnect_wait};
use super::connection::{Connection, Connector, Verdict};
use super::failure::{Failure, Kind};
use crate::metrics::labels::Component;
use crate::metrics::{Health, MetricsCollector};

/// How often an idle connection is probed.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// A connection that lived shorter than this gives no right to reconnect at once.
const STABLE_AFTER: Duration = Duration::from_secs(1);
/// At most one log line of failed operations in this time, while an outage lasts.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// The connection as the operations see it.
#[derive(Clone)]
pub(super) enum Link {
    /// The first attempt to connect is under way.
    Connecting,
    /// Connected; the number tells one connection from the next.
    Up(u64, Connection),
    /// Not connected, and why.
    Down(Failure),
    /// The storage was closed.
    Closed,
}

/// What the operations and the background task share.
pub(super) struct Shared {
    /// Written by the background task and, at the very end, by `close`. Readers copy what they need
    /// and let go of its lock before they await.
    pub(super) link: watch::Sender<Link>,
    /// An operation met a failure that makes the connection suspect: probe it now.
    pub(super) suspect: Notify,
    /// Redis has answered an operation since this was last cleared. Operations read it and seldom
    /// write it, so that they do not contend for its cache line.
    pub(super) heard: AtomicBool,
    /// Where Redis is, without secrets.
    pub(super) address: String,
    /// When a failure was last logged in this outage. A std lock: never held across an await.
    last_logged: Mutex<Option<Instant>>,
}

impl Shared {
    pub(super) fn new(address: String) -> Self {
        Self {
            link: watch::Sender::new(Link::Connecting),
            suspect: Notify::new(),
            heard: AtomicBool::new(false),
            address,
            last_logged: Mutex::new(None),
        }
    }

    pub(super) fn answered(&self) {
        if !self.heard.load(Ordering::Relaxed) {
            self.heard.store(true, Ordering::Relaxed);
        }
    }

    /// Says once an outage, and every [`LOG_INTERVAL`] while it lasts, that the retries did not help.
    pub(super) fn log_exhausted(&self, failure: &Failure) {
        if self.may_log() {
            tracing::error!(address = %self.address, cause = %failure.message, "Redis connection failed after 3 retries");
        }
    }

    fn log_refused(&self, failure: &Failure) {
        if self.may_log() {
            tracing::error!(address = %self.address, cause = %failure.message, "Redis refused the connection");
        }
    }

    fn may_log(&self) -> bool {
        let mut last = self.last_logged.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|at| at.elapsed() >= LOG_INTERVAL);
        if due {
            *last = Some(Instant::now());
        }
        due
    }

    fn outage_is_over(&self) {
        *self.last_logged.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The task's own part.
pub(super) struct Supervisor {
    pub(super) connector: Arc<Connector>,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: MetricsCollector,
    pub(super) health: Health,
}

impl Supervisor {
    /// Runs until it is aborted.
    pub(super) async fn run(self) {
        let mut generation = 0;
        let mut attempt = 0;
        loop {
            let connection = self.connect(attempt).await;
            generation += 1;
            self.came_up(generation, connection.clone());
            let since = Instant::now();
            let failure = self.watch_over(connection).await;
            tracing::warn!(address = %self.shared.address, cause = %failure.message, "Redis connection lost");
            self.went_down(failure);
            attempt = u32::from(since.elapsed() < STABLE_AFTER);
        }
    }

    /// Tries until there is a connection that serves requests.
    async fn connect(&self, first_attempt: u32) -> Connection {
        let mut attempt = first_attempt;
        let mut wait = reconnect_wait(attempt);
        loop {
            tokio::time::sleep(wait).await;
            let failure = match self.connector.connect().await {
                Ok(connection) => return connection,
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

    /// Returns when the connection is of no use any more, with the reason.
    async fn watch_over(&self, mut connection: Connection) -> Failure {
        let mut degraded = false;
        loop {
            let asked = tokio::select! {
                () = self.shared.suspect.notified() => true,
                () = tokio::time::sleep(PROBE_INTERVAL) => false,
            };
            // Answers to operations prove a single server alive; of a cluster only one node.
            let heard = self.shared.heard.swap(false, Ordering::Relaxed);
            if heard && !asked && !degraded && matches!(connection, Connection::Single(_)) {
                continue;
            }
            match connection.probe(self.connector.classifier()).await {
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
                // A probe may wait long behind large values; their answers show that the connection lives.
                Verdict::Broken(failure)
                    if failure.kind == Kind::Timeout && self.shared.heard.load(Ordering::Relaxed) => {}
                Verdict::Broken(failure) => return failure,
            }
        }
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

    /// A node of the cluster came back, or the server can save again; the connection was never given up.
    fn recovered(&self, connection: &Connection) {
        if matches!(connection, Connection::Cluster(_)) {
            self.metrics.redis_reconnected();
        }
        tracing::info!(address = %self.shared.address, "Redis is available");
        self.shared.outage_is_over();
        self.health.ready(Component::Storage);
    }

    fn went_down(&self, failure: Failure) {
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

//! The Redis backend: one server or a cluster, through redis-rs.
//!
//! With a single server, writes share one multiplexed connection and reads another (`reads.rs`). A cluster has one
//! connection per node for both. A background task maintains the connection for writes: it connects, probes it every
//! second unless other traffic proves it alive, and reconnects with backoff, so that readiness is correct and recovery
//! takes seconds even without traffic. Operations use the state that the task last published and hold no lock across an
//! await.
//!
//! # When Redis does not answer
//!
//! An attempt takes at most `storage.redis.timeout`, plus as long again if it first waits for a connection, and again
//! if a retried read waits for its turn. A read that fails because of the connection or a timeout is retried up to
//! three times, after a random wait of at most 100, 200 and 400 ms; a new connection ends the wait early. A write is
//! retried in the same way if it was certainly not performed: there was no connection, or Redis answered that it cannot
//! do it now (LOADING, TRYAGAIN, CLUSTERDOWN, MASTERDOWN, READONLY, BUSY). After that the operation fails with
//! [`StorageError::Timeout`] or [`StorageError::Unavailable`], and `Redis connection failed after 3 retries` is logged:
//! once per outage, and again every 30 s while it lasts.
//!
//! Once the task knows that Redis is down, attempts fail at once, and an operation ends within 700 ms, the sum of the
//! waits. Otherwise the bound is four timeouts and 700 ms, if no attempt waits for a connection. At most
//! [`MAX_WAITING`] operations wait for a retry and [`MAX_IN_FLIGHT`] are in progress; any more fail at once with
//! [`StorageError::Busy`].
//!
//! Errors that a retry cannot fix are not retried. They are returned as [`StorageError::Backend`] with Redis's own
//! message: a key of another type (WRONGTYPE), out of memory (OOM), too few replicas (NOREPLICAS), a failed save to
//! disk (MISCONF), or missing permissions (NOAUTH, WRONGPASS, NOPERM).
//!
//! # When a failed write may still take effect
//!
//! A write whose answer was lost may have been performed. It is not sent again: meanwhile another client may have
//! written and been acknowledged, or read the first write. The write may also still be on its way. So before a new
//! connection to a single server is used, the server closes the old one (`fence.rs`). Thus, as soon as a later
//! operation is acknowledged, a failed write has either taken effect or never will. In a cluster a write is not sent
//! again either (`node.rs`), but one that was on its way when its connection was abandoned may still be performed:
//! redis-rs's cluster client manages the connections to the nodes and does not reveal which one replaces which.

mod backoff;
mod connection;
mod failure;
mod fence;
mod node;
mod reads;
mod supervisor;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::{Cmd, Value};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::AbortHandle;

use self::backoff::{RETRY_CAPS, retry_wait};
use self::connection::Connector;
use self::failure::{Kind, RedisFailure};
use self::reads::{Reads, Way};
use self::supervisor::{Link, RedisState, Supervisor};
use super::{OpenError, RedisConfig, StorageError};
use crate::metrics::labels::Component;
use crate::metrics::{Health, MetricsCollector};

/// The maximum number of operations in progress at once, many more than it takes to saturate a server.
const MAX_IN_FLIGHT: usize = 4096;
/// The maximum size of the keys and values of all writes in progress, in KiB. Each is in memory twice, once as the
/// caller's bytes and once in the command.
const MAX_WRITING_KIB: usize = 64 * 1024;
/// The maximum number of operations that wait for a retry at once, so that they do not pile up in an outage.
const MAX_WAITING: usize = 1024;
/// How long `close` waits for the operations in progress.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A single Redis server or a cluster.
pub struct RedisStorageBackend {
    connector: Arc<Connector>,
    shared: Arc<RedisState>,
    reads: Box<Reads>,
    /// Places for operations in progress. Closed with the storage.
    in_flight: Semaphore,
    /// Places for operations that wait for a retry.
    waiting: Semaphore,
    /// Places for the KiB of writes in progress.
    writing: Semaphore,
    closing: AtomicBool,
    supervisor: AbortHandle,
    key_prefix: Vec<u8>,
    timeout: Duration,
    description: String,
    metrics: MetricsCollector,
    health: Health,
}

impl std::fmt::Debug for RedisStorageBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RedisStorageBackend").field(&self.description).finish()
    }
}

impl RedisStorageBackend {
    /// Checks the configuration and starts to connect in the background. Operations wait for the outcome of the first
    /// attempt, at most for the configured timeout.
    ///
    /// # Errors
    ///
    /// If the URLs cannot be used together or the CA file cannot be used. An unreachable Redis is not an error.
    #[allow(clippy::unused_async, reason = "both backends are opened alike, and this one needs the runtime")]
    pub async fn open(config: &RedisConfig, metrics: MetricsCollector, health: Health) -> Result<Self, OpenError> {
        let connector = Arc::new(Connector::new(config)?);
        let address = config.urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let description = if connector.classifier().cluster {
            let seeds = config.urls.len();
            format!("redis cluster of {seeds} seed{} {address}", if seeds == 1 { "" } else { "s" })
        } else {
            format!("redis {address}")
        };
        health.not_ready(Component::Storage, format!("Redis at {address}: connecting"));
        let shared = Arc::new(RedisState::new(address));
        let supervisor = Supervisor {
            connector: connector.clone(),
            shared: shared.clone(),
            metrics: metrics.clone(),
            health: health.clone(),
        };
        Ok(Self {
            connector,
            shared,
            reads: Box::default(),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            waiting: Semaphore::new(MAX_WAITING),
            writing: Semaphore::new(MAX_WRITING_KIB),
            closing: AtomicBool::new(false),
            supervisor: tokio::spawn(supervisor.run()).abort_handle(),
            key_prefix: config.key_prefix.clone().into_bytes(),
            timeout: config.timeout,
            description,
            metrics,
            health,
        })
    }

    /// Reads the value under `key`.
    ///
    /// # Errors
    ///
    /// See the module's documentation.
    pub async fn get(&self, key: &Bytes) -> Result<Option<Bytes>, StorageError> {
        let command = self.command("GET", key, 0);
        match self.execute(&command, Effect::Reads).await? {
            Value::Nil => Ok(None),
            Value::BulkString(value) => Ok(Some(value.into())),
            other => Err(unexpected("GET", &other)),
        }
    }

    /// Writes `value` under `key`, without an expiry.
    ///
    /// # Errors
    ///
    /// See the module's documentation.
    pub async fn put(&self, key: Bytes, value: Bytes) -> Result<(), StorageError> {
        let mut command = self.command("SET", &key, value.len());
        command.arg(&value[..]);
        let size = u32::try_from((key.len() + value.len()).div_ceil(1024)).unwrap_or(u32::MAX);
        let _writing = self.writing.try_acquire_many(size).map_err(|_| StorageError::Busy(MAX_IN_FLIGHT))?;
        match self.execute(&command, Effect::Writes).await? {
            Value::Okay => {
                self.shared.writes_are_taken();
                Ok(())
            }
            other => Err(unexpected("SET", &other)),
        }
    }

    /// Removes `key`; `true` if there was a value.
    ///
    /// # Errors
    ///
    /// See the module's documentation.
    pub async fn delete(&self, key: Bytes) -> Result<bool, StorageError> {
        match self.execute(&self.command("DEL", &key, 0), Effect::Writes).await? {
            Value::Int(removed) => Ok(removed > 0),
            other => Err(unexpected("DEL", &other)),
        }
    }

    /// Returns at once: an unreachable Redis makes operations fail, not the start.
    #[allow(clippy::unused_async, reason = "the embedded store waits here")]
    pub(super) async fn opened(&self) -> Result<(), OpenError> {
        Ok(())
    }

    /// Never completes: a supervisor that panics is restarted.
    pub(super) async fn died(&self) -> String {
        std::future::pending().await
    }

    /// How long an operation may take: one timeout for each attempt, and the longest waits in between. Waiting for a
    /// connection may add to this.
    pub(super) fn patience(&self) -> Duration {
        let attempts = 1 + u32::try_from(RETRY_CAPS.len()).unwrap_or(u32::MAX);
        self.timeout.saturating_mul(attempts).saturating_add(RETRY_CAPS.iter().sum())
    }

    /// A one-line description of where the data is, without secrets.
    pub fn describe(&self) -> String {
        match self.shared.unfenced() {
            None => self.description.clone(),
            Some(reason) => {
                format!("{} (a failed write may still take effect after a later one: {reason})", self.description)
            }
        }
    }

    /// Refuses new operations, waits up to five seconds for those in progress, and disconnects.
    pub async fn close(&self) {
        self.closing.store(true, Ordering::Release);
        // Holding every permit means that no operation is in progress. After the timeout any others lose their
        // connection.
        #[allow(clippy::cast_possible_truncation, reason = "the constant is small")]
        let drained = self.in_flight.acquire_many(MAX_IN_FLIGHT as u32);
        if tokio::time::timeout(CLOSE_TIMEOUT, drained).await.is_err() {
            tracing::warn!(address = %self.shared.address, "Redis operations were still in progress when the storage was closed");
        }
        self.in_flight.close();
        self.reads.close();
        self.supervisor.abort();
        self.shared.link.send_replace(Link::Closed);
        self.health.not_ready(Component::Storage, "the storage is closed");
    }

    fn command(&self, name: &str, key: &[u8], value_len: usize) -> Cmd {
        let mut command = Cmd::with_capacity(3, name.len() + self.key_prefix.len() + key.len() + value_len);
        command.arg(name).arg([self.key_prefix.as_slice(), key].concat());
        command
    }

    /// Executes one command, with retries.
    async fn execute(&self, command: &Cmd, effect: Effect) -> Result<Value, StorageError> {
        let _under_way = self.admit()?;
        match self.attempt(command, effect, false).await {
            Ok(value) => Ok(value),
            Err(first) => {
                // A caller that fails at once and keeps trying must not starve other tasks.
                tokio::task::yield_now().await;
                self.retry(command, effect, first).await
            }
        }
    }

    fn admit(&self) -> Result<SemaphorePermit<'_>, StorageError> {
        let permit = self.in_flight.try_acquire();
        if self.closing.load(Ordering::Acquire) {
            return Err(closed());
        }
        permit.map_err(|_| StorageError::Busy(MAX_IN_FLIGHT))
    }

    /// The cold path of [`execute`](Self::execute).
    async fn retry(&self, command: &Cmd, effect: Effect, first: Attempted) -> Result<Value, StorageError> {
        let mut last = first;
        if last.may_be_tried_again(effect) {
            let _waiting = self.waiting.try_acquire().map_err(|_| StorageError::Busy(MAX_WAITING))?;
            for cap in RETRY_CAPS {
                self.wait(retry_wait(cap), last.on).await;
                self.metrics.redis_retried();
                let broke = last.on.is_some() && last.failure.kind == Kind::Lost;
                match self.attempt(command, effect, broke).await {
                    Ok(value) => return Ok(value),
                    Err(next) => last = next,
                }
                if !last.may_be_tried_again(effect) {
                    break;
                }
            }
        }
        if last.may_be_tried_again(effect) {
            self.shared.log_exhausted(&last.failure);
        }
        Err(last.failure.into_error(self.timeout))
    }

    /// Tries once. A read that broke its connection is tried again `alone`.
    async fn attempt(&self, command: &Cmd, effect: Effect, alone: bool) -> Result<Value, Attempted> {
        let link = self.shared.link.borrow().clone();
        let link = if matches!(link, Link::Connecting) { self.first_outcome().await } else { link };
        let (generation, mut connection) = match link {
            Link::Up(generation, connection) => (generation, connection),
            Link::Down(failure) => return Err(Attempted { on: None, failure }),
            Link::Connecting => return Err(Attempted { on: None, failure: RedisFailure::timeout(self.timeout) }),
            Link::Closed => return Err(Attempted { on: None, failure: RedisFailure::new(Kind::Lost, CLOSED) }),
        };
        let sent = Instant::now();
        let way = self.connector.client().map(|client| Way { client, generation, timeout: self.timeout });
        let answer = match (effect, way) {
            (Effect::Reads, Some(way)) if alone => self.reads.alone(way, command).await,
            (Effect::Reads, Some(way)) => self.reads.together(way, command).await,
            _ => {
                let answer = connection.send(command).await;
                if answer.is_ok() {
                    self.shared.answered();
                }
                answer
            }
        };
        answer.map_err(|error| {
            let mut failure = self.connector.failure(&error);
            let is_gone = match failure.kind {
                Kind::Lost => true,
                Kind::Timeout => !self.shared.was_heard_since(sent),
                Kind::Later | Kind::Refused => false,
            };
            if is_gone && effect == Effect::Writes && self.connector.client().is_some() {
                // No answer will come. Later writes on this connection would be lost too.
                self.shared.broke(generation, &failure);
            }
            if failure.kind != Kind::Refused {
                self.shared.suspect.notify_one();
            }
            if failure.is("OOM") || failure.is("NOREPLICAS") {
                self.shared.write_refused(&failure.message);
            }
            if alone && failure.kind == Kind::Lost {
                failure.message +=
                    " (read on its own connection; is the value larger than Redis's client-output-buffer-limit?)";
            }
            Attempted { on: Some(generation), failure }
        })
    }

    /// Waits for the outcome of the first attempt to connect, at most for the timeout.
    async fn first_outcome(&self) -> Link {
        let mut link = self.shared.link.subscribe();
        let decided = link.wait_for(|link| !matches!(link, Link::Connecting));
        match tokio::time::timeout(self.timeout, decided).await {
            Ok(Ok(link)) => link.clone(),
            Ok(Err(_)) | Err(_) => Link::Connecting,
        }
    }

    /// Waits before a retry. A connection other than the one just tried ends the wait early.
    async fn wait(&self, wait: Duration, tried: Option<u64>) {
        let mut link = self.shared.link.subscribe();
        let renewed = link.wait_for(|link| match link {
            Link::Up(generation, _) => Some(*generation) != tried,
            Link::Closed => true,
            Link::Connecting | Link::Down(_) => false,
        });
        // An `Err` means that the full wait has passed.
        let _ = tokio::time::timeout(wait, renewed).await.map(drop);
    }
}

/// Whether a command reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Reads,
    Writes,
}

/// An attempt that failed.
struct Attempted {
    /// The connection that was tried, if there was one.
    on: Option<u64>,
    failure: RedisFailure,
}

impl Attempted {
    /// Whether another attempt may help and can do no harm: a write that may have been performed is not sent again.
    fn may_be_tried_again(&self, effect: Effect) -> bool {
        let was_not_done = self.on.is_none() || self.failure.kind == Kind::Later;
        self.failure.is_retryable() && (effect == Effect::Reads || was_not_done)
    }
}

impl Drop for RedisStorageBackend {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

const CLOSED: &str = "the storage is closed";

fn closed() -> StorageError {
    StorageError::Unavailable(CLOSED.into())
}

/// Redis itself never answers like this, but a proxy in between might. The answer is data and is not shown.
fn unexpected(command: &str, value: &Value) -> StorageError {
    let kind = match value {
        Value::Nil => "nil",
        Value::Int(_) => "an integer",
        Value::BulkString(_) => "a bulk string",
        Value::Okay | Value::SimpleString(_) => "a status",
        _ => "another type",
    };
    StorageError::Backend(format!("Redis sent an unexpected reply to {command}: {kind}"))
}

/// Arbitrary text from Redis must not make the parsers panic.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    connection::fuzz(data);
    fence::fuzz(data);
}

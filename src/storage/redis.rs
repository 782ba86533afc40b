//! The data in Redis: one server or a cluster, by redis-rs.
//!
//! With a single server, writes share one multiplexed connection and reads another one (`reads.rs`); a cluster has one
//! a node for both. A background task owns the first: it connects, probes it every second while nothing else proves it
//! alive, and reconnects with backoff, so that readiness is true and recovery takes seconds also without traffic.
//! Operations look at what the task last published and take no lock across an await.
//!
//! # What an operation does when Redis does not answer
//!
//! An attempt takes at most `storage.redis.timeout`. A read that fails because of the connection or by timeout is tried
//! again up to three times, after a random wait of at most 100, 200 and 400 ms; a new connection ends the wait early. So
//! is a write that was certainly not done: there was no connection, or Redis says that it cannot do it now (LOADING,
//! TRYAGAIN, CLUSTERDOWN, MASTERDOWN, READONLY, BUSY). Then it fails with [`StorageError::Timeout`] or [`StorageError::Unavailable`],
//! and the log says `Redis connection failed after 3 retries`: once an outage, and again every 30 s while it lasts.
//!
//! Once the task knows that Redis is away, an attempt fails at once: an operation then ends within
//! 700 ms, the sum of the waits. The bound in all cases is four timeouts and 700 ms. At most
//! [`MAX_WAITING`] operations wait for a retry and [`MAX_IN_FLIGHT`] are under way; past that they fail
//! at once with [`StorageError::Busy`].
//!
//! What a retry cannot mend is not retried and is an [`StorageError::Backend`] in Redis's own words: a key of
//! another type (WRONGTYPE), no memory (OOM), too few replicas (NOREPLICAS), no disk (MISCONF), no right (NOAUTH,
//! WRONGPASS, NOPERM).
//!
//! # What a write that failed may still do
//!
//! A write whose answer is lost may have been carried out. It is not sent again: between the two, somebody else may have
//! written and been acknowledged, and somebody may have read the first. And it may still be on its way; before a new
//! connection to a single server is used, the server has ended the old one (`fence.rs`). So what failed has happened or
//! never will, as soon as something later is acknowledged. In a cluster it is not sent again either (`node.rs`), but
//! what was on its way when a connection was given up may still be done: redis-rs's cluster client makes the connections
//! to the nodes and lets nobody see which one replaces which.

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

/// The most operations under way at once: far above what saturates a server.
const MAX_IN_FLIGHT: usize = 4096;
/// The most KiB of keys and values in the writes under way. Each stands in memory twice, once as the caller's
/// and once as the command.
const MAX_WRITING_KIB: usize = 64 * 1024;
/// The most operations that wait for a retry at once: an outage may not gather every caller there is.
const MAX_WAITING: usize = 1024;
/// How long `close` waits for the operations under way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Redis, single or cluster.
pub struct RedisStorageBackend {
    connector: Arc<Connector>,
    shared: Arc<RedisState>,
    reads: Box<Reads>,
    /// Operations under way. Closed when the storage is.
    in_flight: Semaphore,
    /// Operations that wait for a retry.
    waiting: Semaphore,
    /// KiB of the writes under way.
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
    /// Checks the configuration and starts to connect in the background. Until the first attempt is
    /// decided, operations wait for it, at most for the configured timeout.
    ///
    /// # Errors
    ///
    /// When the URLs cannot be used together or the CA file cannot be used. A Redis that is away is no
    /// error.
    #[allow(clippy::unused_async, reason = "both backends open alike, and this one needs the runtime")]
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
    pub async fn put(&self, key: &Bytes, value: &Bytes) -> Result<(), StorageError> {
        let mut command = self.command("SET", key, value.len());
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

    /// Removes `key`; `true` when that removed a value.
    ///
    /// # Errors
    ///
    /// See the module's documentation.
    pub async fn delete(&self, key: &Bytes) -> Result<bool, StorageError> {
        match self.execute(&self.command("DEL", key, 0), Effect::Writes).await? {
            Value::Int(removed) => Ok(removed > 0),
            other => Err(unexpected("DEL", &other)),
        }
    }

    /// How long an operation may take: each attempt its timeout, and the longest waits in between.
    pub(super) fn patience(&self) -> Duration {
        let attempts = 1 + u32::try_from(RETRY_CAPS.len()).unwrap_or(u32::MAX);
        self.timeout.saturating_mul(attempts).saturating_add(RETRY_CAPS.iter().sum())
    }

    /// Where the data is, without secrets.
    pub fn describe(&self) -> String {
        match self.shared.unfenced() {
            None => self.description.clone(),
            Some(reason) => {
                format!("{} (a write that fails may still happen after a later one: {reason})", self.description)
            }
        }
    }

    /// Refuses new operations, waits up to five seconds for those under way, and disconnects.
    pub async fn close(&self) {
        self.closing.store(true, Ordering::Release);
        // Holding every permit means that no operation is under way. Past the timeout those that are
        // left find their connection gone.
        #[allow(clippy::cast_possible_truncation, reason = "the constant is small")]
        let drained = self.in_flight.acquire_many(MAX_IN_FLIGHT as u32);
        if tokio::time::timeout(CLOSE_TIMEOUT, drained).await.is_err() {
            tracing::warn!(address = %self.shared.address, "Redis operations were still under way at the close");
        }
        self.in_flight.close();
        self.reads.close();
        self.supervisor.abort();
        self.shared.link.send_replace(Link::Closed);
        self.health.not_ready(Component::Storage, "the storage is closed");
    }

    fn command(&self, name: &str, key: &[u8], value_len: usize) -> Cmd {
        // Three arguments, and the name has three letters.
        let mut command = Cmd::with_capacity(3, name.len() + self.key_prefix.len() + key.len() + value_len);
        command.arg(name).arg([self.key_prefix.as_slice(), key].concat());
        command
    }

    /// Carries out one command with its retries.
    async fn execute(&self, command: &Cmd, effect: Effect) -> Result<Value, StorageError> {
        let _under_way = self.admit()?;
        match self.attempt(command, effect, false).await {
            Ok(value) => Ok(value),
            Err(first) => {
                // What fails at once must not keep others from running, who do it again and again.
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

    /// The cold part of [`execute`](Self::execute).
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

    /// Tries once; a read that broke its connection, `alone`.
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
                // Nothing comes of it any more; the next ones are not to be sent and lost there.
                self.shared.broke(generation, &failure);
            }
            if failure.kind != Kind::Refused {
                self.shared.suspect.notify_one();
            }
            if failure.is("OOM") || failure.is("NOREPLICAS") {
                self.shared.write_refused(&failure.message);
            }
            if alone && failure.kind == Kind::Lost {
                failure.message += " (asked for alone; is the value larger than Redis's client-output-buffer-limit?)";
            }
            Attempted { on: Some(generation), failure }
        })
    }

    /// Waits until the first attempt to connect is decided, or the timeout has passed.
    async fn first_outcome(&self) -> Link {
        let mut link = self.shared.link.subscribe();
        let decided = link.wait_for(|link| !matches!(link, Link::Connecting));
        match tokio::time::timeout(self.timeout, decided).await {
            Ok(Ok(link)) => link.clone(),
            Ok(Err(_)) | Err(_) => Link::Connecting,
        }
    }

    /// Waits before a retry, for less when another connection than the one just tried comes up.
    async fn wait(&self, wait: Duration, tried: Option<u64>) {
        let mut link = self.shared.link.subscribe();
        let renewed = link.wait_for(|link| match link {
            Link::Up(generation, _) => Some(*generation) != tried,
            Link::Closed => true,
            Link::Connecting | Link::Down(_) => false,
        });
        // An `Err` is the wait that has passed.
        let _ = tokio::time::timeout(wait, renewed).await.map(drop);
    }
}

/// What a command does.
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
    /// Whether another attempt may help, and can do no harm: a write of which nobody knows whether it was done is not
    /// sent again.
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

/// Redis cannot answer so; a proxy in between might. The answer itself is data and is not shown.
fn unexpected(command: &str, value: &Value) -> StorageError {
    let kind = match value {
        Value::Nil => "nothing",
        Value::Int(_) => "a number",
        Value::BulkString(_) => "bytes",
        Value::Okay | Value::SimpleString(_) => "a status",
        _ => "a structure",
    };
    StorageError::Backend(format!("Redis answered {command} with {kind}"))
}

/// Whatever text Redis answers, it says something of it or nothing.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    connection::fuzz(data);
    fence::fuzz(data);
}

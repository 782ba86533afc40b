//! `get`, `put` and `delete` on the embedded store or on Redis.
//!
//! [`Storage`] is the only entry point. It checks limits and measures every operation in one place for both backends.

mod local;
mod redis;
mod redis_url;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

#[cfg(any(test, fuzzing))]
pub use self::local::fuzz_log;
pub use self::local::{Checked, LocalStorageBackend};
pub use self::redis::RedisStorageBackend;
#[cfg(any(test, fuzzing))]
pub use self::redis::fuzz as fuzz_redis;
pub use self::redis_url::RedisUrl;
use crate::metrics::labels::{Backend, Operation, StorageErrorReason};
use crate::metrics::{Health, MetricsCollector, Timer, UnderWay};

/// The `storage` section of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which backend holds the data.
    pub backend: BackendKind,
    /// The longest key, in bytes.
    #[serde(with = "crate::units::size")]
    pub max_key_size: usize,
    /// The longest value, in bytes.
    #[serde(with = "crate::units::size")]
    pub max_value_size: usize,
    /// The embedded store.
    pub local: LocalConfig,
    /// Redis.
    pub redis: RedisConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            backend: BackendKind::Local,
            max_key_size: 1024,
            max_value_size: 1024 * 1024,
            local: LocalConfig::default(),
            redis: RedisConfig::default(),
        }
    }
}

/// The upper limit of [`Config::max_value_size`], in bytes. No agent accepts a longer value.
pub const LARGEST_VALUE: usize = 16 * 1024 * 1024;

/// Which backend holds the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// The embedded store.
    Local,
    /// A Redis server or cluster.
    Redis,
}

/// The embedded store's own settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LocalConfig {
    /// The file; `None` means `store.redb` in the data directory.
    pub path: Option<PathBuf>,
    /// The memory for cached pages, in bytes.
    #[serde(with = "crate::units::size")]
    pub cache_size: usize,
    /// Whether every page is read and checked before the store is ready. Otherwise damage is found only when a value
    /// is read.
    pub check_on_open: bool,
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self { path: None, cache_size: 64 * 1024 * 1024, check_on_open: false }
    }
}

/// Redis's own settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisConfig {
    /// One URL for a single server, several for the seeds of a cluster.
    pub urls: Vec<RedisUrl>,
    /// Whether the URLs are seeds of a cluster; `None` means yes if there are several.
    pub cluster: Option<bool>,
    /// Prepended to every key.
    pub key_prefix: String,
    /// The longest that one attempt may take.
    #[serde(with = "crate::units::duration")]
    pub timeout: Duration,
    /// A PEM file with the certificates of a private CA, for `rediss://`; `None` means the system's.
    pub ca_file: Option<PathBuf>,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            urls: vec![RedisUrl::default()],
            cluster: None,
            key_prefix: "peerscope:".into(),
            timeout: Duration::from_secs(2),
            ca_file: None,
        }
    }
}

/// Why a storage operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Keys have at least 1 byte.
    #[error("the key is empty")]
    KeyEmpty,
    /// The key is over `storage.max_key_size`.
    #[error("the key has {len} bytes; at most {max} are allowed (storage.max_key_size)")]
    KeyTooLarge {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The value is over `storage.max_value_size`.
    #[error("the value has {len} bytes; at most {max} are allowed (storage.max_value_size)")]
    ValueTooLarge {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// Too many operations are waiting for the backend.
    #[error("the storage backend is busy: its queue of {0} operations is full")]
    Busy(usize),
    /// The disk that holds the embedded store is full; reads still work.
    #[error("no space left on the disk that holds {}", .0.display())]
    DiskFull(PathBuf),
    /// The disk that holds the embedded store failed during this write, which may still take effect.
    #[error("cannot write {}: {reason}; this write may still take effect", .path.display())]
    Uncertain {
        /// The store.
        path: PathBuf,
        /// What failed.
        reason: String,
    },
    /// The disk that holds the embedded store does not answer.
    #[error(
        "the disk that holds {} has not answered for {seconds} s; {}",
        .path.display(),
        if *.may_happen { "this write may still take effect" } else { "this write did not take effect" }
    )]
    Hangs {
        /// The store.
        path: PathBuf,
        /// How long the writer has been waiting for the disk, in seconds.
        seconds: u64,
        /// Whether this write was already under way.
        may_happen: bool,
    },
    /// The store is not open yet.
    #[error("the agent is starting: {0}")]
    Starting(String),
    /// The backend cannot be reached.
    #[error("the storage backend is not available: {0}")]
    Unavailable(String),
    /// The backend did not answer in time.
    #[error("the storage backend did not answer within {0:?}")]
    Timeout(Duration),
    /// The value on the disk is not the one that was put.
    #[error("the value cannot be served: {0}")]
    Damaged(String),
    /// The backend answered with an error.
    #[error("the storage backend failed: {0}")]
    Backend(String),
}

impl StorageError {
    /// The `reason` label of this error in the metrics.
    pub fn reason(&self) -> StorageErrorReason {
        match self {
            Self::KeyEmpty | Self::KeyTooLarge { .. } | Self::ValueTooLarge { .. } => StorageErrorReason::Invalid,
            Self::Busy(_) => StorageErrorReason::Busy,
            Self::DiskFull(_) => StorageErrorReason::DiskFull,
            Self::Starting(_) | Self::Unavailable(_) => StorageErrorReason::Unavailable,
            Self::Hangs { .. } | Self::Timeout(_) => StorageErrorReason::Timeout,
            Self::Damaged(_) => StorageErrorReason::Damaged,
            Self::Uncertain { .. } | Self::Backend(_) => StorageErrorReason::Backend,
        }
    }
}

/// Why a storage backend could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// Another process has the file open.
    #[error(
        "the store {} is in use by another process; stop it, or give this agent its own `node.data_dir` or `storage.local.path`",
        .0.display()
    )]
    InUse(PathBuf),
    /// The file is not a store, or is damaged. It was left unchanged.
    #[error(
        "the store {} is damaged or not a Peerscope store ({reason}); it was left unchanged. Restore it from a backup, or move it away to start empty",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file or its folder cannot be read or written.
    #[error("cannot open the store {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error from the system. Shared, because several callers may wait for one opening.
        source: Arc<std::io::Error>,
    },
    /// The Redis client could not be set up from its URLs.
    #[error("cannot use the Redis configuration: {0}")]
    Redis(String),
}

/// Reads every value and page of the embedded store, and its log, without writing anything. No agent may have the store
/// open. Calls `progress` once a second with the bytes read so far and the total. `default_path` is the file if the
/// configuration names none.
///
/// # Errors
///
/// [`OpenError::InUse`], [`OpenError::Damaged`] if the store is too damaged to be read, and [`OpenError::Io`].
pub fn check(config: &LocalConfig, default_path: PathBuf, progress: &dyn Fn(u64, u64)) -> Result<Checked, OpenError> {
    let path = config.path.clone().unwrap_or(default_path);
    local::check(&path, config.cache_size, progress)
}

impl OpenError {
    fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source: Arc::new(source) }
    }
}

/// A handle to the store; clones share it.
#[derive(Debug, Clone)]
pub struct Storage {
    // A single `Arc`: every request clones this, and all threads contend for the reference count.
    shared: Arc<StorageState>,
}

#[derive(Debug)]
struct StorageState {
    engine: Engine,
    backend: Backend,
    max_key_size: usize,
    max_value_size: usize,
    metrics: MetricsCollector,
}

#[derive(Debug)]
enum Engine {
    Local(LocalStorageBackend),
    Redis(RedisStorageBackend),
}

/// Calls a method of the backend. With [`Storage::start`], the only place that lists the backends.
macro_rules! engine {
    ($storage:expr, $backend:ident => $call:expr) => {
        match &$storage.shared.engine {
            Engine::Local($backend) => $call,
            Engine::Redis($backend) => $call,
        }
    };
}

impl Storage {
    /// Opens the configured backend and waits until it is open; see [`start`](Self::start).
    ///
    /// # Errors
    ///
    /// Those of [`start`](Self::start) and [`opened`](Self::opened).
    pub async fn open(
        config: &Config,
        default_path: PathBuf,
        metrics: MetricsCollector,
        health: Health,
    ) -> Result<Self, OpenError> {
        let storage = Self::start(config, default_path, metrics, health).await?;
        storage.opened().await?;
        Ok(storage)
    }

    /// Starts to open the configured backend. `default_path` is the embedded store's file if the configuration names
    /// none. Until the store is open, operations fail with [`StorageError::Starting`].
    ///
    /// An unreachable Redis is not an error: the backend reports it in `health` and connects as soon as it can.
    ///
    /// # Errors
    ///
    /// If the Redis URLs cannot be used together, or the CA file cannot be used.
    pub async fn start(
        config: &Config,
        default_path: PathBuf,
        metrics: MetricsCollector,
        health: Health,
    ) -> Result<Self, OpenError> {
        let (engine, backend) = match config.backend {
            BackendKind::Local => {
                let path = config.local.path.clone().unwrap_or(default_path);
                let local = LocalStorageBackend::start(path, &config.local, metrics.clone(), health);
                (Engine::Local(local), Backend::Local)
            }
            BackendKind::Redis => {
                let redis = RedisStorageBackend::open(&config.redis, metrics.clone(), health).await?;
                (Engine::Redis(redis), Backend::Redis)
            }
        };
        let shared = StorageState {
            engine,
            backend,
            max_key_size: config.max_key_size,
            max_value_size: config.max_value_size,
            metrics,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Waits until the embedded store is open. Returns at once for Redis.
    ///
    /// # Errors
    ///
    /// If the embedded store's file is in use, damaged or not accessible.
    pub async fn opened(&self) -> Result<(), OpenError> {
        engine!(self, backend => backend.opened().await)
    }

    /// Completes when a panic has ended the embedded store, and returns the reason. No acknowledged write is lost.
    pub async fn died(&self) -> String {
        engine!(self, backend => backend.died().await)
    }

    /// Reads the value under `key`; `None` if there is no value.
    ///
    /// # Errors
    ///
    /// See [`StorageError`].
    pub async fn get(&self, key: &Bytes) -> Result<Option<Bytes>, StorageError> {
        self.measured(Operation::Get, async {
            self.check_key(key)?;
            self.check_value(engine!(self, backend => backend.get(key).await)?)
        })
        .await
    }

    /// The same as [`get`](Self::get) if the answer is in memory; otherwise `None`, and nothing is counted. It takes
    /// about a microsecond.
    pub fn get_at_once(&self, key: &Bytes) -> Option<Result<Option<Bytes>, StorageError>> {
        let Engine::Local(local) = &self.shared.engine else { return None };
        let mut measure = self.measure(Operation::Get);
        let found = match self.check_key(key) {
            Ok(()) => local.get_at_once(key).map(|found| found.and_then(|value| self.check_value(value))),
            Err(error) => Some(Err(error)),
        };
        measure.outcome = found.as_ref().map(|found| found.as_ref().map(drop).map_err(StorageError::reason));
        found
    }

    /// Writes `value` under `key`. `Ok` means that the write is durable (the embedded store) or was
    /// acknowledged (Redis).
    ///
    /// # Errors
    ///
    /// See [`StorageError`].
    pub async fn put(&self, key: Bytes, value: Bytes) -> Result<(), StorageError> {
        self.measured(Operation::Put, async {
            self.check_key(&key)?;
            if value.len() > self.shared.max_value_size {
                return Err(StorageError::ValueTooLarge { len: value.len(), max: self.shared.max_value_size });
            }
            engine!(self, backend => backend.put(key, value).await)
        })
        .await
    }

    /// Removes `key`; `true` if there was a value.
    ///
    /// # Errors
    ///
    /// See [`StorageError`].
    pub async fn delete(&self, key: Bytes) -> Result<bool, StorageError> {
        self.measured(Operation::Delete, async {
            self.check_key(&key)?;
            engine!(self, backend => backend.delete(key).await)
        })
        .await
    }

    /// Which backend holds the data.
    pub fn backend(&self) -> Backend {
        self.shared.backend
    }

    /// How long the backend may take before it gives up on an operation.
    pub fn patience(&self) -> Duration {
        engine!(self, backend => backend.patience())
    }

    /// The longest value, in bytes.
    pub fn max_value_size(&self) -> usize {
        self.shared.max_value_size
    }

    /// A one-line description: the backend and its location, without secrets.
    pub fn describe(&self) -> String {
        engine!(self, backend => backend.describe())
    }

    /// Waits until all accepted operations are done, and closes the backend. Later operations fail.
    pub async fn close(&self) {
        engine!(self, backend => backend.close().await)
    }

    /// Measures `work`: every operation is counted when it completes, with its duration and, if it failed, the reason.
    async fn measured<T>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        let mut measure = self.measure(operation);
        measure.outcome = Some(Err(StorageErrorReason::Cancelled));
        let result = work.await;
        measure.outcome = Some(result.as_ref().map(drop).map_err(StorageError::reason));
        result
    }

    fn measure(&self, operation: Operation) -> Measure<'_> {
        Measure {
            metrics: &self.shared.metrics,
            operation,
            backend: self.shared.backend,
            timer: Timer::start(),
            _in_flight: self.shared.metrics.storage_started(self.shared.backend),
            outcome: None,
        }
    }

    /// A value that was written by another program, or when the limit was higher, would not fit into a response.
    fn check_value(&self, value: Option<Bytes>) -> Result<Option<Bytes>, StorageError> {
        match value {
            Some(value) if value.len() > self.shared.max_value_size => {
                Err(StorageError::ValueTooLarge { len: value.len(), max: self.shared.max_value_size })
            }
            value => Ok(value),
        }
    }

    fn check_key(&self, key: &Bytes) -> Result<(), StorageError> {
        match key.len() {
            0 => Err(StorageError::KeyEmpty),
            len if len > self.shared.max_key_size => {
                Err(StorageError::KeyTooLarge { len, max: self.shared.max_key_size })
            }
            _ => Ok(()),
        }
    }
}

/// Counts its operation when dropped, even if the caller went away first (the backend may have done the work).
struct Measure<'a> {
    metrics: &'a MetricsCollector,
    operation: Operation,
    backend: Backend,
    timer: Timer,
    _in_flight: UnderWay<'a>,
    /// `None` if the operation has not been carried out; then it is not counted.
    outcome: Option<Result<(), StorageErrorReason>>,
}

impl Drop for Measure<'_> {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome {
            self.metrics.storage_completed(self.operation, self.backend, self.timer, outcome);
        }
    }
}

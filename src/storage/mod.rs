//! `get`, `put` and `delete` on the embedded store or on Redis.
//!
//! [`Storage`] is the only way in. It checks limits and measures every operation, once, for both
//! backends; a backend only does the work.

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

/// The most that [`Config::max_value_size`] may be, in bytes: no agent takes a longer value.
pub const LARGEST_VALUE: usize = 16 * 1024 * 1024;

/// Which backend holds the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// The embedded redb file.
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
    /// How much memory may cache pages, in bytes.
    #[serde(with = "crate::units::size")]
    pub cache_size: usize,
    /// Whether every page is read and checked before the store is ready. Without it, damage is found when a value is
    /// read.
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
    /// Whether the URLs are seeds of a cluster; `None` means when there are several.
    pub cluster: Option<bool>,
    /// Put in front of every key.
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
    /// Keys are 1 byte or longer.
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
    /// Too many operations wait for the backend.
    #[error("the storage backend is busy: its queue of {0} operations is full")]
    Busy(usize),
    /// The disk that holds the embedded store is full; reads go on.
    #[error("no space left on the disk that holds {}", .0.display())]
    DiskFull(PathBuf),
    /// The disk that holds the embedded store failed in the middle of this write, which may still happen.
    #[error("cannot write {}: {reason}; this write may still happen", .path.display())]
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
        if *.may_happen { "this write may still happen" } else { "this write was not done" }
    )]
    Hangs {
        /// The store.
        path: PathBuf,
        /// How long something has been waiting for it, in seconds.
        seconds: u64,
        /// Whether this write has begun.
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
    /// What the disk holds under the key is not what was put.
    #[error("the value cannot be served: {0}")]
    Damaged(String),
    /// The backend answered with an error.
    #[error("the storage backend failed: {0}")]
    Backend(String),
}

impl StorageError {
    /// The label under which the metrics count this error.
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
    /// The file is not a store, or is damaged. It was left as it is.
    #[error(
        "the store {} is damaged or not a Peerscope store ({reason}); it was left as it is. Restore it from a backup, or move it away to start empty",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What redb found.
        reason: String,
    },
    /// The file or its folder cannot be read or written.
    #[error("cannot open the store {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said. StorageState, because several may wait for one opening.
        source: Arc<std::io::Error>,
    },
    /// The Redis client could not be set up from its URLs.
    #[error("cannot use the Redis configuration: {0}")]
    Redis(String),
}

/// Reads every value and page of the embedded store, which no agent may have open, and its log. Nothing is written.
/// `progress` hears once a second how many bytes of how many were read. `default_path` is the file when the configuration
/// names none.
///
/// # Errors
///
/// [`OpenError::InUse`], [`OpenError::Damaged`] when it is so damaged that it cannot be read, and [`OpenError::Io`].
pub fn check(config: &LocalConfig, default_path: PathBuf, progress: &dyn Fn(u64, u64)) -> Result<Checked, OpenError> {
    let path = config.path.clone().unwrap_or(default_path);
    local::check(&path, config.cache_size, progress)
}

impl OpenError {
    fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source: Arc::new(source) }
    }
}

/// The embedded store gives up what its disk does not answer after 8 s, and looks twice a second.
const LOCAL_PATIENCE: Duration = Duration::from_secs(9);

/// A handle on the store. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Storage {
    // All of it behind one count: a request clones this, and counts are shared by all threads.
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

    /// Begins to open the configured backend. `default_path` is the embedded store's file when the
    /// configuration names none. Until it is open, operations fail with [`StorageError::Starting`].
    ///
    /// A Redis that is away is no error: the backend says so in `health` and connects when it can.
    ///
    /// # Errors
    ///
    /// When the Redis URLs cannot be used together.
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

    /// Waits until the embedded store is open; Redis is at once.
    ///
    /// # Errors
    ///
    /// When the embedded store's file is in use, damaged or not accessible.
    pub async fn opened(&self) -> Result<(), OpenError> {
        match &self.shared.engine {
            Engine::Local(local) => local.opened().await,
            Engine::Redis(_) => Ok(()),
        }
    }

    /// Completes when the embedded store has failed for good, by a defect, and says with what. Nothing that was
    /// acknowledged is lost.
    pub async fn died(&self) -> String {
        match &self.shared.engine {
            Engine::Local(local) => local.died().await,
            Engine::Redis(_) => std::future::pending().await,
        }
    }

    /// Reads the value under `key`; `None` when there is none.
    ///
    /// # Errors
    ///
    /// See [`StorageError`].
    pub async fn get(&self, key: &Bytes) -> Result<Option<Bytes>, StorageError> {
        self.measured(Operation::Get, async {
            self.check_key(key)?;
            let value = match &self.shared.engine {
                Engine::Local(local) => local.get(key).await,
                Engine::Redis(redis) => redis.get(key).await,
            }?;
            match value {
                // Somebody else wrote it, or the limit was higher then: it would not fit into an answer.
                Some(value) if value.len() > self.shared.max_value_size => {
                    Err(StorageError::ValueTooLarge { len: value.len(), max: self.shared.max_value_size })
                }
                value => Ok(value),
            }
        })
        .await
    }

    /// Writes `value` under `key`. When it returns `Ok`, the backend has made the write durable (the
    /// embedded store) or has acknowledged it (Redis).
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
            match &self.shared.engine {
                Engine::Local(local) => local.put(key, value).await,
                Engine::Redis(redis) => redis.put(&key, &value).await,
            }
        })
        .await
    }

    /// Removes `key`; `true` when there was a value.
    ///
    /// # Errors
    ///
    /// See [`StorageError`].
    pub async fn delete(&self, key: Bytes) -> Result<bool, StorageError> {
        self.measured(Operation::Delete, async {
            self.check_key(&key)?;
            match &self.shared.engine {
                Engine::Local(local) => local.delete(key).await,
                Engine::Redis(redis) => redis.delete(&key).await,
            }
        })
        .await
    }

    /// Which backend holds the data.
    pub fn backend(&self) -> Backend {
        self.shared.backend
    }

    /// How long an operation may take until the backend itself gives it up.
    pub fn patience(&self) -> Duration {
        match &self.shared.engine {
            Engine::Local(_) => LOCAL_PATIENCE,
            Engine::Redis(redis) => redis.patience(),
        }
    }

    /// The longest value, in bytes.
    pub fn max_value_size(&self) -> usize {
        self.shared.max_value_size
    }

    /// One line for people: the backend and where it is, without secrets.
    pub fn describe(&self) -> String {
        match &self.shared.engine {
            Engine::Local(local) => local.describe(),
            Engine::Redis(redis) => redis.describe(),
        }
    }

    /// Waits until everything accepted is done, and closes the backend. Operations after it fail.
    pub async fn close(&self) {
        match &self.shared.engine {
            Engine::Local(local) => local.close().await,
            Engine::Redis(redis) => redis.close().await,
        }
    }

    /// The one place that measures storage: every operation that a caller began is counted when it
    /// completes, with its duration and, when it failed, the reason.
    async fn measured<T>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        let mut measure = Measure {
            metrics: &self.shared.metrics,
            operation,
            backend: self.shared.backend,
            timer: Timer::start(),
            _in_flight: self.shared.metrics.storage_started(self.shared.backend),
            outcome: Err(StorageErrorReason::Cancelled),
        };
        let result = work.await;
        measure.outcome = result.as_ref().map(drop).map_err(StorageError::reason);
        result
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

/// Counts its operation when it is dropped: also when the caller went away before the end, which may
/// have been after the backend did the work.
struct Measure<'a> {
    metrics: &'a MetricsCollector,
    operation: Operation,
    backend: Backend,
    timer: Timer,
    _in_flight: UnderWay<'a>,
    outcome: Result<(), StorageErrorReason>,
}

impl Drop for Measure<'_> {
    fn drop(&mut self) {
        self.metrics.storage_completed(self.operation, self.backend, self.timer, self.outcome);
    }
}

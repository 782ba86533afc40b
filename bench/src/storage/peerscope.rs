//! Ours: `Storage`, through which the agent accesses its data. It checks limits and measures every operation.

use std::path::PathBuf;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use peerscope::metrics::{AgentInfo, Health, MetricsCollector, Registry};
use peerscope::storage::{BackendKind, Config, Storage};
use tokio::runtime::Runtime;

use super::{Contender, KEYS, Load, Operation, check, key, value};
use crate::Result;
use crate::measure::{Round, closed_loop};
use crate::report::OURS;

pub(super) const NAME: &str = OURS;

pub(super) struct Store {
    runtime: Runtime,
    storage: Storage,
}

impl Store {
    /// On the embedded store in its own file.
    pub(super) fn local(path: PathBuf) -> Result<Self> {
        Self::open(&Config::default(), path)
    }

    /// On a Redis server.
    pub(super) fn redis(url: &str) -> Result<Self> {
        let mut config = Config { backend: BackendKind::Redis, ..Config::default() };
        config.redis.urls = vec![url.parse()?];
        Self::open(&config, PathBuf::new())
    }

    fn open(config: &Config, path: PathBuf) -> Result<Self> {
        let runtime = Runtime::new()?;
        let storage = runtime.block_on(async {
            let agent = AgentInfo { peer_id: "bench".into(), name: "bench".into() };
            let metrics = MetricsCollector::new(&Registry::default(), &agent);
            let storage = Storage::open(config, path, metrics, Health::default()).await?;
            let puts = stream::iter(0..KEYS).map(|number| storage.put(key(number), value()));
            puts.buffer_unordered(256).try_collect::<()>().await?;
            Ok::<_, crate::Error>(storage)
        })?;
        Ok(Self { runtime, storage })
    }
}

impl Contender for Store {
    fn round(&mut self, load: Load) -> Result<Round> {
        let storage = self.storage.clone();
        self.runtime.block_on(closed_loop(load.callers, load.window, move |number| {
            let storage = storage.clone();
            async move {
                match load.operation {
                    Operation::Put => Ok(storage.put(load.shape.key(number), load.shape.value()).await?),
                    Operation::Get => check(storage.get(&key(number)).await?.as_deref()),
                }
            }
        }))
    }
}

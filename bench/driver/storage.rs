//! An operation on the embedded store through `Storage`, as in the agent.

use std::time::Instant;

use bytes::Bytes;
use peerscope::metrics::{Health, MetricsCollector};
use peerscope::storage::{Config, Storage};
use tempfile::TempDir;

use super::{KEYS, PAYLOAD, Result, collector, key, one_thread, per_operation};

const WARM_UP: usize = 640;

/// A store with every key, and its folder.
pub(super) async fn open(metrics: MetricsCollector) -> Result<(Storage, TempDir)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("store.redb");
    let storage = Storage::open(&Config::default(), path, metrics, Health::default()).await?;
    let value = || Bytes::from_static(&[7; PAYLOAD]);
    futures::future::try_join_all((0..KEYS).map(|number| storage.put(key(number), value()))).await?;
    Ok((storage, dir))
}

pub(super) fn get(count: usize) -> Result<f64> {
    one_thread()?.block_on(async {
        let (storage, _dir) = open(collector()).await?;
        let keys: Vec<_> = (0..KEYS).map(key).collect();
        let read = async |count| {
            for key in keys.iter().cycle().take(count) {
                let value = storage.get(key).await?;
                if value.is_none_or(|value| value.len() != PAYLOAD) {
                    return Err("a get did not return the value that was put".into());
                }
            }
            Result::Ok(())
        };
        read(WARM_UP).await?;
        let begin = Instant::now();
        read(count).await?;
        let nanos = per_operation(begin, count);
        storage.close().await;
        Ok(nanos)
    })
}

/// Puts in rounds: in each, `callers` callers put one value each and wait until all are durable.
pub(super) fn put(callers: usize, count: usize) -> Result<f64> {
    one_thread()?.block_on(async {
        let (storage, _dir) = open(collector()).await?;
        let write = async |count: usize| {
            for round in 0..count / callers {
                let puts = (0..callers).map(|caller| {
                    let key = key(round * callers + caller);
                    storage.put(key, Bytes::from_static(&[8; PAYLOAD]))
                });
                futures::future::try_join_all(puts).await?;
            }
            Result::Ok(())
        };
        write(WARM_UP).await?;
        let begin = Instant::now();
        write(count).await?;
        let nanos = per_operation(begin, count);
        storage.close().await;
        Ok(nanos)
    })
}

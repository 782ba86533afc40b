//! placeholder: being written
use super::{Error, OpenError, RedisConfig};
use crate::metrics::{Health, MetricsCollector};
use bytes::Bytes;
/// Redis.
#[derive(Debug)]
pub struct RedisStorageBackend;
#[allow(missing_docs, clippy::unused_async)]
impl RedisStorageBackend {
    pub async fn open(_c: &RedisConfig, _m: MetricsCollector, _h: Health) -> Result<Self, OpenError> {
        Ok(Self)
    }
    pub async fn get(&self, _key: &Bytes) -> Result<Option<Bytes>, Error> {
        Ok(None)
    }
    pub async fn put(&self, _key: &Bytes, _value: &Bytes) -> Result<(), Error> {
        Ok(())
    }
    pub async fn delete(&self, _key: &Bytes) -> Result<bool, Error> {
        Ok(false)
    }
    pub fn describe(&self) -> String {
        String::new()
    }
    pub async fn close(&self) {}
}

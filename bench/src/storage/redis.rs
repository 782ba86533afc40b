//! The ceiling on Redis: redis-rs's bare multiplexed connection.

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio::runtime::Runtime;

use super::{Contender, KEYS, Load, Operation, check, key, value};
use crate::Result;
use crate::measure::{Round, closed_loop};

pub(super) const NAME: &str = "redis-rs";

pub(super) struct Store {
    runtime: Runtime,
    connection: MultiplexedConnection,
}

impl Store {
    pub(super) fn connect(url: &str) -> Result<Self> {
        let runtime = Runtime::new()?;
        let connection = runtime.block_on(async {
            let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
            let mut all = redis::pipe();
            for number in 0..KEYS {
                all.set(key(number).as_ref(), value().as_ref()).ignore();
            }
            all.exec_async(&mut connection).await?;
            Ok::<_, crate::Error>(connection)
        })?;
        Ok(Self { runtime, connection })
    }
}

impl Contender for Store {
    fn round(&mut self, load: Load) -> Result<Round> {
        let connection = self.connection.clone();
        self.runtime.block_on(closed_loop(load.callers, load.window, move |number| {
            let mut connection = connection.clone();
            async move {
                match load.operation {
                    Operation::Put => Ok(connection.set(key(number).as_ref(), value().as_ref()).await?),
                    Operation::Get => {
                        let value: Option<Vec<u8>> = connection.get(key(number).as_ref()).await?;
                        check(value.as_deref())
                    }
                }
            }
        }))
    }
}

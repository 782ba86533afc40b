//! Separate connections for reads, so that a value that Redis does not deliver affects only its reader.
//!
//! Redis closes a connection whose pending answers exceed `client-output-buffer-limit`. On a connection shared by all
//! operations, a read of a value that large would make all of them fail. So reads share one connection and writes
//! another, and a read whose connection broke is retried on a connection that it has to itself.
//!
//! When the connection for writes is replaced, so are these: the same name may now lead to another server, while the
//! old one may still be up with outdated data.

use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, RedisResult, Value};

use super::connection::{ask, config};

/// A connection that is made on demand, and made again if it broke or belongs to an earlier generation.
#[derive(Default)]
struct OnDemand {
    // Never held across an await.
    current: Mutex<Option<Made>>,
    /// The number of the last connection. The task that holds the lock connects, and the others wait for it.
    connecting: tokio::sync::Mutex<u64>,
}

#[derive(Clone)]
struct Made {
    /// The generation of the connection for writes to which it belongs.
    generation: u64,
    /// Distinguishes it from the next one.
    number: u64,
    connection: MultiplexedConnection,
}

/// Where a read goes, and the timeout of each of its steps.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) client: &'a Client,
    /// The generation of the connection for writes.
    pub(super) generation: u64,
    pub(super) timeout: Duration,
}

impl OnDemand {
    /// Sends `command` and waits for its answer. The timeout applies separately to connecting and to the answer.
    async fn send(&self, way: Way<'_>, command: &Cmd) -> RedisResult<Value> {
        let mut made = match self.current(way.generation) {
            Some(made) => made,
            None => tokio::time::timeout(way.timeout, self.connect(way)).await.map_err(std::io::Error::from)??,
        };
        let answer = ask(&mut made.connection, command).await;
        if answer.as_ref().is_err_and(|error| error.is_io_error()) {
            self.give_up(made.number);
        }
        answer
    }

    fn current(&self, generation: u64) -> Option<Made> {
        let current = self.current.lock();
        current.clone().filter(|made| made.generation >= generation)
    }

    async fn connect(&self, way: Way<'_>) -> RedisResult<Made> {
        let mut last = self.connecting.lock().await;
        if let Some(current) = self.current(way.generation) {
            return Ok(current);
        }
        let connection = way.client.get_multiplexed_async_connection_with_config(&config(way.timeout)).await?;
        *last += 1;
        let made = Made { generation: way.generation, number: *last, connection };
        *self.current.lock() = Some(made.clone());
        Ok(made)
    }

    fn give_up(&self, number: u64) {
        self.current.lock().take_if(|made| made.number == number);
    }

    /// Disconnects as soon as no read waits for an answer.
    fn close(&self) {
        self.current.lock().take();
    }
}

/// The connections for reads.
#[derive(Default)]
pub(super) struct Reads {
    shared: OnDemand,
    /// For reads whose connection broke, one at a time.
    alone: OnDemand,
    turn: tokio::sync::Mutex<()>,
}

impl Reads {
    /// Reads on the shared connection.
    pub(super) async fn together(&self, way: Way<'_>, command: &Cmd) -> RedisResult<Value> {
        self.shared.send(way, command).await
    }

    /// Reads with no other read on the connection. The wait for that is bounded by the timeout as well.
    pub(super) async fn alone(&self, way: Way<'_>, command: &Cmd) -> RedisResult<Value> {
        let _turn = tokio::time::timeout(way.timeout, self.turn.lock()).await.map_err(std::io::Error::from)?;
        self.alone.send(way, command).await
    }

    pub(super) fn close(&self) {
        self.shared.close();
        self.alone.close();
    }
}

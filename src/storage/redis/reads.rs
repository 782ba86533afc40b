//! Reads on connections of their own, so that a value that Redis does not deliver breaks nothing of others.
//!
//! Redis closes a connection whose answers are more than `client-output-buffer-limit` allows. One such value, asked for
//! on the connection that all share, would take everybody's answers with it. So reads share one connection and writes
//! another one; and a read whose connection broke is tried again where it is alone.
//!
//! When the connection for writes is replaced, so are these: behind the same name there may be another server by then, and
//! the old one may live on with what was there before.

use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, RedisResult, Value};

use super::connection::{ask, config};

/// A connection that is made when it is needed, and again when it broke or is of another time.
#[derive(Default)]
struct OnDemand {
    // A std lock: never held across an await.
    current: Mutex<Option<Made>>,
    /// The number of the last one. Whoever has it connects; the others wait for that.
    connecting: tokio::sync::Mutex<u64>,
}

#[derive(Clone)]
struct Made {
    /// Of the connection for writes that it goes with.
    generation: u64,
    /// Tells it from the next one.
    number: u64,
    connection: MultiplexedConnection,
}

/// Where a read goes, and for how long anything of it is waited for.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) client: &'a Client,
    /// Of the connection for writes.
    pub(super) generation: u64,
    pub(super) timeout: Duration,
}

impl OnDemand {
    /// Sends `command` and waits for its answer; the timeout is for each of connecting and that.
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

    /// Disconnects, when nobody waits for an answer any more.
    fn close(&self) {
        self.current.lock().take();
    }
}

/// The connections for reads.
#[derive(Default)]
pub(super) struct Reads {
    shared: OnDemand,
    /// For those whose connection broke, one at a time.
    alone: OnDemand,
    turn: tokio::sync::Mutex<()>,
}

impl Reads {
    /// Reads together with others.
    pub(super) async fn together(&self, way: Way<'_>, command: &Cmd) -> RedisResult<Value> {
        self.shared.send(way, command).await
    }

    /// Reads with nobody else on the connection. The wait for that is bounded by the timeout as well.
    pub(super) async fn alone(&self, way: Way<'_>, command: &Cmd) -> RedisResult<Value> {
        let _turn = tokio::time::timeout(way.timeout, self.turn.lock()).await.map_err(std::io::Error::from)?;
        self.alone.send(way, command).await
    }

    pub(super) fn close(&self) {
        self.shared.close();
        self.alone.close();
    }
}

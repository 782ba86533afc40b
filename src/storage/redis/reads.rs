//! Reads on connections of their own, so that a value that Redis does not deliver breaks nothing of others.
//!
//! Redis closes a connection whose answers are more than `client-output-buffer-limit` allows. One such value, asked for
//! on the connection that all share, would take everybody's answers with it. So reads share one connection and writes
//! another one; and a read whose connection broke is tried again where it is alone.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, RedisResult, Value};

use super::connection::{ask, config};

/// A connection that is made when it is needed, and again when it broke.
#[derive(Default)]
pub(super) struct OnDemand {
    // A std lock: never held across an await.
    current: Mutex<(u64, Option<MultiplexedConnection>)>,
    /// Whoever has it connects; the others wait for that.
    connecting: tokio::sync::Mutex<()>,
}

impl OnDemand {
    /// Sends `command` and waits for its answer; `timeout` is for each of connecting and that.
    pub(super) async fn send(&self, client: &Client, timeout: Duration, command: &Cmd) -> RedisResult<Value> {
        let (number, mut connection) = match self.current() {
            Some(current) => current,
            None => {
                tokio::time::timeout(timeout, self.connect(client, timeout)).await.map_err(std::io::Error::from)??
            }
        };
        let answer = ask(&mut connection, command).await;
        if answer.as_ref().is_err_and(|error| error.is_io_error()) {
            self.give_up(number);
        }
        answer
    }

    fn current(&self) -> Option<(u64, MultiplexedConnection)> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.1.clone().map(|connection| (current.0, connection))
    }

    async fn connect(&self, client: &Client, timeout: Duration) -> RedisResult<(u64, MultiplexedConnection)> {
        let _connecting = self.connecting.lock().await;
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let connection = client.get_multiplexed_async_connection_with_config(&config(timeout)).await?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = (current.0 + 1, Some(connection.clone()));
        Ok((current.0, connection))
    }

    fn give_up(&self, number: u64) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0 == number {
            current.1 = None;
        }
    }

    /// Disconnects, when nobody waits for an answer any more.
    pub(super) fn close(&self) {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).1 = None;
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
    pub(super) async fn together(&self, client: &Client, timeout: Duration, command: &Cmd) -> RedisResult<Value> {
        self.shared.send(client, timeout, command).await
    }

    /// Reads with nobody else on the connection. The wait for that is bounded by `timeout` as well.
    pub(super) async fn alone(&self, client: &Client, timeout: Duration, command: &Cmd) -> RedisResult<Value> {
        let _turn = tokio::time::timeout(timeout, self.turn.lock()).await.map_err(std::io::Error::from)?;
        self.alone.send(client, timeout, command).await
    }

    pub(super) fn close(&self) {
        self.shared.close();
        self.alone.close();
    }
}

//! A connection to one node of a cluster, for redis-rs's cluster client.
//!
//! Without an answer, that client sends a command again: at once after a timeout, or on a new connection if the old one
//! broke. For a write that is unsafe (see the [module](super)): it may have been performed, and another client may have
//! written since. So here a write without an answer fails for good. Answers, including MOVED and ASK, are passed on.

use futures::FutureExt as _;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::Connect;
use redis::{AsyncConnectionConfig, Cmd, ErrorKind, IntoConnectionInfo, Pipeline, RedisError, RedisFuture, Value};

/// The detail of the [`RedisError`] of a write that timed out, in a kind that is not retried.
pub(super) const TIMED_OUT: &str = "timed out";

/// A connection to one node; clones share it.
#[derive(Clone)]
pub(super) struct NodeConnection(MultiplexedConnection);

impl Connect for NodeConnection {
    fn connect_with_config<'a, T>(info: T, config: AsyncConnectionConfig) -> RedisFuture<'a, Self>
    where
        T: IntoConnectionInfo + Send + 'a,
    {
        async move { MultiplexedConnection::connect_with_config(info, config).await.map(Self) }.boxed()
    }
}

impl ConnectionLike for NodeConnection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let answered = async {
            let answer = self.0.send_packed_command(command).await;
            answer.map_err(|error| if may_be_repeated(command) { error } else { for_good(&error) })
        };
        answered.boxed()
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.0.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.0.get_db()
    }
}

/// Everything except `SET` and `DEL`: `GET`, and the commands of the cluster client and the probe.
fn may_be_repeated(command: &Cmd) -> bool {
    !matches!(command.args_iter().next(), Some(redis::Arg::Simple(b"SET" | b"DEL")))
}

/// The same error, in a kind that the cluster client passes on without a retry.
fn for_good(error: &RedisError) -> RedisError {
    let why = if error.is_timeout() { TIMED_OUT.to_owned() } else { error.to_string() };
    (ErrorKind::Client, "a write was not answered", why).into()
}

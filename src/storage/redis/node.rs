//! A connection to one node of a cluster, for redis-rs's cluster client.
//!
//! That client sends a command again when it got no answer: at once after a timeout, on a new connection when the old one
//! broke. For a write that is one time too many (see the [module](super)): it may have been done, and somebody else may
//! have written since. So here a write without an answer fails for good. Answers, among them MOVED and ASK, pass.

use futures::FutureExt as _;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::Connect;
use redis::{AsyncConnectionConfig, Cmd, ErrorKind, IntoConnectionInfo, Pipeline, RedisError, RedisFuture, Value};

/// What a write that timed out says, where [`RedisError`] says that nobody should try it again.
pub(super) const TIMED_OUT: &str = "timed out";

/// Clones share it.
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

/// All that is asked for here but `SET` and `DEL`: `GET`, and what the cluster client and the probe ask.
fn may_be_repeated(command: &Cmd) -> bool {
    !matches!(command.args_iter().next(), Some(redis::Arg::Simple(b"SET" | b"DEL")))
}

/// The same error, of a kind that the cluster client hands on.
fn for_good(error: &RedisError) -> RedisError {
    let why = if error.is_timeout() { TIMED_OUT.to_owned() } else { error.to_string() };
    (ErrorKind::Client, "a write without an answer", why).into()
}

//! Makes sure that no command on an abandoned connection takes effect later.
//!
//! A command that has long failed for its caller may still be on its way: the kernel continues to send the data of a
//! closed socket, a proxy has buffered it, or the server has not read it yet. A late write would undo later ones. So
//! before a new connection is used, the server is told to close the old one. A command that it has not executed by then
//! never takes effect.

use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Value};

use super::connection::ask;

/// A connection as its server knows it. Both fields are needed: a server restarts its numbering when it restarts, and
/// behind a proxy successive connections may have the same address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerSide {
    /// Its client ID.
    id: u64,
    /// The client address that the server sees.
    address: String,
}

impl ServerSide {
    /// Asks the server. `None` if its answer cannot be parsed.
    ///
    /// # Errors
    ///
    /// Those of the connection, and the server's own if this user lacks the permission or the server is a proxy.
    pub(super) async fn of(connection: &mut MultiplexedConnection) -> RedisResult<Option<Self>> {
        let described = match ask(connection, redis::cmd("CLIENT").arg("INFO")).await {
            Err(error) if is_unknown(&error) => {
                // Before Redis 6.2.
                let id: u64 = redis::from_redis_value(ask(connection, redis::cmd("CLIENT").arg("ID")).await?)?;
                let list = text(ask(connection, redis::cmd("CLIENT").arg("LIST")).await?);
                list.lines().filter_map(Self::parse).find(|found| found.id == id)
            }
            info => Self::parse(&text(info?)),
        };
        Ok(described)
    }

    /// `id=3 addr=127.0.0.1:52555 laddr=127.0.0.1:6379 fd=8 ...`
    fn parse(line: &str) -> Option<Self> {
        let field = |name: &str| line.split_ascii_whitespace().find_map(|field| field.strip_prefix(name));
        Some(Self { id: field("id=")?.parse().ok()?, address: field("addr=")?.to_owned() })
    }

    /// Makes the server close this connection, unless it is `connection` itself. Once this returns, no command on it
    /// takes effect any more.
    pub(super) async fn end(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("ID").arg(self.id).arg("ADDR").arg(&self.address).arg("SKIPME").arg("yes");
        ask(connection, &kill).await.map(drop)
    }
}

/// `ERR Unknown subcommand or wrong number of arguments for 'INFO'. Try CLIENT HELP.`
fn is_unknown(error: &redis::RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.to_ascii_lowercase().starts_with("unknown subcommand"))
}

fn text(value: Value) -> String {
    redis::from_redis_value(value).unwrap_or_default()
}

/// Parses arbitrary replies to `CLIENT INFO`.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(ServerSide { address, .. }) = ServerSide::parse(&text) {
        assert!(text.contains(&address) && !address.contains(|c: char| c.is_ascii_whitespace()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_of_all_versions_are_parsed() {
        for line in [
            "id=3 addr=127.0.0.1:52555 fd=8 name= age=855 idle=0 flags=N db=0 sub=0 psub=0 multi=-1 cmd=client",
            "id=3 addr=127.0.0.1:52555 laddr=127.0.0.1:6379 fd=8 name= age=0 idle=0 flags=N db=0 resp=2 io-thread=0",
        ] {
            assert_eq!(ServerSide::parse(line), Some(ServerSide { id: 3, address: "127.0.0.1:52555".into() }));
        }
        let unix = "id=12 addr=/run/redis.sock:0 laddr=/run/redis.sock:0 fd=9";
        assert_eq!(ServerSide::parse(unix), Some(ServerSide { id: 12, address: "/run/redis.sock:0".into() }));
        for line in ["", "addr=127.0.0.1:1", "id=x addr=127.0.0.1:1", "laddr=127.0.0.1:6379 id=4"] {
            assert_eq!(ServerSide::parse(line), None, "{line}");
        }
    }
}

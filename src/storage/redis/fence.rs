//! A connection that was given up, and how to make sure that nothing of it happens any more.
//!
//! A command whose caller has long been told that it failed may still be on its way: the kernel goes on sending what a
//! closed socket holds, a proxy has it in a buffer, the server has not read it yet. A write would then undo a later one.
//! So before a new connection is used, the server is told to end the old one: what it has not carried out by then never
//! happens.

use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Value};

use super::connection::ask;

/// A connection as its server knows it. Neither half is enough: a server counts its connections anew when it starts,
/// and behind a proxy one address may stand for several connections, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerSide {
    /// Its number.
    id: u64,
    /// From where the server sees it come.
    address: String,
}

impl ServerSide {
    /// Asks the server. `None` when what it says cannot be read.
    ///
    /// # Errors
    ///
    /// Those of the connection, and the server's own, where it does not let this user ask or is no Redis of its own but a
    /// proxy.
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

    /// Has the server end it, unless it is the one that asks. When this returns, nothing of it happens any more.
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

/// What `CLIENT INFO` may say.
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
    fn reads_what_every_version_says() {
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

//! Two agents at work, with both storage backends, and clients that count what they do.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::agent::await_link;
use crate::support::agent::{PATIENCE, TestAgent, eventually};
use crate::support::http;
use crate::support::redis::RedisServer;

const CLIENTS: usize = 4;

/// The second agent may do everything on the first one, and the first one nothing on the second one.
pub(super) struct Pair {
    /// With the embedded store.
    pub(super) first: TestAgent,
    /// With Redis.
    pub(super) second: TestAgent,
    _redis: RedisServer,
}

impl Pair {
    pub(super) fn start() -> Self {
        let redis = RedisServer::start(&[]);
        let config = format!("storage: {{backend: redis, redis: {{urls: [\"{}\"]}}}}\n", redis.url());
        let mut second = TestAgent::start_with(&config);
        let id = second.peer_id();
        let first = TestAgent::start_with(&format!("access: [{{peer: {id}, allow: [get, put, delete]}}]\n"));
        assert!(second.stop().success());
        let second = second.bootstrap(&first).started();
        let pair = Self { first, second, _redis: redis };
        pair.await_link();
        pair
    }

    /// Waits until the second one can send requests to the first one, and both have opened their stores: an agent
    /// reports that it is running before that, and on a busy disk long before.
    pub(super) fn await_link(&self) {
        await_link(&self.second, &self.first);
        for agent in self.both() {
            eventually("its store is open", || agent.http("/ready").status == 200);
        }
    }

    pub(super) fn both(&self) -> [&TestAgent; 2] {
        [&self.first, &self.second]
    }
}

/// Clients of the second agent that work, round after round, until they are told to stop.
///
/// A round is four requests to the first agent (put a key, get it, get a missing one, delete it), and one put
/// into the second agent's own store.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<u32>>,
}

impl Load {
    pub(super) fn start(pair: &Pair) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let peer = pair.first.peer_id();
        let client = |client| {
            let (stop, socket, peer) = (Arc::clone(&stop), pair.second.control_socket(), peer.clone());
            std::thread::spawn(move || {
                let mut rounds = 0;
                while !stop.load(Ordering::Relaxed) {
                    round(&socket, &peer, &format!("{client}-{rounds}"));
                    rounds += 1;
                }
                rounds
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { stop, clients }
    }

    /// Waits for the current rounds to end, and returns how many there were in total.
    pub(super) fn finish(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        let rounds = self.clients.into_iter().map(|client| client.join().expect("every request was answered"));
        rounds.sum()
    }
}

fn round(socket: &Path, peer: &str, key: &str) {
    let requests = [
        ("PUT", format!("{key}?peer={peer}"), 204),
        ("GET", format!("{key}?peer={peer}"), 200),
        ("GET", format!("no-{key}?peer={peer}"), 404),
        ("DELETE", format!("{key}?peer={peer}"), 200),
        ("PUT", key.to_owned(), 204),
    ];
    for (method, target, status) in requests {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = if method == "PUT" { key.as_bytes() } else { b"" };
        let reply = http::exchange(stream, method, &format!("/v1/keys/{target}"), body).unwrap();
        assert_eq!(reply.status, status, "{method} {target}: {}", reply.text());
    }
}

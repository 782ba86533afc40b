//! Many concurrent writers on the control socket, which remember their acknowledged writes.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use crate::support::agent::{PATIENCE, TestAgent};
use crate::support::http;

const WRITERS: usize = 16;

pub(crate) struct Load {
    acknowledged: Arc<Acknowledged>,
    writers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Acknowledged {
    keys: Mutex<Vec<String>>,
    more: Condvar,
}

impl Load {
    /// Writes until the agent is gone. Each `round` has keys of its own.
    pub(crate) fn start(agent: &TestAgent, round: usize) -> Self {
        let acknowledged = Arc::new(Acknowledged::default());
        let writer = |writer| {
            let (socket, acknowledged) = (agent.control_socket(), Arc::clone(&acknowledged));
            std::thread::spawn(move || write(&socket, &format!("{round}-{writer}"), &acknowledged))
        };
        let writers = (0..WRITERS).map(writer).collect();
        Self { acknowledged, writers }
    }

    /// Waits until this many writes have been acknowledged.
    pub(crate) fn await_acknowledged(&self, count: usize) {
        let keys = self.acknowledged.keys.lock().unwrap();
        let waited = self.acknowledged.more.wait_timeout_while(keys, PATIENCE, |keys| keys.len() < count).unwrap();
        assert!(!waited.1.timed_out(), "only {} writes were acknowledged", waited.0.len());
    }

    /// Waits until every writer has noticed that the agent is gone, and returns the keys of all acknowledged writes.
    pub(crate) fn finish(self) -> Vec<String> {
        for writer in self.writers {
            writer.join().unwrap();
        }
        std::mem::take(&mut *self.acknowledged.keys.lock().unwrap())
    }
}

fn write(socket: &PathBuf, prefix: &str, acknowledged: &Acknowledged) {
    for i in 0.. {
        let key = format!("{prefix}-{i}");
        let put = |stream: UnixStream| -> io::Result<http::Reply> {
            stream.set_read_timeout(Some(PATIENCE))?;
            http::exchange(stream, "PUT", &format!("/v1/keys/{key}"), &value(&key))
        };
        match UnixStream::connect(socket).and_then(put) {
            Ok(reply) => assert_eq!(reply.status, 204, "{key}: {}", reply.text()),
            Err(error) => {
                let kind = error.kind();
                assert!(!matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{key}: no answer");
                return;
            }
        }
        acknowledged.keys.lock().unwrap().push(key);
        acknowledged.more.notify_all();
    }
}

/// A value that repeats its key over its whole length.
fn value(key: &str) -> Vec<u8> {
    let length = 20 + key.bytes().map(usize::from).sum::<usize>() * 37 % 5000;
    format!("{key};").into_bytes().into_iter().cycle().take(length).collect()
}

/// Asserts that every acknowledged write is there, intact.
pub(crate) fn assert_kept(agent: &TestAgent, keys: &[String]) {
    for key in keys {
        let reply = agent.control("GET", &format!("/v1/keys/{key}"), b"").unwrap();
        assert_eq!(reply.status, 200, "{key} was acknowledged and is lost");
        assert!(reply.body == value(key), "{key} has another value");
    }
}

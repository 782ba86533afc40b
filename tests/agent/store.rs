//! Helpers for the tests of a failing store.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::agent::{TestAgent, eventually, within};
use crate::support::http::Reply;

/// The longest time that a stop takes: 10 s for requests in flight, 5 s for the store, little for the rest, and some
/// slack for a busy machine.
pub(crate) const STOP: Duration = Duration::from_secs(20);

/// Almost the largest value that fits: a few of them need more room than the log has allocated.
pub(crate) const LARGE: usize = 900_000;

/// The acknowledged values, by key.
#[derive(Default)]
pub(crate) struct Acknowledged(BTreeMap<String, Vec<u8>>);

impl Acknowledged {
    /// Puts a value, and remembers it if it is acknowledged.
    pub(crate) fn put(&mut self, agent: &TestAgent, key: &str, value: &[u8]) -> Reply {
        let reply = put(agent, key, value);
        if reply.status == 204 {
            self.0.insert(key.to_owned(), value.to_owned());
        }
        reply
    }

    /// Puts a value, which must succeed.
    #[track_caller]
    pub(crate) fn must_put(&mut self, agent: &TestAgent, key: &str, value: &[u8]) {
        let reply = self.put(agent, key, value);
        assert_eq!(reply.status, 204, "{key}: {}", reply.text());
    }

    /// Asserts that every key has its last acknowledged value.
    #[track_caller]
    pub(crate) fn assert_kept(&self, agent: &TestAgent) {
        for (key, value) in &self.0 {
            assert!(get(agent, key).as_ref() == Some(value), "{key} was acknowledged and is lost or changed");
        }
    }
}

pub(crate) fn put(agent: &TestAgent, key: &str, value: &[u8]) -> Reply {
    agent.control("PUT", &format!("/v1/keys/{key}"), value).unwrap()
}

#[track_caller]
pub(crate) fn get(agent: &TestAgent, key: &str) -> Option<Vec<u8>> {
    let reply = agent.control("GET", &format!("/v1/keys/{key}"), b"").unwrap();
    match reply.status {
        200 => Some(reply.body),
        404 => None,
        status => panic!("get {key}: {status} {}", reply.text()),
    }
}

/// A value made of its seed, unlike that of any other seed.
pub(crate) fn value(seed: &str, len: usize) -> Vec<u8> {
    format!("{seed};").into_bytes().into_iter().cycle().take(len).collect()
}

/// Why the store is not ready, if it is not. No other component may have a problem.
pub(crate) fn problem(agent: &TestAgent) -> Option<String> {
    let status = agent.control("GET", "/v1/status", b"").unwrap().json();
    let components = status["components"].as_array().unwrap();
    let storage = components.iter().find(|component| component["component"] == "storage").unwrap();
    let problem = storage["problem"].as_str().map(str::to_owned);
    assert_eq!(status["ready"], problem.is_none(), "{status}");
    problem
}

/// Waits until the store is not ready for a reason that contains `why`. The endpoint must report the same, and that the
/// agent is live.
#[track_caller]
pub(crate) fn await_problem(agent: &TestAgent, limit: Duration, why: &str) {
    within(limit, why, || problem(agent).is_some_and(|problem| problem.contains(why)));
    let ready = agent.http("/ready");
    let storage = ready.text().lines().find(|line| line.starts_with("storage: not ready: ")).map(str::to_owned);
    assert!(ready.status == 503 && storage.is_some_and(|said| said.contains(why)), "{} {}", ready.status, ready.text());
    assert_eq!(agent.http("/live").status, 200);
}

#[track_caller]
pub(crate) fn await_ready(agent: &TestAgent, limit: Duration) {
    within(limit, "the store is ready again", || problem(agent).is_none());
    assert_eq!(agent.http("/ready").status, 200);
}

/// Waits until the agent has ended as far as possible: a thread that waits for a frozen disk cannot be killed.
#[track_caller]
pub(crate) fn await_main_thread_gone(agent: &TestAgent) {
    let stat = format!("/proc/{}/stat", agent.pid());
    eventually("the main thread has ended", || {
        std::fs::read_to_string(&stat).is_ok_and(|stat| stat.rsplit(") ").next().unwrap().starts_with('Z'))
    });
}

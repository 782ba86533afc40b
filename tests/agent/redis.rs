//! An agent on a real Redis that goes away and comes back.

use crate::support::agent::{TestAgent, eventually};
use crate::support::metrics::value;
use crate::support::redis::RedisServer;

fn agent_on(redis: &RedisServer) -> TestAgent {
    let urls = format!("storage: {{backend: redis, redis: {{urls: [\"{}\"], timeout: 500ms}}}}\n", redis.url());
    TestAgent::start_with(&urls)
}

fn retries(agent: &TestAgent) -> f64 {
    value(&agent.scrape(), "storage_redis_retries_total", &[])
}

/// Asserts that the agent reports its store as not available, and that everything else works.
fn assert_works_without(redis: &RedisServer, agent: &TestAgent) {
    let reply = agent.http("/ready");
    assert_eq!(reply.status, 503);
    let reason = format!("storage: not ready: Redis at redis://127.0.0.1:{}", redis.port);
    assert!(reply.text().starts_with(&format!("not ready\n{reason}")), "{}", reply.text());
    assert!(reply.text().contains("\nnetwork: ready\nmetrics: ready\n"), "{}", reply.text());
    assert_eq!(agent.http("/live").status, 200);
    assert_eq!(value(&agent.scrape(), "agent_component_ready", &[("component", "storage")]), 0.0);
    assert_eq!(agent.status()["ready"], false);
    assert!(agent.cli(&["peers"]).text().contains("no peers"));

    let before = retries(agent);
    let message = agent.cli(&["put", "greeting", "hello"]).failed(1);
    assert!(message.starts_with("the storage backend is not available"), "{message}");
    assert_eq!(retries(agent), before + 3.0);
    agent.await_log("Redis connection failed after 3 retries");
}

#[test]
fn a_running_agent_reconnects_when_redis_comes_back() {
    let mut redis = RedisServer::start(&[]);
    let agent = agent_on(&redis);
    let store = agent.await_log("Store ");
    assert!(store.ends_with(&format!("Store redis redis://127.0.0.1:{}", redis.port)), "{store}");
    eventually("ready", || agent.http("/ready").status == 200);
    agent.cli(&["put", "greeting", "hello"]).ok();
    assert_eq!(redis.command::<Vec<u8>>(&["GET", "peerscope:greeting"]), b"hello");
    assert_eq!(value(&agent.scrape(), "storage_redis_reconnects_total", &[]), 0.0);

    redis.kill();
    eventually("the loss is noticed", || agent.http("/ready").status == 503);
    assert_works_without(&redis, &agent);

    redis.restart();
    eventually("ready again", || agent.http("/ready").status == 200);
    assert_eq!(value(&agent.scrape(), "agent_component_ready", &[("component", "storage")]), 1.0);
    assert_eq!(value(&agent.scrape(), "storage_redis_reconnects_total", &[]), 1.0);
    agent.cli(&["put", "greeting", "hello again"]).ok();
    assert_eq!(agent.cli(&["get", "greeting"]).ok(), b"hello again");
    assert_eq!(redis.command::<Vec<u8>>(&["GET", "peerscope:greeting"]), b"hello again");
}

#[test]
fn an_agent_starts_without_redis_and_connects_later() {
    let mut redis = RedisServer::prepare(&[]);
    let mut agent = agent_on(&redis);
    eventually("the first attempt has failed", || agent.http("/ready").text().contains("refused"));
    assert_works_without(&redis, &agent);
    redis.restart();
    eventually("ready", || agent.http("/ready").status == 200);
    agent.cli(&["put", "greeting", "hello"]).ok();
    assert_eq!(agent.cli(&["get", "greeting"]).ok(), b"hello");

    // It stops as usual without its store.
    redis.kill();
    eventually("the loss is noticed", || agent.http("/ready").status == 503);
    assert_eq!(agent.stop().code(), Some(0));
}

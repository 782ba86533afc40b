//! The password of Redis is shown nowhere: not by `check`, not by `status`, not in the log at any level,
//! not by an error, neither when it is right nor when it is wrong.

use crate::support::agent::{TestAgent, eventually};
use crate::support::redis::RedisServer;

const PASSWORD: &str = "hunter2-correct-horse";

fn config(redis: &RedisServer, password: &str) -> String {
    format!(
        "log: {{level: 'trace,nothing=off'}}\nstorage:\n  backend: redis\n  redis: {{urls: ['redis://:{password}@127.0.0.1:{}'], timeout: 500ms}}\n",
        redis.port
    )
}

/// Collects everything that the agent says while something is done with it.
fn everything_said(agent: &TestAgent) -> String {
    let mut said = String::new();
    let commands: [&[&str]; 8] = [
        &["check"],
        &["check", "--json"],
        &["status"],
        &["status", "--json"],
        &["peers"],
        &["put", "key", "value"],
        &["get", "key"],
        &["delete", "key"],
    ];
    for command in commands {
        let done = agent.cli(command);
        said += &format!("{}{}", done.text(), done.stderr);
    }
    if cfg!(feature = "metrics-prometheus") {
        for path in ["/", "/ready", "/metrics"] {
            said += &agent.http(path).text();
        }
    }
    said + &agent.log().join("\n")
}

#[test]
fn a_password_that_works() {
    let mut redis = RedisServer::start(&["--requirepass", PASSWORD]);
    let mut agent = TestAgent::start_with(&config(&redis, PASSWORD));
    eventually("ready", || agent.status()["ready"] == true);
    agent.cli(&["put", "greeting", "hello"]).ok();
    let masked = format!("redis://:***@127.0.0.1:{}", redis.port);
    let checked = agent.cli(&["check"]).text();
    assert!(checked.contains(&masked), "{checked}");
    // What is printed loads again, although it no longer leads anywhere.
    let again = TestAgent::prepare().configured(&checked);
    assert_eq!(again.cli(&["check"]).code, 0);

    let mut said = everything_said(&agent);
    redis.kill();
    eventually("the loss is noticed", || agent.status()["ready"] == false);
    said += &everything_said(&agent);
    redis.restart();
    eventually("ready again", || agent.status()["ready"] == true);
    said += &everything_said(&agent);
    let log = agent.log();
    assert!(log.iter().any(|line| line.contains("TRACE")), "the log says all it can");
    assert!(said.contains("Redis connection"), "{said}");
    assert!(!said.contains(PASSWORD), "{said}");
    assert!(agent.stop().success());
}

#[test]
fn a_password_that_is_wrong() {
    let redis = RedisServer::start(&["--requirepass", PASSWORD]);
    let wrong = "swordfish-battery-staple";
    let agent = TestAgent::start_with(&config(&redis, wrong));
    agent.await_log("Redis refused the connection");
    let said = everything_said(&agent);
    assert!(said.contains("Redis refused the configured user name or password"), "{said}");
    assert!(!said.contains(wrong) && !said.contains(PASSWORD), "{said}");
}

#[test]
fn a_password_in_the_wrong_place() {
    for yaml in [
        format!("storage: {{redis: {{urls: ['redis://u:{PASSWORD}@host:many']}}}}\n"),
        format!("storage: {{backend: 'redis://:{PASSWORD}@host'}}\n"),
        format!("storage: {{redis: 'redis://:{PASSWORD}@host'}}\n"),
        format!("network: {{bootstrap: ['redis://:{PASSWORD}@host']}}\n"),
    ] {
        let message = TestAgent::prepare().configured(&yaml).cli(&["check"]).failed(78);
        assert!(!message.contains(PASSWORD), "{message}");
    }
}

//! The Redis password is never shown, whether it is right or wrong: not by `check`, not by `status`, not in the log at
//! any level, not in an error.

use std::os::unix::fs::PermissionsExt as _;

use crate::support::agent::{TestAgent, eventually};
use crate::support::disk::not_run;
use crate::support::redis::RedisServer;

const PASSWORD: &str = "hunter2-correct-horse";

fn config(redis: &RedisServer, password: &str) -> String {
    format!(
        "log: {{level: 'trace,nothing=off'}}\nstorage:\n  backend: redis\n  redis: {{urls: ['redis://:{password}@127.0.0.1:{}'], timeout: 500ms}}\n",
        redis.port
    )
}

/// Runs many commands and requests, and collects all output and the log.
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
fn a_working_password_is_never_shown() {
    let mut redis = RedisServer::start(&["--requirepass", PASSWORD]);
    let mut agent = TestAgent::start_with(&config(&redis, PASSWORD));
    eventually("ready", || agent.status()["ready"] == true);
    agent.cli(&["put", "greeting", "hello"]).ok();
    let masked = format!("redis://:***@127.0.0.1:{}", redis.port);
    let checked = agent.cli(&["check"]).text();
    assert!(checked.contains(&masked), "{checked}");
    // The printed configuration loads again, although it cannot connect.
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
    assert!(log.iter().any(|line| line.contains("TRACE")), "the log is at its most detailed level");
    assert!(said.contains("Redis connection"), "{said}");
    assert!(!said.contains(PASSWORD), "{said}");
    assert!(agent.stop().success());
}

#[test]
fn a_wrong_password_is_never_shown() {
    let redis = RedisServer::start(&["--requirepass", PASSWORD]);
    let wrong = "swordfish-battery-staple";
    let agent = TestAgent::start_with(&config(&redis, wrong));
    agent.await_log("Redis refused the connection");
    let said = everything_said(&agent);
    assert!(said.contains("Redis refused the configured user name or password"), "{said}");
    assert!(!said.contains(wrong) && !said.contains(PASSWORD), "{said}");
}

#[test]
fn a_password_in_the_wrong_place_is_never_shown() {
    for yaml in [
        format!("storage: {{redis: {{urls: ['redis://u:{PASSWORD}@host:many']}}}}\n"),
        // As redis-cli accepts it.
        format!("storage: {{backend: redis, redis: {{urls: ['redis://{PASSWORD}@host']}}}}\n"),
        format!("storage: {{backend: 'redis://:{PASSWORD}@host'}}\n"),
        format!("storage: {{redis: 'redis://:{PASSWORD}@host'}}\n"),
        format!("network: {{bootstrap: ['redis://:{PASSWORD}@host']}}\n"),
    ] {
        let message = TestAgent::prepare().configured(&yaml).cli(&["check"]).failed(78);
        assert!(!message.contains(PASSWORD), "{message}");
    }
    let url = format!("redis://{PASSWORD}@host");
    let message = TestAgent::prepare().cli(&["run", "--storage", "redis", "--redis-url", &url]).failed(78);
    assert!(message.contains("write redis://:PASSWORD@HOST") && !message.contains(PASSWORD), "{message}");
}

/// Kubernetes gives a volume and all files on it to a group of the pod (`fsGroup`) at each start. An agent that
/// rejected its own key after that would crash in a loop.
#[test]
fn a_key_that_a_group_of_the_agent_may_read_is_accepted() {
    let test = "agent::secrets::a_key_that_a_group_of_the_agent_may_read_is_accepted";
    if !rustix::process::geteuid().is_root() {
        return not_run(test, "only root can become another user");
    }
    let setpriv = ["setpriv", "--reuid", "4711", "--regid", "4711", "--groups", "4712"].map(str::to_owned).to_vec();
    let mut agent = TestAgent::prepare().behind(setpriv);
    for (path, mode) in [(agent.home().to_owned(), 0o755), (agent.data_dir(), 0o2770)] {
        let _exists = std::fs::create_dir(&path);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    std::os::unix::fs::chown(agent.data_dir(), None, Some(4712)).unwrap();
    std::fs::set_permissions(agent.data_dir(), std::fs::Permissions::from_mode(0o2770)).unwrap();
    // That user cannot notify the fixture that the agent is ready.
    let start_and_stop = |agent: &mut TestAgent| {
        agent.spawn();
        agent.await_log("Listening for peers on ");
        assert_eq!(agent.stop().code(), Some(0));
    };
    start_and_stop(&mut agent);
    let key = agent.data_dir().join("identity.key");
    for (group, mode, accepted) in [(4712, 0o660, true), (0, 0o640, true), (4713, 0o640, false), (4712, 0o664, false)] {
        std::os::unix::fs::chown(&key, None, Some(group)).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        if accepted {
            start_and_stop(&mut agent);
        } else {
            agent.spawn();
            let said = agent.await_log("cannot use the identity key");
            assert!(said.contains(&format!("(mode {mode:04o}, group {group})")), "{said}");
            assert_eq!(agent.ended().code(), Some(1));
        }
    }
}

/// As with systemd's `LoadCredential=` and `DynamicUser=`: the file belongs to root, and is readable through an access
/// control list, which the mode shows as bits of the group.
#[test]
fn a_credential_is_accepted_whatever_its_mode_shows() {
    let mut agent = TestAgent::prepare();
    let folder = agent.home().join("credentials");
    std::fs::create_dir(&folder).unwrap();
    let (key, elsewhere) = (folder.join("swarm.key"), agent.home().join("swarm.key"));
    std::fs::write(&key, format!("/key/swarm/psk/1.0.0/\n/base16/\n{}\n", "7".repeat(64))).unwrap();
    std::fs::copy(&key, &elsewhere).unwrap();
    for path in [&key, &elsewhere] {
        // The bits of others, since only root can set a foreign group.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o444)).unwrap();
    }
    let config = |path: &std::path::Path| format!("network: {{ psk_file: {} }}\n", path.display());
    agent = agent
        .configured(&config(&key))
        .behind(["env", &format!("CREDENTIALS_DIRECTORY={}", folder.display())].map(str::to_owned).to_vec());
    agent.restart();
    assert_eq!(agent.stop().code(), Some(0));
    agent = agent.configured(&config(&elsewhere));
    agent.spawn();
    agent.await_log("other users can read or write it");
    assert_eq!(agent.ended().code(), Some(1));
}

//! The configuration as a process gets it, from file, environment and flags, and how its mistakes are reported.

use crate::support::agent::{Done, TestAgent, run};

/// `check`, `run` and other commands reject this file with these messages, each after the name of the file.
#[track_caller]
fn refused(yaml: &str, expected: &[&str]) {
    let agent = TestAgent::prepare().configured(yaml);
    let file = agent.config_file();
    let expected: Vec<_> = expected.iter().map(|problem| format!("{}:{problem}", file.display())).collect();
    for command in ["check", "run", "status", "id"] {
        let message = agent.cli(&[command]).failed(78);
        let lines: Vec<_> = message.lines().collect();
        assert_eq!(lines.len(), expected.len(), "{message}");
        for (line, expected) in lines.iter().zip(&expected) {
            assert!(line.starts_with(expected), "{line}\nis not\n{expected}");
        }
    }
    assert!(!agent.data_dir().exists(), "nothing was created");
}

#[test]
fn mistakes_are_reported_with_their_place() {
    refused("metrics:\n  prot: 9100\n", &["2:3: metrics.prot: unknown key; did you mean `port`?"]);
    refused("metrics:\n  port: many\n", &["2:9: metrics.port: found `many`; expected a whole number from 0 to 65535"]);
    refused(
        "access:\n  - {peer: 12D3, allow: [get]}\n",
        &["2:12: access[0].peer: `12D3` is not a PeerId; write it like "],
    );
    refused(
        "network:\n  bootstrap: [/ip4/127.0.0.1/tcp/4001]\n",
        &["2:15: network.bootstrap[0]: `/ip4/127.0.0.1/tcp/4001` does not end in /p2p/PEER_ID"],
    );
    refused(
        "storage:\n  redis: {urls: [redis://a, redis://b], cluster: false}\n",
        &["2:50: storage.redis.cluster: is false, but storage.redis.urls has 2 entries"],
    );
    refused("metrics: {path: /ready}\n", &["1:17: metrics.path: `/ready` is already another page of the endpoint"]);
    refused(
        "expose:\n  - {name: node, url: 'https://127.0.0.1/metrics'}\n  - {name: db, url: 'http://10.0.0.1/metrics'}\n",
        &["2:23: expose[0].url: only http:// is supported"],
    );
    refused(
        "expose: [{name: db, url: 'http://10.0.0.1/metrics'}]\n",
        &["1:26: expose[0].url: its host is not this machine"],
    );
    // All mistakes in one run, in the order of the file.
    refused(
        "log: {level: loud}\nmetrics: {enabled: perhaps}\nstorage: {backend: disk}\n",
        &["1:14: log.level: ", "2:20: metrics.enabled: ", "3:20: storage.backend: "],
    );
    refused("metrics: [\n", &[""]);
}

#[test]
fn a_missing_file_is_named() {
    let agent = TestAgent::prepare();
    let missing = agent.home().join("missing.yaml");
    let message = agent.cli(&["check", "--config", missing.to_str().unwrap()]).failed(78);
    assert_eq!(message, format!("{}: cannot be read: No such file or directory (os error 2)", missing.display()));
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let agent = TestAgent::prepare().configured("metrics: {port: 1001}\nnode: {name: file}\nlog: {level: warn}\n");
    let check = |variables: &[(&str, &str)], flags: &[&str]| -> Done {
        let mut command = agent.command(&[&["check", "--json"], flags].concat());
        command.envs(variables.iter().copied());
        run(command, b"")
    };
    let environment = [("PEERSCOPE_METRICS__PORT", "1002"), ("PEERSCOPE_NODE__NAME", "environment")];
    let told = |done: &Done| {
        let config = done.json();
        (config["metrics"]["port"].clone(), config["node"]["name"].clone(), config["log"]["level"].clone())
    };
    assert_eq!(told(&check(&[], &[])), (1001.into(), "file".into(), "warn".into()));
    assert_eq!(told(&check(&environment, &[])), (1002.into(), "environment".into(), "warn".into()));
    let flagged = check(&environment, &["--metrics-port", "1003"]);
    assert_eq!(told(&flagged), (1003.into(), "environment".into(), "warn".into()));

    let message = check(&[("PEERSCOPE_METRICS__PROT", "1")], &[]).failed(78);
    assert!(
        message.starts_with(
            "environment variable PEERSCOPE_METRICS__PROT: sets no known key; did you mean PEERSCOPE_METRICS__PORT?"
        ),
        "{message}"
    );
    let message = check(&[], &["--metrics-port", "many"]).failed(78);
    assert!(message.starts_with("--metrics-port: found `many`; expected a whole number"), "{message}");
}

/// What `check` prints is the same configuration again.
#[test]
fn the_output_of_check_loads_again() {
    let yaml = "node: {name: 'a: #b'}\nmetrics: {path: /m}\nstorage: {redis: {timeout: 150ms}}\n\
                access: [{peer: '*', allow: [get, delete]}]\nnetwork: {listen: [/ip6/::1/tcp/0], max_peers: 3}\n\
                expose: [{url: 'http://[::1]:9100/metrics?a=b', name: 'on', remote: true}]\n";
    let agent = TestAgent::prepare().configured(yaml);
    let first = agent.cli(&["check"]).ok();
    let again = TestAgent::prepare().configured(std::str::from_utf8(&first).unwrap());
    // Without a flag of its own, so that every value comes from the file.
    let mut command = crate::support::agent::peerscope();
    command.args(["check", "--config"]).arg(again.config_file());
    assert_eq!(String::from_utf8(run(command, b"").ok()).unwrap(), String::from_utf8(first).unwrap());
    let config = agent.cli(&["check", "--json"]).json();
    assert_eq!(config["node"]["name"], "a: #b");
    assert_eq!(config["network"]["max_peers"], 3);
}

/// Every log line is a JSON object, if so configured.
#[test]
fn the_log_can_be_json() {
    let mut agent = TestAgent::prepare().configured("log: {format: json}\n").started();
    agent.await_log("Store ");
    let lines = agent.log();
    assert!(agent.stop().success());
    let messages: Vec<_> = lines
        .iter()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert_eq!(line["level"], "INFO");
            line["message"].as_str().unwrap().to_owned()
        })
        .collect();
    for (message, beginning) in messages.iter().zip(["PeerId 12D3", "Listening for peers on ", "Store local "]) {
        assert!(message.starts_with(beginning), "{messages:?}");
    }
}

/// The example that operators start from is a valid configuration, and an agent runs on it.
#[test]
fn an_agent_runs_on_the_example() {
    let yaml = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/peerscope.example.yaml")).unwrap();
    // The example shows the defaults of an ordinary build.
    let yaml =
        if cfg!(feature = "metrics-prometheus") { yaml } else { yaml.replace("enabled: true", "enabled: false") };
    let agent = TestAgent::start_with(&yaml);
    agent.cli(&["put", "key", "value"]).ok();
    assert_eq!(agent.cli(&["get", "key"]).ok(), b"value");
}

//! Values pass through the command line, the control socket and the network byte for byte.

use crate::support::agent::{Done, TestAgent, eventually};

const MIB: usize = 1 << 20;

/// Every byte value, more than once, and not valid text.
fn binary(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

/// An agent, and the peer that it is connected to and where it may get, put and delete.
pub(crate) fn pair() -> (TestAgent, TestAgent) {
    let mut second = TestAgent::start();
    let id = second.peer_id();
    let first = TestAgent::start_with(&format!("access: [{{peer: {id}, allow: [get, put, delete]}}]\n"));
    assert!(second.stop().success());
    (second.bootstrap(&first).started(), first)
}

/// Used for the agent's own store and over the network.
fn values_are_kept_byte_for_byte(agent: &TestAgent, peer: &[&str]) {
    let ask = |args: &[&str]| agent.cli(&[args, peer].concat());
    let put = |key: &str, value: &[u8]| agent.cli_with_input(&[&["put", key, "-"], peer].concat(), value);
    for (key, value) in [
        ("binary", binary(70_000)),
        ("empty", Vec::new()),
        ("newline", b"\n".to_vec()),
        ("dash", b"-".to_vec()),
        ("largest", binary(MIB)),
        ("a key/with ?everything&in=it #%41 \u{fc}\u{2028}", b"value".to_vec()),
        ("..", b"no path".to_vec()),
    ] {
        assert_eq!(put(key, &value).ok(), b"", "{key}");
        assert!(ask(&["get", key]).ok() == value, "{key}");
        assert_eq!(ask(&["delete", key]).ok(), b"", "{key}");
        assert_eq!(ask(&["get", key]).failed(1), format!("key {key:?} not found"));
        assert_eq!(ask(&["delete", key]).failed(1), format!("key {key:?} not found"));
    }

    // As an argument, even one that looks like a flag; the second put wins.
    ask(&["put", "greeting", "--hello"]).ok();
    assert_eq!(ask(&["get", "greeting"]).ok(), b"--hello");
    ask(&["put", "greeting", "hello"]).ok();
    assert_eq!(ask(&["get", "greeting"]).ok(), b"hello");

    let message = put("largest", &binary(MIB + 1)).failed(1);
    assert!(message.contains("1048576 bytes") && message.contains("storage.max_value_size"), "{message}");
    // Far too large, so that the agent has to reject it while it is still arriving.
    let message = put("largest", &binary(9 * MIB)).failed(1);
    assert!(message.contains("1048576 bytes") && message.contains("storage.max_value_size"), "{message}");
    assert_eq!(ask(&["get", "largest"]).failed(1), "key \"largest\" not found");
    let message = ask(&["put", &"k".repeat(1025), "value"]).failed(1);
    assert!(message.contains("1025 bytes") && message.contains("1024"), "{message}");
    let message = ask(&["put", "", "value"]).failed(1);
    assert!(message.contains("the key is empty"), "{message}");
}

#[test]
fn values_are_kept_by_the_agents_own_store() {
    values_are_kept_byte_for_byte(&TestAgent::start(), &[]);
}

#[test]
fn values_are_kept_over_the_network() {
    let (agent, other) = pair();
    values_are_kept_byte_for_byte(&agent, &["--peer", &other.peer_id()]);
    // Nothing went to the agent's own store.
    assert_eq!(agent.cli(&["get", "greeting"]).failed(1), "key \"greeting\" not found");
    assert_eq!(other.cli(&["get", "greeting"]).ok(), b"hello");
}

#[test]
fn values_are_printed_as_json() {
    let agent = TestAgent::start();
    let json = |args: &[&str]| agent.cli(&[args, &["--json"]].concat()).json();
    assert_eq!(json(&["put", "text", "h\u{e9}llo"]), serde_json::json!({ "key": "text", "size": 6 }));
    assert_eq!(json(&["get", "text"]), serde_json::json!({ "key": "text", "value": "h\u{e9}llo" }));
    assert!(agent.cli_with_input(&["put", "bytes", "-"], &[0xff, 0x00, 0x80]).ok().is_empty());
    assert_eq!(json(&["get", "bytes"]), serde_json::json!({ "key": "bytes", "value_hex": "ff0080" }));
    assert_eq!(json(&["delete", "bytes"]), serde_json::json!({ "key": "bytes", "deleted": true }));
    // The answer, with the same exit code as without --json.
    let absent = agent.cli(&["delete", "bytes", "--json"]);
    assert_eq!(absent.code, 1);
    let answer: serde_json::Value = serde_json::from_slice(&absent.stdout).unwrap();
    assert_eq!(answer, serde_json::json!({ "key": "bytes", "deleted": false }));
    assert_eq!(agent.cli(&["get", "bytes", "--json"]).failed(1), "key \"bytes\" not found");
}

/// The agent's limit counts. The command line may have another one or none, and must not cut a value short.
#[test]
fn a_limit_above_the_default_works_without_configuring_the_command_line() {
    let agent = TestAgent::start_with("storage: {max_value_size: 3MiB}\n");
    std::fs::remove_file(agent.config_file()).unwrap();
    let value = binary(3 * MIB);
    agent.cli_with_input(&["put", "large", "-"], &value).ok();
    assert!(agent.cli(&["get", "large"]).ok() == value);
    let message = agent.cli_with_input(&["put", "large", "-"], &binary(3 * MIB + 1)).failed(1);
    assert!(message.contains("3145728 bytes"), "{message}");
    assert!(agent.cli(&["get", "large"]).ok() == value);
}

/// The limits of the peer that stores the value apply.
#[test]
fn a_peer_with_a_lower_limit_rejects_the_value() {
    let mut second = TestAgent::start();
    let id = second.peer_id();
    let first = TestAgent::start_with(&format!(
        "access: [{{peer: {id}, allow: [get, put]}}]\nstorage: {{max_value_size: 1KiB, max_key_size: 1KiB}}\n"
    ));
    assert!(second.stop().success());
    let second = second.bootstrap(&first).started();
    let peer = first.peer_id();
    for size in [1025, 100_000] {
        let message = second.cli_with_input(&["put", "key", "-", "--peer", &peer], &binary(size)).failed(1);
        assert!(message.contains("bytes") && message.contains("at most"), "{message}");
        assert_eq!(first.cli(&["get", "key"]).code, 1);
    }
    second.cli_with_input(&["put", "key", "-", "--peer", &peer], &binary(1024)).ok();
    assert!(first.cli(&["get", "key"]).ok() == binary(1024));
}

#[test]
fn an_unreachable_peer_is_reported_as_such() {
    let agent = TestAgent::start();
    let stranger = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
    let message = agent.cli(&["get", "key", "--peer", stranger]).failed(1);
    assert!(message.contains(stranger) && message.contains("network.bootstrap"), "{message}");

    let (agent, mut other) = pair();
    let peer = other.peer_id();
    agent.cli(&["put", "key", "value", "--peer", &peer]).ok();
    other.kill();
    eventually("the loss is noticed", || agent.status()["peers_connected"] == 0);
    let Done { code, stderr, .. } = agent.cli(&["get", "key", "--peer", &peer]);
    assert_eq!(code, 1);
    assert!(stderr.contains("cannot be reached"), "{stderr}");
    other.restart();
    eventually("it answers again", || agent.cli(&["get", "key", "--peer", &peer]).stdout == b"value");
}

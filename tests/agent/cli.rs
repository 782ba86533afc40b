//! What the commands print, and their exit codes: 0 success, 1 failure, 64 usage, 69 no agent, 78 configuration.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::support::agent::{Done, TestAgent, peerscope, run};

fn bare(args: &[&str]) -> Done {
    let mut command = peerscope();
    command.args(args);
    run(command, b"")
}

/// Commands that ask the running agent, with their arguments.
const ASKING: [&[&str]; 6] =
    [&["status"], &["peers"], &["metrics"], &["get", "key"], &["put", "key", "value"], &["delete", "key"]];

#[test]
fn wrong_usage_is_reported_with_exit_code_64() {
    let wrong: [&[&str]; 9] = [
        &[],
        &["frobnicate"],
        &["get"],
        &["put", "key"],
        &["get", "key", "--peer", "12D3"],
        &["run", "--no-metrics", "--metrics-port", "1"],
        &["status", "--verbose"],
        &["completions", "tcsh"],
        &["check", "--config"],
    ];
    for args in wrong {
        let done = bare(args);
        assert_eq!(done.code, 64, "{args:?} {done:?}");
        assert!(done.stdout.is_empty() && !done.stderr.is_empty(), "{done:?}");
    }
    let message = bare(&["get", "key", "--peer", "12D3"]).stderr;
    assert!(message.contains("`12D3` is not a PeerId; write it like 12D3KooW"), "{message}");
}

#[test]
fn help_and_version_go_to_standard_output() {
    let version = bare(&["--version"]).ok();
    assert_eq!(version, concat!("peerscope ", env!("CARGO_PKG_VERSION"), "\n").as_bytes());
    let help = String::from_utf8(bare(&["--help"]).ok()).unwrap();
    let commands = ["run", "check", "id", "status", "peers", "get", "put", "delete", "metrics", "completions"];
    for command in commands {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command} in {help}");
        bare(&[command, "--help"]).ok();
    }
    assert!(help.contains("0 success, 1 failure, 64 usage, 69 agent not reachable, 78 configuration"), "{help}");
}

#[test]
fn without_an_agent_the_commands_say_how_to_start_one() {
    let agent = TestAgent::prepare();
    let dir = agent.data_dir();
    let dir = dir.display();
    let expected =
        format!("no agent is running on the data directory {dir}; start one with: peerscope run --data-dir {dir}");
    for args in ASKING {
        assert_eq!(agent.cli(args).failed(69), expected, "{args:?}");
        assert_eq!(agent.cli(&[args, &["--json"]].concat()).failed(69), expected, "{args:?}");
    }
    assert!(!agent.data_dir().exists(), "asking creates nothing");

    // The same after an agent has run and stopped.
    let mut agent = agent.started();
    assert_eq!(agent.cli(&["peers"]).code, 0);
    assert!(agent.stop().success());
    assert_eq!(agent.cli(&["status"]).failed(69), expected);
}

/// Something other than an agent listens on the socket: an error, not a hang.
#[test]
fn a_socket_that_closes_at_once_is_not_an_agent() {
    let agent = TestAgent::prepare();
    fs::create_dir(agent.data_dir()).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(agent.control_socket()).unwrap();
    let closing = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let message = agent.cli(&["status"]).failed(69);
    assert!(message.starts_with("the agent closed the connection"), "{message}");
    closing.join().unwrap();
}

#[test]
fn status_describes_the_agent() {
    let agent = TestAgent::prepare().configured("node: {name: edge-17}\n").started();
    let status = agent.status();
    assert_eq!(status["name"], "edge-17");
    assert_eq!(status["peer_id"], agent.peer_id().as_str());
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["listen"], serde_json::json!([agent.listen_address()]));
    let store = format!("local {}", agent.data_dir().join("store.redb").display());
    assert_eq!(status["store"], store.as_str());
    assert_eq!(status["ready"], true);
    assert_eq!(status["peers_connected"], 0);
    let components: Vec<_> = status["components"].as_array().unwrap().iter().map(|c| c["component"].clone()).collect();
    let metrics = cfg!(feature = "metrics-prometheus");
    let expected: &[&str] =
        if metrics { &["storage", "network", "metrics", "runtime"] } else { &["storage", "network", "runtime"] };
    assert_eq!(components, expected);
    let url = format!("http://{}/metrics", agent.metrics_socket());
    assert_eq!(status["metrics"], if metrics { url.as_str().into() } else { serde_json::Value::Null });

    let text = String::from_utf8(agent.cli(&["status"]).ok()).unwrap();
    for (row, value) in [
        ("agent", "edge-17 ("),
        ("peer id", agent.peer_id().as_str()),
        ("ready", "yes"),
        ("peers", "0"),
        ("store", store.as_str()),
        ("metrics", if metrics { url.as_str() } else { "off" }),
        ("listening", agent.listen_address().as_str()),
        ("storage", "ready"),
        ("network", "ready"),
    ] {
        assert!(text.lines().any(|line| line.starts_with(&format!("{row:<10} {value}"))), "{row} {value} in\n{text}");
    }
    assert_eq!(agent.cli(&["peers", "--json"]).json(), serde_json::json!([]));
}

#[test]
fn id_prints_the_peer_id_without_a_running_agent() {
    let mut agent = TestAgent::prepare();
    let message = agent.cli(&["id"]).failed(1);
    let expected = format!("no identity in {} yet; `peerscope run` creates one", agent.data_dir().display());
    assert_eq!(message, expected);
    assert!(!agent.data_dir().exists(), "asking creates nothing");

    agent.restart();
    let line = agent.await_log("PeerId ");
    let id = line.split("PeerId ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    assert!(agent.stop().success());
    assert_eq!(agent.cli(&["id"]).ok(), format!("{id}\n").as_bytes());
    assert_eq!(agent.cli(&["id", "--json"]).json(), serde_json::json!({ "peer_id": id }));
}

/// A key is never replaced, whatever is wrong with it: with a new one, the agent would be a stranger to its peers.
#[test]
fn an_unusable_key_is_rejected_and_left_unchanged() {
    let mut agent = TestAgent::start();
    assert!(agent.stop().success());
    let path = agent.data_dir().join("identity.key");
    let good = fs::read(&path).unwrap();

    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    for command in ["run", "id"] {
        let message = agent.cli(&[command]).failed(1);
        assert!(message.contains("other users can read or write it (mode 0644,"), "{message}");
        assert!(message.contains(&format!("chmod 600 {}", path.display())), "{message}");
    }
    assert_eq!(fs::read(&path).unwrap(), good);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();

    let truncated = good[..good.len() - 1].to_vec();
    for damage in [Vec::new(), b"no key".to_vec(), truncated] {
        fs::write(&path, &damage).unwrap();
        for command in ["run", "id"] {
            let message = agent.cli(&[command]).failed(1);
            assert!(message.contains(&format!("the identity key {} is damaged", path.display())), "{message}");
            assert!(message.contains("Restore it from a backup"), "{message}");
        }
        assert_eq!(fs::read(&path).unwrap(), damage);
    }
    fs::write(&path, &good).unwrap();
    agent.restart();
}

#[test]
fn a_data_directory_serves_only_one_agent() {
    let agent = TestAgent::start();
    let done = agent.cli(&["run", "--listen", "/ip4/127.0.0.1/tcp/0", "--no-metrics"]);
    let expected = format!("another agent is running on the data directory {}", agent.data_dir().display());
    assert!(done.failed(1).starts_with(&expected));
    // The first one is not affected.
    agent.cli(&["put", "key", "value"]).ok();
    assert_eq!(agent.cli(&["get", "key"]).ok(), b"value");
}

#[test]
fn a_data_directory_that_cannot_be_used_is_named() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    let start = |dir: &Path| {
        bare(&["run", "--no-metrics", "--listen", "/ip4/127.0.0.1/tcp/0", "--data-dir", dir.to_str().unwrap()])
    };
    for dir in [&file, &file.join("below")] {
        let message = start(dir).failed(1);
        assert!(message.starts_with(&format!("cannot use the data directory {} (node.data_dir)", dir.display())));
    }

    let long = home.path().join("d".repeat(100));
    let Done { code, stdout, stderr } = start(&long);
    assert_eq!((code, stdout.as_slice()), (1, b"".as_slice()));
    let message = stderr.lines().last().unwrap();
    let expected = format!("peerscope: the control socket's path {} is ", long.join("control.sock").display());
    assert!(message.starts_with(&expected), "{message}");
    assert!(message.ends_with("the system allows 107; choose a shorter node.data_dir"), "{message}");
}

#[test]
fn the_catalogue_needs_no_agent() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().to_str().unwrap();
    let tables = String::from_utf8(bare(&["metrics", "--catalogue", "--data-dir", dir]).ok()).unwrap();
    let (table, values) = tables.split_once("\n\n").unwrap();
    assert!(values.contains("| `messages_failed_total` | `reason` | `refused` | "), "{values}");
    let families = bare(&["metrics", "--catalogue", "--json", "--data-dir", dir]).json();
    let families = families.as_array().unwrap();
    assert_eq!(table.lines().count(), families.len() + 2, "{table}");
    for family in families {
        let name = family["name"].as_str().unwrap();
        let row = format!("| `{name}` | {} | ", family["type"].as_str().unwrap());
        assert!(table.lines().any(|line| line.starts_with(&row)), "{row}");
    }
    for name in ["process_cpu_usage", "agent_peers_connected", "messages_received_total", "storage_operations_total"] {
        assert!(families.iter().any(|family| family["name"] == name), "{name}");
    }
}

#[test]
fn completions_name_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = String::from_utf8(bare(&["completions", shell]).ok()).unwrap();
        for word in ["catalogue", "bootstrap", "completions", "data-dir"] {
            assert!(script.contains(word), "{word} for {shell}");
        }
    }
    let home = tempfile::tempdir().unwrap();
    let script = home.path().join("peerscope.bash");
    fs::write(&script, bare(&["completions", "bash"]).ok()).unwrap();
    // Loaded and called as bash does it.
    let ask = ". \"$1\"; COMP_WORDS=(peerscope st); COMP_CWORD=1; _peerscope peerscope st peerscope; echo \"${COMPREPLY[*]}\"";
    let output = Command::new("bash").args(["-euc", ask, "bash"]).arg(&script).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "status\n");
}

/// `peerscope metrics | head -1` succeeds, although the reader closes the pipe early.
#[test]
fn a_closed_output_pipe_is_not_a_failure() {
    let mut child = peerscope().args(["completions", "zsh"]).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
}

//! The build without the cargo feature `metrics-prometheus`: an ordinary agent, but without metrics.
//!
//! ```text
//! cargo test --no-default-features --test integration_agent
//! ```

use std::process::Command;

use crate::support::agent::{TestAgent, connect, free_port};

#[test]
fn an_agent_works_without_an_endpoint() {
    let mut second = TestAgent::start();
    let id = second.peer_id();
    let first = TestAgent::prepare();
    let port = free_port(first.address());
    let first = first
        .on_metrics_port(port)
        .configured(&format!("access: [{{peer: {id}, allow: [get, put, delete]}}]\n"))
        .started();
    first.await_log("Metrics endpoint disabled");
    assert!(connect(first.metrics_socket()).is_err());
    assert_eq!(first.control("PUT", "/v1/keys/key", b"value").unwrap().status, 204);
    assert_eq!(first.control("GET", "/v1/keys/key", b"").unwrap().body, b"value");
    assert_eq!(first.status()["metrics"], serde_json::Value::Null);
    assert_eq!(first.status()["ready"], true);

    assert!(second.stop().success());
    let second = second.bootstrap(&first).started();
    let peer = first.peer_id();
    second.cli(&["put", "greeting", "hello", "--peer", &peer]).ok();
    assert_eq!(second.cli(&["get", "greeting", "--peer", &peer]).ok(), b"hello");
    assert_eq!(first.cli(&["get", "greeting"]).ok(), b"hello");
    assert_eq!(first.status()["peers_connected"], 1);
}

#[test]
fn asking_for_metrics_reports_that_they_are_not_built_in() {
    let agent = TestAgent::start();
    let message = agent.cli(&["metrics"]).failed(1);
    assert_eq!(message, "this agent was built without metrics (cargo feature metrics-prometheus)");
    assert_eq!(agent.control("GET", "/v1/metrics", b"").unwrap().status, 501);

    let asked = TestAgent::prepare().configured("metrics:\n  enabled: true\n");
    for command in ["run", "check"] {
        let message = asked.cli(&[command]).failed(78);
        let place = format!("{}:2:12: metrics.enabled: this build has no metrics", asked.config_file().display());
        assert!(message.starts_with(&place), "{message}");
        assert!(message.contains("`metrics-prometheus`"), "{message}");
    }
}

#[test]
fn the_build_depends_on_no_metrics_crate() {
    let tree = |args: &[&str]| {
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none", "--package", "peerscope"])
            .args(args)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let (without, with) = (tree(&["--no-default-features"]), tree(&[]));
    for name in ["prometheus-client", "libp2p-metrics", "procfs"] {
        let has = |tree: &str| tree.lines().any(|line| line.starts_with(&format!("{name} ")));
        assert!(has(&with), "an ordinary build depends on {name}");
        assert!(!has(&without), "{name} in\n{without}");
    }
}

//! A real Prometheus scrapes two real agents. `tests/tools.sh` gets it.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::agent::{TestAgent, connect, eventually, free_port, own_address};
use crate::support::http;

/// A Prometheus that is killed when this is dropped.
struct Prometheus {
    child: Child,
    address: Ipv4Addr,
    port: u16,
}

impl Prometheus {
    /// Scrapes `agents` every second.
    fn start(home: &Path, agents: &[&TestAgent]) -> Self {
        let targets: Vec<_> = agents.iter().map(|agent| format!("'{}'", agent.metrics_socket())).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n\
             scrape_configs:\n  - job_name: peerscope\n    static_configs: [{{targets: [{}]}}]\n",
            targets.join(", ")
        );
        std::fs::write(home.join("prometheus.yml"), config).unwrap();
        let program = std::env::var_os("TEST_PROMETHEUS").unwrap_or_else(|| "prometheus".into());
        let address = own_address();
        let port = free_port(address);
        let child = Command::new(&program)
            .arg(format!("--config.file={}", home.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", home.join("data").display()))
            .arg(format!("--web.listen-address={address}:{port}"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(home.join("log")).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start ({error}); run tests/tools.sh", program.display()));
        Self { child, address, port }
    }

    fn get(&self, target: &str) -> Option<serde_json::Value> {
        let reply = http::exchange(connect((self.address, self.port).into()).ok()?, "GET", target, b"").ok()?;
        (reply.status == 200).then(|| reply.json())
    }

    /// The value of each agent under a PromQL expression, by the agent's address, in `agents`' order.
    fn query(&self, expression: &str, agents: [&TestAgent; 2]) -> [Option<f64>; 2] {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let Some(answer) = self.get(&format!("/api/v1/query?query={encoded}")) else { return [None; 2] };
        let results = answer["data"]["result"].as_array().unwrap_or_else(|| panic!("{answer}")).clone();
        agents.map(|agent| {
            let instance = agent.metrics_socket().to_string();
            let found = results.iter().find(|result| result["metric"]["instance"] == instance.as_str())?;
            found["value"][1].as_str().unwrap().parse().ok()
        })
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_real_prometheus_shows_what_the_agents_did() {
    let mut second = TestAgent::start();
    let id = second.peer_id();
    let first = TestAgent::start_with(&format!("access: [{{peer: {id}, allow: [put]}}]\n"));
    assert!(second.stop().success());
    let second = second.bootstrap(&first).started();
    let agents = [&first, &second];
    let home = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::start(home.path(), &agents);

    let await_values = |expression: &str, expected: [f64; 2]| {
        eventually(&format!("{expression} is {expected:?}"), || {
            prometheus.query(expression, agents) == expected.map(Some)
        });
    };
    await_values("up", [1.0, 1.0]);
    await_values("agent_peers_connected", [1.0, 1.0]);
    await_values("messages_received_total{type=\"put\"}", [0.0, 0.0]);
    let peer = first.peer_id();
    for i in 0..7 {
        second.cli(&["put", &format!("key-{i}"), "value", "--peer", &peer]).ok();
    }
    second.cli(&["get", "key-0", "--peer", &peer]).failed(1);
    await_values("messages_received_total{type=\"put\"}", [7.0, 0.0]);
    await_values("message_processing_duration_seconds_count{type=\"put\"}", [7.0, 0.0]);
    await_values("message_processing_duration_seconds_bucket{type=\"put\",le=\"+Inf\"}", [7.0, 0.0]);
    await_values("storage_operations_total{operation=\"put\",backend=\"local\"}", [7.0, 0.0]);
    await_values("messages_sent_total{type=\"put\"}", [0.0, 7.0]);
    await_values("messages_failed_total{type=\"get\",reason=\"refused\"}", [1.0, 0.0]);

    let targets = prometheus.get("/api/v1/targets").unwrap();
    let targets = targets["data"]["activeTargets"].as_array().unwrap();
    assert_eq!(targets.len(), 2);
    for target in targets {
        assert_eq!((&target["health"], &target["lastError"]), (&"up".into(), &"".into()), "{target}");
    }
}

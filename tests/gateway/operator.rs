//! The commands of a gateway's operator and what they print.

use super::fixture::{await_targets, gateway, peer, scrape};
use crate::support::agent::{TestAgent, eventually};

#[test]
fn the_operator_sees_which_peers_are_scraped_and_with_what_result() {
    let gateway = gateway("");
    let mut edge = peer(&gateway, "edge-17", "metrics: {enabled: false}");
    let stranger = TestAgent::prepare().bootstrap(&gateway).started();
    await_targets(&gateway, 1);
    eventually("both are connected", || gateway.cli(&["peers", "--json"]).json().as_array().unwrap().len() == 2);
    let id = edge.peer_id();
    assert_eq!(scrape(&gateway, &id, &[]).status, 200);

    let list = String::from_utf8(gateway.cli(&["peers"]).ok()).unwrap();
    let lines: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    let heads = ["NAME", "PEER", "STATE", "CONNECTED", "SCRAPED", "TOOK", "SIZE", "ADDRESS", "OUTCOME"];
    assert_eq!(lines[0], heads, "{list}");
    let row = |peer: &str| lines.iter().find(|row| row.contains(&peer)).unwrap_or_else(|| panic!("{list}"));
    assert_eq!((row(&id)[0], row(&id)[2], *row(&id).last().unwrap()), ("edge-17", "connected", "ok"), "{list}");
    assert_eq!(row(&stranger.peer_id())[2], "refusing", "{list}");
    let rule = format!("access: [{{peer: {}, allow: [scrape]}}]", gateway.peer_id());
    assert!(list.lines().any(|line| line.contains("refusing") && line.ends_with(&rule)), "{list}");

    // The peer's page, even though the peer has no endpoint.
    let page = String::from_utf8(gateway.cli(&["metrics", "--peer", &id]).ok()).unwrap();
    assert!(page.contains(&format!("agent_info{{peer_id=\"{id}\",name=\"edge-17\"}} 1\n")), "{page}");
    let refused = gateway.cli(&["metrics", "--peer", &stranger.peer_id()]).failed(1);
    let rule = format!("access: [{{peer: {}, allow: [scrape]}}]", gateway.peer_id());
    assert!(refused.contains("does not allow this gateway") && refused.contains(&rule), "{refused}");
    let unknown = gateway.cli(&["metrics", "--peer", &id, "--exposed", "node"]).failed(1);
    assert_eq!(unknown, "the peer exposes no exporter named `node`");

    assert!(edge.stop().success());
    eventually("the peer is gone", || gateway.cli(&["peers", "--json"]).json()[1]["gateway"]["state"] == "departed");
    let gone = &gateway.cli(&["peers", "--json"]).json()[1];
    assert_eq!((&gone["peer_id"], &gone["connections"]), (&id.clone().into(), &0.into()), "{gone}");
    assert_eq!(gone["gateway"]["last_scrape"]["outcome"], "ok");
    let list = String::from_utf8(gateway.cli(&["peers"]).ok()).unwrap();
    assert!(list.contains("departed") && list.contains("left 0s ago"), "{list}");
}

#[test]
fn an_agent_that_is_not_a_gateway_says_so() {
    let agent = TestAgent::start();
    let id = agent.peer_id();
    let message = agent.cli(&["metrics", "--peer", &id]).failed(1);
    assert_eq!(message, "this agent is not a gateway and cannot fetch a peer's metrics; set gateway.enabled to true");
    assert_eq!(agent.http("/sd").status, 404);
    assert_eq!(agent.http(&format!("/peers/{id}/metrics")).status, 404);
    let message = agent.cli(&["gateway", "prometheus-config"]).failed(1);
    assert!(message.contains("set gateway.enabled to true"), "{message}");
    assert_eq!(agent.cli(&["metrics", "--exposed", "node"]).code, 64);
}

#[test]
fn the_part_of_prometheus_yml_fits_this_gateway() {
    let config = |text: &str, args: &[&str]| {
        let agent = TestAgent::prepare().configured(text);
        agent.cli(&[&["gateway", "prometheus-config"], args].concat())
    };
    let gateway = "gateway: {enabled: true, max_peers: 500, max_body_size: 1MiB}\n";
    let text = config(&format!("{gateway}metrics: {{path: /m, port: 9100}}"), &[]).text();
    for line in [
        "      - url: http://127.0.0.1:9100/sd",
        "    metrics_path: /m",
        "    body_size_limit: 1048576B",
        "    target_limit: 8500",
        "      - targets: [\"127.0.0.1:9100\"]",
    ] {
        assert_eq!(text.lines().filter(|there| *there == line).count(), 1, "{line}: {text}");
    }
    let text = config(gateway, &["--address", "gw.example:80"]).text();
    assert!(text.contains("url: http://gw.example:80/sd"), "{text}");
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let text = config(&format!("{gateway}metrics: {{address: 0.0.0.0}}"), &[]).text();
    assert!(text.contains(&format!("url: http://{host}:8080/sd")), "{text}");
    let text = config(gateway, &["--job", "fleet-a"]).text();
    assert!(text.contains("job_name: fleet-a\n") && text.contains("job_name: fleet-a-gateway\n"), "{text}");
    let message = config(gateway, &["--job", "a b"]).failed(64);
    assert!(message.starts_with("--job: `a b` must begin with a letter"), "{message}");
    assert_eq!(config(gateway, &["--job", "null"]).code, 64);
    for bad in ["gw", "gw:0", "gw:x", ":80", "http://gw:80", "gw/x:80"] {
        let message = config(gateway, &["--address", bad]).failed(64);
        assert_eq!(message, format!("--address: `{bad}` does not have the form HOST:PORT"));
    }
    let message = config(&format!("{gateway}metrics: {{port: 0}}"), &[]).failed(1);
    assert!(message.contains("give --address HOST:PORT"), "{message}");
}

#[test]
fn the_documentation_shows_what_the_command_prints() {
    let agent = TestAgent::prepare().configured("gateway: {enabled: true}");
    let text = agent.cli(&["gateway", "prometheus-config", "--address", "gateway.example:8080"]).text();
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/gateway.md")).unwrap();
    assert!(page.contains(&format!("```yaml\n{text}```\n")), "{text}");
}

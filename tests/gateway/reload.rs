//! Changes of a running gateway and its peers.

use super::fixture::{await_targets, gateway, joining, peer, scrape, targets};
use crate::support::agent::{TestAgent, eventually};

fn reload(agent: &TestAgent, config: &str) -> String {
    std::fs::write(agent.config_file(), config).unwrap();
    agent.cli(&["reload"]).text().trim_end().to_owned()
}

fn names(gateway: &TestAgent) -> Vec<String> {
    let targets = targets(gateway);
    let mut names: Vec<_> =
        targets.iter().map(|target| target["labels"]["peer_name"].as_str().unwrap_or("").to_owned()).collect();
    names.sort();
    names
}

const GATEWAY: &str = "node: {name: gw}\ngateway:\n  enabled: true\n  settle: 0s\n";

#[test]
fn the_list_of_peers_and_the_external_url_change_without_a_reconnect() {
    let gateway = gateway("");
    let (first, second) = (peer(&gateway, "first", ""), peer(&gateway, "second", ""));
    await_targets(&gateway, 2);
    let named = format!("{GATEWAY}  peers: [{}]\n", first.peer_id());
    assert_eq!(reload(&gateway, &named), "changed gateway.peers");
    assert_eq!(names(&gateway), ["first"]);
    assert_eq!(scrape(&gateway, &first.peer_id(), &[]).status, 200);
    assert_eq!(scrape(&gateway, &second.peer_id(), &[]).status, 404);
    assert_eq!(
        reload(&gateway, &format!("{GATEWAY}  max_scrapes: 3\n  max_body_size: 1KiB\n")),
        "changed gateway.max_body_size, gateway.max_scrapes, gateway.peers"
    );
    // The second one was connected all along.
    assert_eq!(names(&gateway), ["first", "second"]);
    assert_eq!(scrape(&gateway, &second.peer_id(), &[]).status, 502, "its page is larger than 1 KiB");
    assert_eq!(
        reload(&gateway, &format!("{GATEWAY}  external_url: https://gw.example/x\n")),
        "changed gateway.external_url, gateway.max_body_size, gateway.max_scrapes"
    );
    let target = &targets(&gateway)[0];
    assert_eq!((&target["targets"][0], &target["labels"]["__scheme__"]), (&"gw.example:443".into(), &"https".into()));
    assert_eq!(scrape(&gateway, &second.peer_id(), &[]).status, 200);
    for agent in [&first, &second] {
        let log = agent.log();
        assert_eq!(log.iter().filter(|line| line.contains("Peer connected")).count(), 1, "{log:?}");
    }
    // It stays a gateway with these peers until it is restarted.
    let all = "gateway.enabled, gateway.external_url, gateway.settle";
    let said = format!("nothing has changed that counts without a restart; a restart is needed for {all}");
    assert_eq!(reload(&gateway, "node: {name: gw}\n"), said);
    assert_eq!(names(&gateway), ["first", "second"]);
}

/// Over the link that is up: no scrape and no message is lost.
#[test]
fn a_peer_that_allows_scrapes_or_changes_its_name_or_exporters_shows_that_at_once() {
    let gateway = gateway("");
    let edge = joining(TestAgent::prepare(), &[], "edge", "").bootstrap(&gateway).started();
    let state = || gateway.cli(&["peers", "--json"]).json()[0]["gateway"]["state"].as_str().map(str::to_owned);
    eventually("it refuses", || state().as_deref() == Some("refusing"));
    let access = format!("access: [{{peer: {}, allow: [scrape]}}]\n", gateway.peer_id());
    assert_eq!(reload(&edge, &format!("node: {{name: edge}}\n{access}")), "changed access");
    await_targets(&gateway, 1);
    assert_eq!(scrape(&gateway, &edge.peer_id(), &[]).status, 200);

    let exposed = "expose: [{name: node, url: 'http://127.0.0.1:9/metrics'}]\n";
    assert_eq!(reload(&edge, &format!("node: {{name: renamed}}\n{access}{exposed}")), "changed expose, node.name");
    eventually("both are shown", || names(&gateway) == ["renamed", "renamed"]);
    assert!(edge.scrape().contains("name=\"renamed\"} 1\n"));

    assert_eq!(reload(&edge, "node: {name: renamed}\n"), "changed access, expose");
    eventually("it refuses again", || state().as_deref() == Some("refusing"));
    assert_eq!(scrape(&gateway, &edge.peer_id(), &[]).status, 403);
    let log = edge.log();
    assert_eq!(log.iter().filter(|line| line.contains("Peer connected")).count(), 1, "{log:?}");
}

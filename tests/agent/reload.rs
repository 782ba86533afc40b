//! The configuration is read again while the agent runs.

use rustix::process::Signal;

use crate::support::agent::{TestAgent, eventually};

fn write(agent: &TestAgent, config: &str) {
    std::fs::write(agent.config_file(), config).unwrap();
}

/// `peerscope reload`, which must succeed.
#[track_caller]
fn reload(agent: &TestAgent) -> String {
    agent.cli(&["reload"]).text().trim_end().to_owned()
}

const BASE: &str = "node: {name: before}\n";

#[test]
fn what_can_change_counts_at_once_and_the_rest_waits_for_a_restart() {
    let mut agent = TestAgent::start_with(BASE);
    let hash = agent.status()["config"]["hash"].clone();
    assert_eq!(reload(&agent), "nothing has changed");

    write(&agent, "node: {name: after}\nlog: {level: debug}\nstorage: {max_key_size: 2KiB}\nnetwork: {max_peers: 7}\n");
    let said = reload(&agent);
    assert_eq!(said, "changed log.level, node.name; a restart is needed for network.max_peers, storage.max_key_size");
    let status = agent.status();
    assert_eq!(status["name"], "after");
    assert_ne!(status["config"]["hash"], hash);
    assert_eq!(status["config"]["restart_needed"], serde_json::json!(["network.max_peers", "storage.max_key_size"]));
    let shown = agent.cli(&["status"]).text();
    assert!(shown.contains(", a restart is needed for network.max_peers, storage.max_key_size\n"), "{shown}");
    agent.await_log("Configuration reloaded: changed log.level");
    let json = agent.cli(&["reload", "--json"]).json();
    assert_eq!(json["changed"], serde_json::json!([]));
    assert_eq!(json["restart_needed"].as_array().unwrap().len(), 2);

    // They count after the restart, and nothing waits any more.
    assert!(agent.stop().success());
    agent.restart();
    assert_eq!(agent.status()["config"]["restart_needed"], serde_json::json!([]));
    assert_eq!(agent.cli(&["put", &"k".repeat(2000), "v"]).code, 0);
}

#[test]
fn a_configuration_with_a_mistake_changes_nothing_and_is_shown_with_its_place() {
    let agent = TestAgent::start_with(BASE);
    write(&agent, "node: {name: after}\naccess:\n  - {peer: nobody, allow: [get]}\n");
    let message = agent.cli(&["reload"]).failed(78);
    assert!(message.contains("peerscope.yaml:3:12: access[0].peer: "), "{message}");
    let status = agent.status();
    assert_eq!((&status["name"], &status["config"]["last_reload_successful"]), (&"before".into(), &false.into()));
    assert!(agent.cli(&["status"]).text().contains("the last reload FAILED"));
    agent.await_log("The configuration is not reloaded, the agent goes on with what it has");

    // So does a mistake in a file that it names.
    if cfg!(feature = "metrics-prometheus") {
        let web = agent.home().join("web.yml");
        std::fs::write(&web, "basic_auth_users: {a: b}\n").unwrap();
        write(&agent, &format!("node: {{name: after}}\nmetrics: {{web_config: {}}}\n", web.display()));
        let message = agent.cli(&["reload"]).failed(78);
        assert!(message.contains("web.yml:1:23: basic_auth_users.a: is not a bcrypt hash"), "{message}");
    }
    std::fs::remove_file(agent.config_file()).unwrap();
    let reply = agent.control("POST", "/v1/reload", b"").unwrap();
    assert_eq!((reply.status, &reply.json()["code"]), (422, &"config".into()));
    assert!(reply.text().contains("cannot be read: No such file"), "{}", reply.text());
    write(&agent, "# half written\n");
    assert!(agent.cli(&["reload"]).failed(78).contains("peerscope.yaml: is empty; write {} for the defaults"));
    write(&agent, BASE);
    assert_eq!(reload(&agent), "nothing has changed");
    assert_eq!(agent.status()["config"]["last_reload_successful"], true);
}

#[test]
fn sighup_reloads_and_does_not_stop_the_agent() {
    let mut agent = TestAgent::start_with(BASE);
    write(&agent, "node: {name: after}\n");
    agent.signal(Signal::HUP);
    agent.await_log("Configuration reloaded: changed node.name");
    write(&agent, "node: {nme: x}\n");
    agent.signal(Signal::HUP);
    agent.await_log("The configuration is not reloaded");
    agent.await_log("did you mean `name`?");
    assert_eq!(agent.status()["name"], "after");
    assert!(agent.stop().success());
}

/// Under systemd the agent sees only a copy of its file, made at its start.
#[test]
fn a_file_can_be_sent_to_an_agent_that_cannot_read_it() {
    let agent = TestAgent::start_with(BASE);
    let other = agent.home().join("other.yaml");
    std::fs::write(&other, "node: {name: sent}\n").unwrap();
    assert_eq!(agent.cli(&["reload", "--from", other.to_str().unwrap()]).text(), "changed node.name\n");
    assert_eq!(agent.status()["name"], "sent");
    std::fs::write(&other, "node: {nme: sent}\n").unwrap();
    let message = agent.cli(&["reload", "--from", other.to_str().unwrap()]).failed(78);
    assert!(message.starts_with("the configuration:1:8: node.nme: unknown key"), "{message}");
    assert!(agent.cli(&["reload", "--from", "/nowhere"]).failed(64).contains("--from: cannot read /nowhere"));
    assert_eq!(reload(&agent), "changed node.name");
    assert_eq!(agent.status()["name"], "before");
}

#[test]
fn access_rules_count_for_the_next_request_on_an_open_link() {
    let server = TestAgent::start_with("access: []\n");
    let client = TestAgent::prepare().bootstrap(&server).started();
    let id = server.peer_id();
    let put = || client.cli(&["put", "key", "value", "--peer", &id]);
    assert!(put().failed(1).contains("is not allowed to put here"));
    let connected = || client.cli(&["peers", "--json"]).json()[0]["connected_seconds"].as_u64();
    write(&server, &format!("access: [{{peer: {}, allow: [put]}}]\n", client.peer_id()));
    assert_eq!(reload(&server), "changed access");
    put().ok();
    write(&server, "access: []\n");
    reload(&server);
    assert!(put().failed(1).contains("is not allowed to put here"));
    assert!(connected().is_some());
    let log = client.log();
    assert_eq!(log.iter().filter(|line| line.contains("Peer connected")).count(), 1, "one link all along: {log:?}");
}

#[test]
fn peers_that_are_no_longer_allowed_are_disconnected_and_new_ones_are_dialed() {
    let (first, second) = (TestAgent::start(), TestAgent::start());
    let agent = TestAgent::start_with("network: {bootstrap: []}\n");
    let peers = |agent: &TestAgent| {
        let peers = agent.cli(&["peers", "--json"]).json();
        let peers = peers.as_array().unwrap().iter().map(|peer| peer["peer_id"].as_str().unwrap().to_owned());
        let mut peers: Vec<String> = peers.collect();
        peers.sort();
        peers
    };
    let both = format!("bootstrap: [{}, {}]", first.listen_address(), second.listen_address());
    write(&agent, &format!("network: {{{both}}}\n"));
    assert_eq!(reload(&agent), "changed network.bootstrap");
    eventually("both are connected", || peers(&agent).len() == 2);

    let (kept, gone) = (first.peer_id(), second.peer_id());
    write(&agent, &format!("network: {{bootstrap: [{}], allow_peers: [{kept}]}}\n", first.listen_address()));
    assert_eq!(reload(&agent), "changed network.allow_peers, network.bootstrap");
    eventually("one is left", || peers(&agent) == [kept.clone()]);
    agent.await_log("closed by this agent, no longer in network.allow_peers");
    // The other one cannot come back by itself, either.
    let refused = second.cli(&["get", "a", "--peer", &agent.peer_id()]);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert_eq!(peers(&agent), [kept]);

    write(&agent, &format!("network: {{{both}}}\n"));
    reload(&agent);
    eventually("both are back", || peers(&agent).len() == 2 && peers(&agent).contains(&gone));
}

/// Reloads change nothing for requests and scrapes that are under way, and leave nothing behind.
#[test]
fn a_thousand_reloads_under_load_lose_nothing_and_leak_nothing() {
    let rule =
        |client: &TestAgent, more: &str| format!("access: [{{peer: {}, allow: [put, get{more}]}}]\n", client.peer_id());
    let client = TestAgent::start();
    let server = TestAgent::prepare().bootstrap(&client).configured(&rule(&client, "")).started();
    let id = server.peer_id();
    eventually("they are connected", || client.cli(&["put", "first", "x", "--peer", &id]).code == 0);
    let usage = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let number = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
        };
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
        (number("VmRSS:"), number("Threads:"), descriptors)
    };
    let reload_once = |turn: usize| {
        // What the client may do, whether it may scrape, and the name that it is then told.
        let more = if turn.is_multiple_of(2) { ", scrape" } else { "" };
        write(&server, &format!("node: {{name: name-{turn}}}\n{}", rule(&client, more)));
        let reply = server.control("POST", "/v1/reload", b"").unwrap();
        assert_eq!((reply.status, &reply.json()["changed"]), (200, &serde_json::json!(["access", "node.name"])));
    };
    (0..100).for_each(reload_once);
    let before = usage();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (puts, scrapes) = std::thread::scope(|scope| {
        let puts = scope.spawn(|| {
            let mut puts = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let reply = client.control("PUT", &format!("/v1/keys/key{puts}?peer={id}"), b"value").unwrap();
                assert_eq!(reply.status, 204, "{}", reply.text());
                puts += 1;
            }
            puts
        });
        let scrapes = scope.spawn(|| {
            let mut scrapes = 0;
            while cfg!(feature = "metrics-prometheus") && !stop.load(std::sync::atomic::Ordering::Relaxed) {
                server.scrape();
                scrapes += 1;
            }
            scrapes
        });
        (0..1000).for_each(reload_once);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        (puts.join().unwrap(), scrapes.join().unwrap())
    });
    assert!(puts > 100, "{puts}");
    assert!(scrapes > 100 || cfg!(not(feature = "metrics-prometheus")), "{scrapes}");
    let (memory, threads, descriptors) = usage();
    assert!(threads <= before.1 + 8 && descriptors <= before.2 + 8, "{before:?} {:?}", (threads, descriptors));
    assert!(memory < before.0 + 16 * 1024, "KiB: {before:?} {memory}");
    let log = client.log();
    assert_eq!(log.iter().filter(|line| line.contains("Peer connected")).count(), 1, "one link all along: {log:?}");
}

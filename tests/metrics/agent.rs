//! The whole agent as a process: its endpoint shows exactly what it did.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use peerscope::metrics::catalogue;

use crate::support::agent::{TestAgent, connect, eventually, free_port};
use crate::support::metrics::{moved, value};
use crate::support::redis::RedisServer;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The families that a message or a storage operation could change, by prefix.
const WORK: &[&str] = &["messages_", "message_", "storage_"];

fn changes<const N: usize>(series: [&str; N]) -> BTreeMap<String, f64> {
    series.iter().map(|series| ((*series).to_owned(), 1.0)).collect()
}

/// Two connected agents. The second one may do on the first one what `allow` says; `config` is added to the
/// configuration of the first one.
fn pair(allow: &str, config: &str) -> (TestAgent, TestAgent) {
    let mut second = TestAgent::start();
    let id = second.peer_id();
    let first = TestAgent::start_with(&format!("access: [{{peer: {id}, allow: {allow}}}]\n{config}"));
    assert!(second.stop().success());
    let second = second.bootstrap(&first).started();
    await_link(&second, &first);
    (first, second)
}

/// Waits until `agent` can send requests to `peer`.
pub(super) fn await_link(agent: &TestAgent, peer: &TestAgent) {
    let id = peer.peer_id();
    eventually("the two are linked", || {
        let peers = agent.cli(&["peers", "--json"]).json();
        peers.as_array().unwrap().iter().any(|peer| peer["peer_id"] == id.as_str() && peer["link"] == true)
    });
}

/// AC1, and what the kernel reports about the process from outside.
#[test]
fn the_endpoint_answers_and_its_gauges_are_correct() {
    let (first, second) = pair("[]", "");
    let reply = first.http("/metrics");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some(TEXT));
    for gauge in ["process_cpu_usage", "process_memory_bytes", "agent_peers_connected"] {
        assert!(reply.text().contains(&format!("\n# TYPE {gauge} gauge\n{gauge} ")), "{gauge}: {}", reply.text());
    }
    assert_eq!(value(&reply.text(), "agent_peers_connected", &[]), 1.0);
    assert_eq!(value(&second.scrape(), "agent_peers_connected", &[]), 1.0);
    let id = first.peer_id();
    let name = first.status()["name"].as_str().unwrap().to_owned();
    assert_eq!(value(&reply.text(), "agent_info", &[("peer_id", &id), ("name", &name)]), 1.0);

    let resident = value(&first.scrape(), "process_memory_bytes", &[]);
    let expected = resident_memory(first.pid());
    assert!((resident / expected - 1.0).abs() < 0.1, "{resident} {expected}");

    // A sample that is sure to be kept starts the window of the CPU gauge.
    std::thread::sleep(Duration::from_millis(1100));
    first.scrape();
    let (used, started) = (cpu_seconds(first.pid()), Instant::now());
    // Work that does not wait for a disk: on a slow one, an agent that only handles puts is idle.
    while started.elapsed() < Duration::from_millis(1500) {
        assert_eq!(first.control("GET", "/v1/status", b"").unwrap().status, 200);
    }
    let percent = value(&first.scrape(), "process_cpu_usage", &[]);
    let expected = (cpu_seconds(first.pid()) - used) / started.elapsed().as_secs_f64() * 100.0;
    assert!(expected > 1.0, "the agent was idle: {expected}");
    assert!((percent - expected).abs() < 5.0 + expected * 0.1, "{percent} is not {expected}");
}

/// The resident memory of a process, in bytes, as the kernel reports it.
fn resident_memory(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() * 1024.0
}

/// The CPU time of a process, user and system, as the kernel reports it: in ticks of 10 ms.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// AC2 and AC3: what changes on the first agent with one operation by the second one over the network, and
/// what does not.
fn each_operation_increments_its_series_by_one(backend: &str, config: &str) {
    let (first, second) = pair("[get, put, delete]", config);
    let peer = first.peer_id();
    let commands: [(&str, &[&str]); 3] = [
        ("put", &["put", "greeting", "hello", "--peer", &peer]),
        ("get", &["get", "greeting", "--peer", &peer]),
        ("delete", &["delete", "greeting", "--peer", &peer]),
    ];
    for (operation, command) in commands {
        let (here, there) = (first.scrape(), second.scrape());
        let started = Instant::now();
        let output = second.cli(command).ok();
        let took = started.elapsed().as_secs_f64();
        assert_eq!(output, if operation == "get" { b"hello".as_slice() } else { b"" });
        let (here_after, there_after) = (first.scrape(), second.scrape());

        let mut expected = changes([
            &format!("messages_received_total{{type=\"{operation}\"}}"),
            &format!("message_processing_duration_seconds_count{{type=\"{operation}\"}}"),
            &format!("storage_operations_total{{operation=\"{operation}\",backend=\"{backend}\"}}"),
            &format!("storage_operation_duration_seconds_count{{operation=\"{operation}\",backend=\"{backend}\"}}"),
        ]);
        if backend == "local" && operation != "get" {
            expected.insert("storage_local_commit_batch_size_count".into(), 1.0);
        }
        assert_eq!(moved(&here, &here_after, WORK), expected);
        let expected = changes([
            &format!("messages_sent_total{{type=\"{operation}\"}}"),
            &format!("message_round_trip_duration_seconds_count{{type=\"{operation}\"}}"),
        ]);
        assert_eq!(moved(&there, &there_after, WORK), expected);

        // The storage time is part of the message's, that is part of the round trip's, and that of the command's.
        let grown = |before: &str, after: &str, name, labels| value(after, name, labels) - value(before, name, labels);
        let kind: &[_] = &[("type", operation)];
        let labels: &[_] = &[("operation", operation), ("backend", backend)];
        let storage = grown(&here, &here_after, "storage_operation_duration_seconds_sum", labels);
        let message = grown(&here, &here_after, "message_processing_duration_seconds_sum", kind);
        let round_trip = grown(&there, &there_after, "message_round_trip_duration_seconds_sum", kind);
        assert!(0.0 < storage && storage <= message && message <= round_trip && round_trip <= took, "{operation}");
    }
    let here = first.scrape();
    second.cli(&["get", "greeting", "--peer", &peer]).failed(1);
    let expected = changes([
        "messages_received_total{type=\"get\"}",
        "message_processing_duration_seconds_count{type=\"get\"}",
        &format!("storage_operations_total{{operation=\"get\",backend=\"{backend}\"}}"),
        &format!("storage_operation_duration_seconds_count{{operation=\"get\",backend=\"{backend}\"}}"),
    ]);
    assert_eq!(moved(&here, &first.scrape(), WORK), expected, "a missing key is answered like any other");
}

#[test]
fn each_message_increments_its_series_by_one_with_the_embedded_store() {
    each_operation_increments_its_series_by_one("local", "");
}

#[test]
fn each_message_increments_its_series_by_one_with_redis() {
    let redis = RedisServer::start(&[]);
    let config = format!("storage: {{backend: redis, redis: {{urls: [\"{}\"]}}}}\n", redis.url());
    each_operation_increments_its_series_by_one("redis", &config);
    assert_eq!(redis.command::<usize>(&["DBSIZE"]), 0);
}

/// The operator's own operations are storage operations, but not messages.
#[test]
fn local_operations_are_not_messages() {
    let agent = TestAgent::start();
    let before = agent.scrape();
    agent.cli(&["put", "key", "value"]).ok();
    let mut expected = changes([
        "storage_operations_total{operation=\"put\",backend=\"local\"}",
        "storage_operation_duration_seconds_count{operation=\"put\",backend=\"local\"}",
        "storage_local_commit_batch_size_count",
    ]);
    assert_eq!(moved(&before, &agent.scrape(), WORK), expected);

    let before = agent.scrape();
    let long = "k".repeat(1025);
    let message = agent.cli(&["put", &long, "value"]).failed(1);
    assert_eq!(message, "the key has 1025 bytes; at most 1024 are allowed (storage.max_key_size)");
    expected.remove("storage_local_commit_batch_size_count");
    expected
        .extend(changes(["storage_operation_errors_total{operation=\"put\",backend=\"local\",reason=\"invalid\"}"]));
    assert_eq!(moved(&before, &agent.scrape(), WORK), expected);
}

/// A peer may do nothing until it is allowed: a refused message is counted as such, and the store is not
/// touched.
#[test]
fn a_refused_message_is_counted_and_changes_nothing() {
    let (first, second) = pair("[get]", "");
    first.cli(&["put", "greeting", "hello"]).ok();
    let (peer, asking) = (first.peer_id(), second.peer_id());
    let commands: [(&str, &[&str]); 2] = [
        ("put", &["put", "greeting", "changed", "--peer", &peer]),
        ("delete", &["delete", "greeting", "--peer", &peer]),
    ];
    for (operation, command) in commands {
        let (here, there) = (first.scrape(), second.scrape());
        let message = second.cli(command).failed(1);
        assert!(message.contains(&format!("{asking} is not allowed to {operation} here")), "{message}");
        let refused = format!("messages_failed_total{{type=\"{operation}\",reason=\"refused\"}}");
        assert_eq!(moved(&here, &first.scrape(), WORK), changes([&refused]));
        let expected = changes([
            &format!("messages_sent_total{{type=\"{operation}\"}}"),
            &format!("message_round_trip_duration_seconds_count{{type=\"{operation}\"}}"),
            &format!("messages_send_failures_total{{type=\"{operation}\",reason=\"remote\"}}"),
        ]);
        assert_eq!(moved(&there, &second.scrape(), WORK), expected);
    }
    assert_eq!(second.cli(&["get", "greeting", "--peer", &peer]).ok(), b"hello");

    // The other direction was never allowed: the first agent may do nothing on the second one.
    let before = second.scrape();
    let message = first.cli(&["get", "greeting", "--peer", &asking]).failed(1);
    assert!(message.contains(&format!("{peer} is not allowed to get here")), "{message}");
    let refused = "messages_failed_total{type=\"get\",reason=\"refused\"}";
    assert_eq!(moved(&before, &second.scrape(), WORK), changes([refused]));
}

/// AC4
#[test]
fn a_disabled_endpoint_does_not_listen_and_the_agent_works() {
    let agent = TestAgent::prepare();
    let port = free_port(agent.address());
    let agent = agent.on_metrics_port(port).configured("metrics: {enabled: false}\n").started();
    agent.await_log("Metrics endpoint disabled");
    assert!(!agent.log().iter().any(|line| line.contains("Metrics at")), "{:#?}", agent.log());
    let refused = connect(agent.metrics_socket()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(agent.metrics_socket().port(), port);

    agent.cli(&["put", "key", "value"]).ok();
    assert_eq!(agent.cli(&["get", "key"]).ok(), b"value");
    let status = agent.status();
    assert_eq!(status["metrics"], serde_json::Value::Null);
    assert_eq!(status["ready"], true);
    let text = agent.cli(&["status"]).text();
    assert!(text.lines().any(|line| line == "metrics    off"), "{text}");
    // The metrics are still available through the control socket.
    let text = String::from_utf8(agent.cli(&["metrics"]).ok()).unwrap();
    assert_eq!(value(&text, "storage_operations_total", &[("operation", "put"), ("backend", "local")]), 1.0);
}

/// The flag does the same as the configuration key.
#[test]
fn the_endpoint_can_be_disabled_on_the_command_line() {
    let agent = TestAgent::prepare();
    assert_eq!(agent.cli(&["check", "--json"]).json()["metrics"]["enabled"], true);
    assert_eq!(agent.cli(&["check", "--json", "--no-metrics"]).json()["metrics"]["enabled"], false);
}

/// Whatever is wrong with the port, the agent runs, logs what to change, and recovers by itself.
#[test]
fn a_port_in_use_is_reported_and_retried() {
    let agent = TestAgent::prepare();
    let taken = TcpListener::bind((agent.address(), 0)).unwrap();
    let socket = taken.local_addr().unwrap();
    let agent = agent.on_metrics_port(socket.port()).started();
    let warning = agent.await_log("no metrics endpoint yet");
    let problem = format!("{socket} is already in use by another program");
    assert!(warning.contains("WARN") && warning.contains(&problem), "{warning}");
    assert!(warning.contains("set `metrics.port` to a free port"), "{warning}");

    agent.cli(&["put", "key", "value"]).ok();
    let status = agent.status();
    assert_eq!(status["metrics"], serde_json::Value::Null);
    assert_eq!(status["ready"], false);
    let components = status["components"].as_array().unwrap();
    let metrics = components.iter().find(|component| component["component"] == "metrics").unwrap();
    assert_eq!((&metrics["ready"], metrics["problem"].as_str()), (&false.into(), Some(problem.as_str())));
    let text = agent.cli(&["status"]).text();
    for line in ["metrics    not listening", "ready      NO", &format!("metrics    NOT READY: {problem}")] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    let exposition = String::from_utf8(agent.cli(&["metrics"]).ok()).unwrap();
    assert_eq!(value(&exposition, "agent_component_ready", &[("component", "metrics")]), 0.0);
    assert_eq!(value(&exposition, "agent_component_ready", &[("component", "storage")]), 1.0);

    drop(taken);
    agent.await_log(&format!("Metrics at http://{socket}/metrics"));
    assert_eq!(value(&agent.scrape(), "agent_component_ready", &[("component", "metrics")]), 1.0);
    assert_eq!(agent.http("/ready").status, 200);
    let status = agent.status();
    assert_eq!(
        (status["ready"].as_bool(), status["metrics"].as_str()),
        (Some(true), Some(&*format!("http://{socket}/metrics")))
    );
    assert_eq!(agent.log().iter().filter(|line| line.contains("no metrics endpoint yet")).count(), 1, "logged once");
}

/// A live agent shows what docs/metrics.md says: every family of the catalogue with its type and labels, otherwise
/// only libp2p's, and no more samples than the bound. Only a gateway shows the gateway's families, and only an
/// agent with a web configuration those about it.
#[test]
fn a_live_scrape_shows_the_catalogue_and_libp2ps_families() {
    let folder = tempfile::tempdir().unwrap();
    let web = folder.path().join("web.yml");
    std::fs::write(&web, "{}\n").unwrap();
    let config = format!("gateway: {{enabled: true}}\nmetrics: {{web_config: {}}}\n", web.display());
    let (first, second) = pair("[get, put, delete]", &config);
    let peer = first.peer_id();
    second.cli(&["put", "greeting", "hello", "--peer", &peer]).ok();
    for (agent, is_gateway) in [(&first, true), (&second, false)] {
        let text = agent.scrape();
        let mut shown = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            assert!(shown.insert(name, kind).is_none(), "{name} appears twice");
        }
        for family in catalogue::ALL.iter().filter(|family| is_gateway || !family.help.contains("(only ")) {
            assert_eq!(shown.remove(family.name), Some(family.kind.classic()), "{}", family.name);
            let ends =
                if family.kind == catalogue::Kind::Histogram { &["_bucket", "_sum", "_count"][..] } else { &[""] };
            for name in ends.iter().map(|end| format!("{}{end}", family.name)) {
                let samples: Vec<_> = text
                    .lines()
                    .filter(|line| line.strip_prefix(&*name).is_some_and(|rest| rest.starts_with(['{', ' '])))
                    .collect();
                assert!(!samples.is_empty(), "no sample {name}");
                for sample in samples {
                    let labels = sample.split_once('{').map_or("", |(_, rest)| rest.rsplit_once('}').unwrap().0);
                    let names = labels.split("\",").filter_map(|pair| pair.split_once("=\"")).map(|(name, _)| name);
                    let names: Vec<_> = names.filter(|name| *name != "le").collect();
                    assert_eq!(names, family.labels, "{sample}");
                }
            }
        }
        let unknown: Vec<_> = shown.keys().filter(|name| !name.starts_with("libp2p_")).collect();
        assert_eq!(unknown, Vec::<&&str>::new());
        let samples = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(samples < 2_000 && text.len() < 256 * 1024, "{samples} samples, {} bytes", text.len());
    }
}

/// The command line prints the same page as the endpoint.
#[test]
fn the_control_socket_and_the_endpoint_show_the_same_page() {
    let agent = TestAgent::start();
    agent.cli(&["put", "key", "value"]).ok();
    let text = String::from_utf8(agent.cli(&["metrics"]).ok()).unwrap();
    assert_eq!(moved(&text, &agent.scrape(), WORK), BTreeMap::new());
    let names = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(str::to_owned).collect()
    };
    assert_eq!(names(&text), names(&agent.scrape()));
}

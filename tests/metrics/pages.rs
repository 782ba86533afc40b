//! What each page returns, and to which clients.

use std::io::Read;

use peerscope::metrics::exposition::{FamilyFilter, Format};
use peerscope::metrics::labels::{Component, MessageType};
use peerscope::metrics::{Limits, MetricsConfig, Timer, catalogue};

use super::fixture::Endpoint;
use crate::support::metrics::value;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const PROTOBUF: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[test]
fn a_client_without_preference_gets_the_classic_text_with_every_family() {
    let endpoint = Endpoint::start();
    endpoint.collector.set_peers_connected(3);
    let reply = endpoint.get("/metrics");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some(TEXT));
    assert_eq!(reply.header("content-encoding"), None);
    assert_eq!(reply.header("vary"), Some("Accept, Accept-Encoding"));
    let text = reply.text();
    for family in catalogue::ALL.iter().filter(|family| !family.help.contains("(only with metrics.web_config)")) {
        let kind = if family.kind.as_str() == "info" { "gauge" } else { family.kind.as_str() };
        let line = format!("# TYPE {} {kind}\n", family.name);
        assert_eq!(text.matches(&line).count(), 1, "{line}{text}");
        assert!(text.contains(&format!("# HELP {} {}.\n", family.name, family.help)), "{text}");
    }
    assert_eq!(value(&text, "agent_peers_connected", &[]), 3.0);
    assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
}

#[test]
fn a_recorded_message_appears_in_the_next_scrape() {
    let endpoint = Endpoint::start();
    let labels = [("type", "put")];
    let before = endpoint.scrape();
    endpoint.collector.message_handled(MessageType::Put, Timer::start());
    let after = endpoint.scrape();
    for series in ["messages_received_total", "message_processing_duration_seconds_count"] {
        assert_eq!(value(&before, series, &labels), 0.0);
        assert_eq!(value(&after, series, &labels), 1.0);
    }
}

#[test]
fn each_client_gets_the_format_that_it_asks_for() {
    let endpoint = Endpoint::start();
    let mut client = endpoint.connect();
    let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    for (accept, content_type, last_line) in [
        (prometheus_2, OPENMETRICS, "# EOF"),
        ("application/openmetrics-text", "application/openmetrics-text; version=0.0.1; charset=utf-8", "# EOF"),
        ("text/plain;version=0.0.4;q=1,*/*;q=0.1", TEXT, ""),
        ("*/*", TEXT, ""),
        ("image/png", TEXT, ""),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited", PROTOBUF, ""),
    ] {
        let reply = client.get("/metrics", &[("Accept", accept)]);
        assert_eq!((reply.status, reply.header("content-type")), (200, Some(content_type)), "{accept}");
        assert_eq!(reply.body.ends_with(b"# EOF\n"), !last_line.is_empty(), "{accept}");
    }
    // A list that is split into two headers is one list.
    let reply = client
        .get("/metrics", &[("Accept", "text/plain;q=0.1"), ("Accept", "application/openmetrics-text;version=1.0.0")]);
    assert_eq!(reply.header("content-type"), Some(OPENMETRICS));
}

#[test]
fn the_gzip_response_is_the_plain_one_compressed() {
    // Nothing in this registry changes between two scrapes, except the endpoint's own counters and the process.
    let still = |text: &str| -> Vec<String> {
        let moving = ["process_", "http_", "exposition_"];
        text.lines().filter(|line| !moving.iter().any(|name| line.starts_with(name))).map(str::to_owned).collect()
    };
    let endpoint = Endpoint::start();
    let mut client = endpoint.connect();
    let plain = client.get("/metrics", &[("Accept-Encoding", "deflate, gzip;q=0")]);
    assert_eq!(plain.header("content-encoding"), None);
    let packed = client.get("/metrics", &[("Accept-Encoding", "gzip")]);
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    assert_eq!(packed.header("content-type"), Some(TEXT));
    assert!(packed.body.len() * 4 < plain.body.len(), "{} of {}", packed.body.len(), plain.body.len());
    let mut unpacked = String::new();
    flate2::read::GzDecoder::new(packed.body.as_slice()).read_to_string(&mut unpacked).unwrap();
    assert_eq!(still(&unpacked), still(&plain.text()));
    assert!(still(&unpacked).len() > 100);
}

#[test]
fn name_parameters_restrict_the_page_to_those_families() {
    let endpoint = Endpoint::start();
    let reply = endpoint.connect().get(
        "/metrics?name[]=agent_peers_connected&name%5B%5D=messages_received_total&name[]=nobody",
        &[("Accept-Encoding", "gzip")],
    );
    let text = reply.text();
    let families: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert_eq!(families, ["agent_peers_connected gauge", "messages_received_total counter"]);
    // It fits into one packet: compressed, it would arrive no sooner. The response depends on the headers all the same.
    assert_eq!((reply.header("content-encoding"), reply.header("vary")), (None, Some("Accept, Accept-Encoding")));
    let reply = endpoint.get("/metrics?name[]=nobody");
    assert_eq!((reply.status, reply.text().as_str()), (200, ""));
    let accept = [("Accept", "application/openmetrics-text; version=1.0.0")];
    assert_eq!(endpoint.connect().get("/metrics?name[]=nobody", &accept).text(), "# EOF\n");
    assert_eq!(endpoint.get("/metrics?names=agent_peers_connected").text().lines().count(), {
        endpoint.get("/metrics").text().lines().count()
    });
}

#[test]
fn a_head_is_answered_like_a_get_without_the_body() {
    let endpoint = Endpoint::start();
    let mut client = endpoint.connect();
    for path in ["/live", "/ready", "/"] {
        let get = client.get(path, &[]);
        let head = client.request("HEAD", path, &[]);
        assert_eq!(head.status, get.status, "{path}");
        assert_eq!(head.header("content-length"), get.header("content-length"), "{path}");
    }
    let head = client.request("HEAD", "/metrics", &[]);
    assert_eq!((head.status, head.header("content-type")), (200, Some(TEXT)));
    assert!(head.header("content-length").unwrap().parse::<usize>().unwrap() > 1000);
    // The connection is still in sync: no body was sent.
    assert_eq!(client.get("/live", &[]).text(), "live\n");
}

#[test]
fn other_methods_and_other_paths_are_rejected() {
    let endpoint = Endpoint::start();
    for path in ["/metrics", "/live", "/ready", "/"] {
        let reply = endpoint.connect().request("POST", path, &[("Content-Length", "0")]);
        assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD")), "{path}");
    }
    for path in ["/metric", "/metrics/", "/favicon.ico", "//metrics", "/metrics%00", "/../metrics"] {
        let reply = endpoint.get(path);
        assert_eq!(reply.status, 404, "{path}");
        assert!(reply.text().contains("/metrics"), "it lists the pages: {}", reply.text());
    }
    assert_eq!(endpoint.connect().request("DELETE", "/nowhere", &[]).status, 404);
    assert_eq!(endpoint.get("/metrics?name[]=up").status, 200);
    let text = endpoint.scrape();
    let count = |handler, code| value(&text, "http_requests_total", &[("handler", handler), ("code", code)]);
    assert_eq!(count("metrics", "405"), 1.0);
    assert_eq!(count("other", "404"), 7.0);
    assert_eq!(count("metrics", "200"), 1.0, "the query, not yet this scrape");
    assert_eq!(value(&text, "exposition_duration_seconds_count", &[]), 1.0);
    assert_eq!(value(&text, "http_requests_in_flight", &[("handler", "metrics")]), 1.0, "this scrape");
    assert_eq!(value(&text, "http_requests_in_flight", &[("handler", "live")]), 0.0);
}

#[test]
fn the_metrics_page_is_where_the_configuration_puts_it() {
    let config = MetricsConfig { port: 0, path: "/scrape/me".into(), ..MetricsConfig::default() };
    let endpoint = Endpoint::configured(&config, Limits::default(), |_| ());
    assert_eq!(endpoint.get("/scrape/me").status, 200);
    assert_eq!(endpoint.get("/metrics").status, 404);
    assert_eq!(endpoint.server.url(), Some(format!("http://{}/scrape/me", endpoint.addr())));
    assert!(endpoint.get("/").text().contains("href=\"scrape/me\""));
}

#[test]
fn ready_names_the_component_that_is_not_and_the_gauge_agrees() {
    let endpoint = Endpoint::start();
    endpoint.health.ready(Component::Storage);
    let reply = endpoint.get("/ready");
    assert_eq!((reply.status, reply.text().as_str()), (200, "ready\nstorage: ready\nmetrics: ready\n"));

    endpoint.health.not_ready(Component::Storage, "Redis does not answer");
    let reply = endpoint.get("/ready");
    assert_eq!(reply.status, 503);
    assert_eq!(reply.text(), "not ready\nstorage: not ready: Redis does not answer\nmetrics: ready\n");
    assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let reply = endpoint.connect().get("/ready", &[("Accept", "application/json")]);
    assert_eq!((reply.status, reply.header("content-type")), (503, Some("application/json")));
    let json: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(
        json,
        serde_json::json!({"ready": false, "components": [
            {"component": "storage", "ready": false, "reason": "Redis does not answer"},
            {"component": "metrics", "ready": true, "reason": null},
        ]})
    );

    let ready = |component| value(&endpoint.scrape(), "agent_component_ready", &[("component", component)]);
    assert_eq!((ready("storage"), ready("metrics")), (0.0, 1.0));
    assert_eq!(endpoint.get("/live").status, 200, "it is live all the same");
    endpoint.health.ready(Component::Storage);
    assert_eq!((endpoint.get("/ready").status, ready("storage")), (200, 1.0));
}

#[test]
fn the_index_identifies_the_agent_and_links_to_the_pages() {
    let endpoint = Endpoint::start();
    let reply = endpoint.get("/");
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let page = reply.text();
    for part in ["12D3KooWTest", env!("CARGO_PKG_VERSION"), "href=\"metrics\"", "href=\"ready\"", "href=\"live\""] {
        assert!(page.contains(part), "{part} in {page}");
    }
}

#[test]
fn the_same_text_is_available_without_http() {
    let endpoint = Endpoint::start();
    endpoint.collector.set_peers_connected(7);
    let body = endpoint.registry.render(Format::Text, &FamilyFilter::all());
    assert_eq!(value(std::str::from_utf8(&body).unwrap(), "agent_peers_connected", &[]), 7.0);
}

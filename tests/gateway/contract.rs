//! What the gateway promises Prometheus, with real agents.

use super::fixture::{ACCEPT_PROMETHEUS_3, await_targets, gateway, outcomes, peer, scrape, targets, value};
use crate::support::agent::eventually;

#[test]
fn a_peer_that_connects_is_found_and_scraped_with_its_own_numbers() {
    let gateway = gateway("");
    assert_eq!(targets(&gateway), Vec::<serde_json::Value>::new());
    let edge = peer(&gateway, "edge-17", "");
    let targets = await_targets(&gateway, 1);
    let id = edge.peer_id();
    let labels = &targets[0]["labels"];
    assert_eq!(
        targets[0]["targets"],
        serde_json::json!(["localhost"]),
        "the address through which this client reached it"
    );
    assert_eq!(labels["instance"], id.as_str());
    assert_eq!(labels["peer_name"], "edge-17");
    assert_eq!(labels["__metrics_path__"], format!("/peers/{id}/metrics"));
    assert_eq!(labels["__meta_peerscope_connected"], "true");
    assert_eq!(labels["__meta_peerscope_direction"], "inbound");

    edge.cli(&["put", "k", "v"]).ok();
    let reply = scrape(&gateway, &id, &[]);
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/plain; version=0.0.4; charset=utf-8")));
    let page = reply.text();
    let puts = "storage_operations_total{operation=\"put\",backend=\"local\"} 1";
    assert!(page.contains(puts) && edge.scrape().contains(puts), "{page}");
    assert!(page.contains(&format!("agent_info{{peer_id=\"{id}\",name=\"edge-17\"}} 1")), "{page}");
    // The peer counts its answer, and the gateway the page that it passed on.
    eventually("the peer has counted the scrape", || {
        edge.scrape().contains("messages_received_total{type=\"scrape\"} 1")
    });
    assert_eq!(outcomes(&gateway, "ok"), 1.0);
    assert_eq!(value(&gateway, "gateway_scrape_body_bytes_sum", &[]), page.len() as f64);
    assert_eq!(value(&gateway, "gateway_peers", &[("state", "connected")]), 1.0);
}

/// A peer that is away while its gateway is restarted must not vanish from the list: its alert would resolve.
#[test]
fn a_restarted_gateway_still_knows_its_peers() {
    let mut gateway = gateway("");
    let (there, mut away) = (peer(&gateway, "there", ""), peer(&gateway, "away", ""));
    await_targets(&gateway, 2);
    let (there_id, away_id) = (there.peer_id(), away.peer_id());
    let file = gateway.data_dir().join("gateway.json");
    let kept = || std::fs::read_to_string(&file).unwrap_or_default();
    eventually("both are saved", || [&there_id, &away_id].iter().all(|id| kept().contains(*id)));
    away.kill();
    gateway.kill();
    gateway.restart();
    let targets = targets(&gateway);
    let mut expected = vec![(there_id.as_str(), "there"), (away_id.as_str(), "away")];
    let mut found: Vec<_> = targets
        .iter()
        .map(|target| (target["labels"]["instance"].as_str().unwrap(), target["labels"]["peer_name"].as_str().unwrap()))
        .collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    let reply = scrape(&gateway, &away_id, &[]);
    assert_eq!(reply.status, 502);
    assert!(
        reply.reason.starts_with("the peer is not connected; it left ")
            && reply.reason.ends_with("before the gateway was restarted)"),
        "{}",
        reply.reason
    );
    eventually("the other one comes back", || scrape(&gateway, &there_id, &[]).status == 200);
    away.restart();
    eventually("and so does the first one", || scrape(&gateway, &away_id, &[]).status == 200);
}

#[test]
fn the_scrapers_headers_reach_the_peer() {
    let gateway = gateway("");
    let edge = peer(&gateway, "edge", "");
    await_targets(&gateway, 1);
    let id = edge.peer_id();
    let reply = scrape(&gateway, &id, &[("Accept", ACCEPT_PROMETHEUS_3), ("Accept-Encoding", "gzip")]);
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-encoding"), Some("gzip"));
    let content_type = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
    assert_eq!(reply.header("content-type"), Some(content_type));
    assert_eq!(reply.body[..2], [0x1f, 0x8b]);
    let reply = scrape(&gateway, &id, &[("Accept", "application/openmetrics-text;version=1.0.0")]);
    assert!(reply.text().ends_with("# EOF\n"));
    assert_eq!(reply.header("content-encoding"), None);
}

/// They share a substream, on which only the lengths separate one page from the next.
#[test]
fn consecutive_scrapes_each_get_the_current_page() {
    let gateway = gateway("");
    let edge = peer(&gateway, "edge", "");
    let id = edge.peer_id();
    await_targets(&gateway, 1);
    for count in 1..=3 {
        edge.cli(&["put", "k", "v"]).ok();
        let page = scrape(&gateway, &id, &[]).text();
        let puts = format!("storage_operations_total{{operation=\"put\",backend=\"local\"}} {count}\n");
        assert!(page.starts_with("# HELP") && page.contains(&puts), "{page}");
    }
    assert_eq!(outcomes(&gateway, "ok"), 3.0);
}

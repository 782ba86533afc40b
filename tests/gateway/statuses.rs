//! Every status that the gateway returns, and the sentence in its status line, with real agents where possible.

use std::io::{Read as _, Write as _};

use libp2p::PeerId;

use super::fixture::{await_targets, gateway, outcomes, peer, scrape, targets, value};
use super::scene::{Scene, page};
use crate::support::agent::{TestAgent, connect, eventually};
use crate::support::http::{self, Reply};

const TIME: &str = "X-Prometheus-Scrape-Timeout-Seconds";

/// The sentence is in the status line, which Prometheus shows, and in the body, which people see.
#[track_caller]
fn assert_says(reply: &Reply, status: u16, sentence: &str) {
    assert_eq!(reply.status, status, "{}", reply.text());
    assert!(reply.reason.contains(sentence), "{}", reply.reason);
    assert_eq!(reply.text(), format!("{}\n", reply.reason));
    assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
}

#[test]
fn unknown_peers_exporters_and_paths_are_not_found() {
    let gateway = gateway("");
    let edge = peer(&gateway, "edge", "");
    await_targets(&gateway, 1);
    let nobody = PeerId::random().to_string();
    assert_says(&scrape(&gateway, &nobody, &[]), 404, "this gateway does not know this peer");
    assert_says(&scrape(&gateway, "nope", &[]), 404, "`nope` is not a PeerId");
    let exposed = gateway.http(&format!("/peers/{}/exposed/nope/metrics", edge.peer_id()));
    assert_says(&exposed, 404, "the peer exposes no exporter named `nope`");
    assert_eq!(outcomes(&gateway, "not_found"), 2.0, "an invalid PeerId does not count as a scrape");
    for path in ["/peers", "/peers/", &format!("/peers/{nobody}"), &format!("/peers/{nobody}/metrics/"), "/sd/"] {
        assert_eq!(gateway.http(path).status, 404, "{path}");
    }
}

#[test]
fn a_peer_that_does_not_allow_scrapes_is_not_a_target_and_the_error_says_what_it_needs() {
    let gateway = gateway("");
    let edge = TestAgent::prepare().bootstrap(&gateway).started();
    let refusing = || value(&gateway, "gateway_peers", &[("state", "refusing")]);
    eventually("it is connected", || refusing() == 1.0);
    assert_eq!(targets(&gateway), Vec::<serde_json::Value>::new());
    let needs = format!("access: [{{peer: {}, allow: [scrape]}}]", gateway.peer_id());
    assert_says(&scrape(&gateway, &edge.peer_id(), &[]), 403, &needs);
    assert_eq!(outcomes(&gateway, "refused"), 1.0);
    // It was not even asked.
    let asked = |text: &str| {
        crate::support::metrics::value(text, "messages_failed_total", &[("type", "scrape"), ("reason", "refused")])
    };
    assert_eq!(asked(&edge.scrape()), 0.0);
}

#[test]
fn a_departed_peer_is_still_a_target_and_the_error_says_since_when() {
    let gateway = gateway("");
    let mut edge = peer(&gateway, "edge", "");
    await_targets(&gateway, 1);
    let id = edge.peer_id();
    edge.kill();
    eventually("it has left", || value(&gateway, "gateway_peers", &[("state", "departed")]) == 1.0);
    assert_says(&scrape(&gateway, &id, &[]), 502, "the peer is not connected; it left ");
    assert_eq!(targets(&gateway)[0]["labels"]["__meta_peerscope_connected"], "false");
    assert_eq!(outcomes(&gateway, "disconnected"), 1.0);
    edge.restart();
    eventually("it is back", || scrape(&gateway, &id, &[]).status == 200);
}

#[test]
fn a_restarted_gateway_offers_the_same_peers() {
    let mut gateway = gateway("");
    let edge = peer(&gateway, "edge", "");
    let before = await_targets(&gateway, 1);
    let kept = gateway.data_dir().join("gateway.json");
    eventually("it is saved", || std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("edge")));
    assert!(gateway.stop().success());
    gateway.restart();
    let id = edge.peer_id();
    let labels = |targets: Vec<serde_json::Value>| {
        let labels = &targets.first().expect("it is known")["labels"];
        (labels["instance"].clone(), labels["peer_name"].clone(), labels["__metrics_path__"].clone())
    };
    assert_eq!(labels(targets(&gateway)), labels(before.clone()), "before it has come back");
    eventually("it has come back", || scrape(&gateway, &id, &[]).status == 200);
    assert_eq!(labels(targets(&gateway)), labels(before));
}

#[test]
fn the_error_says_whether_a_place_or_time_was_lacking() {
    let scene = Scene::set("  max_scrapes: 1\n");
    let never = scene.light("never", |_| std::future::pending());
    let good = scene.light("good", |_| std::future::ready(Ok(page("good", 100))));
    await_targets(&scene.gateway, 2);
    std::thread::scope(|scope| {
        let late = scope.spawn(|| scrape(&scene.gateway, &never.id, &[(TIME, "2")]));
        eventually("the only place is taken", || never.seen.under_way() == 1);
        let busy = scrape(&scene.gateway, &good.id, &[(TIME, "0.5")]);
        assert_says(
            &busy,
            503,
            "too many scrapes are under way at this gateway (gateway.max_scrapes); try again later",
        );
        let late = late.join().unwrap();
        assert_eq!(late.status, 504);
        let sentences = ["the page was not complete in time; 0 bytes had arrived", "the peer did not answer in time"];
        assert!(sentences.contains(&late.reason.as_str()), "{}", late.reason);
    });
    assert_eq!(scrape(&scene.gateway, &good.id, &[]).status, 200);
    let counts = ["busy", "timeout", "ok"].map(|outcome| outcomes(&scene.gateway, outcome));
    assert_eq!(counts, [1.0, 1.0, 1.0]);
}

#[test]
fn only_get_and_head_are_answered() {
    let gateway = gateway("");
    let edge = peer(&gateway, "edge", "");
    await_targets(&gateway, 1);
    let path = format!("/peers/{}/metrics", edge.peer_id());
    for path in [path.as_str(), "/sd"] {
        let reply = http::exchange(connect(gateway.metrics_socket()).unwrap(), "POST", path, b"x").unwrap();
        assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD")), "{path}");
        let mut stream = connect(gateway.metrics_socket()).unwrap();
        write!(stream, "HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n"), "{path}: {answer}");
        let length = answer.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        assert!(length.parse::<usize>().unwrap() > 100, "{path}: {answer}");
    }
    assert_eq!(outcomes(&gateway, "ok"), 1.0);
}

#[test]
fn only_accept_headers_of_a_scrapers_request_reach_the_peer() {
    let gateway = gateway("");
    let edge = peer(&gateway, "edge", "");
    await_targets(&gateway, 1);
    let id = edge.peer_id();
    // With this query the peer's own endpoint would return one family.
    let reply = gateway.http(&format!("/peers/{id}/metrics?name[]=agent_info&x=y"));
    assert_eq!(reply.status, 200);
    assert!(reply.text().contains("\nprocess_open_fds ") && reply.text().contains("\nagent_info{"), "the whole page");
    // An Accept that is too long for a peer is left out, so the peer answers in its default format.
    let accept = format!("application/openmetrics-text;version=1.0.0{}", ",text/x-unknown".repeat(100));
    let reply = scrape(&gateway, &id, &[("Accept", &accept)]);
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/plain; version=0.0.4; charset=utf-8")));
    let reply = scrape(&gateway, &id, &[("Accept", "application/openmetrics-text"), ("Cookie", "secret=1")]);
    assert!(reply.text().ends_with("# EOF\n"));
}

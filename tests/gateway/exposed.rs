//! Exporters behind a peer, scraped through the gateway.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use super::fixture::{await_targets, gateway, outcomes, peer};
use crate::support::agent::{PATIENCE, TestAgent, connect};
use crate::support::http::{self, Reply};

const PAGE: &str = "# TYPE node_load1 gauge\nnode_load1 0.5\n";

/// An exporter with one path for each way to answer. It ends with the test's process.
pub(crate) fn exporter() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || answer(stream.unwrap()));
        }
    });
    address
}

fn answer(mut stream: TcpStream) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let request = lines.next().unwrap().unwrap();
    let head: Vec<String> = lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let ok = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n";
    let answer = match request.split(' ').nth(1).unwrap() {
        "/page?token=secret" => format!("{ok}Content-Length: {}\r\n\r\n{PAGE}", PAGE.len()),
        "/redirect" => "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/secret\r\nContent-Length: 0\r\n\r\n".into(),
        "/broken" => "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n".into(),
        "/huge" => format!("{ok}Content-Length: 4194304\r\n\r\n{}", "#\n".repeat(1 << 21)),
        "/large" => format!("{ok}Content-Length: 100000\r\n\r\n{}", "#\n".repeat(50_000)),
        "/slow" => {
            // Waits until the client disconnects.
            let _ = lines.next();
            return;
        }
        other => panic!("{other}: {head:?}"),
    };
    // A client that has read enough may be gone.
    let _ = stream.write_all(answer.as_bytes());
}

fn fetch(gateway: &TestAgent, id: &str, name: &str, time: &str) -> Reply {
    let stream = connect(gateway.metrics_socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let headers = [("X-Prometheus-Scrape-Timeout-Seconds", time)];
    http::get(stream, &format!("/peers/{id}/exposed/{name}/metrics"), &headers).unwrap()
}

#[test]
fn exporters_behind_a_peer_are_targets_of_their_own() {
    let exporter = exporter();
    let names = ["broken", "large", "page", "redirect", "slow"];
    let entries = names.map(|name| {
        let query = if name == "page" { "?token=secret" } else { "" };
        format!("  - {{name: {name}, url: \"http://{exporter}/{name}{query}\"}}\n")
    });
    let gateway = gateway("");
    let more = format!("expose:\n{}gateway: {{max_body_size: 64KiB}}\n", entries.concat());
    let edge = peer(&gateway, "edge", &more);
    let id = edge.peer_id();
    let targets = await_targets(&gateway, 1 + names.len());
    let exposed: Vec<&str> = targets.iter().filter_map(|target| target["labels"]["exposed"].as_str()).collect();
    assert_eq!(exposed, names);
    for target in &targets {
        let labels = &target["labels"];
        assert_eq!((&labels["instance"], &labels["peer_name"]), (&id.clone().into(), &"edge".into()));
        if let Some(name) = labels["exposed"].as_str() {
            assert_eq!(labels["__metrics_path__"], format!("/peers/{id}/exposed/{name}/metrics"));
        }
    }

    let reply = fetch(&gateway, &id, "page", "10");
    assert_eq!((reply.status, reply.text().as_str()), (200, PAGE));
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4"));
    let failures = [
        ("redirect", 502, "the exporter `redirect` answered with a redirect (302 Found), which is not followed"),
        ("broken", 502, "the exporter `broken` answered with 500 Internal Server Error"),
        ("large", 502, "the exporter `large` answered with more than the 65536 bytes that are allowed"),
        ("slow", 504, "the exporter `slow` did not send a complete answer within "),
    ];
    for (name, status, sentence) in failures {
        let reply = fetch(&gateway, &id, name, "1");
        assert_eq!(reply.status, status, "{}", reply.reason);
        assert!(reply.reason.starts_with(&format!("the peer reports: {sentence}")), "{}", reply.reason);
        // The exporter's URL is the peer's secret.
        let secrets = ["127.0.0.1", "secret", "http:"];
        assert!(secrets.iter().all(|secret| !reply.reason.contains(secret)), "{}", reply.reason);
    }
    let counts = ["ok", "failed", "too_large", "timeout"].map(|outcome| outcomes(&gateway, outcome));
    assert_eq!(counts, [1.0, 2.0, 1.0, 1.0]);
    let failed = |reason| {
        let labels = [("type", "scrape"), ("reason", reason)];
        crate::support::metrics::value(&edge.scrape(), "messages_failed_total", &labels)
    };
    assert_eq!((failed("timeout"), failed("too_large")), (1.0, 1.0));
}

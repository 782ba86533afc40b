//! A gateway and its peers: real agents, each in its own process.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

use serde_json::Value;

use crate::support::agent::{PATIENCE, TestAgent, connect, own_address, within_or};
use crate::support::http::{self, Reply};

/// What Prometheus 3 sends if it accepts native histograms.
pub(crate) const ACCEPT_PROMETHEUS_3: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;\
     encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
     application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
     text/plain;version=0.0.4;q=0.2,*/*;q=0.1";

/// A gateway that returns its list at once. `more` continues the `gateway` section, indented by two spaces, and may
/// continue with other sections.
pub(crate) fn gateway(more: &str) -> TestAgent {
    TestAgent::start_with(&format!("node: {{name: gw}}\ngateway:\n  enabled: true\n  settle: 0s\n{more}"))
}

/// An agent with this name that stays connected to the gateway and allows it to scrape it. `more` is further
/// configuration.
pub(crate) fn peer(gateway: &TestAgent, name: &str, more: &str) -> TestAgent {
    joining(TestAgent::prepare(), &[gateway], name, more).started()
}

/// `agent` as a peer of these gateways, before its start.
pub(crate) fn joining(agent: TestAgent, gateways: &[&TestAgent], name: &str, more: &str) -> TestAgent {
    let rules = gateways.iter().map(|gateway| format!("{{peer: {}, allow: [scrape]}}", gateway.peer_id()));
    let access = format!("access: [{}]", rules.collect::<Vec<_>>().join(", "));
    let agent = agent.configured(&format!("node: {{name: {name}}}\n{access}\n{more}"));
    gateways.iter().fold(agent, |agent, gateway| agent.bootstrap(gateway))
}

/// The URL of an exporter that answers every request with this page, and with these headers in addition to its length,
/// until the test process ends.
pub(crate) fn exporter(headers: &'static str, page: String) -> String {
    let listener = TcpListener::bind((own_address(), 0)).unwrap();
    let url = format!("http://{}/metrics", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(&stream).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{headers}Content-Length: {}", page.len());
            // The client may be gone.
            let _ = write!(stream, "{head}\r\n\r\n{page}");
        }
    });
    url
}

/// The list that the gateway returns to Prometheus.
#[track_caller]
pub(crate) fn targets(gateway: &TestAgent) -> Vec<Value> {
    let reply = gateway.http("/sd");
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")), "{}", reply.text());
    reply.json().as_array().unwrap().clone()
}

/// Waits until the gateway lists `count` targets.
#[track_caller]
pub(crate) fn await_targets(gateway: &TestAgent, count: usize) -> Vec<Value> {
    within_or(
        PATIENCE,
        || format!("{count} targets: {:?}\n{}", targets(gateway), gateway.log().join("\n")),
        || targets(gateway).len() == count,
    );
    targets(gateway)
}

/// Asks the gateway for the metrics of this peer, with these headers.
pub(crate) fn scrape(gateway: &TestAgent, peer: &str, headers: &[(&str, &str)]) -> Reply {
    let stream = connect(gateway.metrics_socket()).unwrap();
    stream.set_read_timeout(Some(4 * PATIENCE)).unwrap();
    http::get(stream, &format!("/peers/{peer}/metrics"), headers).unwrap()
}

/// One series of the gateway's own page.
#[track_caller]
pub(crate) fn value(gateway: &TestAgent, name: &str, labels: &[(&str, &str)]) -> f64 {
    crate::support::metrics::value(&gateway.scrape(), name, labels)
}

/// How many scrapes had this outcome.
#[track_caller]
pub(crate) fn outcomes(gateway: &TestAgent, outcome: &str) -> f64 {
    value(gateway, "gateway_scrapes_total", &[("outcome", outcome)])
}

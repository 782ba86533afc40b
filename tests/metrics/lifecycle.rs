//! The endpoint starts, serves and stops, whatever happens to the port and the agent's runtime.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use peerscope::metrics::labels::Component;
use peerscope::metrics::{Limits, MetricsConfig};

use super::fixture::{Client, Endpoint, eventually};
use crate::support::agent::{TestAgent, connect};
use crate::support::{apart, http};

#[test]
fn a_port_in_use_is_retried_and_reported_to_health() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let config = MetricsConfig { port: addr.port(), ..MetricsConfig::default() };
    let endpoint = Endpoint::configured(&config, Limits::default(), |_| ());
    assert_eq!(endpoint.server.local_addr(), None);
    assert_eq!(endpoint.server.url(), None);
    let states = endpoint.health.snapshot();
    assert_eq!(states.len(), 1);
    assert_eq!(states[0].component, Component::Metrics);
    let reason = states[0].problem.clone().unwrap();
    assert_eq!(reason, format!("{addr} is already in use by another program"));

    drop(taken);
    let freed = Instant::now();
    eventually("it listens", || endpoint.server.local_addr().is_some());
    assert!(freed.elapsed() < Duration::from_secs(3), "{:?}", freed.elapsed());
    assert_eq!(endpoint.addr(), addr);
    assert!(endpoint.health.is_ready());
    assert_eq!(endpoint.get("/ready").text(), "ready\nmetrics: ready\n");
    assert_eq!(endpoint.get("/metrics").status, 200);
}

#[test]
fn an_address_of_another_machine_does_not_stop_the_agent() {
    let config = MetricsConfig { address: IpAddr::from([203, 0, 113, 1]).into(), port: 0, ..MetricsConfig::default() };
    let endpoint = Endpoint::configured(&config, Limits::default(), |_| ());
    assert_eq!(
        endpoint.health.snapshot()[0].problem.as_deref(),
        Some("this machine does not have the address 203.0.113.1")
    );
}

/// The endpoint is needed most when the agent hangs: here, the agent's runtime has one thread, which is
/// blocked until the scrape has been answered.
#[test]
fn it_answers_while_the_agents_runtime_is_blocked() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let endpoint = Endpoint::start();
        let addr = endpoint.addr();
        // The plain join blocks this thread, and with it the whole runtime.
        let scraper = std::thread::spawn(move || {
            let mut client = Client::connect(addr);
            (client.get("/metrics", &[]).status, client.get("/live", &[]).status, client.get("/ready", &[]).status)
        });
        assert_eq!(scraper.join().unwrap(), (200, 200, 200));
        endpoint.server.shutdown().await;
    });
}

#[tokio::test]
async fn shutdown_closes_idle_connections_and_frees_the_port() {
    let endpoint = Endpoint::start();
    let addr = endpoint.addr();
    let mut idle = endpoint.connect();
    assert_eq!(idle.get("/live", &[]).status, 200);
    let registry = Arc::downgrade(&endpoint.registry);
    let Endpoint { server, registry: ours, .. } = endpoint;
    drop(ours);
    let started = Instant::now();
    server.shutdown().await;
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(idle.closed(), b"");
    assert!(std::net::TcpStream::connect(addr).is_err(), "nobody listens any more");
    assert!(registry.upgrade().is_none(), "the thread holds nothing any more");
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever_for_a_client_that_does_not_finish() {
    let limits = Limits { shutdown: Duration::from_millis(300), ..Limits::default() };
    let endpoint = Endpoint::with(limits, |_| ());
    let mut client = endpoint.connect();
    assert_eq!(client.get("/live", &[]).status, 200);
    client.send(b"GET /metrics HTTP/1.1\r\nHost: te").unwrap();
    let started = Instant::now();
    endpoint.server.shutdown().await;
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(client.closed(), b"");
}

#[test]
fn dropping_the_server_stops_it() {
    let endpoint = Endpoint::start();
    let addr = endpoint.addr();
    drop(endpoint);
    eventually("nobody listens", || std::net::TcpStream::connect(addr).is_err());
}

#[tokio::test]
async fn shutdown_while_the_port_is_in_use_ends_the_retries() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = MetricsConfig { port: taken.local_addr().unwrap().port(), ..MetricsConfig::default() };
    let endpoint =
        Endpoint::configured(&config, Limits { retry: Duration::from_secs(60), ..Limits::default() }, |_| ());
    let started = Instant::now();
    endpoint.server.shutdown().await;
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

/// In a network of its own, since the agents listen on every interface there.
#[test]
fn every_configured_address_is_served_and_ipv6_includes_ipv4_whatever_the_system_says() {
    const NAME: &str =
        "metrics::lifecycle::every_configured_address_is_served_and_ipv6_includes_ipv4_whatever_the_system_says";
    apart::run("--net", NAME, || {
        let run = |program: &str, args: &[&str]| assert!(Command::new(program).args(args).status().unwrap().success());
        run("ip", &["link", "set", "lo", "up"]);
        std::fs::write("/proc/sys/net/ipv6/bindv6only", "1").unwrap();
        for (address, reached) in [
            ("'::'", ["127.0.0.1", "::1"]),
            ("['127.0.0.1', '::1']", ["127.0.0.1", "::1"]),
            ("['::', '0.0.0.0']", ["127.0.0.1", "::1"]),
            ("['127.0.0.1', '127.0.0.2']", ["127.0.0.1", "127.0.0.2"]),
        ] {
            let config = format!("metrics: {{ address: {address} }}\n");
            let agent = TestAgent::prepare().configured(&config).on_configured_address().started();
            let port = agent.metrics_socket().port();
            for ip in reached {
                let socket = SocketAddr::new(ip.parse().unwrap(), port);
                let reply = http::get(connect(socket).unwrap(), "/live", &[("Host", "localhost")]);
                assert_eq!(reply.unwrap().status, 200, "{address}: {ip}");
            }
        }

        // One of two addresses is in use: the other one works, and the first is tried again.
        let taken = TcpListener::bind("127.0.0.2:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let config = "metrics: { address: ['127.0.0.2', '127.0.0.1'] }\n";
        let agent = TestAgent::prepare().configured(config).on_configured_address().on_metrics_port(port).started();
        agent.await_log("is already in use by another program");
        let live =
            |ip: &str| http::get(connect(SocketAddr::new(ip.parse().unwrap(), port)).unwrap(), "/ready", &[]).unwrap();
        let reply = live("127.0.0.1");
        assert!(reply.status == 503 && reply.text().contains("127.0.0.2"), "{}", reply.text());
        drop(taken);
        agent.await_log("the address is available now");
        assert_eq!(live("127.0.0.2").status, 200);
    });
}

#[test]
fn on_a_host_without_ipv6_every_ipv4_interface_is_served_instead() {
    const NAME: &str = "metrics::lifecycle::on_a_host_without_ipv6_every_ipv4_interface_is_served_instead";
    apart::run("--net", NAME, || {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let without = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/without_ipv6.py");
        let agent = TestAgent::prepare().behind(vec!["python3".into(), without.into()]);
        let agent = agent.configured("metrics: { address: '::' }\n").on_configured_address().started();
        agent.await_log("this host has no IPv6: the metrics endpoint listens on 0.0.0.0 instead of ::");
        let socket = SocketAddr::new("127.0.0.1".parse().unwrap(), agent.metrics_socket().port());
        assert_eq!(http::get(connect(socket).unwrap(), "/ready", &[]).unwrap().status, 200);
    });
}

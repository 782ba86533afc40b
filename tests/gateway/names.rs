//! Under which names a gateway answers, and what it says about itself behind a proxy.

use std::net::SocketAddr;
use std::path::Path;

use super::beside::{Real, free_address};
use super::fixture::{await_targets, gateway, peer, targets};
use super::observer::{JOB, await_error, hurried};
use crate::support::agent::{TestAgent, connect, eventually};
use crate::support::certificates::Ca;
use crate::support::http::{self, Reply};
use crate::support::metrics::value;
use crate::support::scraper::{Program, Scraper};

/// Configured as for PushProx, every target would get the gateway's own page, with `up 1`.
#[test]
fn a_gateway_that_is_used_as_a_proxy_says_that_it_is_none() {
    let gateway = gateway("");
    let proxy = gateway.metrics_socket();
    let other = free_address();
    for program in Program::ALL {
        let targets = format!("static_configs: [{{targets: ['edge-1:9100', '{other}', '{}:9100']}}]", proxy.ip());
        let job = format!("job_name: a, scrape_interval: 1s, scrape_timeout: 900ms, proxy_url: 'http://{proxy}'");
        let scraper = Scraper::start_with(program, &format!("scrape_configs: [{{{job}, {targets}}}]\n"));
        let (other, same) = (other.to_string(), format!("{}:9100", proxy.ip()));
        scraper.await_up("a", &[("edge-1:9100", 0.0), (&other, 0.0), (&same, 0.0)]);
        let shown = await_error(&scraper, "edge-1:9100", "421");
        assert!(shown.contains("this endpoint is no proxy for edge-1:9100; remove proxy_url"), "{program:?}: {shown}");
    }
    // Asked like that for itself, it answers.
    let own = http::get(connect(proxy).unwrap(), &format!("http://{proxy}/metrics"), &[("Host", &proxy.to_string())]);
    assert_eq!(own.unwrap().status, 200);
}

fn get_as(agent: &TestAgent, host: &str) -> Reply {
    http::get(connect(agent.metrics_socket()).unwrap(), "/sd", &[("Host", host)]).unwrap()
}

#[test]
fn a_name_that_a_web_page_could_choose_gets_nothing_from_a_gateway_on_loopback() {
    let gateway = gateway("metrics: {host_names: [gateway.example]}");
    let rebound = get_as(&gateway, "rebound.example:8080");
    assert_eq!(rebound.status, 421);
    assert_eq!(
        rebound.reason,
        "rebound.example:8080 is not a name of this endpoint; if it should be, add it to metrics.host_names"
    );
    assert_eq!(get_as(&gateway, "\u{fffd}").status, 421);
    for good in ["localhost", "127.0.0.1:1", "[::1]", "gateway.example", "Gateway.Example:80"] {
        assert_eq!(get_as(&gateway, good).status, 200, "{good}");
    }
    // HTTP/1.0 without a name, as from simple probes.
    let mut stream = connect(gateway.metrics_socket()).unwrap();
    std::io::Write::write_all(&mut stream, b"GET /sd HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(http::read_reply(stream).unwrap().status, 200);
    assert_eq!(value(&gateway.scrape(), "http_requests_total", &[("handler", "gateway"), ("code", "421")]), 2.0);
}

#[test]
fn haproxy_checks_an_agent_without_further_settings() {
    let (agent, front) = (TestAgent::start(), free_address());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("haproxy.cfg");
    let config = format!(
        "defaults\n  mode http\n  timeout connect 1s\n  timeout client 1s\n  timeout server 1s\nfrontend f\n  bind {front}\n  \
         default_backend b\nbackend b\n  option httpchk\n  server agent {} check inter 50\n",
        agent.metrics_socket()
    );
    std::fs::write(&file, config).unwrap();
    let _haproxy = Real::start("TEST_HAPROXY", front, &["-db", "-f", file.to_str().unwrap()]);
    let checked = || value(&agent.scrape(), "http_requests_total", &[("handler", "index"), ("code", "200")]);
    // A server counts as up until three checks have failed.
    eventually("it was checked often", || checked() >= 6.0);
    let reply = http::get(connect(front).unwrap(), "/live", &[("Host", "localhost")]).unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "live\n"));
    let options = http::exchange(connect(agent.metrics_socket()).unwrap(), "OPTIONS", "/", b"").unwrap();
    assert_eq!((options.status, options.header("allow")), (200, Some("GET, HEAD, OPTIONS")));
}

/// The text between this line and the end of the block of code in docs/endpoint.md.
fn documented(begin: &str) -> String {
    let text = include_str!("../../docs/endpoint.md");
    let (_, text) = text.split_once(begin).unwrap();
    text.split_once("```").unwrap().0.to_owned()
}

/// A gateway with `gateway.external_url`, a peer, and the front that the proxy is to listen on.
struct Behind {
    gateway: TestAgent,
    peer: TestAgent,
    front: SocketAddr,
    folder: tempfile::TempDir,
}

impl Behind {
    fn start() -> Self {
        let front = free_address();
        let gateway = gateway(&format!("  external_url: https://{front}/agents/"));
        let peer = peer(&gateway, "edge", "");
        await_targets(&gateway, 1);
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::new();
        let issued = ca.issue(&[&front.ip().to_string()]);
        for (name, text) in [("ca.pem", ca.pem()), ("server.pem", issued.certificate), ("server.key", issued.key)] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Self { gateway, peer, front, folder }
    }

    fn path(&self, name: &str) -> String {
        Path::new(self.folder.path()).join(name).display().to_string()
    }

    /// Prometheus scrapes everything through the proxy, with what the gateway's command prints.
    fn assert_scraped(&self) {
        let found = &targets(&self.gateway)[0];
        assert_eq!(found["targets"][0], self.front.to_string());
        assert_eq!(found["labels"]["__scheme__"], "https");
        let ca = self.path("ca.pem");
        let printed = self.gateway.cli(&["gateway", "prometheus-config", "--ca-file", &ca]).text();
        assert!(printed.contains(&format!("url: https://{}/agents/sd\n", self.front)), "{printed}");
        for program in [Program::Prometheus, Program::Prometheus3] {
            let scraper = Scraper::start_with(program, &hurried(program, &printed, ""));
            scraper.await_up(JOB, &[(&self.peer.peer_id(), 1.0)]);
            scraper.await_up("peerscope-gateway", &[(&self.front.to_string(), 1.0)]);
        }
    }
}

#[test]
fn the_documented_nginx_carries_a_gateway_under_a_prefix_with_tls() {
    let behind = Behind::start();
    let location = documented("```nginx\n").replace("127.0.0.1:8080", &behind.gateway.metrics_socket().to_string());
    let (certificate, key, front, home) =
        (behind.path("server.pem"), behind.path("server.key"), behind.front, behind.path(""));
    let config = format!(
        "daemon off;\nmaster_process off;\npid {home}pid;\nerror_log {home}log;\nevents {{}}\nhttp {{\naccess_log off;\n\
         client_body_temp_path {home}a;\nproxy_temp_path {home}b;\nfastcgi_temp_path {home}c;\nuwsgi_temp_path {home}d;\n\
         scgi_temp_path {home}e;\nserver {{\nlisten {front} ssl;\nssl_certificate {certificate};\nssl_certificate_key {key};\n\
         {location}}}\n}}\n"
    );
    std::fs::write(behind.path("nginx.conf"), config).unwrap();
    let _nginx = Real::start("TEST_NGINX", front, &["-c", &behind.path("nginx.conf"), "-e", &behind.path("log")]);
    behind.assert_scraped();
}

#[test]
fn the_documented_caddy_carries_a_gateway_under_a_prefix_with_tls() {
    let behind = Behind::start();
    let site = documented("```caddyfile\n").replace("127.0.0.1:8080", &behind.gateway.metrics_socket().to_string());
    let tls =
        format!("https://{} {{\n    tls {} {}\n", behind.front, behind.path("server.pem"), behind.path("server.key"));
    let site = site.replace("gateway.example {\n", &tls);
    assert!(site.contains("tls "), "{site}");
    std::fs::write(behind.path("Caddyfile"), format!("{{\n    admin off\n    auto_https off\n}}\n{site}")).unwrap();
    let arguments = ["run", "--adapter", "caddyfile", "--config", &behind.path("Caddyfile")];
    let _caddy = Real::start("TEST_CADDY", behind.front, &arguments);
    behind.assert_scraped();
}

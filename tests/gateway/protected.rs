//! A gateway with TLS and a user, and the servers that scrape through it with what its own command prints.

use super::fixture::peer;
use super::observer::{JOB, await_error, hurried};
use crate::support::agent::TestAgent;
use crate::support::certificates::{Ca, Issued};
use crate::support::scraper::{Program, Scraper};

struct Protected {
    gateway: TestAgent,
    ca: Ca,
}

impl Protected {
    fn start() -> Self {
        let (gateway, ca) = (TestAgent::prepare(), Ca::new());
        let web = gateway.home().join("web.yml");
        let config = format!(
            "node: {{name: gw}}\nmetrics: {{web_config: {}}}\ngateway: {{enabled: true, settle: 0s}}\n",
            web.display()
        );
        let mut protected = Self { gateway: gateway.configured(&config), ca };
        let address = protected.gateway.address().to_string();
        protected.issue(&protected.ca.issue(&[&address]));
        protected.write("ca.pem", &protected.ca.pem());
        protected.write("password", "secret");
        protected.web("secret", "");
        protected.gateway.restart();
        protected
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.gateway.home().join(name), text).unwrap();
    }

    fn issue(&self, issued: &Issued) {
        self.write("server.pem", &issued.certificate);
        self.write("server.key", &issued.key);
    }

    /// The web configuration, with more keys for TLS.
    fn web(&self, password: &str, more: &str) {
        let hash = bcrypt::hash(password, 4).unwrap();
        let tls = format!("tls_server_config: {{ cert_file: server.pem, key_file: server.key, {more} }}\n");
        self.write("web.yml", &(tls + &format!("basic_auth_users: {{ prometheus: '{hash}' }}\n")));
    }

    /// What the gateway's command prints.
    fn printed(&self, more: &[&str]) -> String {
        let file = |name: &str| self.gateway.home().join(name).to_str().unwrap().to_owned();
        let (address, ca, password) = (self.gateway.metrics_socket().to_string(), file("ca.pem"), file("password"));
        let args =
            ["gateway", "prometheus-config", "--address", &address, "--ca-file", &ca, "--password-file", &password];
        String::from_utf8(self.gateway.cli(&[&args, more].concat()).ok()).unwrap()
    }
}

/// Both jobs of what the command prints work through TLS and the user, with every server.
#[test]
fn every_server_scrapes_through_tls_and_a_user_with_the_printed_jobs() {
    let protected = Protected::start();
    let edge = peer(&protected.gateway, "edge", "metrics: {enabled: false}");
    let printed = protected.printed(&[]);
    let scrapers = Program::ALL.map(|program| Scraper::start_with(program, &hurried(program, &printed, "")));
    let (id, gateway) = (edge.peer_id(), protected.gateway.metrics_socket().to_string());
    for scraper in &scrapers {
        scraper.await_up(JOB, &[(&id, 1.0)]);
        scraper.await_up("peerscope-gateway", &[(&gateway, 1.0)]);
    }

    // A password that is changed counts for connections that are open, too.
    protected.web("changed", "");
    for scraper in &scrapers {
        scraper.await_up("peerscope-gateway", &[(&gateway, 0.0)]);
        await_error(scraper, &gateway, "401");
    }
    // Prometheus 3 reads a password file only when it loads its configuration.
    drop(scrapers);
    protected.write("password", "changed");
    for program in Program::ALL {
        let scraper = Scraper::start_with(program, &hurried(program, &printed, ""));
        scraper.await_up("peerscope-gateway", &[(&gateway, 1.0)]);
        scraper.await_up(JOB, &[(&id, 1.0)]);
    }
}

const REFUSED: &str = "certificate required";

/// What an operator reads in Prometheus when the certificates do not fit.
#[test]
fn a_certificate_that_does_not_fit_is_named_by_every_server() {
    let mut protected = Protected::start();
    let address = protected.gateway.address().to_string();
    let gateway = protected.gateway.metrics_socket().to_string();
    let printed = protected.printed(&[]);
    let scrapers = Program::ALL.map(|program| Scraper::start_with(program, &hurried(program, &printed, "")));
    let good = protected.ca.issue(&[&address]);
    let clients = "client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem";
    for (issued, more, words) in [
        (protected.ca.issue_until(&[&address], 2000), "", "expired"),
        (protected.ca.issue(&["other.example"]), "", "doesn't contain any IP SANs"),
        (Ca::new().issue(&[&address]), "", "unknown authority"),
        (good, clients, REFUSED),
    ] {
        protected.issue(&issued);
        protected.web("secret", more);
        // Servers keep their connections; a new one sees the new certificate.
        assert!(protected.gateway.stop().success());
        protected.gateway.restart();
        for scraper in &scrapers {
            // VictoriaMetrics notices the end of the connection before it has read why.
            let eof = scraper.program == Program::VictoriaMetrics && words == REFUSED;
            await_error(scraper, &gateway, if eof { "EOF" } else { words });
        }
    }

    // The command prints the client's certificate once the gateway asks for one.
    let client = protected.ca.issue(&["prometheus.example"]);
    protected.write("client.pem", &client.certificate);
    protected.write("client.key", &client.key);
    let file = |name: &str| protected.gateway.home().join(name).to_str().unwrap().to_owned();
    let printed = protected.printed(&["--cert-file", &file("client.pem"), "--key-file", &file("client.key")]);
    for program in Program::ALL {
        let scraper = Scraper::start_with(program, &hurried(program, &printed, ""));
        scraper.await_up("peerscope-gateway", &[(&gateway, 1.0)]);
    }
}

#[test]
fn the_command_asks_for_the_user_if_there_are_several() {
    let protected = Protected::start();
    assert!(!protected.printed(&[]).contains("cert_file"));
    let hash = bcrypt::hash("a", 4).unwrap();
    protected.write("web.yml", &format!("basic_auth_users: {{ alice: '{hash}', 'b \"ob\"': '{hash}' }}\n"));
    let command = |args: &[&str]| protected.gateway.cli(&[&["gateway", "prometheus-config"], args].concat());
    let message = command(&[]).failed(64);
    assert_eq!(message, "metrics.web_config has several users; choose one with --user: alice, b \"ob\"");
    assert!(command(&["--user", "carol"]).failed(64).contains("choose from alice"));
    let printed = command(&["--user", "b \"ob\""]).text();
    assert_eq!(printed.matches("username: \"b \\\"ob\\\"\"\n").count(), 3, "{printed}");
    assert!(!printed.contains("https") && !printed.contains("tls_config"), "{printed}");
}

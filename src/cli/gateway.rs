//! `peerscope gateway`: prints configuration for the programs that use a gateway.

use std::net::SocketAddr;

use clap::{Args, Subcommand};

use super::{CommandError, print};
use crate::config::{self, Config};
use crate::gateway::{self, Job, ScraperTls};
use crate::metrics::web_config::ClientAuthType;
use crate::metrics::{ExternalUrl, WebConfig};

#[derive(Debug, Args)]
pub(super) struct Gateway {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the part of prometheus.yml that makes Prometheus find and scrape the peers of this gateway
    PrometheusConfig {
        /// Where Prometheus reaches this gateway's metrics endpoint [default: the configured address]
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
        /// The name of the scrape job; two gateways need two names
        #[arg(long, value_name = "NAME", default_value = "peerscope")]
        job: String,
        #[command(flatten)]
        access: Access,
    },
}

/// How Prometheus gets through the gateway's web configuration. The files are on Prometheus's machine.
#[derive(Debug, Args)]
struct Access {
    /// The user as whom Prometheus logs in [default: the only one of metrics.web_config]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The file with this user's password
    #[arg(long, value_name = "FILE", default_value = "/etc/prometheus/peerscope.password")]
    password_file: String,
    /// The CA of the gateway's certificate, unless the system trusts it
    #[arg(long, value_name = "FILE")]
    ca_file: Option<String>,
    /// Prometheus's certificate, if the gateway asks for one
    #[arg(long, value_name = "FILE", default_value = "/etc/prometheus/peerscope.pem")]
    cert_file: String,
    /// The key of that certificate
    #[arg(long, value_name = "FILE", default_value = "/etc/prometheus/peerscope.key")]
    key_file: String,
}

impl Access {
    fn tls(&self, web: &WebConfig, external: Option<&ExternalUrl>) -> Option<ScraperTls<'_>> {
        let tls = web.tls_server_config.as_ref();
        // Behind a proxy, it is the proxy's certificate that counts.
        let asks = external.is_none() && tls.is_some_and(|tls| tls.client_auth_type != ClientAuthType::NoClientCert);
        if !external.map_or(tls.is_some(), |url| url.https) {
            return None;
        }
        Some(ScraperTls {
            ca_file: self.ca_file.as_deref(),
            certificate: asks.then_some((self.cert_file.as_str(), self.key_file.as_str())),
        })
    }

    fn user<'a>(&'a self, web: &'a WebConfig) -> Result<Option<(&'a str, &'a str)>, CommandError> {
        let users = &web.basic_auth_users;
        let names = || users.keys().take(20).map(String::as_str).collect::<Vec<_>>().join(", ");
        let user = match (&self.user, users.keys().next()) {
            (Some(user), _) if users.contains_key(user) => user,
            (Some(_), Some(_)) => {
                return Err(CommandError::usage(format!(
                    "--user: not a user of metrics.web_config; choose from {}",
                    names()
                )));
            }
            (Some(_), None) => return Err(CommandError::usage("--user: metrics.web_config has no users")),
            (None, Some(user)) if users.len() == 1 => user,
            (None, Some(_)) => {
                return Err(CommandError::usage(format!(
                    "metrics.web_config has several users; choose one with --user: {}",
                    names()
                )));
            }
            (None, None) => return Ok(None),
        };
        Ok(Some((user, &self.password_file)))
    }
}

pub(super) fn run(config: &Config, gateway: &Gateway) -> Result<(), CommandError> {
    let Command::PrometheusConfig { address, job, access } = &gateway.command;
    if !config.gateway.enabled {
        return Err(CommandError::failed(
            "this agent is not configured as a gateway; set gateway.enabled to true (or PEERSCOPE_GATEWAY__ENABLED=true)",
        ));
    }
    // It is written to YAML without quotes, where `null` and the like are not text.
    let is_text = job.starts_with(|c: char| c.is_ascii_alphabetic())
        && job.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !["null", "true", "false", "yes", "no", "on", "off", "y", "n"].contains(&job.to_lowercase().as_str());
    if !is_text {
        let rule = "must begin with a letter, contain only letters, digits and - _ . and not be a YAML keyword";
        return Err(CommandError::usage(format!("--job: `{job}` {rule}")));
    }
    // An address given here is a way around the proxy.
    let external = config.gateway.external_url.as_ref().filter(|_| address.is_none());
    let address = match address {
        Some(address) if is_address(address) => address.clone(),
        Some(address) => {
            return Err(CommandError::usage(format!("--address: `{address}` does not have the form HOST:PORT")));
        }
        None => match external {
            Some(url) => url.address(),
            None => own_address(config)?,
        },
    };
    let max_peers = match config.gateway.peers.named() {
        [] => config.gateway.max_peers as usize,
        named => named.len(),
    };
    let web = config.metrics.web_config.as_deref().map(config::load_web_config).transpose()?.unwrap_or_default();
    let text = gateway::prometheus_config(&Job {
        name: job,
        address: &address,
        prefix: external.map_or("", |url| &url.prefix),
        path: &config.metrics.path,
        body_size: config.gateway.max_body_size,
        max_peers,
        tls: access.tls(&web, external),
        user: access.user(&web)?,
    });
    print(text.as_bytes())
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.:[]%".contains(&b);
        !host.is_empty() && host.bytes().all(good) && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// The configured address of the endpoint, with the host name if it listens on every interface.
fn own_address(config: &Config) -> Result<String, CommandError> {
    let (ip, port) = (config.metrics.address.first(), config.metrics.port);
    if port == 0 {
        return Err(CommandError::failed(
            "metrics.port is 0, so the system chooses the port at each start; give --address HOST:PORT",
        ));
    }
    if let Some(name) = config.metrics.host_names.first() {
        return Ok(format!("{name}:{port}"));
    }
    if ip.is_unspecified() {
        let uname = rustix::system::uname();
        return Ok(format!("{}:{port}", uname.nodename().to_string_lossy()));
    }
    Ok(SocketAddr::new(ip, port).to_string())
}

//! `peerscope gateway`: prints configuration for the programs that use a gateway.

use std::net::SocketAddr;

use clap::{Args, Subcommand};

use super::{CommandError, print};
use crate::config::Config;
use crate::gateway;

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
    },
}

pub(super) fn run(config: &Config, gateway: &Gateway) -> Result<(), CommandError> {
    let Command::PrometheusConfig { address, job } = &gateway.command;
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
    let address = match address {
        Some(address) if is_address(address) => address.clone(),
        Some(address) => {
            return Err(CommandError::usage(format!("--address: `{address}` does not have the form HOST:PORT")));
        }
        None => own_address(config)?,
    };
    let max_peers = match config.gateway.peers.named() {
        [] => config.gateway.max_peers as usize,
        named => named.len(),
    };
    let text = gateway::prometheus_config(job, &address, &config.metrics.path, config.gateway.max_body_size, max_peers);
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
    let (ip, port) = (config.metrics.address, config.metrics.port);
    if port == 0 {
        return Err(CommandError::failed(
            "metrics.port is 0, so the system chooses the port at each start; give --address HOST:PORT",
        ));
    }
    if ip.is_unspecified() {
        let uname = rustix::system::uname();
        return Ok(format!("{}:{port}", uname.nodename().to_string_lossy()));
    }
    Ok(SocketAddr::new(ip, port).to_string())
}

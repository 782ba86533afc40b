//! `peerscope metrics`: prints the page of the running agent, or the table of all families.

use bytes::Bytes;
use clap::Args;
use hyper::Method;
use serde_json::json;

use super::{CommandError, Common, client, print, print_json};
use crate::metrics::{catalogue, labels};
use crate::network::PeerIdText;

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Print the table of all metric families instead of their values; works without a running agent
    #[arg(long)]
    catalogue: bool,
    /// On a gateway: scrape this peer now, and print its metrics
    #[arg(long, value_name = "PEER_ID", conflicts_with = "catalogue")]
    peer: Option<PeerIdText>,
    /// With --peer: print the metrics of the peer's exposed exporter with this name
    #[arg(long, value_name = "NAME", requires = "peer")]
    exposed: Option<String>,
}

pub(super) fn run(common: &Common, flags: &Flags) -> Result<(), CommandError> {
    if !flags.catalogue {
        // A page has a format of its own, which `--json` does not change.
        let target = match (&flags.peer, &flags.exposed) {
            (None, _) => "/v1/metrics".into(),
            (Some(peer), None) => format!("/v1/metrics?peer={peer}"),
            (Some(peer), Some(name)) => {
                let name = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
                format!("/v1/metrics?peer={peer}&exposed={name}")
            }
        };
        return print(&client::ask(&common.local()?, Method::GET, &target, Bytes::new())?.body);
    }
    if !common.json {
        let tables = format!("{}\n{}", catalogue::markdown(), labels::markdown());
        return print(tables.as_bytes());
    }
    let families: Vec<_> = catalogue::ALL
        .iter()
        .map(|family| {
            json!({ "name": family.name, "type": family.kind.as_str(), "labels": family.labels, "help": family.help })
        })
        .collect();
    print_json(&families)
}

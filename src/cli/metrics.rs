//! `peerscope metrics`: the exposition of the running agent, or the table of all families.

use bytes::Bytes;
use clap::Args;
use hyper::Method;
use serde_json::json;

use super::{Common, Failure, client, print, print_json};
use crate::metrics::{catalogue, labels};

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Print the table of all families in place of their values; no agent has to run
    #[arg(long)]
    catalogue: bool,
}

pub(super) fn run(common: &Common, flags: &Flags) -> Result<(), Failure> {
    if !flags.catalogue {
        // The exposition is a format of its own; `--json` changes nothing about it.
        return print(&client::ask(&common.plain()?, Method::GET, "/v1/metrics", Bytes::new())?.body);
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

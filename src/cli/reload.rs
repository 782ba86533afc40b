//! `peerscope reload`: makes the running agent read its configuration again.

use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use hyper::Method;

use super::{CommandError, client, print};
use crate::config::Config;
use crate::control::Reloaded;

#[derive(Debug, Args)]
pub(super) struct Reload {
    /// Send this file to the agent, in place of the one that it was started with. For an agent that cannot read its
    /// file itself; a later reload without this flag reads the agent's own file again
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

pub(super) fn run(config: &Config, reload: &Reload, json: bool) -> Result<(), CommandError> {
    let body = match &reload.from {
        None => Bytes::new(),
        Some(path) => {
            let read = std::fs::read(path);
            let text =
                read.map_err(|error| CommandError::usage(format!("--from: cannot read {}: {error}", path.display())))?;
            if text.is_empty() {
                return Err(CommandError::usage(format!("--from: {} is empty", path.display())));
            }
            text.into()
        }
    };
    let answer = client::ask(config, Method::POST, "/v1/reload", body)?;
    if json {
        return print(&[&answer.body[..], b"\n"].concat());
    }
    let reloaded: Reloaded = answer.json()?;
    print(format!("{reloaded}\n").as_bytes())
}

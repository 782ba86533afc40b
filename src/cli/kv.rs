//! `peerscope get`, `put` and `delete`, on the agent's own store or, with `--peer`, on a peer's.

use std::io::{self, IsTerminal as _, Read as _};

use bytes::Bytes;
use clap::Args;
use hyper::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::{CommandError, PeerFlag, client, print, print_json};
use crate::config::Config;
use crate::control;
use crate::storage;

#[derive(Debug, Args)]
pub(super) struct Get {
    /// The key
    key: String,
    #[command(flatten)]
    peer: PeerFlag,
}

#[derive(Debug, Args)]
pub(super) struct Put {
    /// The key
    key: String,
    /// The value, or - to read it from standard input, byte for byte
    #[arg(allow_hyphen_values = true)]
    value: String,
    #[command(flatten)]
    peer: PeerFlag,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// The key
    key: String,
    #[command(flatten)]
    peer: PeerFlag,
}

pub(super) fn get(config: &Config, get: &Get, as_json: bool) -> Result<(), CommandError> {
    let answer = client::ask(config, Method::GET, &target(&get.key, &get.peer), Bytes::new())?;
    if answer.status == StatusCode::NOT_FOUND {
        return Err(not_found(&get.key));
    }
    if !as_json {
        print(&answer.body)?;
        // Only for display: a pipe or a file gets the value byte for byte.
        let ends_a_line = answer.body.last().is_none_or(|&last| last == b'\n');
        return if io::stdout().is_terminal() && !ends_a_line { print(b"\n") } else { Ok(()) };
    }
    // JSON cannot hold bytes: a value that is not UTF-8 is printed in hexadecimal.
    match std::str::from_utf8(&answer.body) {
        Ok(text) => print_json(&json!({ "key": get.key, "value": text })),
        Err(_) => {
            let hex: String = answer.body.iter().map(|byte| format!("{byte:02x}")).collect();
            print_json(&json!({ "key": get.key, "value_hex": hex }))
        }
    }
}

pub(super) fn put(config: &Config, put: &Put, as_json: bool) -> Result<(), CommandError> {
    let value = match put.value.as_str() {
        "-" => read_value()?,
        value => Bytes::copy_from_slice(value.as_bytes()),
    };
    let size = value.len();
    client::ask(config, Method::PUT, &target(&put.key, &put.peer), value)?;
    if as_json { print_json(&json!({ "key": put.key, "size": size })) } else { Ok(()) }
}

pub(super) fn delete(config: &Config, delete: &Delete, as_json: bool) -> Result<(), CommandError> {
    let answer = client::ask(config, Method::DELETE, &target(&delete.key, &delete.peer), Bytes::new())?;
    let control::Deleted { deleted } = answer.json()?;
    if as_json {
        print_json(&json!({ "key": delete.key, "deleted": deleted }))?;
    }
    if deleted { Ok(()) } else { Err(not_found(&delete.key)) }
}

/// Reads standard input, up to one byte more than any agent accepts, so that the agent can report its limit. The limit
/// in this command's configuration may differ from the running agent's, so it is not used.
fn read_value() -> Result<Bytes, CommandError> {
    let mut value = Vec::new();
    let read = io::stdin().lock().take(storage::LARGEST_VALUE as u64 + 1).read_to_end(&mut value);
    read.map_err(|error| CommandError::failed(format!("cannot read the value from standard input: {error}")))?;
    Ok(value.into())
}

fn target(key: &str, peer: &PeerFlag) -> String {
    let key = utf8_percent_encode(key, NON_ALPHANUMERIC);
    match peer.peer {
        Some(peer) => format!("/v1/keys/{key}?peer={peer}"),
        None => format!("/v1/keys/{key}"),
    }
}

fn not_found(key: &str) -> CommandError {
    CommandError::failed(format!("key {key:?} not found"))
}

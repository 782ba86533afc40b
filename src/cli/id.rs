//! `peerscope id`: prints this agent's PeerId. It reads the key, so the agent need not be running.

use std::io::ErrorKind;

use serde_json::json;

use super::{CommandError, print, print_json};
use crate::config::Config;
use crate::identity::{self, IdentityError, SecretError};

pub(super) fn run(config: &Config, as_json: bool) -> Result<(), CommandError> {
    let path = config.node.data_dir.join(identity::FILE_NAME);
    let key = identity::load(&path).map_err(|error| match &error {
        IdentityError::Unusable { problem: SecretError::Io(io), .. } if io.kind() == ErrorKind::NotFound => {
            CommandError::failed(format!(
                "no identity in {} yet; `peerscope run` creates one",
                config.node.data_dir.display()
            ))
        }
        _ => CommandError::failed(error.to_string()),
    })?;
    let peer_id = key.public().to_peer_id();
    if as_json {
        print_json(&json!({ "peer_id": peer_id.to_string() }))
    } else {
        print(format!("{peer_id}\n").as_bytes())
    }
}

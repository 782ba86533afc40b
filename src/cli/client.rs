//! Talks to the running agent over its control socket.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::CommandError;
use crate::config::Config;
use crate::control::{self, SOCKET_NAME};

/// Longer than the slowest answer takes by default, which is one that waits for a peer.
const SLOW: Duration = Duration::from_secs(60);

/// For answers about the agent itself, which wait for no peer, so that an operator soon sees that it hangs.
const QUICK: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Reply {
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, CommandError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            CommandError::failed(format!(
                "cannot parse the agent's answer ({error}); are the agent and this command of the same version?"
            ))
        })
    }
}

/// Sends a request to the agent of this configuration. An answer that reports a failure becomes an error with its
/// message, except 404, which is left to the caller.
pub(super) fn ask(config: &Config, method: Method, target: &str, body: Bytes) -> Result<Reply, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::failed(format!("cannot start the runtime: {error}")))?;
    let dir = &config.node.data_dir;
    let limit = match target {
        // Waits for a disk and for the network, for up to 3 s each.
        "/v1/reload" => 3 * QUICK,
        _ if target.starts_with("/v1/keys/") || target.contains("?peer=") => SLOW,
        _ => QUICK,
    };
    let answer = runtime.block_on(async {
        tokio::time::timeout(limit, exchange(dir, method, target, body)).await.unwrap_or_else(|_| {
            let socket = dir.join(SOCKET_NAME);
            Err(CommandError::unavailable(format!(
                "the agent at {} did not answer within {limit:?}: it is running, but appears to hang",
                socket.display()
            )))
        })
    })?;
    if answer.status.is_success() || answer.status == StatusCode::NOT_FOUND {
        return Ok(answer);
    }
    let control::ErrorResponse { code, error } = answer.json()?;
    Err(if code == "config" { CommandError::config(error) } else { CommandError::failed(error) })
}

async fn exchange(dir: &Path, method: Method, target: &str, body: Bytes) -> Result<Reply, CommandError> {
    let socket = control::socket_path(dir).map_err(|error| CommandError::unavailable(error.to_string()))?;
    let stream = UnixStream::connect(&socket).await.map_err(|error| {
        let dir = dir.display();
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => CommandError::unavailable(format!(
                "no agent is running on the data directory {dir}; start one with: peerscope run --data-dir {dir}"
            )),
            _ => CommandError::unavailable(format!("cannot reach the agent at {}: {error}", socket.display())),
        }
    })?;
    let lost = |error: hyper::Error| {
        CommandError::unavailable(format!(
            "the agent closed the connection; it may have stopped, or may not allow this user: {error}"
        ))
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    let connection = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(target).header(hyper::header::HOST, "peerscope");
    let request = request.body(Full::new(body)).map_err(|error| CommandError::failed(error.to_string()))?;
    let answer = sender.send_request(request).await.map_err(lost)?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(lost)?.to_bytes();
    connection.abort();
    Ok(Reply { status, body })
}

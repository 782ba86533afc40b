//! `peerscope peers`: who is connected.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;

use super::{Failure, client, print};
use crate::config::Config;
use crate::control::Peer;
use crate::network::Direction;

pub(super) fn run(config: &Config, json: bool) -> Result<(), Failure> {
    let answer = client::ask(config, Method::GET, "/v1/peers", Bytes::new())?;
    let peers: Vec<Peer> = answer.json()?;
    if json {
        return print(&[&answer.body[..], b"\n"].concat());
    }
    if peers.is_empty() {
        return print(b"no peers are connected\n");
    }
    print(render(&peers).as_bytes())
}

fn render(peers: &[Peer]) -> String {
    let mut out =
        format!("{:<54} {:<9} {:<12} {:<5} {:<20} ADDRESS\n", "PEER", "DIRECTION", "CONNECTED", "LINK", "AGENT");
    for peer in peers {
        let direction = match peer.direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        };
        let connected = humantime::format_duration(Duration::from_secs(peer.connected_seconds)).to_string();
        let link = if peer.link { "up" } else { "-" };
        let agent = peer.agent.as_deref().unwrap_or("-");
        let _infallible =
            writeln!(out, "{:<54} {direction:<9} {connected:<12} {link:<5} {agent:<20} {}", peer.peer_id, peer.address);
    }
    out
}

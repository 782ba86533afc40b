//! `peerscope peers`: lists the connected peers, and why others are not.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;

use super::{CommandError, client, print};
use crate::config::Config;
use crate::control::{ContactReport, Peer};
use crate::network::Direction;

pub(super) fn run(config: &Config, json: bool) -> Result<(), CommandError> {
    let answer = client::ask(config, Method::GET, "/v1/peers", Bytes::new())?;
    let peers: Vec<Peer> = answer.json()?;
    if json {
        return print(&[&answer.body[..], b"\n"].concat());
    }
    let text = if peers.iter().any(|peer| peer.gateway.is_some()) {
        render_fleet(&peers)
    } else if peers.iter().any(|peer| peer.connections > 0) {
        render(&peers)
    } else {
        "no peers are connected\n".into()
    };
    print((text + &render_missing(&peers)).as_bytes())
}

/// The peers that the agent stays connected to and that have no link.
fn render_missing(peers: &[Peer]) -> String {
    let missing = peers.iter().filter_map(|peer| peer.contact.as_ref()).filter(|contact| contact.state != "connected");
    let rows: Vec<_> = missing
        .map(|contact| {
            [
                contact.peer_id.clone(),
                contact.state.clone(),
                contact.problem_seconds.map_or_else(nothing, seconds),
                contact.next_dial_seconds.map_or_else(|| "now".into(), seconds),
                problem(contact),
            ]
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    "\n".to_owned() + &table(["NOT CONNECTED", "STATE", "FOR", "NEXT TRY", "WHAT HAPPENED"], rows)
}

/// What happened, and what to do about it.
pub(super) fn problem(contact: &ContactReport) -> String {
    match (&contact.problem, &contact.advice) {
        (Some(problem), Some(advice)) => format!("{problem}: {advice}"),
        _ => contact.addresses.join(", "),
    }
}

fn render(peers: &[Peer]) -> String {
    let peers = peers.iter().filter(|peer| peer.connections > 0);
    let rows = peers.map(|peer| {
        [
            peer.peer_id.clone(),
            direction(peer).into(),
            seconds(peer.connected_seconds),
            if peer.link { "up" } else { "-" }.into(),
            peer.agent.clone().unwrap_or_else(nothing),
            peer.address.clone().unwrap_or_else(nothing),
        ]
    });
    table(["PEER", "DIRECTION", "CONNECTED", "LINK", "AGENT", "ADDRESS"], rows.collect())
}

/// The table of a gateway: which peers are scraped, and with what result.
fn render_fleet(peers: &[Peer]) -> String {
    let rows = peers.iter().map(|peer| {
        let gateway = peer.gateway.as_ref();
        let scrape = gateway.and_then(|gateway| gateway.last_scrape.as_ref());
        let connected = match gateway.and_then(|gateway| gateway.departed_seconds) {
            Some(departed) => format!("left {} ago", seconds(departed)),
            None if peer.connections == 0 => "never".into(),
            None => seconds(peer.connected_seconds),
        };
        // A current problem says more than the result of the last scrape.
        let now = gateway.and_then(|gateway| gateway.problem.clone());
        let outcome = now.or_else(|| {
            scrape.map(|scrape| match &scrape.problem {
                Some(problem) => format!("{}: {problem}", scrape.outcome),
                None => scrape.outcome.clone(),
            })
        });
        [
            gateway.and_then(|gateway| gateway.name.clone()).unwrap_or_else(nothing),
            peer.peer_id.clone(),
            gateway.map_or_else(|| "no target".into(), |gateway| gateway.state.clone()),
            connected,
            scrape.map_or_else(nothing, |scrape| format!("{:.0}s ago", scrape.seconds_ago)),
            scrape.map_or_else(nothing, |scrape| format!("{:.0}ms", scrape.duration_seconds * 1000.0)),
            scrape.map_or_else(nothing, |scrape| format!("{}B", scrape.body_bytes)),
            peer.address.clone().unwrap_or_else(nothing),
            outcome.unwrap_or_else(nothing),
        ]
    });
    let heads = ["NAME", "PEER", "STATE", "CONNECTED", "SCRAPED", "TOOK", "SIZE", "ADDRESS", "OUTCOME"];
    table(heads, rows.collect())
}

fn nothing() -> String {
    "-".into()
}

fn direction(peer: &Peer) -> &'static str {
    match peer.direction {
        Some(Direction::Inbound) => "inbound",
        Some(Direction::Outbound) => "outbound",
        None => "-",
    }
}

fn seconds(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// Makes each column as wide as its widest cell; the last one is not padded.
fn table<const N: usize>(heads: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut widths = heads.map(|head| head.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let heads = heads.map(str::to_owned);
    for row in std::iter::once(&heads).chain(&rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _infallible = writeln!(out, "{}", line.trim_end());
    }
    out
}

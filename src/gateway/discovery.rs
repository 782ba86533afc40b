//! The answer to Prometheus's HTTP service discovery
//! (prometheus.io/docs/prometheus/latest/http_sd/). Pure functions.

use std::collections::BTreeMap;

use bytes::Bytes;
use libp2p::PeerId;
use serde::Serialize;

use super::members::{Member, Standing};
use crate::network::Direction;

/// Targets with the same labels, here always one. Prometheus rejects unknown fields.
#[derive(Debug, Serialize)]
struct Group<'a> {
    targets: [&'a str; 1],
    // Sorted, so that the same fleet always gives the same bytes.
    labels: BTreeMap<&'static str, String>,
}

/// Where Prometheus reaches this gateway.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) address: &'a str,
    /// `None` for that of the job.
    pub(super) scheme: Option<&'static str>,
    /// Empty, or the path before every page's own.
    pub(super) prefix: &'a str,
}

/// The whole list, in the order of the members.
pub(super) fn targets(members: &[(PeerId, Member)], place: Place<'_>) -> Bytes {
    let mut groups = Vec::new();
    for (peer, member) in members {
        groups.push(group(peer, member, None, place));
        groups.extend(member.exposed.iter().map(|name| group(peer, member, Some(name), place)));
    }
    // These types always serialise. If they did not, Prometheus would reject the empty answer and keep its old list.
    serde_json::to_vec(&groups).unwrap_or_default().into()
}

/// The path of a peer's page, or of an exporter's behind it.
pub(super) fn path(peer: &PeerId, exposed: Option<&str>) -> String {
    match exposed {
        None => format!("/peers/{peer}/metrics"),
        Some(name) => format!("/peers/{peer}/exposed/{name}/metrics"),
    }
}

fn group<'a>(peer: &PeerId, member: &Member, exposed: Option<&String>, place: Place<'a>) -> Group<'a> {
    let mut labels = BTreeMap::from([
        ("__metrics_path__", place.prefix.to_owned() + &path(peer, exposed.map(String::as_str))),
        ("instance", peer.to_string()),
        ("__meta_peerscope_peer_id", peer.to_string()),
        ("__meta_peerscope_named", member.named.to_string()),
        ("__meta_peerscope_connected", matches!(member.standing, Standing::Connected { .. }).to_string()),
    ]);
    let mut add = |label, value: Option<&str>| {
        if let Some(value) = value {
            labels.insert(label, value.to_owned());
        }
    };
    add("__scheme__", place.scheme);
    add("peer_name", member.name.as_deref());
    add("exposed", exposed.map(String::as_str));
    add("__meta_peerscope_name", member.name.as_deref());
    add("__meta_peerscope_exposed", exposed.map(String::as_str));
    add("__meta_peerscope_address", member.address.as_deref());
    add("__meta_peerscope_ip", member.address.as_deref().and_then(ip));
    add("__meta_peerscope_agent", member.agent.as_deref());
    add(
        "__meta_peerscope_direction",
        member.direction.map(|direction| match direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        }),
    );
    Group { targets: [place.address], labels }
}

/// The IP address in a multiaddress: `/ip4/192.0.2.1/tcp/4001`.
fn ip(address: &str) -> Option<&str> {
    let mut parts = address.split('/').skip(1);
    matches!(parts.next()?, "ip4" | "ip6").then(|| parts.next()).flatten()
}

#[cfg(test)]
mod tests;

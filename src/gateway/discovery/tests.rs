use std::time::Instant;

use super::*;
use crate::gateway::Config;
use crate::gateway::members::Members;
use crate::network::PeerInfo;
use crate::network::protocol::Introduction;

#[test]
fn every_target_tells_prometheus_how_to_reach_it_through_the_gateway() {
    let now = Instant::now();
    let mut members = Members::new(&Config::default(), now);
    let peer: PeerId = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN".parse().unwrap();
    members.up(
        &PeerInfo {
            peer,
            address: "/ip6/2001:db8::1/tcp/4001".parse().unwrap(),
            direction: Direction::Inbound,
            connections: 1,
            connected_at: now,
            agent: Some("peerscope/0.1.0".into()),
            introduction: Some(Introduction {
                name: "edge \"17\"".into(),
                exposed: vec!["node".into()],
                withdrawn: false,
            }),
            link: true,
        },
        now,
    );
    let members: Vec<_> = members.iter().map(|(peer, member)| (*peer, member.clone())).collect();
    let place = Place { address: "gw.example:8080", scheme: None, prefix: "" };
    let json: serde_json::Value = serde_json::from_slice(&targets(&members, place)).unwrap();
    let common = |path: &str| {
        serde_json::json!({
            "__metrics_path__": path,
            "instance": peer.to_string(),
            "peer_name": "edge \"17\"",
            "__meta_peerscope_peer_id": peer.to_string(),
            "__meta_peerscope_name": "edge \"17\"",
            "__meta_peerscope_named": "false",
            "__meta_peerscope_connected": "true",
            "__meta_peerscope_address": "/ip6/2001:db8::1/tcp/4001",
            "__meta_peerscope_ip": "2001:db8::1",
            "__meta_peerscope_agent": "peerscope/0.1.0",
            "__meta_peerscope_direction": "inbound",
        })
    };
    let mut exposed = common(&format!("/peers/{peer}/exposed/node/metrics"));
    exposed["exposed"] = "node".into();
    exposed["__meta_peerscope_exposed"] = "node".into();
    let expected = serde_json::json!([
        { "targets": ["gw.example:8080"], "labels": common(&format!("/peers/{peer}/metrics")) },
        { "targets": ["gw.example:8080"], "labels": exposed },
    ]);
    assert_eq!(json, expected);
    assert_eq!(targets(&[], place), "[]");

    // Behind a proxy.
    let place = Place { address: "gw.example:443", scheme: Some("https"), prefix: "/agents" };
    let json: serde_json::Value = serde_json::from_slice(&targets(&members, place)).unwrap();
    let labels = &json[1]["labels"];
    assert_eq!((&labels["__scheme__"], &json[1]["targets"][0]), (&"https".into(), &"gw.example:443".into()));
    assert_eq!(labels["__metrics_path__"], format!("/agents/peers/{peer}/exposed/node/metrics"));
}

#[test]
fn only_a_numeric_address_has_an_ip() {
    assert_eq!(ip("/ip4/192.0.2.1/tcp/4001"), Some("192.0.2.1"));
    assert_eq!(ip("/dns4/example.org/tcp/4001"), None);
    assert_eq!(ip(""), None);
}

//! The `gateway` section.

use std::time::Duration;

use super::*;
use crate::gateway::PeerList;
use crate::network::PeerIdText;

#[test]
fn peers_are_any_or_a_list() {
    let peers = |yaml: &str| Config::from_yaml("f", &format!("gateway: {{ peers: {yaml} }}")).unwrap().gateway.peers;
    assert_eq!(peers("any"), PeerList::Any);
    assert_eq!(peers(&format!("[{PEER}]")), PeerList::These(vec![PeerIdText(PEER.parse().unwrap())]));
    let all = "gateway: { enabled: true, max_peers: 5, grace: 2d, settle: 0s, max_scrapes: 7, max_body_size: 1MiB }";
    if crate::metrics::BUILT_IN {
        let gateway = Config::from_yaml("f", all).unwrap().gateway;
        assert_eq!((gateway.max_peers, gateway.max_scrapes, gateway.max_body_size), (5, 7, 1 << 20));
        assert_eq!((gateway.grace, gateway.settle), (Duration::from_secs(2 * 24 * 3600), Duration::ZERO));
    }
}

#[test]
fn other_values_for_peers_are_rejected_with_their_place() {
    assert_refused(
        "gateway:\n  peers: [nobody]\n",
        &[&format!(
            "peerscope.yaml:2:11: gateway.peers[0]: `nobody` is not a PeerId; write it like {PEER} (`peerscope id` prints an agent's PeerId)"
        )],
    );
    assert_refused(
        "gateway:\n  peers: all\n",
        &["peerscope.yaml:2:10: gateway.peers: `all` is neither `any` nor a list of PeerIds"],
    );
    assert_refused(
        "gateway:\n  peers: 7\n",
        &["peerscope.yaml:2:10: gateway.peers: found integer `7`; expected `any`, or a list of PeerIds"],
    );
}

#[cfg(feature = "metrics-prometheus")]
#[test]
fn an_unusable_gateway_configuration_is_rejected() {
    assert_refused(
        "metrics: { enabled: false, path: /sd }\ngateway:\n  enabled: true\n  peers: []\n  max_peers: 0\n  max_scrapes: 0\n  max_body_size: 1\n  grace: 2y\n",
        &[
            "peerscope.yaml:1:34: metrics.path: `/sd` is a page of the gateway; choose another path, such as /metrics",
            "peerscope.yaml:3:12: gateway.enabled: a gateway serves its peers on the metrics endpoint, but metrics.enabled is false",
            "peerscope.yaml:4:10: gateway.peers: is empty, so there is no peer to scrape; list PeerIds, or write `any`",
            "peerscope.yaml:5:14: gateway.max_peers: 0 is out of range; 1 to 1000000 is allowed",
            "peerscope.yaml:6:16: gateway.max_scrapes: 0 is out of range; 1 to 65536 is allowed",
            "peerscope.yaml:7:18: gateway.max_body_size: 1 is out of range; 1024 to 256MiB is allowed",
            "peerscope.yaml:8:10: gateway.grace: 2years is out of range; 0s to 365d is allowed",
        ],
    );
    let other = "12D3KooWEb8Dpq9r2RAtnqhzZfiX1NZMyXUCvZxeKYqYfwBd9huC";
    assert_refused(
        &format!(
            "gateway:\n  enabled: true\n  peers: [{PEER}, {other}, {PEER}]\nnetwork: {{ max_peers: 2, allow_peers: [{other}] }}\n"
        ),
        &[
            "peerscope.yaml:3:10: gateway.peers: lists 3 peers, but network.max_peers allows only 2 to connect; raise network.max_peers",
            &format!(
                "peerscope.yaml:3:11: gateway.peers[0]: the peer {PEER} is not in network.allow_peers, so it can never connect"
            ),
            &format!("peerscope.yaml:3:119: gateway.peers[2]: {PEER} is already in the list, as [0]"),
            &format!(
                "peerscope.yaml:3:119: gateway.peers[2]: the peer {PEER} is not in network.allow_peers, so it can never connect"
            ),
        ],
    );
    // Leftover settings of a disabled gateway do no harm.
    assert!(Config::from_yaml("f", "metrics: { path: /sd }\ngateway: { max_peers: 0, peers: [] }").is_ok());
}

#[cfg(not(feature = "metrics-prometheus"))]
#[test]
fn a_build_without_metrics_has_no_gateway() {
    let lines = refused("gateway: { enabled: true }");
    assert!(lines[0].contains("gateway.enabled: this build has no gateway"), "{lines:?}");
}

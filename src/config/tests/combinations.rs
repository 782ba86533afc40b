//! Limits, and keys that contradict each other.

use super::*;
use crate::network::{BootstrapAddr, ListenAddr};

#[test]
fn values_out_of_range_are_rejected() {
    assert_refused(
        "storage:\n  max_key_size: 0\n  max_value_size: 17MiB\n  local: { cache_size: 0, path: '' }\n  redis: { timeout: 0s }\nnetwork:\n  max_peers: 0\n  max_in_flight: 0\n  request_timeout: 2h\n  psk_file: ''\nnode: { data_dir: '', name: ' ' }\n",
        &[
            "peerscope.yaml:2:17: storage.max_key_size: 0 is out of range; 1 to 64KiB is allowed",
            "peerscope.yaml:3:19: storage.max_value_size: 17825792 is out of range; 1 to 16MiB is allowed",
            "peerscope.yaml:4:24: storage.local.cache_size: 0 bytes is too small for a cache; at least 1MiB is needed",
            "peerscope.yaml:4:33: storage.local.path: is empty; give a path, or leave the key out",
            "peerscope.yaml:5:21: storage.redis.timeout: 0s is out of range; 1ms to 1h is allowed",
            "peerscope.yaml:7:14: network.max_peers: 0 is out of range; 1 to 1000000 is allowed",
            "peerscope.yaml:8:18: network.max_in_flight: 0 is out of range; 1 to 65536 is allowed",
            "peerscope.yaml:9:20: network.request_timeout: 2h is out of range; 1ms to 1h is allowed",
            "peerscope.yaml:10:13: network.psk_file: is empty; give a path, or leave the key out",
            "peerscope.yaml:11:19: node.data_dir: is empty; give a path, or leave the key out",
            "peerscope.yaml:11:29: node.name: is empty; leave the key out to use the host's name",
        ],
    );
    let edges = "storage: { max_key_size: 64KiB, max_value_size: 16MiB, local: { cache_size: 1MiB } }\nnetwork: { max_peers: 1, max_in_flight: 1, request_timeout: 1ms }";
    assert!(Config::from_yaml("f", edges).is_ok());
}

#[test]
fn redis_urls_must_agree_with_each_other() {
    let line = |yaml: &str| {
        let lines = refused(&format!("storage:\n  redis: {{ {yaml} }}\n"));
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0].replace("peerscope.yaml:2:", "")
    };
    assert_eq!(
        line("urls: []"),
        "18: storage.redis.urls: is empty; give at least one URL, such as redis://127.0.0.1:6379"
    );
    assert_eq!(
        line("urls: [redis://a, rediss://b]"),
        "30: storage.redis.urls[1]: redis:// and rediss:// cannot be mixed in one cluster: TLS is used for all of its nodes or for none"
    );
    assert_eq!(
        line("urls: [redis://a, redis://b], cluster: false"),
        "51: storage.redis.cluster: is false, but storage.redis.urls has 2 entries; several URLs are the seeds of a cluster"
    );
    assert_eq!(
        line("urls: [redis://a/3], cluster: true"),
        "19: storage.redis.urls[0]: a cluster has only database 0, not 3; remove the number"
    );
    assert_eq!(
        line("urls: [redis://a, redis://a]"),
        "30: storage.redis.urls[1]: redis://a is already in the list, as [0]"
    );
    assert_eq!(
        line("urls: [redis://u:one@a, redis://u:two@b]"),
        "36: storage.redis.urls[1]: the user or password differs from that of the first URL; all nodes of a cluster share one login"
    );
    assert!(
        line("urls: [redis://a], ca_file: /ca.pem").ends_with("no URL in storage.redis.urls begins with rediss://")
    );
    assert!(
        line("urls: [unix:///run/r.sock], cluster: true").contains("a cluster cannot be reached through a Unix socket")
    );
    assert!(line("urls: [redis://a, redis://b/?protocol=3]").contains("the protocol differs"));
    let good = "storage: { redis: { urls: [redis://u:p@a/0, redis://u:p@b], cluster: true } }";
    assert!(Config::from_yaml("f", good).is_ok());
    assert!(Config::from_yaml("f", "storage: { redis: { urls: [redis://a/3], cluster: false } }").is_ok());
}

#[test]
fn native_histograms_accept_only_supported_resolutions() {
    assert_refused(
        "metrics:\n  native_histograms:\n    schema: 6\n    max_buckets: 7\n",
        &[
            "peerscope.yaml:3:13: metrics.native_histograms.schema: 6 is out of range; 0 to 5 is allowed",
            "peerscope.yaml:4:18: metrics.native_histograms.max_buckets: 7 is out of range; 8 to 1000 is allowed",
        ],
    );
    let config = Config::from_yaml("f", "metrics: { native_histograms: { schema: 5 } }").unwrap();
    assert_eq!((config.metrics.native_histograms.schema, config.metrics.native_histograms.max_buckets), (5, 160));
}

#[test]
fn a_metrics_path_must_be_valid_and_hide_no_other_page() {
    for bad in ["metrics", "''", "/", "/live", "/ready", "/m?x", "'/m#x'", "'/a b'", "/ä", "/../x", "/./x"] {
        let lines = refused(&format!("metrics:\n  path: {bad}\n"));
        assert!(lines.len() == 1 && lines[0].starts_with("peerscope.yaml:2:9: metrics.path: "), "{bad}: {lines:?}");
    }
    for good in ["/m", "/a/b-c_d.e~f", "/livestock"] {
        assert_eq!(Config::from_yaml("f", &format!("metrics: {{ path: {good} }}")).unwrap().metrics.path, good);
    }
}

#[test]
fn a_build_without_metrics_refuses_to_enable_them() {
    let (tree, _) = tree::parse("metrics:\n  enabled: true\n", &error::Source::File("f".into())).unwrap();
    let config =
        Config { metrics: metrics::MetricsConfig { enabled: true, ..Default::default() }, ..Config::default() };
    let found = check::check(&config, &tree, false);
    assert_eq!(found.len(), 1);
    assert!(found[0].to_string().starts_with("f:2:12: metrics.enabled: this build has no metrics: "), "{}", found[0]);
    assert!(found[0].message.contains("`metrics-prometheus`"));
    assert_eq!(check::check(&config, &tree, true), []);
    assert_eq!(Config::from_yaml("f", "metrics: { enabled: true }").is_ok(), metrics::BUILT_IN);
}

#[test]
fn private_networks_refuse_quic() {
    // Without the feature `quic` such an address does not parse, so the check is called directly.
    let quic: libp2p::Multiaddr = "/ip4/0.0.0.0/udp/1/quic-v1".parse().unwrap();
    let yaml = "network:\n  listen:\n    - x\n  psk_file: k\n";
    let (tree, _) = tree::parse(yaml, &error::Source::File("f".into())).unwrap();
    let mut config = Config::default();
    config.network.listen = vec![ListenAddr(quic.clone())];
    config.network.bootstrap = vec![BootstrapAddr { peer: PEER.parse().unwrap(), address: quic }];
    assert_eq!(check::check(&config, &tree, true), []);
    config.network.psk_file = Some("k".into());
    let found: Vec<String> = check::check(&config, &tree, true).iter().map(ToString::to_string).collect();
    let message = "QUIC cannot be used with network.psk_file: a private network is TCP only";
    assert_eq!(
        found,
        [format!("f:3:7: network.listen[0]: {message}"), format!("f:2:3: network.bootstrap[0]: {message}")]
    );
}

#[test]
fn contradictory_peers_and_addresses_are_rejected() {
    let other = libp2p::identity::Keypair::generate_ed25519().public().to_peer_id();
    let yaml = format!(
        "network:\n  listen: [/ip4/0.0.0.0/tcp/1, /ip4/0.0.0.0/tcp/1]\n  bootstrap: [/ip4/1.2.3.4/tcp/1/p2p/{PEER}]\n  allow_peers: [{other}]\naccess:\n  - {{ peer: {PEER}, allow: [] }}\n  - {{ peer: '*', allow: [get] }}\n  - {{ peer: {PEER}, allow: [get] }}\n"
    );
    assert_refused(
        &yaml,
        &[
            "peerscope.yaml:2:32: network.listen[1]: /ip4/0.0.0.0/tcp/1 is already in the list, as [0]",
            &format!(
                "peerscope.yaml:3:15: network.bootstrap[0]: the peer {PEER} is not in network.allow_peers, so it can never be dialed"
            ),
            &format!(
                "peerscope.yaml:8:13: access[2].peer: `{PEER}` already has a rule, access[0] (line 6, column 5); merge the two"
            ),
        ],
    );
}

#[test]
fn exporters_are_limited_in_number_and_distinct_and_local() {
    let elsewhere = "its host is not this machine (127.0.0.0/8, [::1] or localhost); add `remote: true` to expose an exporter on another machine";
    assert_refused(
        "expose:\n  - { name: node, url: http://127.0.0.1:9100/metrics }\n  - { name: node, url: http://localhost/m }\n  - { name: b, url: http://10.0.0.1/m }\n  - { name: c, url: 'http://[::ffff:127.0.0.1]/m', remote: false }\n  - { name: d, url: http://localhost.example/m }\n  - { name: node, url: http://0.0.0.0/m }\n",
        &[
            "peerscope.yaml:3:13: expose[1].name: `node` is already the name of expose[0] (line 2, column 5); choose another",
            &format!("peerscope.yaml:4:21: expose[2].url: {elsewhere}"),
            &format!("peerscope.yaml:5:21: expose[3].url: {elsewhere}"),
            &format!("peerscope.yaml:6:21: expose[4].url: {elsewhere}"),
            "peerscope.yaml:7:13: expose[5].name: `node` is already the name of expose[0] (line 2, column 5); choose another",
            &format!("peerscope.yaml:7:24: expose[5].url: {elsewhere}"),
        ],
    );
    let entries = |count: usize| -> String {
        let entry = |i| format!("\n  - {{ name: e{i}, url: 'http://127.0.0.9:1/m' }}");
        "expose:".to_owned() + &(0..count).map(entry).collect::<String>()
    };
    assert_refused(&entries(17), &["peerscope.yaml:2:3: expose: has 17 entries; at most 16 are allowed"]);
    assert_eq!(Config::from_yaml("f", &entries(16)).unwrap().expose.len(), 16);
    let good = "expose:\n  - { name: a, url: 'http://10.0.0.1/m', remote: true }\n  - { name: b, url: 'http://LocalHost:1/m' }\n  - { name: c, url: 'http://[::1]:1/m' }\n  - { name: d, url: 'http://127.255.0.1/m' }";
    assert!(Config::from_yaml("f", good).is_ok());
}

#[test]
fn a_rejected_value_causes_no_second_problem_in_its_section() {
    // Without `allow_peers` the bootstrap peer would be valid; with an empty list it would not.
    let yaml = format!(
        "network: {{ bootstrap: [/ip4/1.2.3.4/tcp/1/p2p/{PEER}], allow_peers: [x], max_peers: 0 }}\nmetrics: {{ path: x }}"
    );
    let lines = refused(&yaml);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].contains("network.allow_peers[0]: `x` is not a PeerId")
            && lines[1].contains("metrics.path: must begin")
    );
}

#[test]
fn the_number_of_problems_is_bounded() {
    let yaml: String = (0..200).map(|i| format!("key{i}: 1\n")).collect();
    assert_eq!(refused(&yaml).len(), error::MAX_PROBLEMS);
}

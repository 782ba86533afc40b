//! Single keys and values.

use std::time::Duration;

use super::*;

#[test]
fn for_unknown_keys_the_nearest_known_key_is_suggested() {
    assert_refused(
        "metrics:\n  enabled: false\n  prt: 9100\nport: 1\nstorage:\n  redis: { url: x }\nelsewhere: {}\n",
        &[
            "peerscope.yaml:3:3: metrics.prt: unknown key; did you mean `port`?",
            "peerscope.yaml:4:1: port: unknown key; did you mean `metrics.port`?",
            "peerscope.yaml:6:12: storage.redis.url: unknown key; did you mean `urls`?",
            "peerscope.yaml:7:1: elsewhere: unknown key; expected one of node, log, metrics, storage, network, access, expose, gateway",
        ],
    );
    let lines = refused("network:\n  listn: []\n  whatever: 1\n");
    assert_eq!(lines[0], "peerscope.yaml:2:3: network.listn: unknown key; did you mean `listen`?");
    assert!(
        lines[1].starts_with(
            "peerscope.yaml:3:3: network.whatever: unknown key; expected one of listen, bootstrap, mdns, "
        )
    );
}

#[test]
fn a_wrong_type_is_reported_with_what_was_found_and_expected() {
    assert_refused(
        "node:\n  name: [a]\nmetrics:\n  enabled: yes\n  address: localhost\n  port: \"9100\"\nlog:\n  format: jsn\n  level:\n",
        &[
            "peerscope.yaml:2:9: node.name: found a list; expected text",
            "peerscope.yaml:4:12: metrics.enabled: found `yes`; expected true or false",
            "peerscope.yaml:5:12: metrics.address: `localhost` is not an IP address; write one such as 127.0.0.1, or 0.0.0.0 or \"::\" for all interfaces",
            "peerscope.yaml:6:9: metrics.port: found `9100`; expected a whole number from 0 to 65535",
            "peerscope.yaml:8:11: log.format: unknown value `jsn`; did you mean `json`?",
            "peerscope.yaml:9:3: log.level: found nothing; expected text",
        ],
    );
    assert_refused(
        "network:\n  listen: /ip4/0.0.0.0/tcp/1\n  max_peers: -1\n  request_timeout: 15\nstorage:\n  backend: sql\n  max_key_size: 1MB\n  max_value_size: {}\n  local: 3\n",
        &[
            "peerscope.yaml:2:11: network.listen: found `/ip4/0.0.0.0/tcp/1`; expected a list, such as [] or one `- item` per line",
            "peerscope.yaml:3:14: network.max_peers: found `-1`; expected a whole number from 0 to 4294967295",
            "peerscope.yaml:4:20: network.request_timeout: `15` is not a duration; write a number and its unit, such as 2s or 500ms",
            "peerscope.yaml:6:12: storage.backend: unknown value `sql`; expected one of local, redis",
            "peerscope.yaml:7:17: storage.max_key_size: `1MB` is not a size; write a number of bytes, or one with the unit KiB, MiB or GiB, such as 64KiB",
            "peerscope.yaml:8:19: storage.max_value_size: found a mapping; expected a size such as 1MiB, 64KiB or a number of bytes",
            "peerscope.yaml:9:10: storage.local: found `3`; expected a mapping with one `key: value` per line",
        ],
    );
}

#[test]
fn columns_count_characters_from_one() {
    assert_refused(
        "node: { name: \"äöü\", nam: 1 }\n",
        &["peerscope.yaml:1:22: node.nam: unknown key; did you mean `name`?"],
    );
}

#[test]
fn sizes_and_durations_have_units() {
    let yaml = "storage: {max_key_size: 2KiB, max_value_size: 3000, local: {cache_size: 1GiB}, redis: {timeout: 1s 500ms}}\nnetwork: {request_timeout: 250ms}";
    let config = Config::from_yaml("f", yaml).unwrap();
    assert_eq!((config.storage.max_key_size, config.storage.max_value_size), (2048, 3000));
    assert_eq!(config.storage.local.cache_size, 1 << 30);
    assert_eq!(config.storage.redis.timeout, Duration::from_millis(1500));
    assert_eq!(config.network.request_timeout, Duration::from_millis(250));
}

#[test]
fn addresses_and_peers_are_parsed() {
    let bad_peer = format!("{PEER}x");
    let yaml = format!(
        "network:\n  listen: [/ip4/0.0.0.0/udp/1, /memory/1]\n  bootstrap:\n    - /ip4/1.2.3.4/tcp/1\n    - /ip4/1.2.3.4/tcp/0/p2p/{PEER}\n    - /ip4/1.2.3.4/p2p/{PEER}\n    - /ip4/1.2.3.4/udp/1/quic-v1/p2p/{PEER}\n  allow_peers: [{bad_peer}]\naccess:\n  - {{ peer: {bad_peer}, allow: [get] }}\n  - {{ peer: '*', allow: [read] }}\n  - {{ peer: {PEER} }}\n  - {{}}\n"
    );
    let mut expected = vec![
        "peerscope.yaml:2:12: network.listen[0]: `/ip4/0.0.0.0/udp/1` is not a valid listen address; write it like /ip4/0.0.0.0/tcp/4001 or /ip6/::/tcp/4001".to_owned(),
        "peerscope.yaml:2:32: network.listen[1]: `/memory/1` is not a valid listen address; write it like /ip4/0.0.0.0/tcp/4001 or /ip6/::/tcp/4001".into(),
        format!("peerscope.yaml:4:7: network.bootstrap[0]: `/ip4/1.2.3.4/tcp/1` does not end in /p2p/PEER_ID; write it like /ip4/203.0.113.1/tcp/4001/p2p/{PEER}"),
        format!("peerscope.yaml:5:7: network.bootstrap[1]: `/ip4/1.2.3.4/tcp/0/p2p/{PEER}` has port 0, which cannot be dialed"),
        format!("peerscope.yaml:6:7: network.bootstrap[2]: `/ip4/1.2.3.4/p2p/{PEER}` is not an address that can be dialed; write it like /ip4/203.0.113.1/tcp/4001/p2p/{PEER}"),
        format!("peerscope.yaml:7:7: network.bootstrap[3]: `/ip4/1.2.3.4/udp/1/quic-v1/p2p/{PEER}` needs a build with the cargo feature `quic`"),
        format!("peerscope.yaml:8:17: network.allow_peers[0]: `{bad_peer}` is not a PeerId; write it like {PEER} (`peerscope id` prints an agent's PeerId)"),
        format!("peerscope.yaml:10:13: access[0].peer: `{bad_peer}` is not a PeerId; write it like {PEER} (`peerscope id` prints an agent's PeerId); \"*\" means any peer"),
        "peerscope.yaml:11:26: access[1].allow[0]: unknown value `read`; expected one of get, put, delete, scrape".into(),
        "peerscope.yaml:12:5: access[2]: `allow` is missing".into(),
        "peerscope.yaml:13:5: access[3]: `peer` is missing".into(),
    ];
    if cfg!(feature = "quic") {
        expected.remove(5);
    }
    assert_eq!(refused(&yaml), expected);
    let good = Config::from_yaml(
        "f",
        &format!(
            "network:\n  bootstrap:\n    - /dnsaddr/example.org/p2p/{PEER}\n    - /dns4/example.org/tcp/4001/p2p/{PEER}\n"
        ),
    );
    assert_eq!(good.unwrap().network.bootstrap[1].address.to_string(), "/dns4/example.org/tcp/4001");
}

#[test]
fn log_levels_are_checked_more_strictly_than_by_the_filter() {
    for good in [
        "trace",
        "WARN",
        "off",
        "info,peerscope=debug",
        "warn,peerscope::network=trace",
        "peerscope[message{kind=get}]=debug",
    ] {
        let config = Config::from_yaml("f", &format!("log: {{ level: '{good}' }}")).unwrap();
        assert_eq!(config.log.level.to_string(), good);
    }
    let filter = |level: &str| level.parse::<LogLevel>().unwrap().filter().to_string();
    assert_eq!(filter("info,peerscope=debug"), "peerscope=debug,info");
    assert_refused(
        "log: { level: inof }",
        &["peerscope.yaml:1:15: log.level: `inof` is not a log level; did you mean `info`?"],
    );
    for bad in ["", " ", "verbose", "info,,debug", "info,peerscope=loud", "libp2p"] {
        let lines = refused(&format!("log: {{ level: '{bad}' }}"));
        assert!(lines.len() == 1 && lines[0].contains("peerscope.yaml:1:15: log.level: "), "{bad}: {lines:?}");
    }
}

#[test]
fn exporters_have_a_name_and_a_url() {
    let yaml = format!(
        "expose:\n  - {{ name: Node, url: https://127.0.0.1/metrics }}\n  - {{ name: '', url: 127.0.0.1:9100/metrics }}\n  - {{ name: {}, url: 'http://u:p@127.0.0.1/metrics' }}\n  - {{ name: a.b, url: 'http://127.0.0.1/metrics#top' }}\n  - {{ name: a, url: http://127.0.0.1:9100 }}\n  - {{ name: b, url: http://127.0.0.1:0/metrics, remote: perhaps }}\n  - {{ name: c, url: http://127.1/metrics }}\n  - {{ name: d, url: 'http://127.0.0.1/a b' }}\n  - {{ name: e, url: http://127.0.0.1/{} }}\n  - {{ name: f }}\n  - {{ url: http://127.0.0.1/metrics }}\n  - {{ name: g, url: http://127.0.0.1/metrics, job: 1 }}\n",
        "x".repeat(33),
        "x".repeat(1008),
    );
    let name =
        |text: &str| format!("`{text}` is not a valid exporter name; use 1 to 32 of a-z, 0-9, _ and -, such as node");
    let host = "has no valid host; use an IP address (IPv6 in brackets: [::1]) or a host name";
    assert_eq!(
        refused(&yaml),
        [
            format!("peerscope.yaml:2:13: expose[0].name: {}", name("Node")),
            "peerscope.yaml:2:24: expose[0].url: only http:// is supported; it is enough on the same machine, and the connection to the peer is encrypted".into(),
            format!("peerscope.yaml:3:13: expose[1].name: {}", name("")),
            "peerscope.yaml:3:22: expose[1].url: does not begin with http://; write it like http://127.0.0.1:9100/metrics".into(),
            format!("peerscope.yaml:4:13: expose[2].name: {}", name(&"x".repeat(33))),
            "peerscope.yaml:4:53: expose[2].url: has a user or password before `@`, which is not supported; remove it".into(),
            format!("peerscope.yaml:5:13: expose[3].name: {}", name("a.b")),
            "peerscope.yaml:5:23: expose[3].url: has a fragment (`#`), which is never sent; remove it".into(),
            "peerscope.yaml:6:21: expose[4].url: has no path after the host; most exporters use /metrics".into(),
            "peerscope.yaml:7:21: expose[5].url: has no valid port after the host; use 1 to 65535".into(),
            "peerscope.yaml:7:57: expose[5].remote: found `perhaps`; expected true or false".into(),
            format!("peerscope.yaml:8:21: expose[6].url: {host}"),
            "peerscope.yaml:9:21: expose[7].url: contains a space or a character that is not visible ASCII; percent-encode it (%20)".into(),
            "peerscope.yaml:10:21: expose[8].url: has 1025 bytes; at most 1024 are allowed".into(),
            "peerscope.yaml:11:5: expose[9]: `url` is missing".into(),
            "peerscope.yaml:12:5: expose[10]: `name` is missing".into(),
            "peerscope.yaml:13:47: expose[11].job: unknown key; expected one of name, url, remote".into(),
        ]
    );
    let good = "expose:\n  - { name: node, url: 'http://127.0.0.1:9100/metrics' }\n  - { name: 9100, url: 'HTTP://[::1]/m?target=a@b', remote: false }\n  - { name: a_b-c, url: 'http://exporter.example:80/', remote: true }\n";
    let config = Config::from_yaml("f", good).unwrap();
    let shown: Vec<_> = config.expose.iter().map(|e| (e.name.as_str(), e.url.to_string(), e.remote)).collect();
    assert_eq!(
        shown,
        [
            ("node", "http://127.0.0.1:9100/metrics".into(), false),
            ("9100", "HTTP://[::1]/m?target=a@b".into(), false),
            ("a_b-c", "http://exporter.example:80/".into(), true),
        ]
    );
    let variable = [("PEERSCOPE_EXPOSE", "[{ name: node, url: 'http://127.0.0.1:9100/metrics' }]")];
    assert_eq!(Config::load(&env(&variable)).unwrap().expose[..], config.expose[..1]);
}

//! Secrets, the printed configuration, the example and the documentation; and that nothing panics.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::layers::{env_name, known_keys};
use crate::expose::Exposed;
use crate::gateway::PeerList;
use crate::network::PeerIdText;
use crate::storage::RedisUrl;

#[test]
fn passwords_stay_out_of_messages_and_output() {
    for yaml in [
        "storage: { redis: { urls: 'redis://u:hunter2@h' } }",
        "storage: { redis: { urls: ['redis:/u:hunter2@h'] } }",
        "storage: { redis: { urls: ['redis://u:hunter2@h:port'] } }",
        "storage: { redis: { urls: ['redis://u:hunter2@h/x'] } }",
        "storage: { redis: { urls: ['http://u:hunter2@h'] } }",
        "storage: { redis: { urls: ['unix:///s?pas=hunter2'] } }",
        "storage: { redis: { urls: ['redis://h?password=hunter2'] } }",
        "storage: { redis: { urls: ['redis://h#hunter2@'] } }",
        "storage: { redis: { urls: ['redis://u:hunter2@a', 'redis://u:hunter2@a'] } }",
        "storage: { redis: { 'redis://u:hunter2@h': 1 } }",
        "storage: { redis: 'redis://u:hunter2@h' }",
        "storage: { redis: { timeout: 'redis://u:hunter2@h' } }",
        "storage: { backend: 'redis://u:hunter2@h' }",
        "network: { listen: ['redis://u:hunter2@h'], bootstrap: ['redis://u:hunter2@h'], allow_peers: ['hunter2@h'] }",
        "metrics: { address: 'redis://u:hunter2@h' }",
        "access: [{ peer: 'redis://u:hunter2@h', allow: ['redis://u:hunter2@h'] }]",
        "node: &a { 'redis://u:hunter2@h': *a }",
        "expose: [{ name: 'http://u:hunter2@h/', url: 'http://u:hunter2@h/' }]",
        "expose: [{ name: n, url: 'http://127.0.0.1/?token=hunter2#' }, { name: m, url: 'http://h/?token=hunter2' }]",
        "expose: [{ name: n, url: 'http://h/?token=hunter2' }]",
        "expose: [{ name: n, remote: 'http://h/?token=hunter2', url: 'https://h/?token=hunter2' }]",
    ] {
        let lines = refused(yaml).join("\n");
        assert!(!lines.contains("hunter2"), "{lines}");
    }
    for name in ["PEERSCOPE_METRICS__ADDRESS", "PEERSCOPE_STORAGE__BACKEND", "PEERSCOPE_NETWORK__MAX_PEERS"] {
        for value in ["redis://u:hunter2@h", "[redis://u:hunter2@h", "a: redis://u:hunter2@h"] {
            let lines = problems(Config::load(&env(&[(name, value)]))).join("\n");
            assert!(!lines.contains("hunter2"), "{lines}");
        }
    }
    let error = problems(Config::load(&env(&[("PEERSCOPE_STORAGE__REDIS__URLS", "redis://u:hunter2@h")]))).join("\n");
    assert!(error.contains("a list") && !error.contains("hunter2"), "{error}");

    let yaml = "storage: { redis: { urls: ['redis://user:hunter2@host:6379/0'] } }";
    let config = Config::from_yaml("f", yaml).unwrap();
    let printed = config.to_yaml_masked();
    assert!(printed.contains("redis://user:***@host:6379/0"), "{printed}");
    assert!(!format!("{printed}{config:?}").contains("hunter2"));
    let again = Config::from_yaml("printed", &printed).unwrap();
    let expected: RedisUrl = "redis://user:***@host:6379/0".parse().unwrap();
    assert_eq!(again.storage.redis.urls, [expected]);
}

fn exposed(name: &str, url: &str) -> Exposed {
    Exposed { name: name.parse().unwrap(), url: url.parse().unwrap(), remote: false }
}

#[test]
fn the_output_has_every_key_in_the_documented_order() {
    let config = Config {
        node: NodeConfig { name: "edge-17".into(), data_dir: "/var/lib/peerscope".into() },
        access: vec![AccessRule { peer: PeerSelector::Any, allow: vec![Permission::Get, Permission::Delete] }],
        expose: vec![exposed("node", "http://127.0.0.1:9100/metrics")],
        metrics: metrics::MetricsConfig { enabled: true, ..Default::default() },
        ..Config::default()
    };
    let expected = "\
node:
  data_dir: /var/lib/peerscope
  name: edge-17
log:
  format: text
  level: info
metrics:
  address: \"127.0.0.1\"
  enabled: true
  host_names: []
  native_histograms:
    max_buckets: 160
    schema: 3
  open_probes: false
  path: /metrics
  port: 8080
  web_config: null
storage:
  backend: local
  local:
    cache_size: \"64MiB\"
    check_on_open: false
    path: null
  max_key_size: \"1KiB\"
  max_value_size: \"1MiB\"
  redis:
    ca_file: null
    cluster: null
    key_prefix: \"peerscope:\"
    timeout: \"2s\"
    urls:
      - \"redis://127.0.0.1:6379\"
network:
  allow_peers: null
  bootstrap: []
  dial_private: auto
  listen:
    - /ip4/0.0.0.0/tcp/4001
    - \"/ip6/::/tcp/4001\"
  max_in_flight: 256
  max_peers: 1024
  mdns: false
  psk_file: null
  request_timeout: \"15s\"
access:
  - { peer: \"*\", allow: [get, delete] }
expose:
  - { name: node, remote: false, url: \"http://127.0.0.1:9100/metrics\" }
gateway:
  enabled: false
  external_url: null
  grace: \"1h\"
  max_body_size: \"16MiB\"
  max_peers: 10000
  max_scrapes: 512
  peers: any
  settle: \"30s\"
";
    assert_eq!(config.to_yaml_masked(), expected);
}

#[test]
fn the_example_is_the_default_configuration() {
    let result = Config::from_yaml("peerscope.example.yaml", EXAMPLE);
    if metrics::BUILT_IN {
        assert_eq!(result.unwrap(), Config::default());
    } else {
        assert!(problems(result)[0].contains("metrics.enabled: this build has no metrics"));
    }
}

#[test]
fn every_key_is_in_the_example_and_documented() {
    let keys: BTreeSet<String> = known_keys().into_iter().collect();
    assert_eq!(keys.len(), 43, "{keys:?}");
    for key in keys {
        let last = key.rsplit('.').next().unwrap();
        assert!(EXAMPLE.contains(&format!("{last}:")), "{key} is not in the example");
        assert!(DOCUMENTATION.contains(&format!("| `{key}` |")), "{key} is not documented");
        assert!(DOCUMENTATION.contains(&format!("`{}`", env_name(&key))), "{key}: its variable is not documented");
    }
}

/// The fenced blocks of the documentation: language and content.
fn documented_blocks() -> Vec<(&'static str, &'static str)> {
    DOCUMENTATION.split("\n```").skip(1).step_by(2).map(|block| block.split_once('\n').unwrap()).collect()
}

#[test]
fn the_documented_examples_do_what_the_text_says() {
    let mut blocks = documented_blocks();
    blocks.retain(|block| block.0 != "console");
    assert_eq!(blocks.iter().map(|block| block.0).collect::<Vec<_>>(), ["yaml", "sh", "yaml", "text"]);
    let config = Config::from_yaml("f", blocks[0].1).unwrap();
    assert_eq!((config.node.name.as_str(), config.metrics.port, config.access.len()), ("edge-17", 9100, 2));

    let exports = blocks[1].1.lines().map(|line| line.strip_prefix("export ").unwrap().split_once('=').unwrap());
    let exports: Vec<_> = exports.map(|(name, value)| (name, value.trim_matches('\''))).collect();
    let config = Config::load(&env(&exports)).unwrap();
    assert_eq!((config.metrics.port, config.storage.redis.key_prefix.as_str()), (9100, "app:"));
    assert_eq!((config.network.listen.len(), config.access.len()), (2, 1));

    assert_eq!(refused(blocks[2].1).join("\n"), blocks[3].1);
}

prop_compose! {
    fn any_config()(
        name in "\\PC{1,40}".prop_filter("not blank", |name| !name.trim().is_empty()),
        // A path that begins with ~ is refused.
        data_dir in "[^\\x00~][^\\x00]{0,39}",
        prefix in any::<String>().prop_map(|s| s.chars().take(200).collect::<String>()),
        path in proptest::option::of("[\\PC--~]\\PC{0,19}"),
        port in any::<u16>(),
        (max_key, max_value, cache) in (1usize..=65536, 1usize..=16 << 20, 1usize << 20..1 << 40),
        millis in 1u64..3_600_000,
        mdns in any::<bool>(),
        cluster in proptest::option::of(Just(true)),
        hosts in proptest::collection::btree_set("[a-z]{1,10}", 1..4),
        ports in proptest::collection::btree_set(any::<u16>(), 0..4),
        rules in proptest::collection::vec(proptest::collection::vec(0usize..4, 0..4), 0..4),
        exporters in proptest::collection::btree_map("[a-z0-9_-]{1,32}", "/[!$-~&&[^#<>\\\\^`{|}\"]]{0,40}", 0..4),
    ) -> Config {
        let mut config = Config { node: NodeConfig { name, data_dir: data_dir.into() }, ..Config::default() };
        config.metrics.port = port;
        config.storage.redis.key_prefix = prefix;
        config.storage.local.path = path.clone().map(Into::into);
        (config.storage.max_key_size, config.storage.max_value_size, config.storage.local.cache_size) = (max_key, max_value, cache);
        config.storage.redis.timeout = Duration::from_millis(millis);
        config.storage.redis.urls = hosts.iter().map(|host| format!("redis://{host}").parse().unwrap()).collect();
        config.storage.redis.cluster = cluster;
        config.network.psk_file = path.map(Into::into);
        config.network.mdns = mdns;
        config.network.listen = ports.iter().map(|port| format!("/ip6/::1/tcp/{port}").parse().unwrap()).collect();
        config.network.allow_peers = mdns.then(|| vec![PeerIdText(libp2p::identity::Keypair::generate_ed25519().public().to_peer_id())]);
        let all = [Permission::Get, Permission::Put, Permission::Delete, Permission::Scrape];
        config.access = rules.into_iter().map(|allow| AccessRule {
            peer: PeerSelector::Peer(libp2p::identity::Keypair::generate_ed25519().public().to_peer_id()),
            allow: allow.into_iter().map(|i| all[i]).collect(),
        }).collect();
        config.gateway.grace = Duration::from_millis(millis);
        config.gateway.max_body_size = max_value.max(1024);
        config.gateway.peers = config.network.allow_peers.clone().map_or(PeerList::Any, PeerList::These);
        config.expose =
            exporters.iter().map(|(name, path)| exposed(name, &format!("http://[::1]:{}{path}", port.max(1)))).collect();
        config
    }
}

proptest! {
    #[test]
    fn the_printed_configuration_loads_as_the_same(config in any_config()) {
        let printed = config.to_yaml_masked();
        prop_assert_eq!(Config::from_yaml("printed", &printed).map_err(|error| format!("{error}\n{printed}")), Ok(config));
    }

    #[test]
    fn arbitrary_text_does_not_panic(text in any::<String>()) {
        let _ = Config::from_yaml("f", &text);
    }

    #[test]
    fn shuffled_pieces_of_yaml_do_not_panic(parts in proptest::collection::vec(
        proptest::sample::select(vec![
            "metrics", "access", "network", "listen", "node", "&a", "*a", ": ", ":\n", "- ", "\n", "\n  ", "[", "]", "{", "}", ", ",
            "? ", "| ", "> ", "!!str ", "!x ", "#", "\"", "'", "---\n", "...\n", "%YAML 1.2\n", "<<", "\t", "\u{feff}", "1", "~",
        ]), 0..60))
    {
        let _ = Config::from_yaml("f", &parts.concat());
    }

    #[test]
    fn a_damaged_file_does_not_panic(edits in proptest::collection::vec((any::<proptest::sample::Index>(), 0..4u8, any::<char>()), 1..12)) {
        let mut text: Vec<char> = EXAMPLE.chars().collect();
        for (at, how, c) in edits {
            if text.is_empty() {
                break;
            }
            let at = at.index(text.len());
            match how {
                0 => text[at] = c,
                1 => text.insert(at, c),
                2 => { text.remove(at); }
                _ => text.truncate(at + 1),
            }
        }
        if let Err(error) = Config::from_yaml("f", &text.into_iter().collect::<String>()) {
            prop_assert!(!error.problems().is_empty());
            for problem in error.problems() {
                let line = problem.to_string();
                prop_assert!(line.starts_with("f:") && !line.contains('\n'), "{line}");
            }
        }
    }

    #[test]
    fn arbitrary_variables_do_not_panic(name in "PEERSCOPE_[A-Z_]{0,30}", value in any::<String>()) {
        let _ = Config::load(&env(&[(&name, &value)]));
    }
}

//! How file, environment and flags override each other, and how problems name their source.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use super::*;
use crate::network::{BootstrapAddr, ListenAddr};
use crate::storage::BackendKind;

#[test]
fn an_empty_configuration_is_valid() {
    let config = Config::load(&Sources::default()).unwrap();
    let expected =
        Config { node: NodeConfig { data_dir: "peerscope-data".into(), ..NodeConfig::default() }, ..Config::default() };
    assert_eq!(config, expected);
    assert_eq!(
        config.network.listen,
        ["/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"].map(|address| ListenAddr(address.parse().unwrap()))
    );
    for empty in ["", "\n", "---\n", "# only a comment\n", "metrics:\nstorage:\n  redis:\n"] {
        assert_eq!(Config::from_yaml("f", empty).unwrap(), Config::default(), "{empty:?}");
    }
}

#[test]
fn flags_override_the_environment_and_both_override_the_file() {
    let file = file("metrics: {port: 1, path: /a, address: 127.0.0.2}\nlog: {format: json}\n");
    let mut sources = env(&[("PEERSCOPE_METRICS__PORT", "2"), ("PEERSCOPE_METRICS__PATH", "/b"), ("HOME", "/h")]);
    sources.file = Some(file.path().into());
    sources.flags = vec![("metrics.port", "3".into(), "--metrics-port")];
    let config = Config::load(&sources).unwrap();
    assert_eq!((config.metrics.port, config.metrics.path.as_str()), (3, "/b"));
    assert_eq!(config.metrics.address.first().to_string(), "127.0.0.2");
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.node.data_dir, PathBuf::from("/h/.local/state/peerscope"));
}

#[test]
fn a_variable_names_the_file_and_a_flag_overrides_it() {
    let (one, two) = (file("metrics: {port: 1}"), file("metrics: {port: 2}"));
    let mut sources = env(&[("PEERSCOPE_CONFIG", one.path().to_str().unwrap())]);
    assert_eq!(Config::load(&sources).unwrap().metrics.port, 1);
    sources.file = Some(two.path().into());
    assert_eq!(Config::load(&sources).unwrap().metrics.port, 2);
}

#[test]
fn variables_hold_yaml_but_text_keys_take_them_verbatim() {
    let bootstrap = format!("/ip4/203.0.113.1/tcp/4001/p2p/{PEER}");
    let config = Config::load(&env(&[
        ("PEERSCOPE_NETWORK__BOOTSTRAP", &format!("[{bootstrap}]")),
        ("PEERSCOPE_NETWORK__MDNS", "true"),
        ("PEERSCOPE_NETWORK__PSK_FILE", ""),
        ("PEERSCOPE_ACCESS", "[{peer: '*', allow: [get]}]"),
        ("PEERSCOPE_STORAGE", "{backend: redis, max_value_size: 2MiB}"),
        ("PEERSCOPE_STORAGE__MAX_VALUE_SIZE", "1024"),
        // As YAML these would be a mapping, a number and an unfinished list.
        ("PEERSCOPE_STORAGE__REDIS__KEY_PREFIX", "app:"),
        ("PEERSCOPE_NODE__NAME", "17"),
        ("PEERSCOPE_NODE__DATA_DIR", "[x"),
        ("PEERSCOPE_STORAGE__REDIS__TIMEOUT", "\"500ms\""),
    ]))
    .unwrap();
    assert_eq!(config.network.bootstrap, [bootstrap.parse::<BootstrapAddr>().unwrap()]);
    assert!(config.network.mdns && config.network.psk_file.is_none());
    assert_eq!(config.access, [AccessRule { peer: PeerSelector::Any, allow: vec![Permission::Get] }]);
    assert_eq!((config.storage.backend, config.storage.max_value_size), (BackendKind::Redis, 1024));
    assert_eq!((config.storage.redis.key_prefix.as_str(), config.node.name.as_str()), ("app:", "17"));
    assert_eq!(config.node.data_dir, PathBuf::from("[x"));
    assert_eq!(config.storage.redis.timeout, Duration::from_millis(500));
}

#[test]
fn problems_in_variables_and_flags_name_them() {
    assert_env_refused(
        &[
            ("PEERSCOPE_METRICS__PRT", "1"),
            ("PEERSCOPE_METRICS_PATH", "/x"),
            ("PEERSCOPE_METRICS__PORT", "99999"),
            ("PEERSCOPE_NETWORK__LISTEN", "[/ip4/1.2.3.4/tcp/1, nowhere]"),
            ("PEERSCOPE_ACCESS", "[1"),
            ("PEERSCOPE_storage__BACKEND", "redis"),
            ("PEERSCOPE_LOG__FORMAT__X", "1"),
        ],
        &[
            "environment variable PEERSCOPE_ACCESS: invalid YAML: while parsing a flow sequence, expected ',' or ']'; expected a list, such as [] or one `- item` per line",
            "environment variable PEERSCOPE_LOG__FORMAT__X: log.format: found a mapping; expected text",
            "environment variable PEERSCOPE_METRICS_PATH: sets no known key; did you mean PEERSCOPE_METRICS__PATH?",
            "environment variable PEERSCOPE_METRICS__PORT: found `99999`; expected a whole number from 0 to 65535",
            "environment variable PEERSCOPE_METRICS__PRT: sets no known key; did you mean PEERSCOPE_METRICS__PORT?",
            "environment variable PEERSCOPE_NETWORK__LISTEN: network.listen[1]: `nowhere` is not a multiaddress (invalid multiaddr); write it like /ip4/0.0.0.0/tcp/4001",
            "environment variable PEERSCOPE_storage__BACKEND: sets no known key; did you mean PEERSCOPE_STORAGE__BACKEND?",
        ],
    );
    let flags = vec![("metrics.port", "http".into(), "--metrics-port")];
    assert_eq!(
        problems(Config::load(&Sources { flags, ..Sources::default() })),
        ["--metrics-port: found `http`; expected a whole number from 0 to 65535"]
    );
    let bytes = OsString::from_vec(b"\xff".to_vec());
    let sources = Sources { env: vec![("PEERSCOPE_NODE__NAME".into(), bytes)], ..Sources::default() };
    assert_eq!(
        problems(Config::load(&sources)),
        ["environment variable PEERSCOPE_NODE__NAME: the value is not valid UTF-8"]
    );
}

#[test]
fn a_variable_cannot_set_a_key_below_a_value_that_is_not_a_mapping() {
    let file = file("metrics: 3\naccess: []\nlog: {level: info}\n");
    let path = file.path().display();
    let mut sources =
        env(&[("PEERSCOPE_METRICS__PORT", "1"), ("PEERSCOPE_ACCESS__0__PEER", "x"), ("PEERSCOPE_LOG__LEVEL__X", "1")]);
    sources.file = Some(file.path().into());
    assert_eq!(
        problems(Config::load(&sources)),
        [
            format!("{path}:1:10: metrics: found `3`; expected a mapping with one `key: value` per line"),
            format!(
                "environment variable PEERSCOPE_ACCESS__0__PEER: the parent of this key is a list ({path}:2:9), not a mapping"
            ),
            format!(
                "environment variable PEERSCOPE_LOG__LEVEL__X: the parent of this key is `info` ({path}:3:14), not a mapping"
            ),
            format!(
                "environment variable PEERSCOPE_METRICS__PORT: the parent of this key is `3` ({path}:1:10), not a mapping"
            ),
        ]
    );
}

#[test]
fn variables_of_kubernetes_services_are_ignored() {
    let config = Config::load(&env(&[
        ("PEERSCOPE_SERVICE_HOST", "10.0.0.1"),
        ("PEERSCOPE_SERVICE_PORT", "8080"),
        ("PEERSCOPE_SERVICE_PORT_METRICS", "8080"),
        ("PEERSCOPE_PORT", "tcp://10.0.0.1:8080"),
        ("PEERSCOPE_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("PEERSCOPE_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("PEERSCOPE_METRICS_PORT_8080_TCP_PROTO", "tcp"),
    ]));
    assert_eq!(config.unwrap().metrics.port, 8080);
    assert_env_refused(
        &[("PEERSCOPE_METRICS_PORT", "9100")],
        &["environment variable PEERSCOPE_METRICS_PORT: sets no known key; did you mean PEERSCOPE_METRICS__PORT?"],
    );
}

/// `cargo run` and `cargo test` pass on the variables that the build script sets for the compiler. They were once named
/// PEERSCOPE_*, so the agent that the README's first command started took them for keys.
#[test]
fn variables_set_by_cargo_are_not_configuration() {
    let build = include_str!("../../../build.rs");
    assert!(build.contains("cargo:rustc-env=BUILD_REVISION"));
    assert!(!build.contains("cargo:rustc-env=PEERSCOPE_"));
    // They are in the environment of this test if cargo started it.
    let env = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BUILD_")).collect();
    Config::load(&Sources { env, ..Sources::default() }).unwrap();
}

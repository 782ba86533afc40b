//! File, environment and flags go over each other, and every problem names its own.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use super::*;
use crate::network::{BootstrapAddr, ListenAddr};
use crate::storage::BackendKind;

#[test]
fn nothing_at_all_is_a_valid_configuration() {
    let config = Config::load(&Sources::default()).unwrap();
    let expected =
        Config { node: NodeConfig { data_dir: "peerscope-data".into(), ..NodeConfig::default() }, ..Config::default() };
    assert_eq!(config, expected);
    assert_eq!(config.network.listen, [ListenAddr("/ip4/0.0.0.0/tcp/4001".parse().unwrap())]);
    for empty in ["", "\n", "---\n", "# only a comment\n", "metrics:\nstorage:\n  redis:\n"] {
        assert_eq!(Config::from_yaml("f", empty).unwrap(), Config::default(), "{empty:?}");
    }
}

#[test]
fn flags_go_over_the_environment_and_both_over_the_file() {
    let file = file("metrics: {port: 1, path: /a, address: 127.0.0.2}\nlog: {format: json}\n");
    let mut sources = env(&[("PEERSCOPE_METRICS__PORT", "2"), ("PEERSCOPE_METRICS__PATH", "/b"), ("HOME", "/h")]);
    sources.file = Some(file.path().into());
    sources.flags = vec![("metrics.port", "3".into(), "--metrics-port")];
    let config = Config::load(&sources).unwrap();
    assert_eq!((config.metrics.port, config.metrics.path.as_str()), (3, "/b"));
    assert_eq!(config.metrics.address.to_string(), "127.0.0.2");
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.node.data_dir, PathBuf::from("/h/.local/state/peerscope"));
}

#[test]
fn a_variable_names_the_file_and_a_flag_goes_first() {
    let (one, two) = (file("metrics: {port: 1}"), file("metrics: {port: 2}"));
    let mut sources = env(&[("PEERSCOPE_CONFIG", one.path().to_str().unwrap())]);
    assert_eq!(Config::load(&sources).unwrap().metrics.port, 1);
    sources.file = Some(two.path().into());
    assert_eq!(Config::load(&sources).unwrap().metrics.port, 2);
}

#[test]
fn variables_hold_yaml_and_text_keys_take_them_as_they_are() {
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
fn problems_of_variables_and_flags_name_them() {
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
            "environment variable PEERSCOPE_ACCESS: this is no valid YAML: while parsing a flow sequence, expected ',' or ']'; a list, such as [] or one `- item` a line, is needed",
            "environment variable PEERSCOPE_LOG__FORMAT__X: log.format: found a mapping; a text is needed",
            "environment variable PEERSCOPE_METRICS_PATH: sets no known key; did you mean PEERSCOPE_METRICS__PATH?",
            "environment variable PEERSCOPE_METRICS__PORT: found `99999`; a whole number from 0 to 65535 is needed",
            "environment variable PEERSCOPE_METRICS__PRT: sets no known key; did you mean PEERSCOPE_METRICS__PORT?",
            "environment variable PEERSCOPE_NETWORK__LISTEN: network.listen[1]: `nowhere` is not a multiaddress (invalid multiaddr); write it like /ip4/0.0.0.0/tcp/4001",
            "environment variable PEERSCOPE_storage__BACKEND: sets no known key; did you mean PEERSCOPE_STORAGE__BACKEND?",
        ],
    );
    let flags = vec![("metrics.port", "http".into(), "--metrics-port")];
    assert_eq!(
        problems(Config::load(&Sources { flags, ..Sources::default() })),
        ["--metrics-port: found `http`; a whole number from 0 to 65535 is needed"]
    );
    let bytes = OsString::from_vec(b"\xff".to_vec());
    let sources = Sources { env: vec![("PEERSCOPE_NODE__NAME".into(), bytes)], ..Sources::default() };
    assert_eq!(
        problems(Config::load(&sources)),
        ["environment variable PEERSCOPE_NODE__NAME: the value is not valid UTF-8"]
    );
}

#[test]
fn a_variable_cannot_reach_into_what_is_no_mapping() {
    let file = file("metrics: 3\naccess: []\nlog: {level: info}\n");
    let path = file.path().display();
    let mut sources =
        env(&[("PEERSCOPE_METRICS__PORT", "1"), ("PEERSCOPE_ACCESS__0__PEER", "x"), ("PEERSCOPE_LOG__LEVEL__X", "1")]);
    sources.file = Some(file.path().into());
    assert_eq!(
        problems(Config::load(&sources)),
        [
            format!("{path}:1:10: metrics: found `3`; a mapping with one `key: value` a line is needed"),
            format!(
                "environment variable PEERSCOPE_ACCESS__0__PEER: what contains this key is a list ({path}:2:9), not a mapping"
            ),
            format!(
                "environment variable PEERSCOPE_LOG__LEVEL__X: what contains this key is `info` ({path}:3:14), not a mapping"
            ),
            format!(
                "environment variable PEERSCOPE_METRICS__PORT: what contains this key is `3` ({path}:1:10), not a mapping"
            ),
        ]
    );
}

#[test]
fn kubernetes_services_are_no_keys() {
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

/// `cargo run` and `cargo test` hand on what the build script told the compiler. Those variables were named
/// PEERSCOPE_* once, and the agent that the README's first command started took them for keys.
#[test]
fn what_cargo_puts_into_the_environment_is_no_configuration() {
    let build = include_str!("../../../build.rs");
    assert!(build.contains("cargo:rustc-env=BUILD_REVISION"));
    assert!(!build.contains("cargo:rustc-env=PEERSCOPE_"));
    // What this test was started with has them when cargo started it.
    let env = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BUILD_")).collect();
    Config::load(&Sources { env, ..Sources::default() }).unwrap();
}

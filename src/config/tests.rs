use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use proptest::prelude::*;

use super::*;
use crate::network::{BootstrapAddr, ListenAddr, PeerIdText};
use crate::storage::{BackendKind, RedisUrl};

const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
const EXAMPLE: &str = include_str!("../../peerscope.example.yaml");
const DOCUMENTATION: &str = include_str!("../../docs/configuration.md");

fn env(variables: &[(&str, &str)]) -> Sources {
    let env = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
    Sources { env, ..Sources::default() }
}

fn problems(result: Result<Config, Error>) -> Vec<String> {
    let error = result.expect_err("a configuration that is wrong was taken");
    assert!(error.to_string().lines().count() == error.problems().len(), "one line a problem: {error}");
    error.problems().iter().map(ToString::to_string).collect()
}

fn refused(yaml: &str) -> Vec<String> {
    problems(Config::from_yaml("peerscope.yaml", yaml))
}

/// Asserts that this YAML gives exactly these lines.
#[track_caller]
fn assert_refused(yaml: &str, expected: &[&str]) {
    assert_eq!(refused(yaml), expected, "{yaml}");
}

#[track_caller]
fn assert_env_refused(variables: &[(&str, &str)], expected: &[&str]) {
    assert_eq!(problems(Config::load(&env(variables))), expected);
}

fn file(content: impl AsRef<[u8]>) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    file
}

// Layers.

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
fn services_named_peerscope_in_kubernetes_do_no_harm() {
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

// The file as a whole.

#[test]
fn files_that_cannot_be_read_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let load = |path: PathBuf| problems(Config::load(&Sources { file: Some(path), ..Sources::default() })).join("\n");
    let missing = dir.path().join("none.yaml");
    assert_eq!(
        load(missing.clone()),
        format!("{}: cannot be read: No such file or directory (os error 2)", missing.display())
    );
    assert_eq!(
        load(dir.path().into()),
        format!("{}: cannot be read: Is a directory (os error 21)", dir.path().display())
    );

    let latin = file(b"node:\n  name: caf\xe9\n");
    assert_eq!(
        load(latin.path().into()),
        format!("{}: is not valid UTF-8 (line 2); save it as UTF-8", latin.path().display())
    );
    let large = file(vec![b'#'; tree::MAX_BYTES + 1]);
    assert_eq!(load(large.path().into()), format!("{}: is larger than 1048576 bytes", large.path().display()));
    let fits = file(vec![b'#'; tree::MAX_BYTES]);
    assert!(Config::load(&Sources { file: Some(fits.path().into()), ..Sources::default() }).is_ok());

    // Root may read everything, so there is nothing to see as root.
    let secret = file("");
    std::fs::set_permissions(secret.path(), std::fs::Permissions::from_mode(0)).unwrap();
    if std::fs::File::open(secret.path()).is_err() {
        assert!(load(secret.path().into()).ends_with("cannot be read: Permission denied (os error 13)"));
    }
}

#[test]
fn yaml_mistakes_have_a_position() {
    assert_refused(
        "metrics:\n  port: [1\n",
        &["peerscope.yaml:3:1: this is no valid YAML: while parsing a flow sequence, expected ',' or ']'"],
    );
    assert_refused("a: 1\n---\nb: 2\n", &["peerscope.yaml:2:1: a second document begins here; one is allowed"]);
    assert_refused("- 1\n", &["peerscope.yaml:1:1: found a list; a mapping with one `key: value` a line is needed"]);
    assert_refused("metrics: !custom {}\n", &["peerscope.yaml:1:10: metrics: YAML tags are not used here; remove it"]);
    assert_refused("[a]: 1\n", &["peerscope.yaml:1:1: a key must be a text"]);
    assert_refused("access: &a [*a]\n", &["peerscope.yaml:1:13: access[0]: this alias refers to what contains it"]);
    let lines = refused("access:\n  - { peer: *, allow: [] }\n");
    assert!(
        lines[0].starts_with("peerscope.yaml:2:13: ")
            && lines[0].ends_with("(a text that begins with * or & needs quotes)"),
        "{lines:?}"
    );
}

#[test]
fn duplicate_keys_name_both_places() {
    assert_refused(
        "metrics:\n  port: 1\n  port: 2\nlog: {}\nlog: {}\n",
        &[
            "peerscope.yaml:3:3: metrics.port: this key is here a second time; remove it or the first one (line 2, column 3)",
            "peerscope.yaml:5:1: log: this key is here a second time; remove it or the first one (line 4, column 1)",
        ],
    );
}

#[test]
fn aliases_work_and_cannot_fill_the_memory() {
    let config = Config::from_yaml(
        "f",
        &format!("access:\n- {{ peer: {PEER}, allow: &all [get, put] }}\n- {{ peer: '*', allow: *all }}\n"),
    );
    assert_eq!(config.unwrap().access[1].allow, [Permission::Get, Permission::Put]);

    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..20 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs += &format!("a{level}: &a{level} [{aliases}]\n");
    }
    let started = Instant::now();
    let lines = refused(&laughs);
    assert!(lines[0].contains("more than 200000 values"), "{lines:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn the_largest_file_takes_no_long_time_however_odd() {
    let fill = |unit: &str| unit.repeat(tree::MAX_BYTES / unit.len());
    let many_keys: String = (0..60_000).map(|i| format!("k{i}: 1\n")).collect();
    let anchors: String = (0..60_000).map(|i| format!("- &k{i} x\n")).collect();
    for text in [
        fill("a"),
        fill(" "),
        fill("\n"),
        fill("- \n"),
        fill("- a\n"),
        fill("a: b\n"),
        fill("a:\n"),
        fill("? a\n"),
        fill("[],"),
        fill("'"),
        fill("\""),
        fill("#"),
        fill("!"),
        fill("&a "),
        fill("\t"),
        fill("%"),
        fill("---\n"),
        fill(": "),
        fill("a b\n"),
        fill("a\n"),
        format!("a: [{}", fill("x, ")),
        format!("a: {{{}", fill("x, ")),
        format!("a: \"{}", fill("\\n")),
        format!("a: |\n{}", fill(" x\n")),
        format!("a: >\n{}", fill(" x\n")),
        many_keys,
        anchors,
    ] {
        let text = text.get(..tree::MAX_BYTES).unwrap_or(&text);
        let started = Instant::now();
        let _ = Config::from_yaml("f", text);
        let beginning: String = text.chars().take(20).collect();
        assert!(started.elapsed() < Duration::from_secs(10), "{beginning:?} took {:?}", started.elapsed());
        if std::env::var_os("SHOW").is_some() {
            eprintln!("{beginning:?} {:?}", started.elapsed());
        }
    }
}

#[test]
fn nesting_is_bounded_in_every_style() {
    for (style, text) in [
        ("flow lists", "[".repeat(100_000)),
        ("flow mappings", "{a: ".repeat(100_000)),
        ("block lists", "- ".repeat(100_000)),
        ("block mappings", (0..400).map(|i| format!("{}a:\n", " ".repeat(i))).collect()),
        ("explicit keys", "? ".repeat(100_000)),
        ("aliases", (1..40).fold("a0: &a0 [x]\n".to_owned(), |s, i| format!("{s}a{i}: &a{i} [*a{}]\n", i - 1))),
    ] {
        let lines = refused(&text);
        // The scanner looks ahead in flow style and has a bound of its own.
        let bounds = ["more than 32 levels", "recursion limit", "a key must be a text"];
        assert!(lines.len() == 1 && bounds.iter().any(|bound| lines[0].contains(bound)), "{style}: {lines:?}");
    }
}

// Single values.

#[test]
fn unknown_keys_get_the_nearest_known_one() {
    assert_refused(
        "metrics:\n  enabled: false\n  prt: 9100\nport: 1\nstorage:\n  redis: { url: x }\ngateway: {}\n",
        &[
            "peerscope.yaml:3:3: metrics.prt: unknown key; did you mean `port`?",
            "peerscope.yaml:4:1: port: unknown key; did you mean `metrics.port`?",
            "peerscope.yaml:6:12: storage.redis.url: unknown key; did you mean `urls`?",
            "peerscope.yaml:7:1: gateway: unknown key; known here: node, log, metrics, storage, network, access",
        ],
    );
    let lines = refused("network:\n  listn: []\n  whatever: 1\n");
    assert_eq!(lines[0], "peerscope.yaml:2:3: network.listn: unknown key; did you mean `listen`?");
    assert!(
        lines[1]
            .starts_with("peerscope.yaml:3:3: network.whatever: unknown key; known here: listen, bootstrap, mdns, ")
    );
}

#[test]
fn wrong_types_say_what_was_found_and_what_is_needed() {
    assert_refused(
        "node:\n  name: [a]\nmetrics:\n  enabled: yes\n  address: localhost\n  port: \"9100\"\nlog:\n  format: jsn\n  level:\n",
        &[
            "peerscope.yaml:2:9: node.name: found a list; a text is needed",
            "peerscope.yaml:4:12: metrics.enabled: found `yes`; true or false is needed",
            "peerscope.yaml:5:12: metrics.address: `localhost` is not an IP address, such as 127.0.0.1, or 0.0.0.0 or \"::\" for all interfaces",
            "peerscope.yaml:6:9: metrics.port: found `9100`; a whole number from 0 to 65535 is needed",
            "peerscope.yaml:8:11: log.format: `jsn` is not known here; did you mean `json`?",
            "peerscope.yaml:9:3: log.level: found nothing; a text is needed",
        ],
    );
    assert_refused(
        "network:\n  listen: /ip4/0.0.0.0/tcp/1\n  max_peers: -1\n  request_timeout: 15\nstorage:\n  backend: sql\n  max_key_size: 1MB\n  max_value_size: {}\n  local: 3\n",
        &[
            "peerscope.yaml:2:11: network.listen: found `/ip4/0.0.0.0/tcp/1`; a list, such as [] or one `- item` a line, is needed",
            "peerscope.yaml:3:14: network.max_peers: found `-1`; a whole number from 0 to 4294967295 is needed",
            "peerscope.yaml:4:20: network.request_timeout: `15` is not a duration; write a number and its unit, such as 2s or 500ms",
            "peerscope.yaml:6:12: storage.backend: `sql` is not known here; write one of local, redis",
            "peerscope.yaml:7:17: storage.max_key_size: `1MB` is not a size; write a number of bytes, or one with the unit KiB, MiB or GiB, such as 64KiB",
            "peerscope.yaml:8:19: storage.max_value_size: found a mapping; a size such as 1MiB, 64KiB or a number of bytes is needed",
            "peerscope.yaml:9:10: storage.local: found `3`; a mapping with one `key: value` a line is needed",
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
        "peerscope.yaml:2:12: network.listen[0]: `/ip4/0.0.0.0/udp/1` is not an address to listen on, such as /ip4/0.0.0.0/tcp/4001 or /ip6/::/tcp/4001".to_owned(),
        "peerscope.yaml:2:32: network.listen[1]: `/memory/1` is not an address to listen on, such as /ip4/0.0.0.0/tcp/4001 or /ip6/::/tcp/4001".into(),
        format!("peerscope.yaml:4:7: network.bootstrap[0]: `/ip4/1.2.3.4/tcp/1` does not end in /p2p/PEER_ID; write it like /ip4/203.0.113.1/tcp/4001/p2p/{PEER}"),
        format!("peerscope.yaml:5:7: network.bootstrap[1]: `/ip4/1.2.3.4/tcp/0/p2p/{PEER}` has the port 0, which nobody listens on"),
        format!("peerscope.yaml:6:7: network.bootstrap[2]: `/ip4/1.2.3.4/p2p/{PEER}` is not an address to dial; write it like /ip4/203.0.113.1/tcp/4001/p2p/{PEER}"),
        format!("peerscope.yaml:7:7: network.bootstrap[3]: `/ip4/1.2.3.4/udp/1/quic-v1/p2p/{PEER}` needs a build with the cargo feature `quic`"),
        format!("peerscope.yaml:8:17: network.allow_peers[0]: `{bad_peer}` is not a PeerId, such as {PEER}; `peerscope id` prints the one of an agent"),
        format!("peerscope.yaml:10:13: access[0].peer: `{bad_peer}` is not a PeerId, such as {PEER}; `peerscope id` prints the one of an agent; \"*\" stands for any peer"),
        "peerscope.yaml:11:26: access[1].allow[0]: `read` is not known here; write one of get, put, delete".into(),
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
fn log_levels_are_checked_beyond_what_the_filter_does() {
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

// What cannot go together.

#[test]
fn limits_are_neither_zero_nor_endless() {
    assert_refused(
        "storage:\n  max_key_size: 0\n  max_value_size: 17MiB\n  local: { cache_size: 0, path: '' }\n  redis: { timeout: 0s }\nnetwork:\n  max_peers: 0\n  max_in_flight: 0\n  request_timeout: 2h\n  psk_file: ''\nnode: { data_dir: '', name: ' ' }\n",
        &[
            "peerscope.yaml:2:17: storage.max_key_size: 0 is out of range; 1 to 64KiB is allowed",
            "peerscope.yaml:3:19: storage.max_value_size: 17825792 is out of range; 1 to 16MiB is allowed",
            "peerscope.yaml:4:24: storage.local.cache_size: 0 bytes are too small for a cache; at least 1MiB is needed",
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
fn redis_urls_must_fit_together() {
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
        "19: storage.redis.urls[0]: a cluster has only the database 0, not 3; remove the number"
    );
    assert_eq!(
        line("urls: [redis://a, redis://a]"),
        "30: storage.redis.urls[1]: redis://a is in the list already, as [0]"
    );
    assert_eq!(
        line("urls: [redis://u:one@a, redis://u:two@b]"),
        "36: storage.redis.urls[1]: the user and password differ from those of the first URL; a cluster has one login"
    );
    assert!(line("urls: [unix:///run/r.sock], cluster: true").contains("a cluster cannot be reached by a Unix socket"));
    assert!(line("urls: [redis://a, redis://b/?protocol=3]").contains("the protocol differs"));
    let good = "storage: { redis: { urls: [redis://u:p@a/0, redis://u:p@b], cluster: true } }";
    assert!(Config::from_yaml("f", good).is_ok());
    assert!(Config::from_yaml("f", "storage: { redis: { urls: [redis://a/3], cluster: false } }").is_ok());
}

#[test]
fn metrics_paths_do_not_hide_other_pages() {
    for bad in ["metrics", "''", "/", "/live", "/ready", "/m?x", "'/m#x'", "'/a b'", "/ä", "/../x", "/./x"] {
        let lines = refused(&format!("metrics:\n  path: {bad}\n"));
        assert!(lines.len() == 1 && lines[0].starts_with("peerscope.yaml:2:9: metrics.path: "), "{bad}: {lines:?}");
    }
    for good in ["/m", "/a/b-c_d.e~f", "/livestock"] {
        assert_eq!(Config::from_yaml("f", &format!("metrics: {{ path: {good} }}")).unwrap().metrics.path, good);
    }
}

#[test]
fn metrics_asked_for_in_a_build_without_them_are_refused() {
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
    // Without the feature `quic` no such address gets past parsing, so the check is called by itself.
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
fn peers_and_addresses_are_not_contradictory() {
    let other = PeerId::random();
    let yaml = format!(
        "network:\n  listen: [/ip4/0.0.0.0/tcp/1, /ip4/0.0.0.0/tcp/1]\n  bootstrap: [/ip4/1.2.3.4/tcp/1/p2p/{PEER}]\n  allow_peers: [{other}]\naccess:\n  - {{ peer: {PEER}, allow: [] }}\n  - {{ peer: '*', allow: [get] }}\n  - {{ peer: {PEER}, allow: [get] }}\n"
    );
    assert_refused(
        &yaml,
        &[
            "peerscope.yaml:2:32: network.listen[1]: /ip4/0.0.0.0/tcp/1 is in the list already, as [0]",
            &format!(
                "peerscope.yaml:3:15: network.bootstrap[0]: the peer {PEER} is not in network.allow_peers, so it can never be dialed"
            ),
            &format!(
                "peerscope.yaml:8:13: access[2].peer: `{PEER}` has a rule already, access[0] (line 6, column 5); put both into one"
            ),
        ],
    );
}

#[test]
fn a_rejected_value_brings_no_second_complaint_about_its_section() {
    // With `allow_peers` left out the bootstrap peer would be fine, with it empty it would not.
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

// Secrets.

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
    ] {
        let lines = refused(yaml).join("\n");
        assert!(!lines.contains("hunter2"), "{lines}");
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

// Output.

#[test]
fn the_output_has_every_key_in_the_documented_order() {
    let config = Config {
        node: NodeConfig { name: "edge-17".into(), data_dir: "/var/lib/peerscope".into() },
        access: vec![AccessRule { peer: PeerSelector::Any, allow: vec![Permission::Get, Permission::Delete] }],
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
  path: /metrics
  port: 8080
storage:
  backend: local
  local:
    cache_size: \"64MiB\"
    path: null
  max_key_size: \"1KiB\"
  max_value_size: \"1MiB\"
  redis:
    cluster: null
    key_prefix: \"peerscope:\"
    timeout: \"2s\"
    urls:
      - \"redis://127.0.0.1:6379\"
network:
  allow_peers: null
  bootstrap: []
  listen:
    - /ip4/0.0.0.0/tcp/4001
  max_in_flight: 256
  max_peers: 1024
  mdns: false
  psk_file: null
  request_timeout: \"15s\"
access:
  - { peer: \"*\", allow: [get, delete] }
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
    let keys: BTreeSet<String> = layers::known_keys().into_iter().collect();
    assert_eq!(keys.len(), 26, "{keys:?}");
    for key in keys {
        let last = key.rsplit('.').next().unwrap();
        assert!(EXAMPLE.contains(&format!("{last}:")), "{key} is not in the example");
        assert!(DOCUMENTATION.contains(&format!("| `{key}` |")), "{key} is not documented");
        assert!(
            DOCUMENTATION.contains(&format!("`{}`", layers::env_name(&key))),
            "{key}: its variable is not documented"
        );
    }
}

/// The fenced blocks of the documentation: language and content.
fn documented_blocks() -> Vec<(&'static str, &'static str)> {
    DOCUMENTATION.split("\n```").skip(1).step_by(2).map(|block| block.split_once('\n').unwrap()).collect()
}

#[test]
fn the_documented_examples_do_what_is_said() {
    let blocks = documented_blocks();
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
        data_dir in "[^\\x00]{1,40}",
        prefix in any::<String>().prop_map(|s| s.chars().take(200).collect::<String>()),
        path in proptest::option::of("\\PC{1,20}"),
        port in any::<u16>(),
        (max_key, max_value, cache) in (1usize..=65536, 1usize..=16 << 20, 1usize << 20..1 << 40),
        millis in 1u64..3_600_000,
        mdns in any::<bool>(),
        cluster in proptest::option::of(Just(true)),
        hosts in proptest::collection::btree_set("[a-z]{1,10}", 1..4),
        ports in proptest::collection::btree_set(any::<u16>(), 0..4),
        rules in proptest::collection::vec(proptest::collection::vec(0usize..3, 0..4), 0..4),
    ) -> Config {
        let mut config = Config::default();
        config.node = NodeConfig { name, data_dir: data_dir.into() };
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
        config.network.allow_peers = mdns.then(|| vec![PeerIdText(PeerId::random())]);
        let all = [Permission::Get, Permission::Put, Permission::Delete];
        config.access = rules.into_iter().map(|allow| AccessRule {
            peer: PeerSelector::Peer(PeerId::random()),
            allow: allow.into_iter().map(|i| all[i]).collect(),
        }).collect();
        config
    }
}

proptest! {
    #[test]
    fn what_is_printed_loads_as_the_same(config in any_config()) {
        let printed = config.to_yaml_masked();
        prop_assert_eq!(Config::from_yaml("printed", &printed).map_err(|error| format!("{error}\n{printed}")), Ok(config));
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        let _ = Config::from_yaml("f", &text);
    }

    #[test]
    fn no_soup_of_yaml_makes_it_panic(parts in proptest::collection::vec(
        proptest::sample::select(vec![
            "metrics", "access", "network", "listen", "node", "&a", "*a", ": ", ":\n", "- ", "\n", "\n  ", "[", "]", "{", "}", ", ",
            "? ", "| ", "> ", "!!str ", "!x ", "#", "\"", "'", "---\n", "...\n", "%YAML 1.2\n", "<<", "\t", "\u{feff}", "1", "~",
        ]), 0..60))
    {
        let _ = Config::from_yaml("f", &parts.concat());
    }

    #[test]
    fn no_damage_to_a_good_file_makes_it_panic(edits in proptest::collection::vec((any::<proptest::sample::Index>(), 0..4u8, any::<char>()), 1..12)) {
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
    fn no_variable_makes_it_panic(name in "PEERSCOPE_[A-Z_]{0,30}", value in any::<String>()) {
        let _ = Config::load(&env(&[(&name, &value)]));
    }
}

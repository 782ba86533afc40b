//! The file as a whole: whether it can be read, is valid YAML, and stays within bounds.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use super::*;

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

    // Root may read everything, so this cannot be tested as root.
    let secret = file("");
    std::fs::set_permissions(secret.path(), std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::File::open(secret.path()).is_err() {
        assert!(load(secret.path().into()).ends_with("cannot be read: Permission denied (os error 13)"));
    }
}

#[test]
fn yaml_mistakes_have_a_position() {
    assert_refused(
        "metrics:\n  port: [1\n",
        &["peerscope.yaml:3:1: invalid YAML: while parsing a flow sequence, expected ',' or ']'"],
    );
    assert_refused("a: 1\n---\nb: 2\n", &["peerscope.yaml:2:1: a second document begins here; only one is allowed"]);
    assert_refused("- 1\n", &["peerscope.yaml:1:1: found a list; expected a mapping with one `key: value` per line"]);
    assert_refused(
        "metrics: !custom {}\n",
        &["peerscope.yaml:1:10: metrics: this YAML tag is not supported; remove it"],
    );
    assert_refused("[a]: 1\n", &["peerscope.yaml:1:1: a key must be text"]);
    assert_refused(
        "access: &a [*a]\n",
        &["peerscope.yaml:1:13: access[0]: this alias refers to a value that contains it"],
    );
    let lines = refused("access:\n  - { peer: *, allow: [] }\n");
    assert!(
        lines[0].starts_with("peerscope.yaml:2:13: ")
            && lines[0].ends_with("(text that begins with * or & needs quotes)"),
        "{lines:?}"
    );
}

#[test]
fn duplicate_keys_are_reported_with_both_places() {
    assert_refused(
        "metrics:\n  port: 1\n  port: 2\nlog: {}\nlog: {}\n",
        &[
            "peerscope.yaml:3:3: metrics.port: duplicate key; remove it or the first one (line 2, column 3)",
            "peerscope.yaml:5:1: log: duplicate key; remove it or the first one (line 4, column 1)",
        ],
    );
}

#[test]
fn aliases_work_but_cannot_exhaust_memory() {
    let config = Config::from_yaml(
        "f",
        &format!("access:\n- {{ peer: {PEER}, allow: &all [get, put] }}\n- {{ peer: '*', allow: *all }}\n"),
    );
    assert_eq!(config.unwrap().access[1].allow, [Permission::Get, Permission::Put]);

    let wide = format!("a: &a [{}]\nb: [{}]\n", "x, ".repeat(1000), "*a, ".repeat(1000));
    assert!(refused(&wide)[0].contains("more than 200000 values"));

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
fn a_file_of_the_largest_size_is_parsed_quickly_whatever_it_holds() {
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
        // In flow style the scanner looks ahead, and has a bound of its own.
        let bounds = ["more than 32 levels", "recursion limit", "a key must be text"];
        assert!(lines.len() == 1 && bounds.iter().any(|bound| lines[0].contains(bound)), "{style}: {lines:?}");
    }
}

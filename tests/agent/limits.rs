//! `docs/limits.md` matches the code: each constant and key that it names has the documented value, and every `MAX_*`
//! constant is named.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use peerscope::config::Config;

/// Bounds of formats and of our own constants, which no input reaches.
const INTERNAL: [&str; 6] = ["MAX_VARINT", "MAX_CLASSIC", "MAX_BUCKETS", "MAX_PATH", "MAX_FRAME", "MAX_BODY"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The source text of a constant's value.
fn constant<'a>(source: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = source.split_once(&format!("const {name}: "))?;
    let (_, value) = after.split_once('=')?;
    Some(value.split_once(';')?.0.trim())
}

/// The value of a constant expression, of integers and other constants of the same file.
fn number(source: &str, text: &str) -> u64 {
    let text = text.trim();
    let text = text.strip_suffix("as usize").unwrap_or(text).trim();
    let text = text.strip_prefix("NonZeroU8::new(").and_then(|text| text.strip_suffix(").unwrap()")).unwrap_or(text);
    for (operator, apply) in [('+', (|a, b| a + b) as fn(u64, u64) -> u64), ('<', |a, b| a << b), ('*', |a, b| a * b)] {
        if let Some((left, right)) = text.split_once(operator) {
            return apply(number(source, left), number(source, right.trim_start_matches('<')));
        }
    }
    match text {
        "yamux::DEFAULT_CREDIT" => u64::from(yamux::DEFAULT_CREDIT),
        text => text.replace('_', "").parse().unwrap_or_else(|_| {
            let value = constant(source, text).unwrap_or_else(|| panic!("`{text}` is not a number or a constant"));
            number(source, value)
        }),
    }
}

/// The ways in which a limit may be written.
fn spellings(source: &str, value: &str) -> Vec<String> {
    let argument = |function: &str| value.strip_prefix(function)?.strip_suffix(')').map(|text| number(source, text));
    let duration = argument("Duration::from_secs(")
        .map(Duration::from_secs)
        .or_else(|| argument("Duration::from_millis(").map(Duration::from_millis))
        .or_else(|| argument("Duration::from_micros(").map(Duration::from_micros));
    match duration {
        Some(time) => {
            let micros = time.as_micros();
            let units = [(1, "us"), (1000, "ms"), (1_000_000, "s"), (60_000_000, "min"), (3_600_000_000, "h")];
            let whole = units.iter().filter(|(unit, _)| micros % unit == 0);
            let whole = whole.map(|(unit, name)| format!("{} {name}", micros / unit));
            whole.chain([format!("{} s", time.as_secs_f64())]).collect()
        }
        None => {
            let number = number(source, value);
            let units = [(1 << 10, "KiB"), (1 << 20, "MiB")];
            let sizes = units.iter().filter(|(unit, _)| number.is_multiple_of(*unit));
            let sizes = sizes.map(|(unit, name)| format!("{} {name}", number / unit));
            sizes.chain([grouped(number), number.to_string()]).collect()
        }
    }
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Whether `text` contains the phrase, not as part of a longer number or word.
fn says(text: &str, phrase: &str) -> bool {
    text.match_indices(phrase).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + phrase.len()..].chars().next();
        !before.is_some_and(|c| c.is_ascii_digit() || ",.".contains(c)) && !after.is_some_and(char::is_alphanumeric)
    })
}

fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn is_constant(word: &str) -> bool {
    word.len() > 2 && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

#[test]
fn every_documented_limit_matches_the_code() {
    let text = std::fs::read_to_string(root().join("docs/limits.md")).unwrap();
    let defaults = serde_json::to_value(Config::default()).unwrap();
    let mut checked = 0;
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").collect();
        let [_, limit, sources] = cells[..] else { continue };
        for part in sources.split(';') {
            let words = quoted(part);
            let file = words.iter().find(|word| word.ends_with(".rs"));
            let source = file.map(|file| std::fs::read_to_string(root().join("src").join(file)).expect(file));
            for &word in &words {
                let spellings = if is_constant(word) {
                    let source =
                        source.as_deref().unwrap_or_else(|| panic!("`{word}` is named without its file: {line}"));
                    let value = constant(source, word).unwrap_or_else(|| panic!("{file:?} has no `{word}`"));
                    spellings(source, value)
                } else if let Some(value) = defaults.pointer(&format!("/{}", word.replace('.', "/"))) {
                    configured(value)
                } else {
                    assert!(word.ends_with(".rs") || word.starts_with("ulimit"), "what is `{word}`? {line}");
                    continue;
                };
                checked += 1;
                assert!(spellings.iter().any(|spelling| says(limit, spelling)), "{word} is {spellings:?}: {line}");
            }
        }
    }
    assert!(checked > 80, "{checked}");
}

/// The ways in which the default of a key may be written: as in the configuration, or with a space before the unit.
fn configured(value: &serde_json::Value) -> Vec<String> {
    let plain = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let digits = plain.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = plain.split_at(digits);
    let number = grouped(number.parse().unwrap_or_else(|_| panic!("{value} is not a limit")));
    vec![format!("{number} {}", unit.trim()).trim().to_owned(), plain]
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("tests") {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn every_maximum_in_the_code_is_documented() {
    let text = std::fs::read_to_string(root().join("docs/limits.md")).unwrap();
    let named: BTreeSet<_> = text.lines().flat_map(quoted).collect();
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    assert!(files.len() > 100, "{}", files.len());
    for file in files {
        let source = std::fs::read_to_string(&file).unwrap();
        for after in source.split("const MAX_").skip(1) {
            let name = format!("MAX_{}", after.split(':').next().unwrap());
            assert!(
                named.contains(name.as_str()) || INTERNAL.contains(&name.as_str()),
                "docs/limits.md does not name {name} of {}",
                file.display()
            );
        }
    }
}

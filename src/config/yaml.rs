//! The configuration as YAML. Secrets are masked by the types that hold them (`storage::RedisUrl`).

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::Config;

/// Writes every key, with the sections in the order of the documentation.
pub(super) fn write(config: &Config) -> String {
    let mut out = String::new();
    section(&mut out, "node", &config.node);
    section(&mut out, "log", &config.log);
    section(&mut out, "metrics", &config.metrics);
    section(&mut out, "storage", &config.storage);
    section(&mut out, "network", &config.network);
    section(&mut out, "access", &config.access);
    section(&mut out, "expose", &config.expose);
    section(&mut out, "gateway", &config.gateway);
    out
}

fn section(out: &mut String, name: &str, value: &impl Serialize) {
    // The only values that JSON cannot hold are paths that are not UTF-8, and configurations are read from UTF-8.
    let value = serde_json::to_value(value).unwrap_or_default();
    entry(out, "", name, &value);
}

/// `key: value` after `indent`, ended by a line break.
fn entry(out: &mut String, indent: &str, key: &str, value: &Value) {
    *out += indent;
    *out += key;
    *out += ":";
    nested(out, indent, value);
}

/// The value after `key:`.
fn nested(out: &mut String, indent: &str, value: &Value) {
    let deeper = format!("{indent}  ");
    match value {
        Value::Object(map) if !map.is_empty() => {
            *out += "\n";
            for (key, value) in map {
                entry(out, &deeper, key, value);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            *out += "\n";
            for item in items {
                *out += &deeper;
                *out += "- ";
                inline(out, item);
                *out += "\n";
            }
        }
        _ => {
            *out += " ";
            inline(out, value);
            *out += "\n";
        }
    }
}

/// A value on one line.
fn inline(out: &mut String, value: &Value) {
    let separated = |out: &mut String, index: usize| {
        if index > 0 {
            *out += ", ";
        }
    };
    match value {
        Value::Null => *out += "null",
        Value::Bool(truth) => *out += if *truth { "true" } else { "false" },
        Value::Number(number) => *out += &number.to_string(),
        Value::String(text) => scalar(out, text),
        Value::Array(items) => {
            *out += "[";
            for (index, item) in items.iter().enumerate() {
                separated(out, index);
                inline(out, item);
            }
            *out += "]";
        }
        Value::Object(map) => {
            *out += "{ ";
            // As people write a rule or an exporter: the peer or the name comes first.
            let (first, rest): (Vec<_>, Vec<_>) =
                map.iter().partition(|(key, _)| matches!(key.as_str(), "peer" | "name"));
            for (index, (key, value)) in first.into_iter().chain(rest).enumerate() {
                separated(out, index);
                *out += key;
                *out += ": ";
                inline(out, value);
            }
            *out += " }";
        }
    }
}

/// Text, quoted unless it can only be read as that text.
fn scalar(out: &mut String, text: &str) {
    let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let plain = first && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._".contains(&b));
    // Words that some version of YAML does not read as text.
    let meaning = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    if plain && !meaning.iter().any(|word| word.eq_ignore_ascii_case(text)) {
        *out += text;
        return;
    }
    *out += "\"";
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            // Letters of any language stay readable; anything else is escaped, since YAML may not allow it.
            _ if c.is_alphanumeric() => out.push(c),
            _ => {
                let _ = write!(out, "\\U{:08X}", u32::from(c)); // writing to a String cannot fail
            }
        }
    }
    *out += "\"";
}

//! Durations and sizes as written in the configuration, and how messages quote configured values.

pub mod duration;
pub mod size;

/// Quotes a value for a message: shortened, and not shown at all if it could hold a password.
pub(crate) fn quoted(text: &str) -> String {
    if may_be_secret(text) { format!("the text {NOT_SHOWN}") } else { format!("`{}`", one_line(text, 60)) }
}

pub(crate) const NOT_SHOWN: &str = "(not shown: it may hold a password)";

/// Whether a text could be a URL with a password, whichever key it was given for. No other value looks like one.
pub(crate) fn may_be_secret(text: &str) -> bool {
    text.contains('@') || text.contains("://")
}

/// At most `longest` characters of a text on one line, with control characters escaped.
pub(crate) fn one_line(text: &str, longest: usize) -> String {
    let mut line = String::new();
    for c in text.chars().take(longest) {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line + if text.chars().nth(longest).is_some() { "..." } else { "" }
}

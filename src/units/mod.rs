//! Durations and sizes as people write them in a configuration, and how a message repeats what was written.

pub mod duration;
pub mod size;

/// How a value is repeated in a message: short, and not at all when it could hold a password.
pub(crate) fn quoted(text: &str) -> String {
    if may_be_secret(text) { format!("the text {NOT_SHOWN}") } else { format!("`{}`", one_line(text, 60)) }
}

pub(crate) const NOT_SHOWN: &str = "(not shown: it may hold a password)";

/// Whether a text could be a URL with a password, wherever it was put. No other value looks like one.
pub(crate) fn may_be_secret(text: &str) -> bool {
    text.contains('@') || text.contains("://")
}

/// At most `longest` characters of a text, none of them able to break the line.
pub(crate) fn one_line(text: &str, longest: usize) -> String {
    let mut line = String::new();
    for c in text.chars().take(longest) {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line + if text.chars().nth(longest).is_some() { "..." } else { "" }
}

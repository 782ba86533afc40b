//! Why a page is refused, and where.

use std::fmt;

use super::{MAX_FAMILIES, MAX_LABELS, MAX_LINE, MAX_MESSAGE};

/// Why a page is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct Invalid {
    /// Where.
    pub place: Place,
    /// What is wrong there.
    pub problem: Problem,
}

/// Where in a page, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In this line of a text.
    Line(u64),
    /// In this message of protobuf.
    Family(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => write!(f, "line {number}"),
            Self::Family(number) => write!(f, "family {number}"),
        }
    }
}

/// What is wrong. Whatever the page holds, the text of it is short and of one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the message of each stands beside it")]
pub enum Problem {
    #[error("it is not UTF-8")]
    NotUtf8,
    #[error("it is longer than {} KiB", MAX_LINE >> 10)]
    LineTooLong,
    #[error("the line is cut off")]
    LineCutOff,
    #[error("an empty line, which OpenMetrics does not have")]
    EmptyLine,
    #[error("a comment that is not HELP, TYPE, UNIT or EOF, which OpenMetrics does not have")]
    Comment,
    #[error("a NUL in a place where Prometheus stops reading at it")]
    Nul,
    #[error("the body ends without `# EOF`")]
    NoEof,
    #[error("something stands behind `# EOF`")]
    BehindEof,
    #[error("`{0}` is no name of a metric")]
    Name(Excerpt),
    #[error("a sample without a name")]
    NoName,
    #[error("a sample with two names")]
    TwoNames,
    #[error("`{0}` is a name that Prometheus itself writes")]
    Reserved(Excerpt),
    #[error("duplicate family `{0}`")]
    DuplicateFamily(Excerpt),
    #[error("more than {MAX_FAMILIES} families")]
    TooManyFamilies,
    #[error("`{0}` is no type that this format has")]
    Type(Excerpt),
    #[error("the unit `{0}` is not the end of the family's name")]
    Unit(Excerpt),
    #[error("a blank and a text are missing behind the name")]
    NoText,
    #[error("`{0}` is no name of a label")]
    Label(Excerpt),
    #[error("the label `__name__` is the metric's name, which stands elsewhere")]
    NameLabel,
    #[error("the label `{0}` comes twice")]
    DuplicateLabel(Excerpt),
    #[error("a sample with more than {MAX_LABELS} labels")]
    TooManyLabels,
    #[error("{} where an equals sign and a quoted value belong", .0.standing())]
    NoLabelValue(Excerpt),
    #[error("a quoted text without its end")]
    Unquoted,
    #[error("`{0}` is no escape: only \\\\, \\\" and \\n are")]
    Escape(Excerpt),
    #[error("{} where a comma or a brace belongs", .0.standing())]
    LabelEnd(Excerpt),
    #[error("a comma with no label behind it, which OpenMetrics does not have")]
    TrailingComma,
    #[error("`{0}` is no value")]
    Value(Excerpt),
    #[error("`{0}` is no timestamp")]
    Timestamp(Excerpt),
    #[error("`{0}` stands behind the sample")]
    Rest(Excerpt),
    #[error("the message is cut off")]
    MessageCutOff,
    #[error("the message is longer than {} MiB", MAX_MESSAGE >> 20)]
    MessageTooLong,
    #[error("its {0} is no protobuf")]
    Wire(&'static str),
    #[error("its {0} comes twice")]
    Twice(&'static str),
    #[error("its {0} is not UTF-8")]
    StringNotUtf8(&'static str),
    #[error("it has no name")]
    FamilyWithoutName,
    #[error("a label without a name")]
    LabelWithoutName,
    #[error("{0} is no type of a family")]
    TypeNumber(u64),
    #[error("a metric without the {0} that the family's type says")]
    NoValue(&'static str),
    #[error("a histogram whose spans speak of more or fewer buckets than it has")]
    Spans,
}

/// A part of the page, for a message: so short that it bounds it, and with everything that is no letter escaped.
#[derive(Clone, PartialEq, Eq)]
pub struct Excerpt(Box<str>);

impl Excerpt {
    /// In characters.
    const MAX: usize = 60;

    pub(super) fn new(bytes: &[u8]) -> Self {
        // Four bytes a character at most, so that a long part costs no more than a short one.
        let bytes = bytes.get(..4 * Self::MAX + 4).unwrap_or(bytes);
        let text = String::from_utf8_lossy(bytes);
        let mut shown: String = text.chars().take(Self::MAX).flat_map(char::escape_debug).collect();
        if text.chars().nth(Self::MAX).is_some() {
            shown.push_str("...");
        }
        // `escape_debug` is for quotes of another kind.
        Self(shown.replace("\\\"", "\"").replace("\\'", "'").replace("\\\\", "\\").into())
    }

    /// The start of a sentence about what stands somewhere; what is empty is the line's end.
    fn standing(&self) -> String {
        if self.0.is_empty() { "the line ends".to_owned() } else { format!("`{self}` stands") }
    }

    /// The line up to its end, or up to the next blank when there is something before it.
    pub(super) fn word(rest: &[u8]) -> Self {
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let line = rest.get(..end).unwrap_or(rest);
        let word = line.iter().position(|byte| matches!(byte, b' ' | b'\t')).filter(|end| *end > 0);
        Self::new(word.and_then(|end| line.get(..end)).unwrap_or(line))
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

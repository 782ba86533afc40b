//! What is wrong with a configuration, and where it was written.

use std::fmt;
use std::sync::Arc;

/// How many problems a report lists at most. A file with more is hardly a configuration, so the rest would not help.
pub(super) const MAX_PROBLEMS: usize = 50;

/// Why a configuration was rejected: one or more [`ConfigProblem`]s, one per line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(.problems))]
pub struct ConfigError {
    problems: Vec<ConfigProblem>,
}

impl ConfigError {
    pub(super) fn new(mut problems: Vec<ConfigProblem>) -> Self {
        problems.truncate(MAX_PROBLEMS);
        problems.sort_by(|a, b| a.origin.cmp(&b.origin));
        Self { problems }
    }

    /// The problems: those of the file in its order, then those of the environment, then those of the flags.
    pub fn problems(&self) -> &[ConfigProblem] {
        &self.problems
    }
}

impl From<ConfigProblem> for ConfigError {
    fn from(problem: ConfigProblem) -> Self {
        Self::new(vec![problem])
    }
}

fn lines(problems: &[ConfigProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Where the value or key was written.
    pub origin: Origin,
    /// The dotted key, such as `network.listen[1]`; empty if the problem is with the source as a whole.
    pub key: String,
    /// What is wrong, and what is expected.
    pub message: String,
}

impl ConfigProblem {
    pub(super) fn new(origin: Origin, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { origin, key: key.into(), message: message.into() }
    }

    /// The top-level key that it is about.
    pub(super) fn section(&self) -> &str {
        self.key.split(['.', '[']).next().unwrap_or_default()
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        // A variable or flag already says which key it sets.
        let said = match &self.origin {
            Origin::Env { key, .. } => key,
            Origin::Flag { key, .. } => *key,
            _ => "",
        };
        if self.key != said {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Where a part of the configuration was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nowhere: it is the default.
    Default,
    /// A file as a whole.
    File(Arc<str>),
    /// A place in a file.
    At {
        /// The file, as it was named.
        file: Arc<str>,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
    },
    /// An environment variable.
    Env {
        /// Its name.
        name: Arc<str>,
        /// The dotted key that it sets.
        key: String,
    },
    /// A command-line flag.
    Flag {
        /// The flag as the user knows it.
        flag: &'static str,
        /// The dotted key that it sets.
        key: &'static str,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("configuration"),
            Self::File(file) => f.write_str(file),
            Self::At { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Self::Env { name, .. } => write!(f, "environment variable {name}"),
            Self::Flag { flag, .. } => f.write_str(flag),
        }
    }
}

/// What a YAML text was read from; gives each of its nodes an [`Origin`].
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A file: nodes have positions.
    File(Arc<str>),
    /// One value, a variable's or a flag's: every node has the same origin.
    Value(Origin),
}

impl Source {
    pub(super) fn whole(&self) -> Origin {
        match self {
            Self::File(file) => Origin::File(file.clone()),
            Self::Value(origin) => origin.clone(),
        }
    }

    pub(super) fn at(&self, marker: saphyr_parser::Marker) -> Origin {
        match self {
            // The parser counts lines from 1 and columns from 0.
            Self::File(file) => Origin::At { file: file.clone(), line: marker.line(), column: marker.col() + 1 },
            Self::Value(origin) => origin.clone(),
        }
    }
}

/// The candidate that `word` was probably meant to be, if one is similar enough.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Comparing takes time proportional to the product of the lengths; no key is this long.
    const LONGEST: usize = 80;
    if word.len() > LONGEST {
        return None;
    }
    let distance = |candidate: &str| strsim::damerau_levenshtein(word, candidate);
    let best = candidates.into_iter().min_by_key(|candidate| distance(candidate))?;
    // A third of the letters may differ: more than that is another word.
    (distance(best) <= (word.chars().count().max(best.len()) / 3).max(1)).then_some(best)
}

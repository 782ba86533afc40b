//! YAML as a tree whose nodes know where they were written. Depth, size and aliases are bounded.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use super::error::{ConfigError, ConfigProblem, MAX_PROBLEMS, Origin, Source};
use crate::units::quoted;

/// The largest text that is read, in bytes. A few thousand access rules fit.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// The deepest nesting; the configuration itself needs five levels. It bounds every recursion over a tree.
pub(super) const MAX_DEPTH: usize = 32;

/// The most nodes. Each use of an alias counts in full, so that a small file cannot expand to fill the memory.
const MAX_NODES: usize = 200_000;

#[derive(Debug, Clone)]
pub(super) struct YamlNode {
    pub(super) value: Value,
    pub(super) origin: Origin,
    /// The text of a variable or flag as it was given, for keys of type text.
    pub(super) raw: Option<String>,
    /// Already reported as wrong; reads as absent.
    pub(super) rejected: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// The key decides what a scalar means: `plain` ones may be numbers, booleans or null.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<YamlNode>),
    Map(Vec<Entry>),
    /// A variable or flag that is not valid YAML, and why; still valid for a key of type text.
    Unreadable(String),
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_origin: Origin,
    pub(super) node: YamlNode,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

impl YamlNode {
    pub(super) fn new(value: Value, origin: Origin) -> Self {
        Self { value, origin, raw: None, rejected: false }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What this is, for messages.
    pub(super) fn describe(&self) -> String {
        match &self.value {
            _ if self.is_null() => "nothing".into(),
            Value::Scalar { text, .. } => quoted(text),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a mapping".into(),
            Value::Unreadable(_) => "invalid YAML".into(),
        }
    }

    pub(super) fn child(&self, step: &Step) -> Option<&Self> {
        match (&self.value, step) {
            (Value::Map(entries), Step::Key(key)) => entries.iter().find(|e| e.key == *key).map(|e| &e.node),
            (Value::List(items), Step::Index(index)) => items.get(*index),
            _ => None,
        }
    }

    pub(super) fn child_mut(&mut self, step: &Step) -> Option<&mut Self> {
        match (&mut self.value, step) {
            (Value::Map(entries), Step::Key(key)) => entries.iter_mut().find(|e| e.key == *key).map(|e| &mut e.node),
            (Value::List(items), Step::Index(index)) => items.get_mut(*index),
            _ => None,
        }
    }

    pub(super) fn children(&self) -> impl Iterator<Item = &Self> {
        let (items, entries): (&[Self], &[Entry]) = match &self.value {
            Value::List(items) => (items, &[]),
            Value::Map(entries) => (&[], entries),
            _ => (&[], &[]),
        };
        items.iter().chain(entries.iter().map(|entry| &entry.node))
    }

    fn count(&self) -> usize {
        1 + self.children().map(Self::count).sum::<usize>()
    }
}

/// A path as people write it: `network.listen[1]`.
pub(super) fn dotted<'a>(steps: impl IntoIterator<Item = &'a Step>) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            Step::Key(key) => {
                let plain =
                    !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
                let dot = if path.is_empty() { "" } else { "." };
                path = if plain && key.len() <= 60 { path + dot + key } else { path + dot + &quoted(key) };
            }
            Step::Index(index) => path += &format!("[{index}]"),
        }
    }
    path
}

/// Parses one YAML document. A duplicate key is reported but does not stop parsing; the first one is kept.
///
/// # Errors
///
/// If the text is not valid YAML, or exceeds a bound.
pub(super) fn parse(text: &str, source: &Source) -> Result<(YamlNode, Vec<ConfigProblem>), ConfigError> {
    if text.len() > MAX_BYTES {
        return Err(ConfigProblem::new(source.whole(), "", format!("is larger than {MAX_BYTES} bytes")).into());
    }
    let mut builder =
        Builder { source, open: Vec::new(), root: None, anchors: HashMap::new(), nodes: 0, problems: Vec::new() };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let hint = if error.info().contains("anchor or alias") {
                " (text that begins with * or & needs quotes)"
            } else {
                ""
            };
            ConfigProblem::new(source.at(*error.marker()), "", format!("invalid YAML: {}{hint}", error.info()))
        })?;
        builder.event(event, span.start)?;
    }
    let root = builder.root.unwrap_or_else(|| YamlNode::new(Value::Map(Vec::new()), source.whole()));
    Ok((root, builder.problems))
}

/// Builds a tree from the parser's events, with a stack of its own instead of recursion.
struct Builder<'a> {
    source: &'a Source,
    open: Vec<Open>,
    root: Option<YamlNode>,
    anchors: HashMap<usize, YamlNode>,
    nodes: usize,
    problems: Vec<ConfigProblem>,
}

/// A list or mapping that has not ended yet.
struct Open {
    node: YamlNode,
    anchor: usize,
    /// In a mapping: the key whose value comes next.
    key: Option<(String, Origin)>,
    /// In a mapping: its keys and where they are.
    seen: HashMap<String, Origin>,
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, at: Marker) -> Result<(), ConfigProblem> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let string = self.check_tag(tag.as_deref(), at)?;
                let plain = style == ScalarStyle::Plain && !string;
                let node = YamlNode::new(Value::Scalar { text: text.into_owned(), plain }, self.source.at(at));
                self.close(node, anchor, at)
            }
            Event::SequenceStart(anchor, tag) => self.open(Value::List(Vec::new()), anchor, tag.as_deref(), at),
            Event::MappingStart(anchor, tag) => self.open(Value::Map(Vec::new()), anchor, tag.as_deref(), at),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { node, anchor, .. }) => self.close(node, anchor, at),
                None => Ok(()),
            },
            Event::Alias(id) => match self.anchors.get(&id).cloned() {
                Some(node) => {
                    self.charge(node.count(), at)?;
                    if self.open.len() + depth(&node) > MAX_DEPTH {
                        return Err(self.problem(at, too_deep()));
                    }
                    self.close(node, 0, at)
                }
                None => Err(self.problem(at, "this alias refers to a value that contains it")),
            },
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(ConfigProblem::new(self.source.at(at), "", "a second document begins here; only one is allowed"))
            }
            Event::DocumentStart(_) | Event::DocumentEnd | Event::StreamStart | Event::StreamEnd | Event::Nothing => {
                Ok(())
            }
        }
    }

    fn open(&mut self, value: Value, anchor: usize, tag: Option<&Tag>, at: Marker) -> Result<(), ConfigProblem> {
        self.check_tag(tag, at)?;
        if self.open.last().is_some_and(Open::wants_key) {
            return Err(self.problem(at, "a key must be text"));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(self.problem(at, too_deep()));
        }
        self.open.push(Open {
            node: YamlNode::new(value, self.source.at(at)),
            anchor,
            key: None,
            seen: HashMap::new(),
        });
        Ok(())
    }

    /// Adds a complete node to the open list or mapping, or makes it the root.
    fn close(&mut self, mut node: YamlNode, anchor: usize, at: Marker) -> Result<(), ConfigProblem> {
        self.charge(1, at)?;
        if anchor > 0 {
            self.charge(node.count(), at)?;
            self.anchors.insert(anchor, node.clone());
        }
        let wants_key = self.open.last().is_some_and(Open::wants_key);
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut parent.node.value, wants_key) {
            (Value::Map(_), true) => match node.value {
                Value::Scalar { text, .. } => parent.key = Some((text, node.origin)),
                _ => return Err(self.problem(at, "a key must be text")),
            },
            (Value::Map(entries), false) => {
                let (key, key_origin) = parent.key.take().unwrap_or_else(|| (String::new(), node.origin.clone()));
                // The parser gives an omitted value the position of whatever comes next.
                if matches!(&node.value, Value::Scalar { text, plain: true } if text.is_empty()) {
                    node.origin = key_origin.clone();
                }
                match parent.seen.get(&key).cloned() {
                    Some(first) => self.duplicate(key, key_origin, &first),
                    None => {
                        parent.seen.insert(key.clone(), key_origin.clone());
                        entries.push(Entry { key, key_origin, node });
                    }
                }
            }
            (Value::List(items), _) => items.push(node),
            _ => {}
        }
        Ok(())
    }

    fn duplicate(&mut self, key: String, origin: Origin, first: &Origin) {
        let mut path = self.path();
        path.push(Step::Key(key));
        let first = match first {
            Origin::At { line, column, .. } => format!(" (line {line}, column {column})"),
            _ => String::new(),
        };
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(ConfigProblem::new(
                origin,
                dotted(&path),
                format!("duplicate key; remove it or the first one{first}"),
            ));
        }
    }

    /// Whether the tag turns any scalar into text. Tags outside YAML's core schema are rejected.
    fn check_tag(&self, tag: Option<&Tag>, at: Marker) -> Result<bool, ConfigProblem> {
        match tag {
            None => Ok(false),
            Some(tag) if tag.is_yaml_core_schema() => Ok(tag.suffix == "str"),
            Some(_) => Err(self.problem(at, "this YAML tag is not supported; remove it")),
        }
    }

    fn charge(&mut self, nodes: usize, at: Marker) -> Result<(), ConfigProblem> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            return Err(self.problem(at, format!("more than {MAX_NODES} values up to here, with aliases expanded")));
        }
        Ok(())
    }

    fn problem(&self, at: Marker, message: impl Into<String>) -> ConfigProblem {
        ConfigProblem::new(self.source.at(at), dotted(&self.path()), message)
    }

    /// The path of the node that comes next.
    fn path(&self) -> Vec<Step> {
        let step = |open: &Open| match (&open.node.value, &open.key) {
            (Value::List(items), _) => Some(Step::Index(items.len())),
            (_, Some((key, _))) => Some(Step::Key(key.clone())),
            _ => None,
        };
        self.open.iter().filter_map(step).collect()
    }
}

impl Open {
    fn wants_key(&self) -> bool {
        matches!(self.node.value, Value::Map(_)) && self.key.is_none()
    }
}

fn depth(node: &YamlNode) -> usize {
    match node.value {
        Value::List(_) | Value::Map(_) => 1 + node.children().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn too_deep() -> String {
    format!("more than {MAX_DEPTH} levels of nesting")
}

//! Merges the layers: the environment overrides the file, and the flags override both.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::error::{ConfigError, ConfigProblem, Origin, Source};
use super::node::default_data_dir;
use super::tree::{self, Entry, MAX_BYTES, MAX_DEPTH, Step, Value, YamlNode};
use super::{Config, Sources};
use crate::files::open_regular;

/// The prefix of all variables.
const PREFIX: &str = "PEERSCOPE_";

/// The variable that names the file.
const FILE_VARIABLE: &str = "PEERSCOPE_CONFIG";

/// Merges all sources into one tree. Also returns the problems that did not stop reading.
///
/// # Errors
///
/// If the file cannot be read or is not valid YAML.
pub(super) fn assemble(sources: &Sources) -> Result<(YamlNode, Vec<ConfigProblem>), ConfigError> {
    let mut problems = Vec::new();
    let variable = |name: &str| sources.env.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_os_str());

    let named = variable(FILE_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    let mut tree = match (&sources.text, sources.file.as_ref().or(named.as_ref())) {
        (Some((name, text)), _) => {
            let (tree, found) = tree::parse(text, &Source::File(name.as_str().into()))?;
            problems = found;
            tree
        }
        (None, Some(path)) => {
            let name = path.display().to_string();
            let text =
                read(path).map_err(|problem| ConfigProblem::new(Origin::File(name.as_str().into()), "", problem))?;
            if sources.refuse_empty && is_empty(&text) {
                let message = "is empty; write {} for the defaults";
                return Err(ConfigProblem::new(Origin::File(name.into()), "", message).into());
            }
            let (tree, found) = tree::parse(&text, &Source::File(name.into()))?;
            problems = found;
            tree
        }
        (None, None) => YamlNode::new(Value::Map(Vec::new()), Origin::Default),
    };

    // Sorted, so that a whole section comes before its keys.
    let mut variables: Vec<_> = sources.env.iter().filter_map(|(name, value)| Some((ours(name)?, value))).collect();
    variables.sort();
    for (name, value) in variables {
        if name == FILE_VARIABLE || is_service_link(&name, value) {
            continue;
        }
        let rest = name.strip_prefix(PREFIX).unwrap_or_default();
        // Names must be upper case; any other is kept as it is, to be rejected as unknown.
        let key = if rest.chars().any(char::is_lowercase) { rest.to_owned() } else { rest.to_lowercase() };
        let key = key.replace("__", ".");
        let origin = Origin::Env { name: name.as_str().into(), key: key.clone() };
        match value.to_str() {
            Some(value) => lay_over(&mut tree, &key, value, origin, &mut problems),
            None => problems.push(ConfigProblem::new(origin, key, "the value is not valid UTF-8")),
        }
    }
    for (key, value, flag) in &sources.flags {
        lay_over(&mut tree, key, value, Origin::Flag { flag, key }, &mut problems);
    }

    let data_dir = [Step::Key("node".into()), Step::Key("data_dir".into())];
    if data_dir.iter().try_fold(&tree, |node, step| node.child(step)).is_none() {
        // The default depends on the given environment, not on the process's own.
        if let Some(path) = default_data_dir(variable).to_str() {
            let value = YamlNode::new(Value::Scalar { text: path.to_owned(), plain: false }, Origin::Default);
            let node = nest(["node", "data_dir"], value);
            // If `node` is not a mapping, decoding reports it; a second problem would not help.
            merge(&mut tree, node, &mut Vec::new());
        }
    }
    Ok((tree, problems))
}

fn ours(name: &OsStr) -> Option<String> {
    let name = name.to_string_lossy();
    name.starts_with(PREFIX).then(|| name.into_owned())
}

/// Kubernetes sets variables in every container for the services of its namespace. A service called `peerscope` must
/// not keep the agent from starting.
fn is_service_link(name: &str, value: &OsString) -> bool {
    if name.contains("__") {
        return false;
    }
    let digits_and_protocol = |rest: &str| {
        let mut parts = rest.split('_');
        parts.next().is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
            && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.split("_PORT_").skip(1).any(digits_and_protocol)
        || (name.ends_with("_PORT") && value.to_str().is_some_and(|value| value.contains("://")))
}

pub(super) fn read(path: &Path) -> Result<String, String> {
    read_from(File::open(path))
}

/// Like [`read`], for a file that is read again and again: it must be a regular one, since another could block.
pub(super) fn read_regular(path: &Path) -> Result<String, String> {
    read_from(open_regular(path))
}

fn read_from(file: io::Result<File>) -> Result<String, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let mut bytes = Vec::new();
    // Reading one byte more than allowed shows that the file is too large.
    let limit = MAX_BYTES as u64 + 1;
    file.map_err(unreadable)?.take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MAX_BYTES {
        return Err(format!("is larger than {MAX_BYTES} bytes"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes().iter().take(error.utf8_error().valid_up_to()).filter(|b| **b == b'\n').count() + 1;
        format!("is not valid UTF-8 (line {line}); save it as UTF-8")
    })
}

/// Whether there is nothing but blank lines and comments.
pub(super) fn is_empty(text: &str) -> bool {
    text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
}

/// Sets the dotted `key` to a value given as YAML.
fn lay_over(tree: &mut YamlNode, key: &str, value: &str, origin: Origin, problems: &mut Vec<ConfigProblem>) {
    let keys: Vec<&str> = key.split('.').collect();
    if keys.len() > MAX_DEPTH {
        problems.push(ConfigProblem::new(origin, key, "sets no known key"));
        return;
    }
    let mut node = match tree::parse(value, &Source::Value(origin.clone())) {
        Ok((node, found)) => {
            problems.extend(found.into_iter().map(|problem| ConfigProblem { key: key.to_owned(), ..problem }));
            node
        }
        Err(error) => {
            let why = error.problems().first().map(|problem| problem.message.clone()).unwrap_or_default();
            YamlNode::new(Value::Unreadable(why), origin.clone())
        }
    };
    // Empty text is an empty mapping in a file, but an empty value here.
    if value.trim().is_empty() {
        node.value = Value::Scalar { text: String::new(), plain: true };
    }
    node.raw = Some(value.to_owned());
    merge(tree, nest(keys, node), problems);
}

/// Wraps `node` in the mappings that lead to it.
fn nest<'a>(keys: impl IntoIterator<Item = &'a str, IntoIter: DoubleEndedIterator>, node: YamlNode) -> YamlNode {
    keys.into_iter().rev().fold(node, |node, key| {
        let origin = node.origin.clone();
        YamlNode::new(Value::Map(vec![Entry { key: key.to_owned(), key_origin: origin.clone(), node }]), origin)
    })
}

/// Merges `over` into `base`: mappings key by key, everything else as a whole. The recursion is bounded by the depth of
/// a tree.
fn merge(base: &mut YamlNode, over: YamlNode, problems: &mut Vec<ConfigProblem>) {
    let null = base.is_null();
    match (&mut base.value, over) {
        (Value::Map(existing), YamlNode { value: Value::Map(entries), .. }) => {
            for entry in entries {
                match existing.iter_mut().find(|e| e.key == entry.key) {
                    Some(found) => merge(&mut found.node, entry.node, problems),
                    None => existing.push(entry),
                }
            }
        }
        // A mapping without raw text only leads to the key that is set.
        (_, YamlNode { value: Value::Map(_), raw: None, origin, .. }) if !null => {
            let message = match &base.origin {
                Origin::Default => format!("the parent of this key is {}, not a mapping", base.describe()),
                place => format!("the parent of this key is {} ({place}), not a mapping", base.describe()),
            };
            let key = match &origin {
                Origin::Env { key, .. } => key.clone(),
                Origin::Flag { key, .. } => (*key).to_owned(),
                _ => String::new(),
            };
            problems.push(ConfigProblem::new(origin, key, message));
        }
        (_, over) => *base = over,
    }
}

/// Every dotted key that is not a section. Taken from the default configuration, so that none can be forgotten.
pub(super) fn known_keys() -> Vec<String> {
    values(&Config::default()).into_keys().collect()
}

/// The value of every dotted key that is not a section.
pub(super) fn values(config: &Config) -> BTreeMap<String, serde_json::Value> {
    fn walk(value: serde_json::Value, path: &str, values: &mut BTreeMap<String, serde_json::Value>) {
        match value {
            serde_json::Value::Object(map) => {
                for (key, value) in map {
                    walk(value, &if path.is_empty() { key } else { format!("{path}.{key}") }, values);
                }
            }
            value => drop(values.insert(path.to_owned(), value)),
        }
    }
    let mut values = BTreeMap::new();
    walk(serde_json::to_value(config).unwrap_or_default(), "", &mut values);
    values
}

/// The variable that sets a dotted key.
pub(super) fn env_name(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

//! Serde's view of the tree. The requested type decides what a scalar means, and every error names the innermost value
//! that it is about.

use std::fmt::{self, Display};

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Expected, IntoDeserializer, Unexpected, Visitor};

use super::error::{ConfigProblem, Origin, nearest};
use super::layers::{env_name, known_keys};
use super::tree::{Entry, Step, Value, YamlNode, dotted};
use crate::units::{NOT_SHOWN, may_be_secret, one_line, quoted};

/// The longest message, in characters. Some types repeat the value that they could not parse, however long it is.
const LONGEST_MESSAGE: usize = 400;

pub(super) fn decode<'a, T: Deserialize<'a>>(tree: &'a YamlNode) -> Result<T, DecodeError> {
    T::deserialize(NodeDeserializer(tree)).map_err(|failure| failure.at(&tree.origin))
}

/// The first thing that could not be decoded.
#[derive(Debug)]
pub(super) struct DecodeError {
    /// From the innermost step outwards.
    path: Vec<Step>,
    origin: Option<Origin>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Other(String),
    UnknownKey(String, &'static [&'static str]),
    MissingKey(&'static str),
}

impl DecodeError {
    fn at(mut self, origin: &Origin) -> Self {
        self.origin.get_or_insert_with(|| origin.clone());
        self
    }

    /// Records the place of the value that this is about. The types of other modules repeat what they could not parse,
    /// so a value that may be secret, such as a misplaced Redis URL, is removed from the message.
    fn about(mut self, node: &YamlNode) -> Self {
        if let (None, Kind::Other(message)) = (&self.origin, &mut self.kind) {
            let written = match &node.value {
                Value::Scalar { text, .. } => Some(text),
                _ => None,
            };
            for text in node.raw.iter().chain(written).filter(|text| may_be_secret(text)) {
                *message = message.replace(text.as_str(), NOT_SHOWN);
            }
        }
        self.at(&node.origin)
    }

    fn within(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }

    /// Marks the node that this is about as rejected, so that decoding can go on without it. Returns the problem to
    /// report, unless it only follows from an earlier one.
    pub(super) fn take_out_of(self, tree: &mut YamlNode) -> Option<ConfigProblem> {
        let path: Vec<Step> = self.path.into_iter().rev().collect();
        let mut node = &mut *tree;
        for step in &path {
            // Looked up twice, because the borrow checker extends the borrow of a `child_mut` that returns `None`.
            if node.child(step).is_none_or(|child| child.rejected) {
                break;
            }
            match node.child_mut(step) {
                Some(child) => node = child,
                None => return None,
            }
        }
        node.rejected = true;
        if matches!(self.kind, Kind::MissingKey(_)) && node.children().any(|child| child.rejected) {
            return None;
        }
        let origin = self.origin.unwrap_or(Origin::Default);
        let message = match self.kind {
            Kind::Other(message) => one_line(&message, LONGEST_MESSAGE),
            Kind::MissingKey(key) => format!("`{key}` is missing"),
            Kind::UnknownKey(key, expected) => unknown_key(&key, &origin, expected),
        };
        Some(ConfigProblem::new(origin, dotted(&path), message))
    }
}

fn unknown_key(key: &str, origin: &Origin, expected: &[&'static str]) -> String {
    let known = known_keys();
    if let Origin::Env { name, .. } = origin {
        let names: Vec<String> = known.iter().map(|key| env_name(key)).collect();
        if let Some(near) = nearest(name, names.iter().map(String::as_str)) {
            return format!("sets no known key; did you mean {near}?");
        }
    }
    if let Some(near) = nearest(key, expected.iter().copied()) {
        return format!("unknown key; did you mean `{near}`?");
    }
    // A known key in the wrong section.
    let elsewhere: Vec<_> = known.iter().filter(|known| known.rsplit('.').next() == Some(key)).collect();
    match elsewhere.as_slice() {
        [one] => format!("unknown key; did you mean `{one}`?"),
        _ => format!("unknown key; expected one of {}", expected.join(", ")),
    }
}

impl de::Error for DecodeError {
    fn custom<T: Display>(message: T) -> Self {
        Self { path: Vec::new(), origin: None, kind: Kind::Other(message.to_string()) }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_value(found, expected)
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Str(text) => quoted(text),
            Unexpected::Unit | Unexpected::Option => "nothing".into(),
            Unexpected::Map => "a mapping".into(),
            Unexpected::Seq => "a list".into(),
            other => other.to_string(),
        };
        Self::custom(format_args!("found {found}; expected {expected}"))
    }

    fn unknown_variant(found: &str, expected: &'static [&'static str]) -> Self {
        let hint = match nearest(found, expected.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("expected one of {}", expected.join(", ")),
        };
        Self::custom(format_args!("unknown value {}; {hint}", quoted(found)))
    }

    fn unknown_field(key: &str, expected: &'static [&'static str]) -> Self {
        Self { path: Vec::new(), origin: None, kind: Kind::UnknownKey(key.into(), expected) }
    }

    fn missing_field(key: &'static str) -> Self {
        Self { path: Vec::new(), origin: None, kind: Kind::MissingKey(key) }
    }
}

impl Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)
    }
}

impl std::error::Error for DecodeError {}

#[derive(Clone, Copy)]
struct NodeDeserializer<'a>(&'a YamlNode);

impl<'a> NodeDeserializer<'a> {
    fn wrong(self, needed: impl Display) -> DecodeError {
        let message = match &self.0.value {
            Value::Unreadable(why) => format!("{why}; expected {needed}"),
            _ => format!("found {}; expected {needed}", self.0.describe()),
        };
        <DecodeError as de::Error>::custom(message).at(&self.0.origin)
    }

    /// The text for a key of type text: numbers and booleans as they were written, and the whole value of a variable or
    /// flag, so that `peerscope:` needs no quotes there.
    fn text(self) -> Result<&'a str, DecodeError> {
        match (&self.0.value, &self.0.raw) {
            (Value::Scalar { text, plain: false }, _) => Ok(text),
            (_, Some(raw)) => Ok(raw),
            (Value::Scalar { text, plain: true }, None) if !self.0.is_null() => Ok(text),
            _ => Err(self.wrong("text")),
        }
    }

    fn plain(self) -> Option<&'a str> {
        match &self.0.value {
            Value::Scalar { text, plain: true } => Some(text),
            _ => None,
        }
    }

    fn number(self) -> Option<i128> {
        integer(self.plain()?)
    }

    fn truth(self) -> Option<bool> {
        match self.plain()? {
            "true" | "True" | "TRUE" => Some(true),
            "false" | "False" | "FALSE" => Some(false),
            _ => None,
        }
    }
}

/// An integer of YAML's core schema.
fn integer(text: &str) -> Option<i128> {
    match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
        // `from_str_radix` would also take a sign here.
        (Some(hex), _) if !hex.starts_with(['+', '-']) => i128::from_str_radix(hex, 16).ok(),
        (_, Some(octal)) if !octal.starts_with(['+', '-']) => i128::from_str_radix(octal, 8).ok(),
        _ => text.parse().ok(),
    }
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            let needed = || format!("a whole number from {} to {}", <$type>::MIN, <$type>::MAX);
            let number = self.number().ok_or_else(|| self.wrong(needed()))?;
            visitor.$visit(<$type>::try_from(number).map_err(|_| self.wrong(needed()))?)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for NodeDeserializer<'de> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.0.value {
            Value::List(items) => visitor.visit_seq(Items { items: items.iter().enumerate() }),
            Value::Map(entries) => visitor.visit_map(Entries { entries: entries.iter(), value: None }),
            Value::Unreadable(_) => match &self.0.raw {
                Some(raw) => visitor.visit_str(raw),
                None => Err(self.wrong("valid YAML")),
            },
            Value::Scalar { .. } if self.0.is_null() => visitor.visit_unit(),
            Value::Scalar { text, .. } => match (self.truth(), self.number()) {
                (Some(truth), _) => visitor.visit_bool(truth),
                (_, Some(number)) => match (u64::try_from(number), i64::try_from(number)) {
                    (Ok(number), _) => visitor.visit_u64(number),
                    (_, Ok(number)) => visitor.visit_i64(number),
                    _ => visitor.visit_str(text),
                },
                _ => visitor.visit_str(text),
            },
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_bool(self.truth().ok_or_else(|| self.wrong("true or false"))?)
    }

    integers! {
        deserialize_i8 visit_i8 i8; deserialize_i16 visit_i16 i16; deserialize_i32 visit_i32 i32; deserialize_i64 visit_i64 i64;
        deserialize_u8 visit_u8 u8; deserialize_u16 visit_u16 u16; deserialize_u32 visit_u32 u32; deserialize_u64 visit_u64 u64;
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.0.value {
            Value::List(items) => visitor.visit_seq(Items { items: items.iter().enumerate() }),
            _ => Err(self.wrong("a list, such as [] or one `- item` per line")),
        }
    }

    /// A section without a value (`metrics:` with all its keys commented out) is an empty one.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match &self.0.value {
            _ if self.0.rejected || self.0.is_null() => visitor.visit_map(Entries { entries: [].iter(), value: None }),
            Value::Map(entries) => visitor.visit_map(Entries { entries: entries.iter(), value: None }),
            _ => Err(self.wrong("a mapping with one `key: value` per line")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_enum(self.text()?.into_deserializer()).map_err(|failure: DecodeError| failure.at(&self.0.origin))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, YamlNode>>,
}

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, DecodeError> {
        match self.items.find(|(_, node)| !node.rejected) {
            None => Ok(None),
            Some((index, node)) => seed
                .deserialize(NodeDeserializer(node))
                .map(Some)
                .map_err(|failure| failure.about(node).within(Step::Index(index))),
        }
    }
}

struct Entries<'a> {
    entries: std::slice::Iter<'a, Entry>,
    value: Option<&'a Entry>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        self.value = self.entries.find(|entry| !entry.node.rejected);
        match self.value {
            None => Ok(None),
            Some(entry) => seed
                .deserialize(entry.key.as_str().into_deserializer())
                .map(Some)
                .map_err(|failure: DecodeError| failure.at(&entry.key_origin).within(Step::Key(entry.key.clone()))),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DecodeError> {
        let Some(entry) = self.value.take() else {
            return Err(de::Error::custom("a value was requested before its key"));
        };
        seed.deserialize(NodeDeserializer(&entry.node))
            .map_err(|failure| failure.about(&entry.node).within(Step::Key(entry.key.clone())))
    }
}

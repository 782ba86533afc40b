//! A model of the values that may be read under each key.

use std::collections::BTreeMap;

pub(super) type Value = Option<Vec<u8>>;

/// The values that a key may have, oldest first: the known one, followed by those of later writes with unknown
/// outcomes.
#[derive(Debug, Default)]
pub(super) struct Model {
    keys: BTreeMap<Vec<u8>, Vec<Value>>,
}

impl Model {
    /// The write was acknowledged: no older value may be read any more.
    pub(super) fn acknowledged(&mut self, key: &[u8], value: Value) {
        self.keys.insert(key.to_vec(), vec![value]);
    }

    /// The write may take effect, now or later.
    pub(super) fn may_happen(&mut self, key: &[u8], value: Value) {
        self.keys.entry(key.to_vec()).or_insert_with(|| vec![None]).push(value);
    }

    /// `value` was read. No older value may be read any more.
    pub(super) fn read(&mut self, key: &[u8], value: &Value) -> Result<(), String> {
        let Some(values) = self.keys.get_mut(key) else {
            return if value.is_none() { Ok(()) } else { Err(format!("{value:.60?} was never written")) };
        };
        match values.iter().position(|known| known == value) {
            Some(at) => {
                values.drain(..at);
                Ok(())
            }
            None => Err(format!(
                "read {}, expected one of {:?}",
                short(value),
                values.iter().map(short).collect::<Vec<_>>()
            )),
        }
    }

    /// Whether the key has a value; `None` if that is unknown.
    pub(super) fn exists(&self, key: &[u8]) -> Option<bool> {
        match self.keys.get(key).map(Vec::as_slice) {
            None => Some(false),
            Some([value]) => Some(value.is_some()),
            Some(_) => None,
        }
    }

    pub(super) fn keys(&self) -> Vec<Vec<u8>> {
        self.keys.keys().cloned().collect()
    }
}

/// The number with which each value begins.
fn short(value: &Value) -> String {
    match value {
        None => "nothing".into(),
        Some(value) => String::from_utf8_lossy(value.split(|&byte| byte == b';').next().unwrap_or_default()).into(),
    }
}

//! What may be read of each key.

use std::collections::BTreeMap;

pub(super) type Value = Option<Vec<u8>>;

/// The values that a key may have, oldest first: the one that is known, and those of writes since then whose outcome
/// nobody knows.
#[derive(Debug, Default)]
pub(super) struct Model {
    keys: BTreeMap<Vec<u8>, Vec<Value>>,
}

impl Model {
    /// The write was acknowledged: nothing older may be read any more.
    pub(super) fn acknowledged(&mut self, key: &[u8], value: Value) {
        self.keys.insert(key.to_vec(), vec![value]);
    }

    /// The write may happen, now or later.
    pub(super) fn may_happen(&mut self, key: &[u8], value: Value) {
        self.keys.entry(key.to_vec()).or_insert_with(|| vec![None]).push(value);
    }

    /// `value` was read. What has been seen stays: nothing older may be read after it.
    pub(super) fn read(&mut self, key: &[u8], value: &Value) -> Result<(), String> {
        let Some(values) = self.keys.get_mut(key) else {
            return if value.is_none() { Ok(()) } else { Err(format!("{value:.60?} was never written")) };
        };
        match values.iter().position(|known| known == value) {
            Some(at) => {
                values.drain(..at);
                Ok(())
            }
            None => {
                Err(format!("read {}, and may be {:?}", short(value), values.iter().map(short).collect::<Vec<_>>()))
            }
        }
    }

    /// Whether the key has a value, where that is known.
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

/// Values begin with a number of their own.
fn short(value: &Value) -> String {
    match value {
        None => "nothing".into(),
        Some(value) => String::from_utf8_lossy(value.split(|&byte| byte == b';').next().unwrap_or_default()).into(),
    }
}

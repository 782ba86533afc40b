//! Limits how many scrapes of the same thing are under way at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// How many scrapes are under way for each key.
#[derive(Debug)]
pub(super) struct Lanes<K>(Arc<Mutex<HashMap<K, usize>>>);

impl<K> Default for Lanes<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Clone + Eq + Hash> Lanes<K> {
    /// A place for a scrape of `key`, held until it is dropped; `None` if `most` are under way already.
    pub(super) fn enter(&self, key: K, most: usize) -> Option<Lane<K>> {
        let mut lanes = self.0.lock();
        let under_way = lanes.entry(key.clone()).or_default();
        if *under_way >= most {
            return None;
        }
        *under_way += 1;
        Some(Lane { lanes: Arc::clone(&self.0), key })
    }
}

/// One place of a key.
#[derive(Debug)]
pub(super) struct Lane<K: Eq + Hash> {
    lanes: Arc<Mutex<HashMap<K, usize>>>,
    key: K,
}

impl<K: Eq + Hash> Drop for Lane<K> {
    fn drop(&mut self) {
        let mut lanes = self.lanes.lock();
        if let Some(under_way) = lanes.get_mut(&self.key) {
            *under_way -= 1;
            if *under_way == 0 {
                lanes.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_own_places_and_gets_them_back() {
        let lanes = Lanes::default();
        let mut held: Vec<_> = (0..8).map(|_| lanes.enter("a", 8).unwrap()).collect();
        assert!(lanes.enter("a", 8).is_none());
        assert!(lanes.enter("b", 8).is_some());
        held.pop();
        held.push(lanes.enter("a", 8).unwrap());
        assert!(lanes.enter("a", 8).is_none());
        drop(held);
        assert!(lanes.0.lock().is_empty());
    }
}

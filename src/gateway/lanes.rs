//! How often one page is asked for at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Scrapes of one page that are under way or wait for a place: those of several Prometheus servers, and of people. Who asks
/// again before the page has come is to take nothing from others.
const MAX_OF_ONE: usize = 8;

/// The scrapes under way, by the page that they are for.
#[derive(Debug)]
pub(super) struct Lanes<K>(Arc<Mutex<HashMap<K, usize>>>);

impl<K> Default for Lanes<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Clone + Eq + Hash> Lanes<K> {
    /// A place for a scrape of this page, until it is dropped; `None` when there are too many.
    pub(super) fn enter(&self, key: K) -> Option<Lane<K>> {
        let mut lanes = lock(&self.0);
        let under_way = lanes.entry(key.clone()).or_default();
        if *under_way >= MAX_OF_ONE {
            return None;
        }
        *under_way += 1;
        Some(Lane { lanes: Arc::clone(&self.0), key })
    }
}

/// A place.
#[derive(Debug)]
pub(super) struct Lane<K: Eq + Hash> {
    lanes: Arc<Mutex<HashMap<K, usize>>>,
    key: K,
}

impl<K: Eq + Hash> Drop for Lane<K> {
    fn drop(&mut self) {
        let mut lanes = lock(&self.lanes);
        if let Some(under_way) = lanes.get_mut(&self.key) {
            *under_way -= 1;
            if *under_way == 0 {
                lanes.remove(&self.key);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_its_own_places_and_gives_them_back() {
        let lanes = Lanes::default();
        let mut held: Vec<_> = (0..MAX_OF_ONE).map(|_| lanes.enter("a").unwrap()).collect();
        assert!(lanes.enter("a").is_none());
        assert!(lanes.enter("b").is_some());
        held.pop();
        held.push(lanes.enter("a").unwrap());
        assert!(lanes.enter("a").is_none());
        drop(held);
        assert!(lock(&lanes.0).is_empty());
    }
}

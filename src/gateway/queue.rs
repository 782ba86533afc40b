//! Who is fetched when: one scrape of a page at a time, so many in all, and one fetch for all who ask for the same.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::Semaphore;

/// Scrapes of one peer that are under way or wait for their turn, those not counted that joined another.
const MAX_OF_ONE: usize = 64;

/// The scrapes under way. `K` says whom a lane is for, `W` what is wanted, `T` what comes of it.
#[derive(Debug)]
pub(super) struct Queue<K, W, T: Clone> {
    table: Arc<Mutex<Table<K, W, T>>>,
}

#[derive(Debug)]
struct Table<K, W, T: Clone> {
    lanes: HashMap<K, Lane<W, T>>,
    next_id: u64,
}

/// What is wanted of one peer.
#[derive(Debug)]
struct Lane<W, T: Clone> {
    /// One permit: whoever has it is being served.
    turn: Arc<Semaphore>,
    /// Weak, so that a scrape ends when nobody waits for it any more.
    under_way: HashMap<W, (u64, WeakShared<BoxFuture<'static, T>>)>,
}

/// Too many different things are wanted of one peer.
#[derive(Debug)]
pub(super) struct Full;

impl<K, W, T> Queue<K, W, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    W: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    pub(super) fn new() -> Self {
        Self { table: Arc::new(Mutex::new(Table { lanes: HashMap::new(), next_id: 0 })) }
    }

    /// Joins the scrape of `key` that is under way for `want`, or begins the one that `begin` makes; that one waits
    /// for the permit of its lane. It is dropped when everybody who waits for it is gone.
    pub(super) fn join(
        &self,
        key: K,
        want: &W,
        begin: impl FnOnce(Arc<Semaphore>) -> BoxFuture<'static, T>,
    ) -> Result<Shared<BoxFuture<'static, T>>, Full> {
        let mut table = lock(&self.table);
        table.next_id += 1;
        let id = table.next_id;
        let lane = table
            .lanes
            .entry(key.clone())
            .or_insert_with(|| Lane { turn: Arc::new(Semaphore::new(1)), under_way: HashMap::new() });
        if let Some(joined) = lane.under_way.get(want).and_then(|(_, scrape)| scrape.upgrade()) {
            return Ok(joined);
        }
        if lane.under_way.len() >= MAX_OF_ONE {
            return Err(Full);
        }
        let leave = Leave { table: Arc::clone(&self.table), key, want: want.clone(), id };
        let work = begin(Arc::clone(&lane.turn));
        let scrape = async move {
            let _leave = leave;
            work.await
        };
        let scrape = scrape.boxed().shared();
        if let Some(weak) = scrape.downgrade() {
            lane.under_way.insert(want.clone(), (id, weak));
        }
        Ok(scrape)
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        lock(&self.table).lanes.is_empty()
    }
}

/// Takes a scrape out of the table when it ends, however it ends.
struct Leave<K: Eq + Hash, W: Eq + Hash, T: Clone> {
    table: Arc<Mutex<Table<K, W, T>>>,
    key: K,
    want: W,
    id: u64,
}

impl<K: Eq + Hash, W: Eq + Hash, T: Clone> Drop for Leave<K, W, T> {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        if let Some(lane) = table.lanes.get_mut(&self.key) {
            // Somebody may have begun anew after everybody had left this one.
            if lane.under_way.get(&self.want).is_some_and(|(id, _)| *id == self.id) {
                lane.under_way.remove(&self.want);
            }
            if lane.under_way.is_empty() {
                table.lanes.remove(&self.key);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

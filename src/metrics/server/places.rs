//! The places for connections: who has one, and who gives his up when somebody new comes.
//!
//! A place is lost by waiting. Silence is cheap, so whoever only connects must not be able to keep others
//! out; and whoever asks at once is answered before it is his turn to go, because all who are silent go
//! first. Who holds every other place by asking without pause can still make him wait again.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

/// What the accept loop may know of a connection.
#[derive(Debug)]
pub(super) struct Place {
    /// Counts what useful clients do, all of them: an order in time that two of them cannot share.
    turns: Arc<AtomicU64>,
    /// The turn from which on the client has been waited for.
    waiting_since: AtomicU64,
    answering: AtomicBool,
    /// When an answer that comes bit by bit ends at the latest.
    streams_until: Mutex<Option<Instant>>,
}

impl Place {
    fn new(turns: &Arc<AtomicU64>) -> Arc<Self> {
        let place = Self {
            turns: Arc::clone(turns),
            waiting_since: 0.into(),
            answering: false.into(),
            streams_until: Mutex::default(),
        };
        place.useful();
        Arc::new(place)
    }

    /// The client has taken some of its answer. (Some of a request is nothing yet: bytes that come one by
    /// one would keep a place for the price of one packet each.)
    pub(super) fn useful(&self) {
        self.waiting_since.store(self.turns.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Until the guard is dropped an answer is being made, and nobody takes the place.
    pub(super) fn answering(self: &Arc<Self>) -> Answering {
        self.answering.store(true, Ordering::Relaxed);
        Answering(Arc::clone(self))
    }

    pub(super) fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed)
    }

    /// When the answer that is under way ends at the latest, if it comes bit by bit.
    pub(super) fn streams_until(&self) -> Option<Instant> {
        *self.streams_until.lock()
    }

    fn set_streams_until(&self, until: Option<Instant>) {
        *self.streams_until.lock() = until;
    }

    /// `None` while the client waits for us.
    fn waiting_since(&self) -> Option<u64> {
        (!self.is_answering()).then(|| self.waiting_since.load(Ordering::Relaxed))
    }
}

/// An answer is being made.
pub(super) struct Answering(Arc<Place>);

impl Answering {
    /// It comes bit by bit.
    pub(super) fn stream_until(&self, until: Instant) {
        self.0.set_streams_until(Some(until));
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.useful();
        self.0.set_streams_until(None);
        self.0.answering.store(false, Ordering::Relaxed);
    }
}

/// The table of connections, owned by the accept loop. Never more than `limit` of them are open.
pub(super) struct Places {
    limit: usize,
    turns: Arc<AtomicU64>,
    tasks: JoinSet<()>,
    table: HashMap<Id, (Arc<Place>, AbortHandle)>,
}

impl Places {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, turns: Arc::default(), tasks: JoinSet::new(), table: HashMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Runs what `serve` makes of a place, in the place of the longest waiting one if there is no other.
    /// When nobody waits it is not run: what it holds, the new connection, is closed.
    pub(super) async fn admit<F>(&mut self, serve: impl FnOnce(Arc<Place>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.table.len() >= self.limit {
            self.look().await;
        }
        while self.table.len() >= self.limit {
            if !self.close_one().await {
                return;
            }
        }
        let place = Place::new(&self.turns);
        let task = self.tasks.spawn(serve(Arc::clone(&place)));
        self.table.insert(task.id(), (place, task));
    }

    /// Closes the half that has waited longer; `false` when there was nobody to close.
    pub(super) async fn close_half(&mut self) -> bool {
        let before = self.table.len();
        while self.table.len() > before / 2 && self.close_one().await {}
        self.table.len() < before
    }

    /// Completes when a connection has ended.
    pub(super) async fn ended(&mut self) {
        if let Some(ended) = self.tasks.join_next_with_id().await {
            self.remove(ended);
        }
    }

    /// Has every connection notice what its client has sent, and what has ended by itself: a request that is
    /// here already must not be taken for silence. After the first turn of the runtime it has asked the
    /// kernel, after the second one the connections that this woke have run.
    async fn look(&mut self) {
        for _ in 0..2 {
            tokio::task::yield_now().await;
        }
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.remove(ended);
        }
    }

    /// Closes the connection that has waited for its client the longest, and waits until it is closed.
    async fn close_one(&mut self) -> bool {
        let waiting = self.table.values().filter_map(|(place, task)| Some((place.waiting_since()?, task)));
        let Some((_, longest)) = waiting.min_by_key(|(since, _)| *since) else { return false };
        longest.abort();
        self.ended().await;
        true
    }

    fn remove(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                if !error.is_cancelled() {
                    tracing::error!("a connection of the metrics endpoint ended in a defect: {error}");
                }
                error.id()
            }
        };
        self.table.remove(&id);
    }
}

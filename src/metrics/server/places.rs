//! The places for connections: which clients have one, and which of them loses it to a new client.
//!
//! The connection that has waited longest for its client is closed first. Silence costs a client nothing,
//! so clients that only connect must not keep others out. A client that sends its request at once is
//! answered before its turn to be closed comes, because all silent ones are closed first. Only clients that
//! hold every other place by sending requests without pause can still push it out.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

/// What the accept loop knows about a connection.
#[derive(Debug)]
pub(super) struct Place {
    /// Counts the useful events of all clients, which puts them in order: no two have the same turn.
    turns: Arc<AtomicU64>,
    /// The turn since which the connection has waited for its client.
    waiting_since: AtomicU64,
    answering: AtomicBool,
    /// The latest end of a streamed response.
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

    /// Notes that the client has read some of its response. (Sending part of a request does not count:
    /// otherwise single bytes would keep a place at the price of one packet each.)
    pub(super) fn useful(&self) {
        self.waiting_since.store(self.turns.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Until the guard is dropped, a response is being made and the place cannot be taken.
    pub(super) fn answering(self: &Arc<Self>) -> Answering {
        self.answering.store(true, Ordering::Relaxed);
        Answering(Arc::clone(self))
    }

    pub(super) fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed)
    }

    /// The latest end of the response in progress, if it is streamed.
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

/// A response is being made.
pub(super) struct Answering(Arc<Place>);

impl Answering {
    /// The response is streamed, and ends at `until` at the latest.
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

/// The table of connections, owned by the accept loop.
pub(super) struct Places {
    turns: Arc<AtomicU64>,
    tasks: JoinSet<()>,
    table: HashMap<Id, (Arc<Place>, AbortHandle)>,
}

impl Places {
    pub(super) fn new() -> Self {
        Self { turns: Arc::default(), tasks: JoinSet::new(), table: HashMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Runs the future that `serve` makes from a place. If `limit` places are taken, the connection that has waited
    /// longest for its client loses its own. If none is waiting for its client, `serve` is dropped, which
    /// closes the new connection.
    pub(super) async fn admit<F>(&mut self, limit: usize, serve: impl FnOnce(Arc<Place>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.table.len() >= limit {
            self.look().await;
        }
        while self.table.len() >= limit {
            if !self.close_one().await {
                return;
            }
        }
        let place = Place::new(&self.turns);
        let task = self.tasks.spawn(serve(Arc::clone(&place)));
        self.table.insert(task.id(), (place, task));
    }

    /// Closes half of the connections, those that have waited longest for their clients; `false` if it closed none.
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

    /// Lets every connection notice what its client has sent, and removes those that have ended: a request
    /// that has already arrived must not be mistaken for silence. In its first turn, the runtime polls the
    /// kernel; in its second, it runs the connections that this woke.
    async fn look(&mut self) {
        for _ in 0..2 {
            tokio::task::yield_now().await;
        }
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.remove(ended);
        }
    }

    /// Closes the connection that has waited longest for its client, and waits until it is closed; `false` if
    /// none is waiting.
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
                    tracing::error!("a bug ended a connection to the metrics endpoint: {error}");
                }
                error.id()
            }
        };
        self.table.remove(&id);
    }
}

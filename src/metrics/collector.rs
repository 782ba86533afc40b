//! The collector: every family's handles, and one short method an event.

use std::sync::Arc;
use std::time::Instant;

use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::AgentInfo;
use super::catalogue as c;
use super::instruments::{By, Counter, Gauge, Histogram, register, single};
use super::labels::{
    Backend, FailedMessage, FailureReason, HttpCode, HttpHandler, MessageType, Operation, SendFailure,
    StorageErrorReason,
};

/// Records what the agent does. Cloning shares the same numbers.
#[derive(Debug, Clone)]
pub struct MetricsCollector {
    families: Arc<Families>,
}

#[derive(Debug)]
struct Families {
    peers_connected: Gauge,
    messages_received: By<MessageType, Counter>,
    message_processing: By<MessageType, Histogram>,
    messages_failed: By<(FailedMessage, FailureReason), Counter>,
    messages_sent: By<MessageType, Counter>,
    message_round_trip: By<MessageType, Histogram>,
    send_failures: By<(MessageType, SendFailure), Counter>,
    storage_operations: By<(Operation, Backend), Counter>,
    storage_duration: By<(Operation, Backend), Histogram>,
    storage_errors: By<(Operation, Backend, StorageErrorReason), Counter>,
    storage_in_flight: By<Backend, Gauge>,
    local_batch: Histogram,
    redis_reconnects: Counter,
    redis_retries: Counter,
    http_requests: By<(HttpHandler, HttpCode), Counter>,
    http_in_flight: By<HttpHandler, Gauge>,
    scrape_duration: Histogram,
}

/// When something that is measured began.
#[derive(Debug, Clone, Copy)]
pub struct Timer(Instant);

impl Timer {
    /// Starts now.
    #[inline]
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    #[inline]
    fn seconds(self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}

/// Counts one thing that is under way until it is dropped.
#[derive(Debug)]
#[must_use = "the gauge falls again when this is dropped"]
pub struct InFlight(Gauge);

impl InFlight {
    fn enter(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl MetricsCollector {
    /// Registers every family in `registry`.
    pub fn new(registry: &mut Registry, agent: &AgentInfo) -> Self {
        register(registry, &c::BUILD_INFO, Info::new(build_labels()));
        register(
            registry,
            &c::AGENT_INFO,
            Info::new(vec![("peer_id", agent.peer_id.clone()), ("name", agent.name.clone())]),
        );
        let families = Families {
            peers_connected: single(registry, &c::PEERS_CONNECTED),
            messages_received: By::new(registry, &c::MESSAGES_RECEIVED),
            message_processing: By::new(registry, &c::MESSAGE_PROCESSING),
            messages_failed: By::new(registry, &c::MESSAGES_FAILED),
            messages_sent: By::new(registry, &c::MESSAGES_SENT),
            message_round_trip: By::new(registry, &c::MESSAGE_ROUND_TRIP),
            send_failures: By::new(registry, &c::MESSAGES_SEND_FAILURES),
            storage_operations: By::new(registry, &c::STORAGE_OPERATIONS),
            storage_duration: By::new(registry, &c::STORAGE_DURATION),
            storage_errors: By::new(registry, &c::STORAGE_ERRORS),
            storage_in_flight: By::new(registry, &c::STORAGE_IN_FLIGHT),
            local_batch: single(registry, &c::STORAGE_LOCAL_BATCH),
            redis_reconnects: single(registry, &c::STORAGE_REDIS_RECONNECTS),
            redis_retries: single(registry, &c::STORAGE_REDIS_RETRIES),
            http_requests: By::new(registry, &c::HTTP_REQUESTS),
            http_in_flight: By::new(registry, &c::HTTP_IN_FLIGHT),
            scrape_duration: single(registry, &c::SCRAPE_DURATION),
        };
        Self { families: Arc::new(families) }
    }

    /// The number of peers with at least one live connection.
    pub fn set_peers_connected(&self, peers: usize) {
        self.families.peers_connected.set(i64::try_from(peers).unwrap_or(i64::MAX));
    }

    /// A message from a peer was handled successfully; `timer` started when it was decoded.
    #[inline]
    pub fn message_handled(&self, kind: MessageType, timer: Timer) {
        self.families.messages_received.of(kind).inc();
        self.families.message_processing.of(kind).observe(timer.seconds());
    }

    /// A message from a peer could not be handled.
    #[inline]
    pub fn message_failed(&self, kind: FailedMessage, reason: FailureReason) {
        self.families.messages_failed.of((kind, reason)).inc();
    }

    /// A peer answered a request of ours; `timer` started when the request was made.
    #[inline]
    pub fn message_sent(&self, kind: MessageType, timer: Timer) {
        self.families.messages_sent.of(kind).inc();
        self.families.message_round_trip.of(kind).observe(timer.seconds());
    }

    /// A request of ours failed.
    #[inline]
    pub fn send_failed(&self, kind: MessageType, reason: SendFailure) {
        self.families.send_failures.of((kind, reason)).inc();
    }

    /// A storage operation begins; it counts as under way until the guard is dropped.
    #[inline]
    pub fn storage_started(&self, backend: Backend) -> InFlight {
        InFlight::enter(self.families.storage_in_flight.of(backend))
    }

    /// A storage operation completed, well or not.
    #[inline]
    pub fn storage_completed(
        &self,
        operation: Operation,
        backend: Backend,
        timer: Timer,
        outcome: Result<(), StorageErrorReason>,
    ) {
        self.families.storage_operations.of((operation, backend)).inc();
        self.families.storage_duration.of((operation, backend)).observe(timer.seconds());
        if let Err(reason) = outcome {
            self.families.storage_errors.of((operation, backend, reason)).inc();
        }
    }

    /// One durable transaction of the embedded store carried `writes` writes.
    pub fn local_commit(&self, writes: usize) {
        #[allow(clippy::cast_precision_loss, reason = "a batch is far smaller than 2^52")]
        self.families.local_batch.observe(writes as f64);
    }

    /// The connection to Redis was made again after a loss.
    pub fn redis_reconnected(&self) {
        self.families.redis_reconnects.inc();
    }

    /// A Redis command is tried again.
    pub fn redis_retried(&self) {
        self.families.redis_retries.inc();
    }

    /// The endpoint begins to answer a request.
    pub fn http_started(&self, handler: HttpHandler) -> InFlight {
        InFlight::enter(self.families.http_in_flight.of(handler))
    }

    /// The endpoint answered a request.
    pub fn http_answered(&self, handler: HttpHandler, code: HttpCode) {
        self.families.http_requests.of((handler, code)).inc();
    }

    /// One exposition was made; `timer` started with it.
    pub fn scraped(&self, timer: Timer) {
        self.families.scrape_duration.observe(timer.seconds());
    }
}

fn build_labels() -> Vec<(&'static str, &'static str)> {
    vec![
        ("version", env!("CARGO_PKG_VERSION")),
        ("revision", env!("BUILD_REVISION")),
        ("rustc", env!("BUILD_RUSTC")),
        ("target", env!("BUILD_TARGET")),
    ]
}

//! The collector: every family's instrument, and one short method for each event.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::AgentInfo;
use super::catalogue::{self as c, Descriptor};
use super::instruments::{
    BATCH_BOUNDS, Buckets, BucketsError, Counter, DURATION_BOUNDS, Events, Gauge, Histogram, InFlight, LabelSet, Timer,
    UnderWay, warm_up,
};
use super::labels::{
    Backend, ConnectionRefusal, Contact, FailedMessage, FailureReason, HttpCode, HttpHandler, MessageType, Operation,
    SendFailure, StorageErrorReason,
};
use super::registry::{Expose, Info, Instrument, Registry, log_if_refused};

/// Records what the agent does. Clones share the same numbers.
#[derive(Debug, Clone)]
pub struct MetricsCollector {
    families: Arc<Families>,
}

#[derive(Debug)]
struct Families {
    agent: Arc<Info>,
    config_successful: Gauge<()>,
    config_success_time: Gauge<()>,
    config_hash: Gauge<()>,
    bootstrap_peers: Gauge<Contact>,
    connections_refused: Counter<ConnectionRefusal>,
    peers_connected: Gauge<()>,
    messages_received: Events<MessageType>,
    messages_failed: Counter<(FailedMessage, FailureReason)>,
    messages_sent: Events<MessageType>,
    send_failures: Counter<(MessageType, SendFailure)>,
    storage_operations: Events<(Operation, Backend)>,
    storage_errors: Counter<(Operation, Backend, StorageErrorReason)>,
    storage_in_flight: InFlight<Backend>,
    local_batch: Histogram<()>,
    redis_reconnects: Counter<()>,
    redis_retries: Counter<()>,
    http_requests: Counter<(HttpHandler, HttpCode)>,
    http_in_flight: InFlight<HttpHandler>,
    scrape_duration: Histogram<()>,
}

impl MetricsCollector {
    /// Registers every family in `registry`. A family with a name that is already taken there is recorded but
    /// not shown, which is logged.
    pub fn new(registry: &Registry, agent: &AgentInfo) -> Self {
        warm_up();
        let durations = buckets(Buckets::durations(&DURATION_BOUNDS, registry.native_histograms()));
        let batches = buckets(Buckets::numbers(&BATCH_BOUNDS, registry.native_histograms()));
        let add = Add { registry, durations: &durations };
        add.info(&c::BUILD_INFO, &build_labels());
        let families = Families {
            agent: add.info(&c::AGENT_INFO, &agent.labels()),
            config_successful: add.instrument(&c::CONFIG_SUCCESSFUL, Gauge::new()),
            config_success_time: add.instrument(&c::CONFIG_SUCCESS_TIME, Gauge::new()),
            config_hash: add.instrument(&c::CONFIG_HASH, Gauge::new()),
            bootstrap_peers: add.instrument(&c::BOOTSTRAP_PEERS, Gauge::new()),
            connections_refused: add.instrument(&c::CONNECTIONS_REFUSED, Counter::new()),
            peers_connected: add.instrument(&c::PEERS_CONNECTED, Gauge::new()),
            messages_received: add.events(&c::MESSAGES_RECEIVED, &c::MESSAGE_PROCESSING),
            messages_failed: add.instrument(&c::MESSAGES_FAILED, Counter::new()),
            messages_sent: add.events(&c::MESSAGES_SENT, &c::MESSAGE_ROUND_TRIP),
            send_failures: add.instrument(&c::MESSAGES_SEND_FAILURES, Counter::new()),
            storage_operations: add.events(&c::STORAGE_OPERATIONS, &c::STORAGE_DURATION),
            storage_errors: add.instrument(&c::STORAGE_ERRORS, Counter::new()),
            storage_in_flight: add.instrument(&c::STORAGE_IN_FLIGHT, InFlight::new()),
            local_batch: add.instrument(&c::STORAGE_LOCAL_BATCH, Histogram::new(&batches)),
            redis_reconnects: add.instrument(&c::STORAGE_REDIS_RECONNECTS, Counter::new()),
            redis_retries: add.instrument(&c::STORAGE_REDIS_RETRIES, Counter::new()),
            http_requests: add.instrument(&c::HTTP_REQUESTS, Counter::new()),
            http_in_flight: add.instrument(&c::HTTP_IN_FLIGHT, InFlight::new()),
            scrape_duration: add.instrument(&c::SCRAPE_DURATION, Histogram::new(&durations)),
        };
        Self { families: Arc::new(families) }
    }

    /// The agent's name has changed.
    pub fn set_agent(&self, agent: &AgentInfo) {
        self.families.agent.set(&agent.labels());
    }

    /// The configuration was read; `hash` is that of what runs now.
    pub fn config_read(&self, hash: u64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.families.config_successful.set((), 1);
        self.families.config_success_time.set((), i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        self.families.config_hash.set((), hash.cast_signed());
    }

    /// The configuration could not be read again.
    pub fn config_rejected(&self) {
        self.families.config_successful.set((), 0);
    }

    /// Sets how many of the peers that the agent stays connected to are in this state.
    pub fn set_bootstrap_peers(&self, state: Contact, peers: usize) {
        self.families.bootstrap_peers.set(state, i64::try_from(peers).unwrap_or(i64::MAX));
    }

    /// A peer's connection was refused.
    pub fn connection_refused(&self, reason: ConnectionRefusal) {
        self.families.connections_refused.inc(reason);
    }

    /// Sets the number of peers with at least one live connection.
    pub fn set_peers_connected(&self, peers: usize) {
        self.families.peers_connected.set((), i64::try_from(peers).unwrap_or(i64::MAX));
    }

    /// A message from a peer was handled successfully; `timer` started when it was decoded.
    #[inline]
    pub fn message_handled(&self, kind: MessageType, timer: Timer) {
        self.families.messages_received.record_since(kind, timer);
    }

    /// A message from a peer could not be handled.
    #[inline]
    pub fn message_failed(&self, kind: FailedMessage, reason: FailureReason) {
        self.families.messages_failed.inc((kind, reason));
    }

    /// A peer answered a request from this agent; `timer` started when the request was made.
    #[inline]
    pub fn message_sent(&self, kind: MessageType, timer: Timer) {
        self.families.messages_sent.record_since(kind, timer);
    }

    /// A request from this agent failed.
    #[inline]
    pub fn send_failed(&self, kind: MessageType, reason: SendFailure) {
        self.families.send_failures.inc((kind, reason));
    }

    /// A storage operation begins; it counts as in progress until the guard is dropped.
    #[inline]
    pub fn storage_started(&self, backend: Backend) -> UnderWay<'_> {
        self.families.storage_in_flight.enter(backend)
    }

    /// A storage operation completed, successfully or not.
    #[inline]
    pub fn storage_completed(
        &self,
        operation: Operation,
        backend: Backend,
        timer: Timer,
        outcome: Result<(), StorageErrorReason>,
    ) {
        self.families.storage_operations.record_since((operation, backend), timer);
        if let Err(reason) = outcome {
            self.families.storage_errors.inc((operation, backend, reason));
        }
    }

    /// The embedded store committed `writes` writes together.
    pub fn local_commit(&self, writes: usize) {
        self.families.local_batch.observe((), writes as u64);
    }

    /// The connection to Redis was lost and has been re-established.
    pub fn redis_reconnected(&self) {
        self.families.redis_reconnects.inc(());
    }

    /// A Redis command is retried.
    pub fn redis_retried(&self) {
        self.families.redis_retries.inc(());
    }

    /// The endpoint begins to answer a request.
    pub fn http_started(&self, handler: HttpHandler) -> UnderWay<'_> {
        self.families.http_in_flight.enter(handler)
    }

    /// The endpoint answered a request.
    pub fn http_answered(&self, handler: HttpHandler, code: HttpCode) {
        self.families.http_requests.inc((handler, code));
    }

    /// A metrics page was made; `timer` started when that began.
    pub fn scraped(&self, timer: Timer) {
        self.families.scrape_duration.observe((), timer.nanos());
    }
}

/// Makes instruments and registers them.
pub(super) struct Add<'a> {
    pub(super) registry: &'a Registry,
    pub(super) durations: &'a Arc<Buckets>,
}

impl Add<'_> {
    pub(super) fn instrument<I: Instrument>(&self, descriptor: &Descriptor, instrument: I) -> I {
        log_if_refused(self.registry.register(descriptor, &instrument));
        instrument
    }

    fn events<L: LabelSet>(&self, counter: &Descriptor, histogram: &Descriptor) -> Events<L> {
        let events = Events::new(self.durations);
        log_if_refused(self.registry.register_events(counter, histogram, &events));
        events
    }

    fn info(&self, descriptor: &Descriptor, labels: &[(&str, &str)]) -> Arc<Info> {
        let info = Arc::new(Info::new(descriptor, labels));
        log_if_refused(self.registry.add(Arc::clone(&info) as Arc<dyn Expose>));
        info
    }
}

#[allow(clippy::expect_used, reason = "the bounds are constants, and a test makes buckets from them for every schema")]
pub(super) fn buckets(made: Result<Buckets, BucketsError>) -> Arc<Buckets> {
    Arc::new(made.expect("the constant bounds are valid"))
}

fn build_labels() -> [(&'static str, &'static str); 4] {
    [
        ("version", env!("CARGO_PKG_VERSION")),
        ("revision", env!("BUILD_REVISION")),
        ("rustc", env!("BUILD_RUSTC")),
        ("target", env!("BUILD_TARGET")),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::instruments::capacity_for;
    use super::*;

    /// The most that a node can allocate for its instruments: every thread that can have a row has one, and
    /// every histogram has seen values that are not packed.
    #[test]
    fn the_instruments_of_a_node_take_less_than_1_25_mib_on_eight_cores() {
        let buckets = buckets(Buckets::durations(&DURATION_BOUNDS, Default::default()));
        let slots = capacity_for(8);
        let histograms = [
            Histogram::<MessageType>::footprint(&buckets, slots),
            Histogram::<MessageType>::footprint(&buckets, slots),
            Histogram::<(Operation, Backend)>::footprint(&buckets, slots),
            Histogram::<()>::footprint(&buckets, slots),
            Histogram::<()>::footprint(&buckets, slots),
        ];
        let counters = [
            Counter::<(FailedMessage, FailureReason)>::footprint(slots),
            Counter::<(MessageType, SendFailure)>::footprint(slots),
            Counter::<(Operation, Backend, StorageErrorReason)>::footprint(slots),
            2 * Counter::<Backend>::footprint(slots),
            Counter::<()>::footprint(slots),
            Counter::<()>::footprint(slots),
            Counter::<(HttpHandler, HttpCode)>::footprint(slots),
            2 * Counter::<HttpHandler>::footprint(slots),
        ];
        let tables = 2 * buckets.footprint();
        let histograms: usize = histograms.iter().map(|(packed, wide)| packed + wide).sum();
        let total = tables + histograms + counters.iter().sum::<usize>();
        assert!((1_000_000..5 << 18).contains(&total), "{total}");
    }
}

//! The libp2p connection handler of the link: one on each connection, polled in that connection's own task, so that a
//! message crosses no thread between the socket and the request handler.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::swarm::handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{
    ConnectionHandler, ConnectionHandlerEvent, ConnectionId, StreamProtocol, StreamUpgradeError, SubstreamProtocol,
};
use libp2p::{PeerId, Stream};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use super::framed::Framed;
use super::requester::{Outgoing, Requester};
use super::responder::Responder;
use super::{LinkContext, LinkError};
use crate::metrics::labels::FailedMessage;
use crate::network::muxer::Account;
use crate::network::protocol::{Introduction, PROTOCOL};

/// How long a peer may take to accept a link and to send its hello.
const OPENING: Duration = Duration::from_secs(20);
/// How often it is checked whether the peer reads, and whether the link is up.
const CHECK: Duration = Duration::from_secs(5);
/// How precisely deadlines are enforced while requests are in flight.
const DEADLINE_PRECISION: Duration = Duration::from_millis(250);

/// A command from the swarm to a link.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Command {
    /// Refuse the peer's new requests, finish those in flight, and report [`Event::Drained`].
    Drain,
    /// Something has changed for the peer: introduce this agent again, and apply the peer's new limits.
    Introduce,
}

/// What a link reports to the swarm.
#[derive(Debug)]
pub(crate) enum Event {
    /// Requests can be sent.
    Up,
    /// The peer has introduced itself.
    Introduced(Introduction),
    /// The link cannot be used any more; the connection should be closed.
    Lost(LinkError),
    /// The peer does not support the link protocol.
    Unsupported,
    /// Every request in flight has been answered.
    Drained,
}

/// The link of one connection. Generic over the stream, so that tests can use pipes.
pub(crate) struct LinkHandler<S = Stream> {
    peer: PeerId,
    connection: ConnectionId,
    context: Arc<LinkContext>,
    outbound: Outbound<S>,
    responder: Option<Responder<S>>,
    /// Whether there has been an inbound link. Each connection gets only one: a second one would let a peer pile up
    /// work.
    accepted: bool,
    up: bool,
    draining: Draining,
    /// How many requests the peer has in flight over all of its connections.
    in_flight: Arc<AtomicU32>,
    /// Accounts for what the link holds for a peer without a permission.
    held: Option<Held>,
    began: Instant,
    next_check: Instant,
    /// Only while there is something to watch, because an idle link must cost nothing.
    watch: Option<Watch>,
    /// Events that are reported one poll later than they arose, so that frames written in the same poll reach the
    /// socket first. At most one of each kind.
    last_words: VecDeque<Event>,
}

/// A timer that looks after the link.
struct Watch {
    period: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Watch {
    fn new(period: Duration) -> Self {
        Self { period, timer: Box::pin(tokio::time::sleep(period)) }
    }
}

/// What a link asks of its connection.
#[derive(Debug)]
pub(super) enum Step {
    /// A substream for its own requests.
    Open,
    Tell(Event),
}

struct Held {
    account: Arc<Account>,
    /// What was last passed to the account, in bytes.
    told: usize,
}

impl Held {
    fn new(context: &LinkContext) -> Self {
        Self { account: Account::new(Some(Arc::clone(&context.budget)), true, None), told: 0 }
    }
}

enum Outbound<S> {
    ToOpen(mpsc::Receiver<Outgoing>),
    Opening(mpsc::Receiver<Outgoing>),
    Open(Box<Requester<S>>),
    Gone,
}

#[derive(PartialEq)]
enum Draining {
    No,
    Yes,
    Done,
}

impl<S: AsyncRead + AsyncWrite + Unpin> LinkHandler<S> {
    pub(super) fn new(
        peer: PeerId,
        connection: ConnectionId,
        queue: mpsc::Receiver<Outgoing>,
        in_flight: Arc<AtomicU32>,
        context: Arc<LinkContext>,
    ) -> Self {
        let now = Instant::now();
        let held = (!context.handler.has_permission(&peer)).then(|| Held::new(&context));
        Self {
            held,
            peer,
            connection,
            context,
            outbound: Outbound::ToOpen(queue),
            responder: None,
            accepted: false,
            up: false,
            draining: Draining::No,
            in_flight,
            began: now,
            next_check: now + CHECK,
            watch: None,
            last_words: VecDeque::new(),
        }
    }

    pub(super) fn poll_link(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if let Some(event) = self.last_words.pop_front() {
            return Poll::Ready(Step::Tell(event));
        }
        self.outbound = match std::mem::replace(&mut self.outbound, Outbound::Gone) {
            Outbound::ToOpen(queue) => {
                self.outbound = Outbound::Opening(queue);
                return Poll::Ready(Step::Open);
            }
            other => other,
        };
        let event = match self.poll_streams(cx) {
            Poll::Ready(event) => Poll::Ready(event),
            Poll::Pending => match self.poll_held(cx) {
                Poll::Ready(event) => Poll::Ready(event),
                Poll::Pending => self.poll_timer(cx),
            },
        };
        match event {
            // The swarm polls again after an event, so that what came in the same read follows at once.
            Poll::Ready(event @ (Event::Up | Event::Introduced(_))) => {
                return Poll::Ready(Step::Tell(event));
            }
            Poll::Ready(event) => {
                self.last_words.push_back(event);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Pending => {}
        }
        if self.draining == Draining::Yes && self.responder.as_ref().is_none_or(Responder::is_idle) {
            self.draining = Draining::Done;
            self.last_words.push_back(Event::Drained);
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    pub(super) fn on_inbound(&mut self, stream: S) {
        if self.accepted {
            tracing::debug!(peer = %self.peer, connection = %self.connection, "dropped a second link on the connection");
            return;
        }
        self.accepted = true;
        let mut responder = Responder::new(stream, self.peer, Arc::clone(&self.in_flight), Arc::clone(&self.context));
        if self.draining != Draining::No {
            responder.drain();
        }
        self.responder = Some(responder);
    }

    pub(super) fn on_outbound(&mut self, stream: S) {
        if let Outbound::Opening(queue) = std::mem::replace(&mut self.outbound, Outbound::Gone) {
            let requester = Requester::new(stream, queue, Arc::clone(&self.context));
            self.outbound = Outbound::Open(Box::new(requester));
        }
    }

    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Drain => {
                if self.draining == Draining::No {
                    self.draining = Draining::Yes;
                }
                if let Some(responder) = &mut self.responder {
                    responder.drain();
                }
            }
            Command::Introduce => {
                let is_stranger = !self.context.handler.has_permission(&self.peer);
                if is_stranger != self.held.is_some() {
                    self.held = is_stranger.then(|| Held::new(&self.context));
                }
                if let Some(responder) = &mut self.responder {
                    responder.introduce();
                }
            }
        }
    }

    fn poll_streams(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some(responder) = &mut self.responder
            && let Poll::Ready(error) = responder.poll(cx)
        {
            self.responder = None;
            match error {
                LinkError::Closed => {} // the peer sends no more requests; this side still may
                error => return Poll::Ready(Event::Lost(error)),
            }
        }
        if let Outbound::Open(requester) = &mut self.outbound {
            if let Poll::Ready(error) = requester.poll(cx) {
                self.outbound = Outbound::Gone;
                if let Some(reason) = error.reason() {
                    self.context.metrics.message_failed(FailedMessage::Unknown, reason);
                }
                return Poll::Ready(Event::Lost(error));
            }
            if requester.is_up() && !self.up {
                self.up = true;
                return Poll::Ready(Event::Up);
            }
            if let Some(introduction) = requester.take_introduction() {
                return Poll::Ready(Event::Introduced(introduction));
            }
        }
        Poll::Pending
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if self.held.is_none() {
            return Poll::Pending;
        }
        // Answers wait because the peer asked for them. This side's own requests do not count against the peer.
        let answers = self.responder.as_ref().map_or(0, |responder| responder.framed.waiting());
        let now = answers + self.framed().map(|framed| framed.held()).sum::<usize>();
        let Some(held) = &mut self.held else { return Poll::Pending };
        if std::mem::replace(&mut held.told, now) != now {
            held.account.hold(now);
        }
        let verdict = held.account.poll_verdict(cx.waker());
        if verdict.is_ready() {
            self.held = None; // reported once
        }
        verdict.map(|error| Event::Lost(error.into()))
    }

    /// Enforces deadlines, and notices peers that do not read and links that do not come up.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let period = self.period();
        match &mut self.watch {
            Some(watch) if period.is_none_or(|period| period >= watch.period) => {}
            _ => self.watch = period.map(Watch::new),
        }
        while let Some(watch) = &mut self.watch
            && watch.timer.as_mut().poll(cx).is_ready()
        {
            let now = Instant::now();
            if now >= self.next_check {
                self.next_check = now + CHECK;
                if self.is_opening() && now - self.began >= OPENING {
                    return Poll::Ready(Event::Lost(LinkError::NotOpened));
                }
                if self.framed().any(|framed| framed.is_overdue(now)) {
                    return Poll::Ready(Event::Lost(LinkError::NotReading));
                }
            }
            if let Outbound::Open(requester) = &mut self.outbound
                && requester.expire(now)
            {
                cx.waker().wake_by_ref(); // the streams were polled before: send what can be sent now
            }
            self.watch = self.period().map(Watch::new);
        }
        Poll::Pending
    }

    /// How often to look after the link; `None` if there is nothing to watch.
    fn period(&mut self) -> Option<Duration> {
        if matches!(&self.outbound, Outbound::Open(requester) if !requester.is_idle()) {
            return Some(DEADLINE_PRECISION);
        }
        (self.is_opening() || self.framed().any(|framed| framed.backlog() > 0)).then_some(CHECK)
    }

    /// Whether the peer has not yet accepted this side's link.
    fn is_opening(&self) -> bool {
        !self.up && !matches!(self.outbound, Outbound::Gone)
    }

    /// How many bytes are held for an incomplete frame, and how many wait to be written.
    #[cfg(test)]
    pub(super) fn held(&mut self) -> (usize, usize) {
        self.framed().fold((0, 0), |(read, to_write), framed| (read + framed.held(), to_write + framed.backlog()))
    }

    /// The open streams: the peer's and this side's.
    fn framed(&mut self) -> impl Iterator<Item = &mut Framed<S>> {
        let outbound = match &mut self.outbound {
            Outbound::Open(requester) => Some(&mut requester.framed),
            Outbound::ToOpen(_) | Outbound::Opening(_) | Outbound::Gone => None,
        };
        self.responder.as_mut().map(|responder| &mut responder.framed).into_iter().chain(outbound)
    }
}

impl ConnectionHandler for LinkHandler {
    type FromBehaviour = Command;
    type ToBehaviour = Event;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Event>> {
        self.poll_link(cx).map(|step| match step {
            Step::Open => {
                let protocol = SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ());
                ConnectionHandlerEvent::OutboundSubstreamRequest { protocol }
            }
            Step::Tell(event) => ConnectionHandlerEvent::NotifyBehaviour(event),
        })
    }

    fn on_behaviour_event(&mut self, command: Command) {
        self.on_command(command);
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: stream, .. }) => {
                self.on_inbound(stream);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: stream, .. }) => {
                self.on_outbound(stream);
            }
            ConnectionEvent::DialUpgradeError(error) => {
                tracing::debug!(peer = %self.peer, error = %error.error, "no link with this peer");
                self.outbound = Outbound::Gone;
                self.last_words.push_back(match error.error {
                    StreamUpgradeError::NegotiationFailed => Event::Unsupported,
                    StreamUpgradeError::Io(error) => Event::Lost(error.into()),
                    // A timeout does not mean that the peer lacks support: a new connection may succeed.
                    StreamUpgradeError::Timeout | StreamUpgradeError::Apply(_) => Event::Lost(LinkError::NotOpened),
                });
            }
            _ => {}
        }
    }
}

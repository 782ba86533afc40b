//! The requesting side of a link: sends callers' requests, and matches the answers to them by id.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::{AsyncRead, AsyncWrite};
use libp2p::Stream;
use slab::Slab;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::framed::{Framed, HIGH_WATER};
use super::{FRAMES_PER_TURN, LinkContext, LinkError};
use crate::network::RequestError;
use crate::network::protocol::{
    FRAME_OVERHEAD, Hello, Introduction, Request, RequestBody, RequestFrame, Response, ResponseBody, ResponseFrame,
};

/// How many introductions of a peer count on one link; further ones are ignored.
const MAX_INTRODUCTIONS: u32 = 1_000;

/// A caller's request on its way to the peer.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// In a box, because a channel allocates room for 32 at once.
    pub(crate) request: Box<Request>,
    pub(crate) reply: oneshot::Sender<Result<Response, RequestError>>,
    /// After this the caller gets [`RequestError::Timeout`].
    pub(crate) deadline: Instant,
}

struct Pending {
    id: u64,
    reply: oneshot::Sender<Result<Response, RequestError>>,
    deadline: Instant,
}

/// How many bits of a request's id are its place among those in flight: enough for the most that can be configured.
const PLACE_BITS: u32 = 16;

pub(super) struct Requester<S = Stream> {
    pub(super) framed: Framed<S>,
    context: Arc<LinkContext>,
    queue: mpsc::Receiver<Outgoing>,
    batch: Vec<Outgoing>,
    /// Taken from the queue and not sent yet, because the peer has to read first or because the deadline of the first
    /// one has to be watched; at most `max_in_flight`.
    taken: VecDeque<Outgoing>,
    /// The requests that the peer has not answered. The id of a request consists of its place here and of its number, so
    /// that a late answer finds nobody in a place that is used again.
    pending: Slab<Pending>,
    last_number: u64,
    /// The peer's limits; no request is sent before they are known.
    peer: Option<Hello>,
    /// The peer's newest introduction, until it is taken.
    introduction: Option<Introduction>,
    /// How many there were.
    introductions: u32,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Requester<S> {
    pub(super) fn new(stream: S, queue: mpsc::Receiver<Outgoing>, context: Arc<LinkContext>) -> Self {
        let mut framed = Framed::new(stream, context.limits.max_frame);
        let hello = Hello { max_frame: context.limits.max_frame as u64, max_in_flight: 0 };
        framed.push(&RequestFrame { id: 0, body: Some(RequestBody::Hello(hello)) });
        Self {
            framed,
            context,
            queue,
            batch: Vec::new(),
            taken: VecDeque::new(),
            pending: Slab::new(),
            last_number: 0,
            peer: None,
            introduction: None,
            introductions: 0,
        }
    }

    /// Makes all the progress that is possible now. Ready only with an error.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<LinkError> {
        let mut turn = 0;
        loop {
            while turn < FRAMES_PER_TURN {
                match self.framed.poll_frame::<ResponseFrame>(cx) {
                    Poll::Ready(Ok(frame)) => {
                        if let Err(error) = self.on_frame(frame) {
                            return Poll::Ready(error);
                        }
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(error),
                    Poll::Pending => break,
                }
                turn += 1;
            }
            self.take_requests(cx);
            let full = self.framed.backlog() >= HIGH_WATER;
            match self.framed.poll_write(cx) {
                Poll::Ready(Ok(())) if full => {}
                Poll::Ready(Ok(())) | Poll::Pending => break,
                Poll::Ready(Err(error)) => return Poll::Ready(error),
            }
        }
        if turn >= FRAMES_PER_TURN {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Whether the peer has sent its hello, so that requests can be sent.
    pub(super) fn is_up(&self) -> bool {
        self.peer.is_some()
    }

    /// The peer's newest introduction, the first time that this is called after it has arrived.
    pub(super) fn take_introduction(&mut self) -> Option<Introduction> {
        if self.peer.is_some() { self.introduction.take() } else { None }
    }

    /// Whether no deadline has to be watched.
    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.taken.is_empty() && (self.peer.is_none() || self.free() > 0)
    }

    /// Fails the requests whose deadline has passed. Returns whether others may be sent now.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let time_is_up = || Err(RequestError::Timeout(self.context.limits.request_timeout));
        let before = self.pending.len();
        let late: Vec<_> =
            self.pending.iter().filter(|(_, pending)| pending.deadline <= now).map(|(at, _)| at).collect();
        for place in late {
            let _caller_gone = self.pending.remove(place).reply.send(time_is_up());
        }
        let made_room = self.pending.len() < before;
        // The queue is in the order of the deadlines, except for callers that waited for the connection or for a place
        // in the queue. Those may get their timeout late, by as long as they waited.
        while let Some(outgoing) = self.taken.pop_front().or_else(|| self.queue.try_recv().ok()) {
            if outgoing.deadline > now && !outgoing.reply.is_closed() {
                self.taken.push_front(outgoing);
                break;
            }
            let _caller_gone = outgoing.reply.send(time_is_up());
        }
        made_room || !self.taken.is_empty()
    }

    /// How many more requests can be sent now.
    fn free(&self) -> usize {
        let Some(peer) = self.peer else { return 0 };
        let most = self.context.limits.max_in_flight.min(peer.max_in_flight) as usize;
        let most = most.min(1 << PLACE_BITS);
        if self.framed.backlog() >= HIGH_WATER { 0 } else { most.saturating_sub(self.pending.len()) }
    }

    fn take_requests(&mut self, cx: &mut Context<'_>) {
        let Some(peer) = self.peer else { return };
        loop {
            while self.free() > 0
                && let Some(outgoing) = self.taken.pop_front()
            {
                self.send(outgoing, peer);
            }
            let free = self.free();
            if free == 0 {
                return; // woken again by an answer, by the peer reading, or by a deadline that passes
            }
            let Poll::Ready(1..) = self.queue.poll_recv_many(cx, &mut self.batch, free) else { return };
            self.taken.extend(self.batch.drain(..));
        }
    }

    fn send(&mut self, outgoing: Outgoing, peer: Hello) {
        let Outgoing { request, reply, deadline } = outgoing;
        let len = request.payload_len() + FRAME_OVERHEAD;
        if len as u64 > peer.max_frame {
            let max = usize::try_from(peer.max_frame).unwrap_or(usize::MAX).saturating_sub(FRAME_OVERHEAD);
            let _caller_gone = reply.send(Err(RequestError::TooLarge { len: request.payload_len(), max }));
            return;
        }
        if reply.is_closed() {
            return; // the caller gave up while the request was in the queue
        }
        self.last_number += 1;
        let place = self.pending.vacant_entry();
        let id = (self.last_number << PLACE_BITS) | place.key() as u64;
        place.insert(Pending { id, reply, deadline });
        self.framed.push(&RequestFrame { id, body: Some((*request).into()) });
    }

    fn on_frame(&mut self, frame: ResponseFrame) -> Result<(), LinkError> {
        let result = match frame.body {
            Some(ResponseBody::Hello(hello)) => {
                self.peer = Some(hello);
                return Ok(());
            }
            Some(ResponseBody::Heartbeat(_)) => return Ok(()),
            Some(ResponseBody::Introduction(introduction)) => {
                if self.introductions < MAX_INTRODUCTIONS {
                    self.introductions += 1;
                    self.introduction = Some(introduction.cut());
                }
                return Ok(());
            }
            Some(ResponseBody::Error(body)) if frame.id == 0 => return Err(LinkError::GaveUp(body.into())),
            body => match body.and_then(ResponseBody::answer) {
                Some(answer) => answer.map_err(RequestError::Remote),
                None => Err(RequestError::Unexpected),
            },
        };
        // An answer that nobody waits for is late: its caller has already timed out.
        let place = (frame.id & ((1 << PLACE_BITS) - 1)) as usize;
        if self.pending.get(place).is_some_and(|pending| pending.id == frame.id) {
            let _caller_gone = self.pending.remove(place).reply.send(result);
        }
        Ok(())
    }
}

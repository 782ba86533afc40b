//! The answering side of a link: reads requests, passes them to the handler, and writes the answers.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{AsyncRead, AsyncWrite};
use libp2p::{PeerId, Stream};
use prost::Message as _;

use super::framed::{Framed, HIGH_WATER};
use super::{FRAMES_PER_TURN, LinkContext, LinkError};
use crate::metrics::labels::{FailedMessage, FailureReason};
use crate::network::protocol::{
    ErrorBody, ErrorCode, FRAME_OVERHEAD, Hello, Introduction, RemoteError, RequestBody, RequestFrame, ResponseBody,
    ResponseFrame,
};
use crate::network::{Handling, MessageAnswer, Receipt};

pub(super) struct Responder<S = Stream> {
    pub(super) framed: Framed<S>,
    peer: PeerId,
    context: Arc<LinkContext>,
    in_flight: FuturesUnordered<InFlight>,
    /// How many requests the peer has in flight over all of its connections.
    of_peer: Arc<AtomicU32>,
    /// The longest frame that the peer accepts; known from its hello.
    peer_max_frame: Option<usize>,
    /// Once this many bytes wait to be written, no more requests are read.
    high_water: usize,
    draining: bool,
}

struct InFlight {
    id: u64,
    work: BoxFuture<'static, MessageAnswer>,
    _counted: Counted,
}

/// Counts one request of a peer for as long as it is in progress, even after its connection is closed.
struct Counted(Arc<AtomicU32>);

impl Counted {
    fn new(of_peer: &Arc<AtomicU32>) -> Self {
        of_peer.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(of_peer))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Future for InFlight {
    type Output = (u64, MessageAnswer);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let id = self.id;
        self.work.as_mut().poll(cx).map(|answer| (id, answer))
    }
}

/// A peer without a permission has to read each answer before its next request is read.
fn high_water(context: &LinkContext, peer: &PeerId) -> usize {
    if context.handler.has_permission(peer) { HIGH_WATER } else { 1 }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Responder<S> {
    pub(super) fn new(stream: S, peer: PeerId, of_peer: Arc<AtomicU32>, context: Arc<LinkContext>) -> Self {
        let mut framed = Framed::new(stream, context.limits.max_frame);
        let hello = Hello { max_frame: context.limits.max_frame as u64, max_in_flight: context.limits.max_in_flight };
        framed.push(&ResponseFrame { id: 0, body: Some(ResponseBody::Hello(hello)) });
        if let Some(introduction) = context.handler.introduction(&peer) {
            framed.push(&ResponseFrame { id: 0, body: Some(ResponseBody::Introduction(introduction)) });
        }
        Self {
            high_water: high_water(&context, &peer),
            framed,
            peer,
            context,
            in_flight: FuturesUnordered::new(),
            of_peer,
            peer_max_frame: None,
            draining: false,
        }
    }

    /// Makes all the progress that is possible now. Ready only with an error.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<LinkError> {
        let mut turn = 0;
        loop {
            while let Poll::Ready(Some((id, answer))) = self.in_flight.poll_next_unpin(cx) {
                self.answer(id, answer);
            }
            while turn < FRAMES_PER_TURN && self.has_room() {
                match self.framed.poll_frame::<RequestFrame>(cx) {
                    Poll::Ready(Ok(frame)) => self.on_frame(frame, cx),
                    Poll::Ready(Err(error)) => return Poll::Ready(self.on_error(error, cx)),
                    Poll::Pending => break,
                }
                turn += 1;
            }
            let full = self.framed.backlog() >= self.high_water;
            if full {
                // Do not keep the memory of the request in addition to that of its answer.
                self.framed.release();
            }
            match self.framed.poll_write(cx) {
                Poll::Ready(Ok(())) if full && turn < FRAMES_PER_TURN => {}
                Poll::Ready(Ok(())) | Poll::Pending => break,
                Poll::Ready(Err(error)) => return Poll::Ready(error),
            }
        }
        if turn >= FRAMES_PER_TURN {
            cx.waker().wake_by_ref(); // the requester and other tasks get their turn first
        }
        Poll::Pending
    }

    /// Introduces this agent again, after something has changed for the peer.
    pub(super) fn introduce(&mut self) {
        let withdrawn = Introduction { withdrawn: true, ..Introduction::default() };
        let introduction = self.context.handler.introduction(&self.peer).unwrap_or(withdrawn);
        self.framed.push(&ResponseFrame { id: 0, body: Some(ResponseBody::Introduction(introduction)) });
        self.high_water = high_water(&self.context, &self.peer);
    }

    /// From now on, answers new requests with `shutting down`.
    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether every request in flight has been answered and the answers have been written.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.framed.backlog() == 0
    }

    /// Whether requests are being read from the peer.
    pub(super) fn reads(&self) -> bool {
        self.framed.backlog() < self.high_water
    }

    /// Whether to read another request. The limit on requests in flight stops only peers that ignore this side's hello.
    fn has_room(&self) -> bool {
        self.reads() && self.in_flight.len() < self.context.limits.max_in_flight as usize
    }

    fn on_frame(&mut self, frame: RequestFrame, cx: &mut Context<'_>) {
        let RequestFrame { id, body } = frame;
        let request = match body {
            Some(RequestBody::Hello(hello)) => {
                self.peer_max_frame = Some(usize::try_from(hello.max_frame).unwrap_or(usize::MAX));
                return;
            }
            Some(RequestBody::Heartbeat(empty)) => {
                self.framed.push(&ResponseFrame { id: 0, body: Some(ResponseBody::Heartbeat(empty)) });
                return;
            }
            Some(body) => match body.request() {
                Some(request) => request,
                None => return,
            },
            None => {
                let receipt = Receipt::begin_unknown(self.context.metrics.clone());
                if id == 0 {
                    // A newer version's frame about the link itself. It needs no answer, and an error with id 0 would
                    // mean that this side gives up on the link.
                    return receipt.complete(Err(ErrorCode::Unsupported));
                }
                let error = RemoteError::new(ErrorCode::Unsupported, "this agent does not know this type of request");
                return self.answer(id, MessageAnswer { result: Err(error), receipt });
            }
        };
        if self.draining {
            let receipt = Receipt::begin(self.context.metrics.clone(), request.message_type());
            let error = RemoteError::new(ErrorCode::ShuttingDown, "this agent is shutting down");
            return self.answer(id, MessageAnswer { result: Err(error), receipt });
        }
        if self.of_peer.load(Ordering::Relaxed) >= self.context.limits.max_in_flight {
            // There is room on this connection: the peer's other connections have taken the rest.
            let receipt = Receipt::begin(self.context.metrics.clone(), request.message_type());
            let error = RemoteError::new(ErrorCode::Busy, "too many of your requests are in flight");
            return self.answer(id, MessageAnswer { result: Err(error), receipt });
        }
        let mut work = match self.context.handler.handle(self.peer, request) {
            Handling::Done(answer) => return self.answer(id, answer),
            Handling::Pending(work) => work,
        };
        match work.as_mut().poll(cx) {
            Poll::Ready(answer) => self.answer(id, answer),
            Poll::Pending => self.in_flight.push(InFlight { id, work, _counted: Counted::new(&self.of_peer) }),
        }
    }

    fn answer(&mut self, id: u64, answer: MessageAnswer) {
        let MessageAnswer { result, receipt } = answer;
        let outcome = match &result {
            Ok(_) => Ok(()),
            Err(error) => Err(error.code),
        };
        let frame = ResponseFrame { id, body: Some(result.into()) };
        let limit = self.peer_max_frame.unwrap_or(FRAME_OVERHEAD);
        if frame.encoded_len() > limit {
            let text = format!("the answer has {} bytes; you accept at most {limit}", frame.encoded_len());
            let error = RemoteError::new(ErrorCode::TooLarge, text);
            self.framed.push(&ResponseFrame { id, body: Some(ResponseBody::Error(error.into())) });
            return receipt.complete(Err(ErrorCode::TooLarge));
        }
        self.framed.push(&frame);
        receipt.complete(outcome);
    }

    /// Counts what the peer did wrong, and sends it an error if the link still accepts one.
    fn on_error(&mut self, error: LinkError, cx: &mut Context<'_>) -> LinkError {
        let Some(reason) = error.reason() else { return error };
        let code = match reason {
            FailureReason::TooLarge => ErrorCode::TooLarge,
            _ => ErrorCode::Malformed,
        };
        self.context.metrics.message_failed(FailedMessage::Unknown, reason);
        let body = ErrorBody::from(RemoteError::new(code, error.to_string()));
        self.framed.push(&ResponseFrame { id: 0, body: Some(ResponseBody::Error(body)) });
        let _best_effort = self.framed.poll_write(cx);
        error
    }
}

impl<S> Drop for Responder<S> {
    /// Requests in flight are finished even if their link is gone: what they do to the store is done and counted. How
    /// long that takes is bounded by the handler.
    fn drop(&mut self) {
        let mut in_flight = std::mem::take(&mut self.in_flight);
        if in_flight.is_empty() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { while in_flight.next().await.is_some() {} });
        }
    }
}

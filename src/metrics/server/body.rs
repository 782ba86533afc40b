//! The body of a response: complete or streamed.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::places::Answering;
use crate::metrics::{Broken, GuestBody, GuestStream};

/// The body of a response. Its length is always known and sent ahead of it, so every client notices if it is cut short.
pub(super) enum Body {
    /// `None` once taken.
    Whole(Option<Bytes>),
    Stream(Box<Streamed>),
}

/// A body that is still arriving, and the guard that keeps its client's place until it is complete.
pub(super) struct Streamed {
    stream: GuestStream,
    left: u64,
    answering: Option<Answering>,
}

impl Body {
    pub(super) fn new(body: GuestBody) -> Self {
        match body {
            GuestBody::Whole(bytes) => Self::Whole(Some(bytes)),
            GuestBody::Stream(stream) => {
                let left = stream.len;
                Self::Stream(Box::new(Streamed { stream, left, answering: None }))
            }
        }
    }

    /// Keeps the client's place while the body is streamed.
    pub(super) fn keep(&mut self, answering: Answering) {
        if let Self::Stream(streamed) = self {
            answering.stream_until(streamed.stream.until);
            streamed.answering = Some(answering);
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Whole(bytes) => {
                Poll::Ready(bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::Stream(streamed) => {
                let chunk = futures::ready!(streamed.stream.chunks.as_mut().poll_next(cx));
                if let Some(Ok(bytes)) = &chunk {
                    streamed.left = streamed.left.saturating_sub(bytes.len() as u64);
                }
                Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream(streamed) => streamed.left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Whole(bytes) => bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
            Self::Stream(streamed) => streamed.left,
        })
    }
}

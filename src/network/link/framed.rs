//! Frames over one substream: buffers in between, so that many frames share a read and a write.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::io::{AsyncRead, AsyncWrite};
use libp2p::Stream;

use super::LinkError;
use crate::network::protocol::{self, FrameReader};

/// Past this many bytes that wait to be written, nothing more is started for the peer: it has to
/// read first. One large value may stand above it.
pub(super) const HIGH_WATER: usize = 256 * 1024;

/// A buffer that grew past this is given back when it is empty.
const KEPT_CAPACITY: usize = 16 * 1024;

pub(super) struct Framed {
    stream: Stream,
    reader: FrameReader,
    out: Vec<u8>,
    /// How much of `out` the stream has taken.
    written: usize,
    unflushed: bool,
    /// Whether anything was received since it was last asked.
    received: bool,
}

impl Framed {
    pub(super) fn new(stream: Stream, max_frame: usize) -> Self {
        Self {
            stream,
            reader: FrameReader::new(max_frame),
            out: Vec::new(),
            written: 0,
            unflushed: false,
            received: false,
        }
    }

    /// The next frame from the peer.
    pub(super) fn poll_frame<F: prost::Message + Default>(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<F, LinkError>> {
        loop {
            if let Some(frame) = self.reader.next_frame()? {
                return Poll::Ready(Ok(frame));
            }
            let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, self.reader.room()) else {
                self.reader.release();
                return Poll::Pending;
            };
            match read? {
                0 => return Poll::Ready(Err(LinkError::Closed)),
                n => self.reader.filled(n),
            }
            self.received = true;
        }
    }

    /// Queues a frame; [`Framed::poll_write`] sends it.
    pub(super) fn push(&mut self, frame: &impl prost::Message) {
        protocol::encode(frame, &mut self.out);
    }

    /// How many bytes wait to be written.
    pub(super) fn backlog(&self) -> usize {
        self.out.len() - self.written
    }

    /// Writes and flushes all that is queued. `Ready` when nothing waits any more.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        while let Some(rest) = self.out.get(self.written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(LinkError::Closed)),
                n => self.written += n,
            }
            self.unflushed = true;
        }
        self.out.clear();
        self.written = 0;
        if self.out.capacity() > KEPT_CAPACITY {
            self.out = Vec::new();
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the peer has sent anything since the last call.
    pub(super) fn take_received(&mut self) -> bool {
        std::mem::take(&mut self.received)
    }
}

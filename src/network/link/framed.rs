//! Frames over one substream, buffered so that many frames share a read and a write.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::io::{AsyncRead, AsyncWrite};
use libp2p::Stream;
use tokio::time::Instant;

use super::LinkError;
use crate::network::protocol::{self, FrameReader};

/// Once this many bytes wait to be written, nothing more is started for the peer until it reads. What was started
/// before may still be added: one frame if requests are answered at once (reads from the embedded store, refusals,
/// pings), at most `max_in_flight` frames if they are not.
pub(super) const HIGH_WATER: usize = 256 * 1024;

/// How long data may wait to be written, in addition to the time that it takes at [`SLOWEST`].
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The throughput of a slow but honest path, in bytes per second.
const SLOWEST: f64 = 16.0 * 1024.0;

/// A buffer that has grown past this many bytes is freed when it is empty.
const KEPT_CAPACITY: usize = 16 * 1024;

pub(super) struct Framed<S = Stream> {
    stream: S,
    reader: FrameReader,
    out: Vec<u8>,
    /// How much of `out` has been written to the stream.
    written: usize,
    unflushed: bool,
    /// How many bytes have ever been queued, up to the end of `out`.
    queued: u64,
    /// A value of `queued`, and when the bytes up to there must have been written; the oldest first. Each call of
    /// [`Framed::is_overdue`] adds at most one.
    deadlines: VecDeque<(u64, Instant)>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Framed<S> {
    pub(super) fn new(stream: S, max_frame: usize) -> Self {
        Self {
            stream,
            reader: FrameReader::new(max_frame),
            out: Vec::new(),
            written: 0,
            unflushed: false,
            queued: 0,
            deadlines: VecDeque::new(),
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
        }
    }

    /// Queues a frame; [`Framed::poll_write`] sends it.
    pub(super) fn push(&mut self, frame: &impl prost::Message) {
        // A peer that reads a little at a time never lets the buffer become empty. So the written part is dropped once
        // it is the larger one: fewer bytes are moved than have been written.
        if self.written > self.out.len() / 2 {
            self.out.drain(..self.written);
            self.written = 0;
        }
        let before = self.out.len();
        protocol::encode(frame, &mut self.out);
        self.queued += (self.out.len() - before) as u64;
    }

    /// How many bytes it holds for an incomplete frame from the peer.
    pub(super) fn held(&self) -> usize {
        self.reader.held()
    }

    /// Frees the memory of a frame that has been decoded.
    pub(super) fn release(&mut self) {
        self.reader.release();
    }

    /// How many bytes the buffer of data to be written takes, beyond what is always kept.
    pub(super) fn waiting(&self) -> usize {
        self.out.capacity().saturating_sub(KEPT_CAPACITY)
    }

    /// How many bytes wait to be written.
    pub(super) fn backlog(&self) -> usize {
        self.out.len() - self.written
    }

    /// Writes and flushes everything that is queued. `Ready` when nothing is left.
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

    /// Whether the oldest data has waited too long to be written: for [`PATIENCE`], and the time that the backlog took
    /// at [`SLOWEST`] when it was queued. Reading a little now and then does not help the peer. The wait of data queued
    /// since the last call begins now, so this has to be called every few seconds.
    pub(super) fn is_overdue(&mut self, now: Instant) -> bool {
        let backlog = self.backlog();
        let taken = self.queued - backlog as u64;
        while self.deadlines.front().is_some_and(|(end, _)| *end <= taken) {
            self.deadlines.pop_front();
        }
        if self.deadlines.back().map_or(taken, |(end, _)| *end) < self.queued {
            let at_least = Duration::from_secs_f64(backlog as f64 / SLOWEST);
            self.deadlines.push_back((self.queued, now + PATIENCE + at_least));
        }
        self.deadlines.front().is_some_and(|(_, deadline)| *deadline <= now)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures::task::noop_waker_ref;

    use super::*;
    use crate::network::protocol::{ResponseBody, ResponseFrame};

    /// Accepts at most `window` bytes until it is granted more, as a Yamux stream does.
    struct Narrow {
        window: usize,
        took: Vec<u8>,
    }

    impl AsyncRead for Narrow {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Narrow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let len = bytes.len().min(self.window);
            if len == 0 {
                return Poll::Pending;
            }
            self.window -= len;
            self.took.extend_from_slice(&bytes[..len]);
            Poll::Ready(Ok(len))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// The buffer used to be emptied only once all of it was written. A peer that granted a little credit at a time
    /// kept it from ever becoming empty, and it grew by everything that was ever sent.
    #[test]
    fn a_peer_that_reads_slowly_does_not_make_the_buffer_grow() {
        let mut framed = Framed::new(Narrow { window: 0, took: Vec::new() }, 1024);
        let mut cx = Context::from_waker(noop_waker_ref());
        let mut pushed = Vec::new();
        for id in 0..20_000u64 {
            while framed.backlog() < HIGH_WATER {
                let frame = ResponseFrame { id, body: Some(ResponseBody::Pong(vec![id as u8; 900].into())) };
                protocol::encode(&frame, &mut pushed);
                framed.push(&frame);
            }
            framed.stream.window += 1000;
            assert!(framed.poll_write(&mut cx).is_pending());
        }
        assert!(framed.out.capacity() <= 4 * HIGH_WATER, "{}", framed.out.capacity());
        framed.stream.window = usize::MAX;
        assert!(framed.poll_write(&mut cx).is_ready());
        assert!(framed.stream.took == pushed, "nothing was lost, duplicated or reordered");
    }

    /// A byte now and then used to count as progress forever.
    #[test]
    fn data_that_waits_too_long_is_overdue_even_if_a_little_is_read() {
        for trickle in [0, 1] {
            let mut framed = Framed::new(Narrow { window: 0, took: Vec::new() }, 1024);
            let mut cx = Context::from_waker(noop_waker_ref());
            let (start, mut after) = (Instant::now(), 0);
            framed.push(&ResponseFrame { id: 1, body: Some(ResponseBody::Pong(vec![0; 1000].into())) });
            while !framed.is_overdue(start + Duration::from_secs(after)) {
                framed.stream.window += trickle;
                assert!(framed.poll_write(&mut cx).is_pending());
                after += 5;
            }
            assert_eq!(after, 25, "20 s and a little for its length, checked every 5 s");
        }
    }

    #[test]
    fn a_peer_on_a_slow_path_gets_enough_time() {
        let mut framed = Framed::new(Narrow { window: 0, took: Vec::new() }, 1024);
        let mut cx = Context::from_waker(noop_waker_ref());
        let mut now = Instant::now();
        let megabyte = ResponseFrame { id: 1, body: Some(ResponseBody::Pong(vec![0; 1 << 20].into())) };
        framed.push(&megabyte);
        framed.push(&megabyte);
        let mut seconds = 0;
        loop {
            assert!(!framed.is_overdue(now), "after {seconds} s");
            framed.stream.window = 5 * 16 * 1024;
            if framed.poll_write(&mut cx).is_ready() {
                break;
            }
            (now, seconds) = (now + Duration::from_secs(5), seconds + 5);
        }
        assert!(seconds > 120, "{seconds}");
        assert!(!framed.is_overdue(now + Duration::from_secs(3600)), "nothing waits");
    }
}

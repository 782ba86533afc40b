//! One connection, and the deadlines that keep a slow or silent client from holding it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::places::Place;
use super::routes::Routes;
use super::{Limits, stopped};

/// The most that the head of a request may hold: Prometheus sends about 500 bytes.
const MAX_HEAD: usize = 16 * 1024;

/// Serves one connection until the client leaves, a deadline passes, or `stop` says so.
pub(super) async fn serve(stream: TcpStream, routes: Arc<Routes>, place: Arc<Place>, mut stop: watch::Receiver<bool>) {
    // Without it a scrape can wait 40 ms for the other side's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Guarded::new(stream, routes.limits, Arc::clone(&place)));
    let service = service_fn(move |request: Request<Incoming>| {
        let (routes, place) = (Arc::clone(&routes), Arc::clone(&place));
        async move {
            // From here on the client waits for us.
            let _answering = place.answering();
            Ok::<_, std::convert::Infallible>(routes.answer(&request).await)
        }
    });
    let connection = http1::Builder::new()
        // hyper's own timeout also runs while a connection is idle; `Guarded` tells the two apart.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD)
        .serve_connection(io, service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // The client's doing, all of it: it went away, was too slow, or does not speak HTTP.
        tracing::debug!("a connection to the metrics endpoint ended: {error}");
    }
}

/// What the connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The rest of a request's head.
    Head,
    /// The answer, which is being made.
    Answer,
    /// The client, to fetch the answer.
    Fetch,
    /// The next request.
    Idle,
}

/// A stream that fails with `TimedOut` when the phase it is in takes too long. The phase's deadline
/// stands from its start: a client that sends or fetches one byte at a time gains nothing.
struct Guarded<S> {
    stream: S,
    limits: Limits,
    phase: Phase,
    place: Arc<Place>,
    deadline: Pin<Box<Sleep>>,
}

impl<S> Guarded<S> {
    fn new(stream: S, limits: Limits, place: Arc<Place>) -> Self {
        let deadline = Box::pin(tokio::time::sleep(limits.head));
        Self { stream, limits, phase: Phase::Head, place, deadline }
    }

    fn enter(&mut self, phase: Phase) {
        if self.phase == phase {
            return;
        }
        self.phase = phase;
        let time = match phase {
            Phase::Head => self.limits.head,
            // Its making has bounds of its own.
            Phase::Answer => return,
            Phase::Fetch => self.limits.answer,
            Phase::Idle => self.limits.idle,
        };
        self.deadline.as_mut().reset(Instant::now() + time);
    }

    /// Takes note of an answer that is being made. It does not stop the clock of an earlier answer that is
    /// still being fetched: sending requests without reading buys no time.
    fn update(&mut self) {
        if self.place.is_answering() && self.phase != Phase::Fetch {
            self.enter(Phase::Answer);
        }
    }

    /// What to return in place of `Pending`: an error once the deadline has passed.
    fn pending<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if self.phase == Phase::Answer || self.deadline.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let what = match self.phase {
            Phase::Head => "the client did not complete its request in time",
            Phase::Answer | Phase::Fetch => "the client did not fetch its answer in time",
            Phase::Idle => "the connection was idle for too long",
        };
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, what)))
    }

    fn wrote(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match poll {
            Poll::Pending => self.pending(cx),
            Poll::Ready(Ok(_)) => {
                self.place.useful();
                poll
            }
            Poll::Ready(Err(_)) => poll,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.update();
        let before = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Pending => this.pending(cx),
            ready => {
                let read = buf.filled().get(before..).unwrap_or_default();
                if this.phase == Phase::Idle && !read.is_empty() {
                    this.enter(Phase::Head);
                }
                ready
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.update();
        this.enter(Phase::Fetch);
        let poll = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.wrote(cx, poll)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.update();
        this.enter(Phase::Fetch);
        let poll = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.wrote(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_flush(cx);
        if poll.is_pending() {
            return this.pending(cx);
        }
        // hyper flushes when it has handed over everything that it has: the answer is fetched.
        if this.phase == Phase::Fetch {
            this.enter(Phase::Idle);
            // hyper has read before it flushed and may not come back by itself: the clock has to wake it.
            if this.deadline.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        poll
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

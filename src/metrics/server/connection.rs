//! One connection, and the deadlines that keep a slow or silent client from holding it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::framing::Framing;
use super::places::Place;
use super::routes::{Origin, Routes};
use super::web::WebState;
use super::{Limits, stopped, tls};

/// The largest head of a request, in bytes: Prometheus sends about 500.
const MAX_HEAD: usize = 16 * 1024;

/// The most headers that a request may have: Prometheus sends about 6, a browser about 20. hyper's own
/// limit is 100.
const MAX_HEADERS: usize = 64;

/// How long a client may take to fetch the rest of a streamed response after the stream's latest end.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// How long a client may stop reading a streamed response: it holds resources that others wait for.
const STALLED: Duration = Duration::from_secs(5);

/// How much of a response the kernel may buffer, in bytes: with much more, a client that is reading could look stalled
/// for seconds.
const SEND_BUFFER: usize = 256 * 1024;

/// Serves one connection until the client leaves, a deadline passes, or the server stops.
pub(super) async fn serve(
    stream: TcpStream,
    origin: Origin,
    routes: Arc<Routes>,
    place: Arc<Place>,
    mut stop: watch::Receiver<bool>,
) {
    prepare(&stream, routes.limits.answer);
    let Some(web) = &routes.web else { return speak(stream, origin, None, routes, place, stop).await };
    let deadline = Instant::now() + routes.limits.head;
    let state = web.fresh().await;
    let Some(config) = state.tls.clone() else { return speak(stream, origin, Some(state), routes, place, stop).await };
    let established = tokio::select! {
        established = tokio::time::timeout_at(deadline, tls::accept(stream, config)) => established,
        () = stopped(&mut stop) => return,
    };
    match established {
        Ok(Ok(None)) => {}
        Ok(Ok(Some(stream))) => speak(stream, origin, Some(state), routes, place, stop).await,
        Ok(Err(error)) => web.tls_failed(origin.client, &error),
        Err(_) => web.tls_failed(origin.client, "it was not complete in time"),
    }
}

/// Speaks HTTP. `first` is the web configuration for the first request, if there is any.
async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    origin: Origin,
    first: Option<Arc<WebState>>,
    routes: Arc<Routes>,
    place: Arc<Place>,
    mut stop: watch::Receiver<bool>,
) {
    let seen = Arc::new(Seen::default());
    let io = TokioIo::new(Guarded::new(stream, routes.limits, Arc::clone(&place), Arc::clone(&seen)));
    let (began, of_first) = (first.clone(), Mutex::new(first));
    let (of_client, of_service) = (Arc::clone(&seen), Arc::clone(&routes));
    let service = service_fn(move |request: Request<Incoming>| {
        let (routes, place) = (Arc::clone(&of_service), Arc::clone(&place));
        // hyper does not read a body that nobody asks for. What follows a head with a body, or with line ends that
        // others may parse differently, is not treated as a request: this response is the connection's last.
        let last = !request.body().is_end_stream() || of_client.disputable.load(Ordering::Relaxed);
        let (began, first) = (began.clone(), of_first.lock().take());
        async move {
            let state = match (first, &routes.web) {
                (Some(state), _) => Some(state),
                (None, Some(web)) => Some(web.recent().await),
                (None, None) => None,
            };
            // TLS has been changed since: what was established no longer counts, and clients have to connect again.
            let is_old = match (&began, &state) {
                (Some(began), Some(state)) => !began.speaks_like(state),
                _ => false,
            };
            let state = state.as_deref();
            let mut response = match routes.admit(&request, &origin, state).await {
                // From here on the client waits for us. Not before: those that guess passwords keep no place.
                Ok(()) => {
                    let answering = place.answering();
                    let mut response = routes.answer(&request, state).await;
                    response.body_mut().keep(answering);
                    response
                }
                Err(refusal) => refusal,
            };
            if last || is_old {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        // hyper's own timeout also runs while a connection is idle; `Guarded` tells the two apart.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
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
        if seen.tls.load(Ordering::Relaxed) {
            routes.spoke_tls.at_most_once_a_minute(|| {
                let client = origin.client;
                tracing::warn!(
                    "{client} speaks TLS to the metrics endpoint, which does not (metrics.web_config); is its scheme https?"
                );
            });
        }
        // Always the client's doing: it went away, was too slow, or does not speak HTTP.
        tracing::debug!("a connection to the metrics endpoint ended: {error}");
    }
}

/// Sets the options of a new socket. If that fails, the connection is served all the same.
fn prepare(stream: &TcpStream, patience: Duration) {
    // Without this, a scrape can wait 40 ms for the client's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(stream).set_send_buffer_size(SEND_BUFFER);
    // When a connection is closed, the kernel keeps what it has not sent yet. Without a timeout it would try
    // for minutes to send it to a client that does not read, and such responses would pile up.
    let _ = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(patience));
}

/// What the connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The rest of a request's head.
    Head,
    /// The response, which is being made.
    Answer,
    /// The client, which has to fetch the response.
    Fetch,
    /// The next request.
    Idle,
}

/// What was noticed in the client's bytes.
#[derive(Debug, Default)]
struct Seen {
    /// Its lines can be parsed in more than one way.
    disputable: AtomicBool,
    /// It speaks TLS.
    tls: AtomicBool,
}

/// A stream that fails with `TimedOut` if its current phase takes too long. The deadline of a phase is set
/// at its start: a client that sends or fetches one byte at a time gains nothing.
struct Guarded<S> {
    stream: S,
    limits: Limits,
    phase: Phase,
    place: Arc<Place>,
    framing: Framing,
    seen: Arc<Seen>,
    deadline: Pin<Box<Sleep>>,
}

impl<S> Guarded<S> {
    fn new(stream: S, limits: Limits, place: Arc<Place>, seen: Arc<Seen>) -> Self {
        let deadline = Box::pin(tokio::time::sleep(limits.head));
        Self { stream, limits, phase: Phase::Head, place, framing: Framing::new(), seen, deadline }
    }

    fn enter(&mut self, phase: Phase) {
        if self.phase == phase {
            return;
        }
        self.phase = phase;
        let time = match phase {
            Phase::Head => self.limits.head,
            // The service bounds this phase itself.
            Phase::Answer => return,
            Phase::Fetch => return self.fetch(),
            Phase::Idle => self.limits.idle,
        };
        self.deadline.as_mut().reset(Instant::now() + time);
    }

    /// Sets the deadline for fetching a response. A complete one has to be fetched within a fixed time. A streamed one
    /// has to be fetched without stalling, and its rest soon after the stream's latest end, when the source is gone.
    fn fetch(&mut self) {
        let now = Instant::now();
        let deadline = match self.place.streams_until() {
            Some(until) => (Instant::from_std(until) + AFTERWARDS).min(now + STALLED),
            None => now + self.limits.answer,
        };
        self.deadline.as_mut().reset(deadline);
    }

    /// Notes that a response is being made. This does not stop the clock of an earlier response that is still
    /// being fetched: sending requests without reading gains no time.
    fn update(&mut self) {
        if self.place.is_answering() && self.phase != Phase::Fetch {
            self.enter(Phase::Answer);
        }
    }

    /// `Pending`, or an error once the deadline has passed.
    fn pending<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if self.phase == Phase::Answer || self.deadline.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let what = match self.phase {
            Phase::Head => "the client did not complete its request in time",
            Phase::Answer | Phase::Fetch => "the client did not fetch the response in time",
            Phase::Idle => "the connection was idle for too long",
        };
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, what)))
    }

    fn wrote(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match poll {
            Poll::Pending => self.pending(cx),
            Poll::Ready(Ok(_)) => {
                self.place.useful();
                if self.place.streams_until().is_some() {
                    self.fetch();
                }
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
                if this.framing.is_untouched() && read.first() == Some(&tls::HANDSHAKE) {
                    this.seen.tls.store(true, Ordering::Relaxed);
                }
                this.framing.follow(read);
                this.seen.disputable.store(this.framing.is_disputable(), Ordering::Relaxed);
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
        // hyper flushes once it has written all that it has: the response is complete, or more of it is still to come.
        if this.phase == Phase::Fetch && this.place.is_answering() {
            this.enter(Phase::Answer);
        } else if this.phase == Phase::Fetch {
            // The next request may have begun to arrive with this one.
            this.enter(if this.framing.between_requests() { Phase::Idle } else { Phase::Head });
            // hyper read before it flushed and may not poll again by itself: the deadline has to wake it.
            if this.deadline.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        poll
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.stream).poll_shutdown(cx) {
            // With TLS, the end has to be written, too.
            Poll::Pending => this.pending(cx),
            ended => ended,
        }
    }
}

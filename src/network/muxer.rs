//! Yamux, with an eye on what a connection has sent and nobody has read yet.
//!
//! Yamux buffers what a peer sends on a stream until its protocol reads it, up to a window that the peer's own delays make
//! grow. So the windows are small here, and every byte that waits is counted, with what it costs beside itself: a peer can
//! send it in frames of one byte. What a single connection may have waiting is bounded, and so is what the peers
//! without a permission have waiting together: past that, whoever has the most of it is disconnected.
//!
//! The counting reads the headers of the frames on their way to the crate `yamux`
//! (<https://github.com/hashicorp/yamux/blob/master/spec.md>), whose own buffers cannot be asked. Streams that this agent
//! opened count for the connection alone: what comes on them was asked for, a page of metrics for instance.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures::future::{Ready, ready as done};
use futures::task::AtomicWaker;
use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Sleep;
use yamux::{Connection, ConnectionError, Mode};

/// Streams of one connection, all protocols together. Yamux ends a connection that opens more. A gateway has one a page
/// (the agent's and up to 16 exporters'); Kademlia may have 32 in each direction, and some ten are the link's and others'.
pub(super) const MAX_STREAMS: usize = 96;

/// What a peer may send on one connection before anybody reads it: what Yamux grants each of that many streams, and by how
/// much the windows of those that are read from may grow, which a long path needs to be fast (2 MiB are 20 MiB a second
/// where an answer takes 100 ms).
const MAX_WINDOW: usize = MAX_STREAMS * yamux::DEFAULT_CREDIT as usize + 2 * 1024 * 1024;

/// What one connection may have waiting, with [`FRAME_COST`]: that, and 8 MiB for frames.
const MAX_WAITING: usize = MAX_WINDOW + 8 * 1024 * 1024;

/// What the peers without a permission may have waiting together, with [`FRAME_COST`]: so much that with what is copied on
/// the way, and what those hold who have been told to go, they cost the process less than 64 MiB.
pub(super) const MAX_WAITING_TOGETHER: usize = 32 * 1024 * 1024;

/// What a frame that waits takes in memory beside its bytes: its place in a queue (40 bytes) and an allocation.
const FRAME_COST: usize = 80;

/// What the frames of one stream of this side's may take beside their bytes: no honest peer cuts a page into that many.
const MAX_CRUMBS: usize = 512 * 1024;

/// How long a connection may take nothing of what waits for its socket, and how long its end may take.
const MAX_BLOCKED: Duration = Duration::from_secs(30);
const MAX_CLOSING: Duration = Duration::from_secs(5);

/// What the peers without a permission have waiting.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    /// On connections that were not told to go.
    waiting: AtomicUsize,
    // A std lock: never held across an await, and taken before any connection's own.
    connections: Mutex<Vec<Weak<Account>>>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { limit: MAX_WAITING_TOGETHER, waiting: AtomicUsize::new(0), connections: Mutex::default() }
    }
}

impl Budget {
    /// Disconnects whoever has the most waiting, for as long as that is too much.
    fn enforce(&self) {
        if !self.is_exceeded() {
            return;
        }
        let connections = self.connections.lock();
        while self.is_exceeded() {
            let accounts = connections.iter().filter_map(Weak::upgrade);
            let open = accounts.filter(|account| account.state.lock().verdict.is_none());
            let Some(largest) = open.max_by_key(|account| account.state.lock().of_strangers) else { return };
            if !largest.condemn(Verdict::MostOfAll) {
                return;
            }
        }
    }

    fn is_exceeded(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > self.limit
    }
}

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum Verdict {
    #[error("the peer has sent more than {} MiB that nobody has read yet", MAX_WAITING >> 20)]
    TooMuch,
    #[error("the peer cuts what it sends into frames of a few bytes")]
    Crumbs,
    #[error("peers without a permission have sent more than {} MiB that nobody has read yet, and this one the most", MAX_WAITING_TOGETHER >> 20)]
    MostOfAll,
}

/// What one connection has waiting.
#[derive(Debug)]
pub(super) struct Account {
    state: Mutex<Waiting>,
    /// Of the connection's task, which has to hear of a verdict.
    waker: AtomicWaker,
    /// `None` for a peer with a permission.
    budget: Option<Arc<Budget>>,
    /// Whether the streams with odd numbers are this side's: the dialer's are.
    is_dialer: bool,
    /// What comes on this side's own streams was asked for, and is counted here: a gateway's scrapes.
    asked: Option<Arc<AtomicUsize>>,
}

#[derive(Debug, Default)]
struct Waiting {
    streams: HashMap<u32, Stored>,
    /// In all, and what of it counts for the budget: none of it after a verdict.
    total: usize,
    of_strangers: usize,
    /// The frame that is being received, which counts whatever its stream.
    coming: Option<Frame>,
    /// A stream that the last frame has opened, until Yamux hands it over; with the next frame it is known not to.
    opening: Option<(u32, Stored)>,
    /// After it nothing is counted any more.
    verdict: Option<Verdict>,
}

/// What one stream has waiting.
#[derive(Debug, Default, Clone, Copy)]
struct Stored {
    bytes: usize,
    frames: usize,
}

impl Stored {
    fn cost(self) -> usize {
        self.bytes + self.frames * FRAME_COST
    }
}

impl Account {
    /// What `task` is woken for is a verdict.
    pub(super) fn poll_verdict(&self, task: &Waker) -> Poll<io::Error> {
        self.waker.register(task);
        self.state.lock().verdict.map_or(Poll::Pending, |verdict| Poll::Ready(io::Error::other(verdict)))
    }

    pub(super) fn new(budget: Option<Arc<Budget>>, is_dialer: bool, asked: Option<Arc<AtomicUsize>>) -> Arc<Self> {
        let account = Arc::new(Self { state: Mutex::default(), waker: AtomicWaker::new(), budget, is_dialer, asked });
        if let Some(budget) = &account.budget {
            let mut connections = budget.connections.lock();
            // Now and then, so that a connection costs the same however many there are.
            if connections.len() == connections.capacity() {
                connections.retain(|account| account.strong_count() > 0);
            }
            connections.push(Arc::downgrade(&account));
        }
        account
    }

    /// A header has come.
    fn heard(&self, frame: Frame) {
        let mut state = self.state.lock();
        if let Some((_, stored)) = state.opening.take() {
            self.take(&mut state, stored.cost(), true);
        }
        if frame.len > 0 {
            state.coming = Some(frame);
            self.add(state, frame.stored().cost());
        } else if frame.opens {
            state.opening = Some((frame.stream, Stored::default()));
        }
    }

    /// The frame is whole. Yamux throws it away when it knows no such stream.
    fn ends(&self, frame: Frame) {
        let mut state = self.state.lock();
        state.coming = None;
        let stored = frame.stored();
        if frame.opens {
            state.opening = Some((frame.stream, stored));
        } else if let Some(waiting) = state.streams.get_mut(&frame.stream) {
            waiting.bytes += stored.bytes;
            waiting.frames += stored.frames;
            let has_crumbs = waiting.frames * FRAME_COST > MAX_CRUMBS;
            if self.was_asked_for(&mut state, frame.stream, stored) && has_crumbs {
                self.pronounce(&mut state, Verdict::Crumbs);
            }
        } else {
            self.take(&mut state, stored.cost(), true);
        }
    }

    /// Yamux hands over a stream.
    fn opened(&self, stream: u32) {
        let mut state = self.state.lock();
        let stored = match state.opening.take_if(|(opening, _)| *opening == stream) {
            Some((_, stored)) => stored,
            None => Stored::default(),
        };
        self.was_asked_for(&mut state, stream, stored);
        state.streams.insert(stream, stored);
    }

    fn read(&self, stream: u32, bytes: usize) {
        let mut state = self.state.lock();
        let Some(waiting) = state.streams.get_mut(&stream) else { return };
        let before = waiting.cost();
        let bytes = bytes.min(waiting.bytes);
        // How many frames that was is not known; the bytes of one are as many as those of another on average.
        waiting.frames -= (waiting.frames as u64 * bytes as u64 / waiting.bytes.max(1) as u64) as usize;
        waiting.bytes -= bytes;
        if waiting.bytes == 0 {
            waiting.frames = 0;
        }
        let less = before - waiting.cost();
        self.take_from_stream(&mut state, stream, less);
    }

    fn dropped(&self, stream: u32) {
        let mut state = self.state.lock();
        if let Some(waiting) = state.streams.remove(&stream) {
            self.take_from_stream(&mut state, stream, waiting.cost());
        }
    }

    /// Says that it has to go; `false` when that gives nothing back, or was said before.
    fn condemn(&self, verdict: Verdict) -> bool {
        let mut state = self.state.lock();
        if state.verdict.is_some() || state.of_strangers == 0 {
            return false;
        }
        self.pronounce(&mut state, verdict);
        drop(state);
        self.waker.wake();
        true
    }

    fn pronounce(&self, state: &mut Waiting, verdict: Verdict) {
        if state.verdict.replace(verdict).is_none()
            && let Some(budget) = &self.budget
        {
            budget.waiting.fetch_sub(std::mem::take(&mut state.of_strangers), Ordering::Relaxed);
        }
    }

    /// For what is held elsewhere: it is so much now.
    pub(super) fn hold(&self, bytes: usize) {
        let mut state = self.state.lock();
        let before = std::mem::replace(&mut state.streams.entry(NO_STREAM).or_default().bytes, bytes);
        match bytes.checked_sub(before) {
            Some(more) => self.add(state, more),
            None => self.take(&mut state, before - bytes, true),
        }
    }

    fn add(&self, mut state: MutexGuard<'_, Waiting>, cost: usize) {
        if state.verdict.is_some() {
            return;
        }
        state.total += cost;
        if let Some(budget) = &self.budget {
            state.of_strangers += cost;
            budget.waiting.fetch_add(cost, Ordering::Relaxed);
        }
        if state.total > MAX_WAITING {
            self.pronounce(&mut state, Verdict::TooMuch);
        }
        drop(state);
        if let Some(budget) = &self.budget {
            budget.enforce();
        }
    }

    fn take(&self, state: &mut Waiting, cost: usize, counts: bool) {
        if state.verdict.is_some() {
            return;
        }
        state.total = state.total.saturating_sub(cost);
        if counts {
            self.take_from_budget(state, cost);
        }
    }

    fn take_from_budget(&self, state: &mut Waiting, cost: usize) {
        if let (Some(budget), None) = (&self.budget, state.verdict) {
            let less = cost.min(state.of_strangers);
            state.of_strangers -= less;
            budget.waiting.fetch_sub(less, Ordering::Relaxed);
        }
    }

    /// Whether what comes on a stream counts for the budget.
    fn counts(&self, stream: u32) -> bool {
        let is_ours = stream != NO_STREAM && (stream % 2 == 1) == self.is_dialer;
        !(self.asked.is_some() && is_ours)
    }

    /// What has come on a stream of this side's is nobody's budget any more, and is counted where that is.
    fn was_asked_for(&self, state: &mut Waiting, stream: u32, stored: Stored) -> bool {
        let Some(asked) = self.asked.as_ref().filter(|_| !self.counts(stream)) else { return false };
        self.take_from_budget(state, stored.cost());
        asked.fetch_add(stored.cost(), Ordering::Relaxed);
        true
    }

    /// So much of a stream was read, or thrown away.
    fn take_from_stream(&self, state: &mut Waiting, stream: u32, cost: usize) {
        let counts = self.counts(stream);
        self.take(state, cost, counts);
        if let Some(asked) = self.asked.as_ref().filter(|_| !counts) {
            asked.fetch_sub(cost, Ordering::Relaxed);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // What was asked for is on streams, each of which holds this and takes its own off as it is dropped.
        if let Some(budget) = &self.budget {
            budget.waiting.fetch_sub(self.state.lock().of_strangers, Ordering::Relaxed);
        }
    }
}

/// What the header of a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    stream: u32,
    /// How many bytes follow.
    len: usize,
    opens: bool,
}

impl Frame {
    fn stored(self) -> Stored {
        Stored { bytes: self.len, frames: 1 }
    }
}

/// Finds the frames in what a peer sends, however it is cut.
#[derive(Debug, Default)]
struct Headers {
    header: [u8; 12],
    /// How much of the header is there.
    filled: usize,
    /// The frame whose bytes are coming, and how many of them are still to come.
    body: Option<(Frame, usize)>,
}

impl Headers {
    fn feed(&mut self, mut bytes: &[u8], account: &Account) {
        while !bytes.is_empty() {
            if let Some((frame, left)) = self.body {
                let n = left.min(bytes.len());
                bytes = bytes.get(n..).unwrap_or_default();
                self.body = (left > n).then_some((frame, left - n));
                if left == n {
                    account.ends(frame);
                }
                continue;
            }
            let mut taken = 0;
            for (place, byte) in self.header.iter_mut().skip(self.filled).zip(bytes) {
                *place = *byte;
                taken += 1;
            }
            self.filled += taken;
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.filled == self.header.len() {
                self.filled = 0;
                self.begin(account);
            }
        }
    }

    /// Version, type, flags (2 bytes), stream (4), length (4).
    fn begin(&mut self, account: &Account) {
        let [_, kind, _, flags, stream @ ..] = self.header;
        let [s0, s1, s2, s3, l0, l1, l2, l3] = stream;
        let (stream, len) = (u32::from_be_bytes([s0, s1, s2, s3]), u32::from_be_bytes([l0, l1, l2, l3]));
        let opens = flags & 1 != 0 && matches!(kind, DATA | WINDOW_UPDATE);
        let frame = Frame { stream, len: if kind == DATA { len as usize } else { 0 }, opens };
        account.heard(frame);
        self.body = (frame.len > 0).then_some((frame, frame.len));
    }
}

/// The number of Yamux's own frames, which no stream has.
const NO_STREAM: u32 = 0;
const DATA: u8 = 0;
const WINDOW_UPDATE: u8 = 1;

/// What Yamux reads from, with somebody who reads along.
#[derive(Debug)]
struct Counted<C> {
    inner: C,
    headers: Headers,
    account: Arc<Account>,
    /// Until when the peer has to take something.
    blocked: Option<Pin<Box<Sleep>>>,
}

impl<C> Counted<C> {
    /// Lets what waits for the peer wait, but not for ever: while nothing can be written, Yamux reads nothing, and holds
    /// what it has.
    fn watched<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.blocked = None;
            return written;
        }
        let blocked = self.blocked.get_or_insert_with(|| Box::pin(tokio::time::sleep(MAX_BLOCKED)));
        ready!(blocked.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, format!("the peer took nothing for {MAX_BLOCKED:?}"))))
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Counted<C> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Poll::Ready(error) = this.account.poll_verdict(cx.waker()) {
            return Poll::Ready(Err(error));
        }
        let read = ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
        this.headers.feed(buffer.get(..read).unwrap_or_default(), &this.account);
        Poll::Ready(Ok(read))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Counted<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.watched(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = Pin::new(&mut self.inner).poll_flush(cx);
        self.watched(cx, written)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// A connection with its streams.
pub(super) struct Muxer<C> {
    connection: Connection<Counted<C>>,
    account: Arc<Account>,
    /// Streams that came while nobody asked for them.
    inbound: VecDeque<Stream>,
    inbound_waker: AtomicWaker,
    /// Until when it has to be closed.
    closing: Option<Pin<Box<Sleep>>>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    fn new(socket: C, mode: Mode, Multiplex { budget, asked }: Multiplex) -> Self {
        let mut config = yamux::Config::default();
        // In this order: each asserts that the other one fits.
        config.set_max_num_streams(MAX_STREAMS).set_max_connection_receive_window(Some(MAX_WINDOW));
        let account = Account::new(budget, matches!(mode, Mode::Client), asked);
        let counted =
            Counted { inner: socket, headers: Headers::default(), account: Arc::clone(&account), blocked: None };
        Self {
            connection: Connection::new(counted, config, mode),
            account,
            inbound: VecDeque::new(),
            inbound_waker: AtomicWaker::new(),
            closing: None,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        // Yamux reads nothing while it has something to write, and would not hear of it.
        if let Poll::Ready(error) = self.account.poll_verdict(cx.waker()) {
            return Poll::Ready(Err(error));
        }
        let stream = ready!(self.connection.poll_next_inbound(cx)).ok_or_else(|| failed(ConnectionError::Closed))?;
        Poll::Ready(stream.map_err(failed).map(|stream| Stream::new(stream, &self.account)))
    }
}

fn failed(error: ConnectionError) -> io::Error {
    match error {
        ConnectionError::Io(error) => error,
        error => io::Error::other(error),
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = Stream;
    type Error = io::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        if let Some(stream) = self.inbound.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        if let Poll::Ready(stream) = self.poll_next(cx) {
            return Poll::Ready(stream);
        }
        self.inbound_waker.register(cx.waker());
        Poll::Pending
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        let stream = ready!(self.connection.poll_new_outbound(cx)).map_err(failed)?;
        Poll::Ready(Ok(Stream::new(stream, &self.account)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closing = self.closing.get_or_insert_with(|| Box::pin(tokio::time::sleep(MAX_CLOSING)));
        if closing.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(())); // the peer takes its time; what is left goes with the socket
        }
        self.connection.poll_close(cx).map_err(failed)
    }

    /// Moves the streams on. Yamux does so only while it is asked for a new one, so that one may come.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        let stream = ready!(self.poll_next(cx))?;
        if self.inbound.len() < MAX_STREAMS {
            self.inbound.push_back(stream);
            self.inbound_waker.wake();
        }
        // Others come first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// A stream of a connection.
#[derive(Debug)]
pub(super) struct Stream {
    inner: yamux::Stream,
    account: Arc<Account>,
}

impl Stream {
    fn new(inner: yamux::Stream, account: &Arc<Account>) -> Self {
        account.opened(inner.id().val());
        Self { inner, account: Arc::clone(account) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.account.dropped(self.inner.id().val());
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        self.account.read(self.inner.id().val(), read);
        Poll::Ready(Ok(read))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// Puts a [`Muxer`] on a connection.
#[derive(Debug, Clone)]
pub(super) struct Multiplex {
    /// `None` for a peer with a permission.
    pub(super) budget: Option<Arc<Budget>>,
    /// Where is counted what has come for scrapes of this agent's, if it makes any.
    pub(super) asked: Option<Arc<AtomicUsize>>,
}

impl UpgradeInfo for Multiplex {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once("/yamux/1.0.0")
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> InboundConnectionUpgrade<C> for Multiplex {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Output>>;

    fn upgrade_inbound(self, socket: C, _: Self::Info) -> Self::Future {
        done(Ok(Muxer::new(socket, Mode::Server, self)))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> OutboundConnectionUpgrade<C> for Multiplex {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Output>>;

    fn upgrade_outbound(self, socket: C, _: Self::Info) -> Self::Future {
        done(Ok(Muxer::new(socket, Mode::Client, self)))
    }
}

/// Whatever a peer sends, it is counted the same however it is cut, and forgotten with its connection.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    let Some((&step, bytes)) = data.split_first() else { return };
    let counts = |step: usize| {
        let budget = Arc::<Budget>::default();
        let account = Account::new(Some(Arc::clone(&budget)), step % 2 == 1, Some(Arc::default()));
        let mut headers = Headers::default();
        for part in bytes.chunks(step) {
            headers.feed(part, &account);
        }
        let state = account.state.lock();
        let mut streams: Vec<_> = state.streams.iter().map(|(id, stored)| (*id, stored.bytes, stored.frames)).collect();
        streams.sort_unstable();
        let found = (streams, state.total, state.verdict.is_some());
        drop(state);
        drop(account);
        assert_eq!(budget.waiting.load(Ordering::Relaxed), 0);
        found
    };
    // Both of the same parity, which says who has dialed.
    let step = usize::from(step).max(1);
    assert_eq!(counts(step), counts(step + 2 * bytes.len()));
}

#[cfg(test)]
mod tests;

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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};

use futures::future::{Ready, ready as done};
use futures::task::AtomicWaker;
use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use yamux::{Connection, ConnectionError, Mode};

/// Streams of one connection, all protocols together. Yamux ends a connection that opens more. A gateway has one a page
/// (the agent's and up to 16 exporters'), and some ten are the link's and libp2p's own.
pub(super) const MAX_STREAMS: usize = 64;

/// What a peer may send on one connection before anybody reads it: what Yamux grants each of that many streams, and by how
/// much the windows of those that are read from may grow, which a long path needs to be fast (8 MiB are 80 MiB a second
/// where an answer takes 100 ms).
const MAX_WINDOW: usize = MAX_STREAMS * yamux::DEFAULT_CREDIT as usize + 8 * 1024 * 1024;

/// What one connection may have waiting, with [`FRAME_COST`]: twice what an honest one can.
const MAX_WAITING: usize = 2 * MAX_WINDOW;

/// What the peers without a permission may have waiting together, with [`FRAME_COST`].
pub(super) const MAX_WAITING_TOGETHER: usize = 64 * 1024 * 1024;

/// What a frame that waits takes in memory beside its bytes: its place in a queue (40 bytes) and an allocation.
const FRAME_COST: usize = 80;

/// What the peers without a permission have waiting.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
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
        if self.waiting.load(Ordering::Relaxed) <= self.limit {
            return;
        }
        let connections = lock(&self.connections);
        while self.waiting.load(Ordering::Relaxed) > self.limit {
            let accounts = connections.iter().filter_map(Weak::upgrade);
            let Some(largest) = accounts.max_by_key(|account| account.lock().of_strangers) else { return };
            let mut state = largest.lock();
            if state.of_strangers == 0 {
                return; // what waits is being given back by connections that end
            }
            state.verdict.get_or_insert(Verdict::MostOfAll);
            self.waiting.fetch_sub(std::mem::take(&mut state.of_strangers), Ordering::Relaxed);
            drop(state);
            largest.waker.wake();
        }
    }
}

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum Verdict {
    #[error("the peer has sent more than {} MiB that nobody has read yet", MAX_WAITING >> 20)]
    TooMuch,
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
}

#[derive(Debug, Default)]
struct Waiting {
    streams: HashMap<u32, Stored>,
    /// In all, and what of it counts for the budget. The latter is 0 after a verdict.
    total: usize,
    of_strangers: usize,
    /// The frame that is being received.
    coming: Option<Frame>,
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
        self.lock().verdict.map_or(Poll::Pending, |verdict| Poll::Ready(io::Error::other(verdict)))
    }

    pub(super) fn new(budget: Option<Arc<Budget>>, is_dialer: bool) -> Arc<Self> {
        let account = Arc::new(Self { state: Mutex::default(), waker: AtomicWaker::new(), budget, is_dialer });
        if let Some(budget) = &account.budget {
            let mut connections = lock(&budget.connections);
            // Now and then, so that a connection costs the same however many there are.
            if connections.len() == connections.capacity() {
                connections.retain(|account| account.strong_count() > 0);
            }
            connections.push(Arc::downgrade(&account));
        }
        account
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.state)
    }

    fn is_ours(&self, stream: u32) -> bool {
        (stream % 2 == 1) == self.is_dialer
    }

    fn opened(&self, stream: u32) {
        self.lock().streams.entry(stream).or_default();
    }

    /// A frame begins. Until it is whole its bytes wait in any case, whatever the stream.
    fn begins(&self, frame: Frame) {
        let mut state = self.lock();
        if frame.opens {
            state.streams.entry(frame.stream).or_default();
        }
        state.coming = Some(frame);
        let stored = frame.stored();
        if let Some(waiting) = state.streams.get_mut(&frame.stream) {
            waiting.bytes += stored.bytes;
            waiting.frames += stored.frames;
        }
        self.add(state, stored.cost(), self.is_ours(frame.stream));
    }

    /// A frame is whole. Yamux throws it away when it knows no such stream.
    fn ends(&self, frame: Frame) {
        let mut state = self.lock();
        state.coming = None;
        if !state.streams.contains_key(&frame.stream) {
            self.take(&mut state, frame.stored().cost(), self.is_ours(frame.stream));
        }
    }

    fn read(&self, stream: u32, bytes: usize) {
        let mut state = self.lock();
        let Some(waiting) = state.streams.get_mut(&stream) else { return };
        let before = waiting.cost();
        // How many frames that was is not known; the bytes of one are as many as those of another on average.
        waiting.frames -= waiting.frames * bytes / waiting.bytes.max(1);
        waiting.bytes = waiting.bytes.saturating_sub(bytes);
        if waiting.bytes == 0 {
            waiting.frames = 0;
        }
        let less = before - waiting.cost();
        self.take(&mut state, less, self.is_ours(stream));
    }

    fn dropped(&self, stream: u32) {
        let mut state = self.lock();
        if let Some(waiting) = state.streams.remove(&stream) {
            // What is still coming waits until it is there.
            let coming = state.coming.filter(|frame| frame.stream == stream).map_or(0, |frame| frame.stored().cost());
            self.take(&mut state, waiting.cost().saturating_sub(coming), self.is_ours(stream));
        }
    }

    /// For what is held elsewhere: it is so much now.
    pub(super) fn hold(&self, bytes: usize) {
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.streams.entry(NO_STREAM).or_default().bytes, bytes);
        match bytes.checked_sub(before) {
            Some(more) => self.add(state, more, false),
            None => self.take(&mut state, before - bytes, false),
        }
    }

    fn add(&self, mut state: MutexGuard<'_, Waiting>, cost: usize, is_ours: bool) {
        state.total += cost;
        if state.total > MAX_WAITING {
            state.verdict.get_or_insert(Verdict::TooMuch);
        }
        let Some(budget) = self.budget.as_deref().filter(|_| !is_ours && state.verdict.is_none()) else { return };
        state.of_strangers += cost;
        budget.waiting.fetch_add(cost, Ordering::Relaxed);
        drop(state);
        budget.enforce();
    }

    fn take(&self, state: &mut Waiting, cost: usize, is_ours: bool) {
        state.total = state.total.saturating_sub(cost);
        if let Some(budget) = self.budget.as_deref().filter(|_| !is_ours) {
            let less = cost.min(state.of_strangers);
            state.of_strangers -= less;
            budget.waiting.fetch_sub(less, Ordering::Relaxed);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let left = lock(&self.state).of_strangers;
        if let Some(budget) = &self.budget {
            budget.waiting.fetch_sub(left, Ordering::Relaxed);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A frame that carries bytes, or opens a stream.
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
        let opens = flags & 1 != 0;
        match kind {
            DATA if len > 0 => {
                let frame = Frame { stream, len: len as usize, opens };
                account.begins(frame);
                self.body = Some((frame, frame.len));
            }
            DATA | WINDOW_UPDATE if opens => account.opened(stream),
            _ => {}
        }
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
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
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
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    fn new(socket: C, mode: Mode, budget: Option<Arc<Budget>>) -> Self {
        let mut config = yamux::Config::default();
        // In this order: each asserts that the other one fits.
        config.set_max_num_streams(MAX_STREAMS).set_max_connection_receive_window(Some(MAX_WINDOW));
        let account = Account::new(budget, matches!(mode, Mode::Client));
        let counted = Counted { inner: socket, headers: Headers::default(), account: Arc::clone(&account) };
        Self {
            connection: Connection::new(counted, config, mode),
            account,
            inbound: VecDeque::new(),
            inbound_waker: AtomicWaker::new(),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
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
        self.account.opened(stream.id().val());
        Poll::Ready(Ok(Stream::new(stream, &self.account)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
        done(Ok(Muxer::new(socket, Mode::Server, self.budget)))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> OutboundConnectionUpgrade<C> for Multiplex {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Output>>;

    fn upgrade_outbound(self, socket: C, _: Self::Info) -> Self::Future {
        done(Ok(Muxer::new(socket, Mode::Client, self.budget)))
    }
}

/// Whatever a peer sends, it is counted the same however it is cut, and forgotten with its connection.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    let Some((&step, bytes)) = data.split_first() else { return };
    let counts = |step: usize| {
        let budget = Arc::<Budget>::default();
        let account = Account::new(Some(Arc::clone(&budget)), step % 2 == 1);
        let mut headers = Headers::default();
        for part in bytes.chunks(step) {
            headers.feed(part, &account);
        }
        let state = account.lock();
        let mut streams: Vec<_> = state.streams.iter().map(|(id, stored)| (*id, stored.bytes, stored.frames)).collect();
        streams.sort_unstable();
        let found = (streams, state.total, state.verdict.is_some());
        drop(state);
        drop(account);
        assert_eq!(budget.waiting.load(Ordering::Relaxed), 0);
        found
    };
    // Both of the same parity, which says whose streams are whose.
    let step = usize::from(step).max(1);
    assert_eq!(counts(step), counts(step + 2 * bytes.len()));
}

#[cfg(test)]
mod tests;

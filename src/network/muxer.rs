//! Yamux, with accounting for data that a peer has sent and nobody has read yet.
//!
//! Yamux buffers what a peer sends on a stream until the protocol reads it, up to a window that grows with the
//! round-trip time, which the peer controls. So the windows are kept small here, and every waiting byte is counted
//! together with its overhead: a peer can send data in frames of one byte. There is a bound on what may wait on a
//! single connection, and one on what may wait for all peers without a permission together. Past the latter, the peer
//! with the most is disconnected.
//!
//! The accounting reads the frame headers on their way to the crate `yamux`
//! (<https://github.com/hashicorp/yamux/blob/master/spec.md>), which does not report how much it has buffered. On a
//! gateway, data on streams that it opened itself counts only for the connection, because the gateway asked for it.

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
use yamux::{Connection, ConnectionError, FrameDecodeError, Mode};

/// The most streams on one connection, for all protocols together. Yamux closes a connection that opens more. A gateway
/// needs one per page (the agent's and those of up to 16 exporters), Kademlia up to 32 in each direction, and the link
/// and the other protocols about ten.
pub(super) const MAX_STREAMS: usize = 96;

/// How many bytes a peer may send on one connection before any are read: Yamux's default credit for each stream, and 2
/// MiB by which the windows of streams that are being read may grow. A path with a long round-trip time needs the
/// latter to be fast (2 MiB allow 20 MiB/s at 100 ms).
const MAX_WINDOW: usize = MAX_STREAMS * yamux::DEFAULT_CREDIT as usize + 2 * 1024 * 1024;

/// The most bytes that may wait on one connection, including [`FRAME_COST`]: [`MAX_WINDOW`], and 8 MiB for frames.
const MAX_WAITING: usize = MAX_WINDOW + 8 * 1024 * 1024;

/// The most bytes that may wait for all peers without a permission together, including [`FRAME_COST`]. With copies on
/// the way, and what is still held for connections that are being closed, they cost the process less than 64 MiB.
pub(super) const MAX_WAITING_TOGETHER: usize = 32 * 1024 * 1024;

/// The memory that a waiting frame takes in addition to its bytes: an entry in a queue (40 bytes) and an allocation.
const FRAME_COST: usize = 80;

/// The most overhead in bytes that the frames on one of a gateway's own streams may have: no honest peer splits a page
/// into that many frames.
const MAX_CRUMBS: usize = 512 * 1024;

/// How long closing a connection may take.
const MAX_CLOSING: Duration = Duration::from_secs(5);

/// What waits for all peers without a permission together.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    /// In bytes, without connections that have a verdict.
    waiting: AtomicUsize,
    // A blocking lock: never held across an await, and taken before the lock of any account.
    connections: Mutex<Vec<Weak<Account>>>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { limit: MAX_WAITING_TOGETHER, waiting: AtomicUsize::new(0), connections: Mutex::default() }
    }
}

impl Budget {
    /// While too much is waiting, condemns the connection with the most.
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

/// Why a connection has to be closed.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum Verdict {
    #[error("the peer makes this agent hold more than {} MiB", MAX_WAITING >> 20)]
    TooMuch,
    #[error("the peer splits what it sends into frames of a few bytes")]
    Crumbs,
    #[error(
        "peers without a permission make this agent hold more than {} MiB, and this one accounts for the most",
        MAX_WAITING_TOGETHER >> 20
    )]
    MostOfAll,
}

/// What waits for one connection.
#[derive(Debug)]
pub(super) struct Account {
    state: Mutex<Waiting>,
    /// Wakes the connection's task when there is a verdict.
    waker: AtomicWaker,
    /// `None` for a peer with a permission.
    budget: Option<Arc<Budget>>,
    /// Whether this side dialed: the streams with odd numbers are the dialer's.
    is_dialer: bool,
    /// On a gateway, counts the bytes that wait on its own streams, which it asked for.
    asked: Option<Arc<AtomicUsize>>,
}

#[derive(Debug, Default)]
struct Waiting {
    streams: HashMap<u32, Stored>,
    /// Everything, in bytes.
    total: usize,
    /// The part of it that counts against the budget; 0 after a verdict.
    of_strangers: usize,
    /// The frame that is being received. It counts on any stream.
    coming: Option<Frame>,
    /// A stream that the last frame opened, until Yamux hands it over. If another frame comes first, Yamux has refused
    /// the stream.
    opening: Option<(u32, Stored)>,
    /// Once there is one, nothing more is counted.
    verdict: Option<Verdict>,
}

/// What waits on one stream.
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
    /// Ready once there is a verdict, for which `task` is woken.
    pub(super) fn poll_verdict(&self, task: &Waker) -> Poll<io::Error> {
        self.waker.register(task);
        self.state.lock().verdict.map_or(Poll::Pending, |verdict| Poll::Ready(io::Error::other(verdict)))
    }

    pub(super) fn new(budget: Option<Arc<Budget>>, is_dialer: bool, asked: Option<Arc<AtomicUsize>>) -> Arc<Self> {
        let account = Arc::new(Self { state: Mutex::default(), waker: AtomicWaker::new(), budget, is_dialer, asked });
        if let Some(budget) = &account.budget {
            let mut connections = budget.connections.lock();
            // Only now and then, so that the cost per connection does not grow with their number.
            if connections.len() == connections.capacity() {
                connections.retain(|account| account.strong_count() > 0);
            }
            connections.push(Arc::downgrade(&account));
        }
        account
    }

    /// A frame header has been received.
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

    /// The frame is complete. Yamux discards it if there is no such stream.
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

    /// Yamux has handed over a stream.
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
        // How many frames were read is not known: assume that they had the average size.
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

    /// Passes a verdict on the connection; `false` if that would free nothing, or if there is a verdict already.
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

    /// Sets how many bytes are held elsewhere for the connection.
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

    /// Whether data on a stream counts against the budget.
    fn counts(&self, stream: u32) -> bool {
        let is_ours = stream != NO_STREAM && (stream % 2 == 1) == self.is_dialer;
        !(self.asked.is_some() && is_ours)
    }

    /// If the stream is one of a gateway's own, counts received data there and not against the budget.
    fn was_asked_for(&self, state: &mut Waiting, stream: u32, stored: Stored) -> bool {
        let Some(asked) = self.asked.as_ref().filter(|_| !self.counts(stream)) else { return false };
        self.take_from_budget(state, stored.cost());
        asked.fetch_add(stored.cost(), Ordering::Relaxed);
        true
    }

    /// Data on a stream was read or discarded.
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
        // `asked` needs nothing: every stream holds this account, and subtracts its own part when it is dropped.
        if let Some(budget) = &self.budget {
            budget.waiting.fetch_sub(self.state.lock().of_strangers, Ordering::Relaxed);
        }
    }
}

/// What the header of a frame contains.
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

/// Finds the frames in what a peer sends, wherever it is split.
#[derive(Debug, Default)]
struct Headers {
    header: [u8; 12],
    /// How many bytes of the header have been received.
    filled: usize,
    /// The frame whose body is being received, and how many of its bytes are missing.
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

    /// Parses a header: version, type, flags (2 bytes), stream (4), length (4).
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

/// The stream number in Yamux's own frames, which no stream has.
const NO_STREAM: u32 = 0;
const DATA: u8 = 0;
const WINDOW_UPDATE: u8 = 1;

/// The socket under Yamux, with the accounting.
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
    /// Streams that the peer has opened and libp2p has not asked for yet.
    inbound: VecDeque<Stream>,
    inbound_waker: AtomicWaker,
    /// Ends when closing has taken [`MAX_CLOSING`].
    closing: Option<Pin<Box<Sleep>>>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    fn new(socket: C, mode: Mode, Multiplex { budget, asked }: Multiplex) -> Self {
        let mut config = yamux::Config::default();
        // In this order: each asserts that its value fits the other's.
        config.set_max_num_streams(MAX_STREAMS).set_max_connection_receive_window(Some(MAX_WINDOW));
        let account = Account::new(budget, matches!(mode, Mode::Client), asked);
        let counted = Counted { inner: socket, headers: Headers::default(), account: Arc::clone(&account) };
        Self {
            connection: Connection::new(counted, config, mode),
            account,
            inbound: VecDeque::new(),
            inbound_waker: AtomicWaker::new(),
            closing: None,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        // Yamux may read nothing while it has something to write, and would not notice the verdict.
        if let Poll::Ready(error) = self.account.poll_verdict(cx.waker()) {
            return Poll::Ready(Err(error));
        }
        let stream = ready!(self.connection.poll_next_inbound(cx)).ok_or_else(|| failed(ConnectionError::Closed))?;
        Poll::Ready(stream.map_err(failed).map(|stream| Stream::new(stream, &self.account)))
    }
}

fn failed(error: ConnectionError) -> io::Error {
    match error {
        ConnectionError::Io(error) | ConnectionError::Decode(FrameDecodeError::Io(error)) => error,
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
        // The swarm has just polled the connection by `poll`; a second time costs as much and finds nothing.
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
            return Poll::Ready(Ok(())); // the peer is too slow: drop what is left with the socket
        }
        self.connection.poll_close(cx).map_err(failed)
    }

    /// Drives the streams. Yamux does so only when it is polled for a new inbound stream, so one may arrive.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        let stream = ready!(self.poll_next(cx))?;
        if self.inbound.len() < MAX_STREAMS {
            self.inbound.push_back(stream);
            self.inbound_waker.wake();
        }
        // Other tasks get their turn first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

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
    /// Counts what waits on this agent's own streams, if it scrapes its peers.
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

/// Whatever a peer sends is counted the same wherever it is split, and no longer counted when its connection ends.
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
    // Both have the same parity, which decides which side has dialed.
    let step = usize::from(step).max(1);
    assert_eq!(counts(step), counts(step + 2 * bytes.len()));
}

#[cfg(test)]
mod tests;

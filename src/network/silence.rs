//! Notices that a peer is gone without a word: a path that loses every packet, a process that is stopped, a machine that
//! has lost power. They all look the same, silence.
//!
//! Here, on the socket, rather than in the protocols above, because every byte that arrives is a sign of life, whatever
//! it is for, and because Noise accepts bytes that no socket has taken. Who asks a silent peer is Yamux: its
//! task is woken, and whenever it is polled it sends a ping if the last one was answered 10 s ago or earlier.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

/// How long nothing may be heard before the side that dialed asks for a sign of life. A peer that is scraped every 15 s
/// is never asked, and a NAT that forgets a flow after 30 s is reminded of it.
const ASK_AFTER: Duration = Duration::from_secs(16);
/// The same for the side that was dialed, in case the other one does not ask.
const ASK_BACK_AFTER: Duration = Duration::from_secs(20);
/// How long there may be no sign of life before the connection is dead.
const MAX_SILENCE: Duration = Duration::from_secs(24);

/// A socket that fails once its peer has been silent for too long.
#[derive(Debug)]
pub(super) struct Watched<S> {
    socket: S,
    /// When the peer last gave a sign of life.
    alive: Instant,
    ask_after: Duration,
    has_asked: bool,
    /// Ends when it is time to ask, and then when the connection is dead.
    timer: Pin<Box<Sleep>>,
    /// Whether a write waits for the peer. Then it is a sign of life that it goes on.
    is_blocked: bool,
}

impl<S> Watched<S> {
    pub(super) fn new(socket: S, is_dialer: bool) -> Self {
        let ask_after = if is_dialer { ASK_AFTER } else { ASK_BACK_AFTER };
        let timer = Box::pin(tokio::time::sleep(ask_after));
        Self { socket, alive: Instant::now(), ask_after, has_asked: false, timer, is_blocked: false }
    }

    fn sign_of_life(&mut self) {
        self.alive = Instant::now();
        self.has_asked = false;
        // Moving a timer to a later time is a single store, and does not wake the task.
        self.timer.as_mut().reset(self.alive + self.ask_after);
    }

    /// Wakes the task when it is time to ask. Ready once the connection is dead.
    fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while self.timer.as_mut().poll(cx).is_ready() {
            if self.has_asked {
                let text = format!("nothing was heard from the peer for {MAX_SILENCE:?}");
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            // From now on, so that a task that is late has time for the answer all the same.
            self.has_asked = true;
            self.timer.as_mut().reset(Instant::now() + (MAX_SILENCE - self.ask_after));
        }
        Poll::Pending
    }

    fn wrote<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let was_blocked = std::mem::replace(&mut self.is_blocked, written.is_pending());
        match written {
            Poll::Pending => self.poll_dead(cx).map(Err),
            written => {
                if was_blocked {
                    self.sign_of_life();
                }
                written
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.socket).poll_read(cx, buffer) {
            Poll::Pending => self.poll_dead(cx).map(Err),
            read => {
                self.sign_of_life();
                read
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.wrote(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, parts);
        self.wrote(cx, written)
    }

    /// A TCP socket has nothing to flush, so this tells nothing.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}

/// Two ends of a path that can lose what is sent in one direction. Above each is a stand-in for Noise and Yamux, whose
/// own clock cannot be paused: it accepts everything at once, pings when it is polled and answers pings.
#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::poll_fn;
    use std::sync::Arc;

    use futures::task::AtomicWaker;
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct Way {
        state: Mutex<State>,
        reader: AtomicWaker,
        writer: AtomicWaker,
    }

    #[derive(Default)]
    struct State {
        bytes: VecDeque<u8>,
        is_dead: bool,
        /// How many bytes were ever sent.
        sent: usize,
        /// How many more are taken.
        room: usize,
    }

    impl Way {
        fn new() -> Arc<Self> {
            let way = Self::default();
            way.state.lock().room = usize::MAX;
            Arc::new(way)
        }

        fn make_room(&self, room: usize) {
            self.state.lock().room = room;
            self.writer.wake();
        }
    }

    struct End {
        from: Arc<Way>,
        to: Arc<Way>,
    }

    impl AsyncRead for End {
        fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
            self.from.reader.register(cx.waker());
            let mut state = self.from.state.lock();
            if state.bytes.is_empty() || state.is_dead {
                return Poll::Pending;
            }
            let len = buffer.len().min(state.bytes.len());
            buffer.iter_mut().zip(state.bytes.drain(..len)).for_each(|(place, byte)| *place = byte);
            Poll::Ready(Ok(len))
        }
    }

    impl AsyncWrite for End {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.to.writer.register(cx.waker());
            let mut state = self.to.state.lock();
            let len = bytes.len().min(state.room);
            if len == 0 {
                return Poll::Pending;
            }
            state.room -= len;
            state.sent += len;
            state.bytes.extend(&bytes[..len]);
            drop(state);
            self.to.reader.wake();
            Poll::Ready(Ok(len))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    const PING: u8 = 1;
    const PONG: u8 = 2;
    const DATA: u8 = 3;

    /// Serves one end until it fails. Sends a byte of data with each `talk`, if there is one.
    async fn serve(mut socket: Watched<End>, talk: Option<Duration>) -> (Instant, String) {
        let mut queue = VecDeque::new();
        let mut next_ping = Some(Instant::now());
        let mut talking = talk.map(tokio::time::interval);
        let error = poll_fn(|cx| {
            if let Some(talking) = &mut talking {
                while talking.poll_tick(cx).is_ready() {
                    queue.push_back(DATA);
                }
            }
            loop {
                if next_ping.is_some_and(|next| next <= Instant::now()) {
                    next_ping = None;
                    queue.push_back(PING);
                }
                while !queue.is_empty() {
                    match Pin::new(&mut socket).poll_write(cx, queue.make_contiguous()) {
                        Poll::Ready(Ok(len)) => drop(queue.drain(..len)),
                        Poll::Ready(Err(error)) => return Poll::Ready(error),
                        Poll::Pending => break,
                    }
                }
                let mut buffer = [0; 64];
                match Pin::new(&mut socket).poll_read(cx, &mut buffer) {
                    Poll::Ready(Ok(len)) => {
                        for byte in &buffer[..len] {
                            match *byte {
                                PING => queue.push_back(PONG),
                                PONG => next_ping = Some(Instant::now() + Duration::from_secs(10)),
                                _ => {}
                            }
                        }
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(error),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
        (Instant::now(), error.to_string())
    }

    type Side = tokio::task::JoinHandle<(Instant, String)>;

    /// The dialer's side, the listener's, and the way from each to the other.
    fn connect(talk: Option<Duration>) -> ([Side; 2], [Arc<Way>; 2]) {
        let ways = [Way::new(), Way::new()];
        let end = |from: usize, to: usize| End { from: Arc::clone(&ways[from]), to: Arc::clone(&ways[to]) };
        let side = |end, is_dialer, talk| tokio::spawn(serve(Watched::new(end, is_dialer), talk));
        ([side(end(1, 0), true, talk), side(end(0, 1), false, None)], ways)
    }

    const WIDE: usize = usize::MAX / 2;

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_lives_on_a_ping_in_16_seconds() {
        let (sides, ways) = connect(None);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(sides.iter().all(|side| !side.is_finished()), "dead");
        for way in ways {
            // Its own ping, and the answer to the other side's.
            let pings = way.state.lock().sent / 2;
            assert!((220..=230).contains(&pings), "{pings} in an hour");
        }
    }

    /// Whatever is written meanwhile, and whether or not the path takes any of it.
    #[tokio::test(start_paused = true)]
    async fn a_dead_path_is_noticed_within_25_seconds() {
        for dead in [[true, true], [true, false], [false, true]] {
            for talk in [None, Some(Duration::from_secs(1)), Some(Duration::from_secs(7))] {
                for (after, room) in [(0, 0), (1, 4), (10, WIDE), (15, 0), (17, WIDE), (100, 4)] {
                    let ([dialer, listener], ways) = connect(talk);
                    tokio::time::sleep(Duration::from_secs(after)).await;
                    let died = Instant::now();
                    for (way, is_dead) in ways.iter().zip(dead) {
                        let mut state = way.state.lock();
                        state.is_dead = is_dead;
                        state.room = if is_dead { room } else { WIDE };
                    }
                    // A side that still hears the other one is told by the end of the connection.
                    let mut noticed = Vec::new();
                    if dead[1] {
                        noticed.push(dialer.await.unwrap());
                    }
                    if dead[0] {
                        noticed.push(listener.await.unwrap());
                    }
                    for (at, why) in noticed {
                        assert_eq!(why, "nothing was heard from the peer for 24s");
                        let taken = at - died;
                        assert!(taken <= Duration::from_secs(25), "{dead:?} {talk:?} {after} {room}: {taken:?}");
                    }
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_a_little_at_a_time_is_alive() {
        let ([dialer, listener], ways) = connect(Some(Duration::from_millis(10)));
        // What the listener says does not arrive: only the dialer's writes show that it is there.
        ways[1].state.lock().is_dead = true;
        for _ in 0..20 {
            ways[0].make_room(1);
            tokio::time::sleep(Duration::from_secs(20)).await;
            assert!(!dialer.is_finished(), "it reads a byte in 20 s");
        }
        assert!(dialer.await.is_ok());
        listener.abort();
    }
}

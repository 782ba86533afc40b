use super::*;

fn budget(limit: usize) -> Arc<Budget> {
    Arc::new(Budget { limit, ..Budget::default() })
}

fn frame(kind: u8, flags: u8, stream: u32, len: u32, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0, kind, 0, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(len.to_be_bytes());
    frame.extend(body);
    frame
}

fn data(flags: u8, stream: u32, len: usize) -> Vec<u8> {
    frame(DATA, flags, stream, u32::try_from(len).unwrap(), &vec![7; len])
}

fn has_verdict(account: &Account) -> bool {
    account.poll_verdict(futures::task::noop_waker_ref()).is_ready()
}

fn waiting(budget: &Budget) -> usize {
    budget.waiting.load(Ordering::Relaxed)
}

/// A connection that reads as Yamux does: frame by frame, handing over a stream that a frame opens before reading the
/// next.
struct Reading {
    account: Arc<Account>,
    headers: Headers,
    cut: usize,
}

impl Reading {
    fn of(account: &Arc<Account>) -> Self {
        Self { account: Arc::clone(account), headers: Headers::default(), cut: usize::MAX }
    }

    fn frame(&mut self, frame: &[u8]) {
        for part in frame.chunks(self.cut) {
            self.headers.feed(part, &self.account);
        }
        let [.., s0, s1, s2, s3] = frame[..8] else { unreachable!() };
        if frame[1] < 2 && frame[3] == 1 {
            self.account.opened(u32::from_be_bytes([s0, s1, s2, s3]));
        }
    }
}

#[test]
fn received_data_is_counted_until_it_is_read_or_discarded_wherever_it_is_split() {
    for cut in [1, 2, 7, 11, 12, 13, 100, usize::MAX] {
        let budget = budget(usize::MAX);
        // The peer has dialed: its streams are the odd ones. This side is a gateway.
        let account = Account::new(Some(Arc::clone(&budget)), false, Some(Arc::default()));
        account.opened(2);
        let mut reading = Reading { cut, ..Reading::of(&account) };
        for frame in [
            data(1, 1, 1000),
            frame(2, 1, 0, 99, &[]), // a ping
            data(0, 1, 500),
            frame(WINDOW_UPDATE, 1, 3, 0, &[]),
            data(0, 3, 200),
            data(0, 5, 300), // on a stream that nobody opened
            data(0, 2, 70),  // on a stream of this side
        ] {
            reading.frame(&frame);
        }
        assert_eq!(reading.headers.body, None);
        assert_eq!(waiting(&budget), 1700 + 3 * FRAME_COST, "split into {cut}");
        assert_eq!(account.state.lock().total, 1770 + 4 * FRAME_COST);
        account.read(1, 1500);
        assert_eq!(waiting(&budget), 200 + FRAME_COST);
        account.read(3, 100);
        account.dropped(3);
        assert_eq!(waiting(&budget), 0);
        account.dropped(2);
        assert_eq!(account.state.lock().total, 0);
    }
}

/// A stream is dropped while one of its frames is being received. The frame is discarded once it is complete, and
/// counts until then, whichever side opened the stream.
#[test]
fn a_frame_being_received_counts_on_any_stream() {
    let budget = budget(usize::MAX);
    let account = Account::new(Some(Arc::clone(&budget)), false, Some(Arc::default()));
    let mut reading = Reading::of(&account);
    reading.frame(&data(1, 1, 100));
    for stream in [1, 2, 99] {
        let frame = data(0, stream, 1000);
        reading.headers.feed(&frame[..500], &account);
        account.dropped(stream);
        assert_eq!(waiting(&budget), 1000 + FRAME_COST);
        reading.headers.feed(&frame[500..], &account);
        assert_eq!((waiting(&budget), account.state.lock().total), (0, 0));
    }
}

/// Yamux opens no stream for a frame that also ends the stream, exceeds the limit or has a number of the other side.
/// Each such frame, of twelve bytes, used to leave an entry behind forever.
#[test]
fn a_frame_that_opens_no_stream_leaves_nothing_behind() {
    let budget = budget(usize::MAX);
    let account = Account::new(Some(Arc::clone(&budget)), false, None);
    let mut headers = Headers::default();
    for stream in 0..1000 {
        headers.feed(&frame(WINDOW_UPDATE, 9, stream, 0, &[]), &account);
        headers.feed(&data(9, stream, 100), &account);
    }
    headers.feed(&frame(2, 1, 0, 1, &[]), &account);
    let state = account.state.lock();
    assert_eq!((state.streams.len(), state.total, waiting(&budget)), (0, 0, 0));
}

/// Pages do not count against the budget. They are bounded in bytes where they are asked for, so their overhead needs a
/// bound of its own.
#[test]
fn pages_are_counted_separately_and_must_not_come_in_crumbs() {
    let asked = Arc::<AtomicUsize>::default();
    let account = Account::new(None, false, Some(Arc::clone(&asked)));
    account.opened(2);
    let mut reading = Reading::of(&account);
    reading.frame(&data(0, 2, 1000));
    reading.frame(&data(1, 1, 1000)); // on a stream of the peer
    assert_eq!(asked.load(Ordering::Relaxed), 1000 + FRAME_COST);
    account.read(2, 1000);
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    for _ in 0..=MAX_CRUMBS / FRAME_COST {
        assert!(account.state.lock().verdict.is_none());
        reading.frame(&data(0, 2, 1));
    }
    reading.frame(&data(0, 2, 1));
    assert!(matches!(account.state.lock().verdict, Some(Verdict::Crumbs)));
    assert!(asked.load(Ordering::Relaxed) > MAX_CRUMBS);
    account.dropped(2);
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[test]
fn the_largest_connections_are_closed_and_no_more_than_needed() {
    let budget = budget(10_000);
    let accounts: Vec<_> = (0..3).map(|_| Account::new(Some(Arc::clone(&budget)), false, None)).collect();
    let trusted = Account::new(None, false, None);
    Reading::of(&trusted).frame(&data(1, 1, 50_000));
    for (account, len) in accounts.iter().zip([2_000, 5_000, 3_000]) {
        Reading::of(account).frame(&data(1, 1, len));
    }
    let verdicts = || accounts.iter().map(|account| has_verdict(account)).collect::<Vec<_>>();
    assert_eq!(verdicts(), [false, true, false]);
    assert!(!has_verdict(&trusted));
    // What it holds does not cause others to be closed.
    assert_eq!(waiting(&budget), 5_000 + 2 * FRAME_COST);
    Reading::of(&accounts[1]).frame(&data(1, 3, 9_000));
    accounts[1].read(1, 5_000);
    Reading::of(&accounts[0]).frame(&data(1, 3, 4_000));
    assert_eq!(verdicts(), [false, true, false]);
    assert_eq!(waiting(&budget), 9_000 + 3 * FRAME_COST);
    drop(accounts);
    assert_eq!(waiting(&budget), 0);
}

/// A link holds part of a frame that is not complete yet.
#[test]
fn data_held_elsewhere_counts_as_well() {
    let budget = budget(1000);
    let account = Account::new(Some(Arc::clone(&budget)), true, Some(Arc::default()));
    for held in [400, 900, 300, 0, 999] {
        account.hold(held);
        assert_eq!(waiting(&budget), held);
    }
    assert!(!has_verdict(&account));
    account.hold(1001);
    assert!(has_verdict(&account));
}

#[test]
fn crumbs_count_for_more_than_their_bytes() {
    let account = Account::new(None, false, None);
    let mut reading = Reading::of(&account);
    reading.frame(&data(1, 1, 1));
    let crumb = data(0, 1, 1);
    let mut count = 1;
    while !has_verdict(&account) {
        reading.frame(&crumb);
        count += 1;
    }
    assert_eq!(count, MAX_WAITING / (1 + FRAME_COST) + 1);
}

/// Two ends of a connection, with Yamux on each, over a pipe that can lose what is sent in one direction. That an idle
/// connection lives is tested with real time (`tests/network/silence.rs`): Yamux's pings ignore the paused clock.
mod life {
    use futures::future::select;
    use futures::task::AtomicWaker;
    use futures::{AsyncReadExt as _, AsyncWriteExt as _};
    use libp2p::core::muxing::StreamMuxerExt as _;
    use std::future::poll_fn;
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// One direction: what is written is read at the other end, unless the path is dead.
    #[derive(Default)]
    struct Way {
        bytes: Mutex<VecDeque<u8>>,
        reader: AtomicWaker,
        is_dead: AtomicBool,
        /// How many bytes the path still takes.
        room: AtomicUsize,
    }

    struct End {
        from: Arc<Way>,
        to: Arc<Way>,
    }

    impl AsyncRead for End {
        fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
            self.from.reader.register(cx.waker());
            let mut bytes = self.from.bytes.lock();
            if bytes.is_empty() || self.from.is_dead.load(Ordering::Relaxed) {
                return Poll::Pending;
            }
            let len = buffer.len().min(bytes.len());
            buffer.iter_mut().zip(bytes.drain(..len)).for_each(|(place, byte)| *place = byte);
            Poll::Ready(Ok(len))
        }
    }

    impl AsyncWrite for End {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let len = bytes.len().min(self.to.room.load(Ordering::Relaxed));
            if len == 0 {
                return Poll::Pending;
            }
            self.to.room.fetch_sub(len, Ordering::Relaxed);
            self.to.bytes.lock().extend(bytes.iter().take(len));
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

    fn connection() -> ([Muxer<End>; 2], [Arc<Way>; 2]) {
        let ways = [(); 2].map(|()| Arc::new(Way { room: AtomicUsize::new(1 << 30), ..Way::default() }));
        let end = |from: usize, to: usize| End { from: Arc::clone(&ways[from]), to: Arc::clone(&ways[to]) };
        let muxer = |socket, mode| Muxer::new(socket, mode, Multiplex { budget: None, asked: None });
        ([muxer(end(1, 0), Mode::Client), muxer(end(0, 1), Mode::Server)], ways)
    }

    /// Serves one end until it fails, as the swarm does, and tells when and why.
    async fn serve(mut muxer: Muxer<End>) -> (Instant, String) {
        let error = poll_fn(|cx| match muxer.poll_unpin(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(error),
            _ => Poll::Pending,
        })
        .await;
        (Instant::now(), error.to_string())
    }

    /// Also if it dies in one direction only, and if its buffers were full before.
    #[tokio::test(start_paused = true)]
    async fn a_dead_path_is_noticed_on_both_sides_within_25_seconds() {
        for dead in [[true, true], [true, false], [false, true]] {
            for room in [1 << 30, 4] {
                for after in [1, 10, 15, 17, 23] {
                    let ([dialer, listener], ways) = connection();
                    let (dialer, listener) = (tokio::spawn(serve(dialer)), tokio::spawn(serve(listener)));
                    tokio::time::sleep(Duration::from_secs(after)).await;
                    let died = Instant::now();
                    for (way, is_dead) in ways.iter().zip(dead) {
                        way.is_dead.store(is_dead, Ordering::Relaxed);
                        way.room.store(if is_dead { room } else { 1 << 30 }, Ordering::Relaxed);
                    }
                    // Where a side still hears the other one, the end of the connection tells it.
                    let (told, _) = select(dialer, listener).await.factor_first();
                    let (noticed, why) = told.unwrap();
                    assert_eq!(why, "nothing was heard from the peer for 24s");
                    let taken = noticed - died;
                    assert!(taken <= Duration::from_secs(25), "{dead:?} {room} {after}: {taken:?}");
                }
            }
        }
    }

    /// A peer that reads slowly and says nothing is not dead.
    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_a_little_at_a_time_is_alive() {
        let ([mut dialer, listener], ways) = connection();
        let (up, mut stream) = (Arc::clone(&ways[0]), poll_fn(|cx| dialer.poll_outbound_unpin(cx)).await.unwrap());
        // The listener can be heard only while the dialer reads, which it does not while it is blocked.
        ways[1].is_dead.store(true, Ordering::Relaxed);
        up.room.store(0, Ordering::Relaxed);
        let writer = tokio::spawn(async move {
            stream.write_all(&vec![7; 100_000]).await.unwrap();
            let _never = stream.read(&mut [0]).await;
        });
        let (mut dialer, _listener) = (tokio::spawn(serve(dialer)), tokio::spawn(serve(listener)));
        for second in 0..20 {
            up.room.store(100, Ordering::Relaxed);
            let waited = tokio::time::timeout(Duration::from_secs(20), &mut dialer).await;
            assert!(waited.is_err(), "dead after {second} turns");
        }
        let (_, why) = dialer.await.unwrap();
        assert_eq!(why, "nothing was heard from the peer for 24s");
        writer.abort();
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever a peer sends, counting it does not panic, and none of it is counted after the connection ends.
        #[test]
        fn any_bytes_are_counted(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..32)) {
            let budget = budget(1 << 20);
            let account = Account::new(Some(Arc::clone(&budget)), true, Some(Arc::default()));
            let mut headers = Headers::default();
            for part in &parts {
                headers.feed(part, &account);
            }
            drop(account);
            prop_assert_eq!(waiting(&budget), 0);
        }

        /// The counts add up for streams opened, data sent and read, and streams dropped in any order.
        #[test]
        fn nothing_is_lost_in_the_count(steps in prop::collection::vec((0u8..4, 1u32..8, 1usize..5000), 0..64)) {
            let budget = budget(usize::MAX);
            let account = Account::new(Some(Arc::clone(&budget)), false, Some(Arc::default()));
            let mut reading = Reading::of(&account);
            let mut unread = std::collections::HashMap::<u32, usize>::new();
            for (step, stream, len) in steps {
                let stream = 2 * stream + 1;
                match step {
                    0 | 1 => {
                        let opens = u8::from(!unread.contains_key(&stream));
                        reading.frame(&data(opens, stream, len));
                        *unread.entry(stream).or_default() += len;
                    }
                    2 => {
                        if let Some(left) = unread.get_mut(&stream) {
                            let read = len.min(*left);
                            account.read(stream, read);
                            *left -= read;
                        }
                    }
                    _ => {
                        account.dropped(stream);
                        unread.remove(&stream);
                    }
                }
                let bytes: usize = account.state.lock().streams.values().map(|stored| stored.bytes).sum();
                prop_assert_eq!(bytes, unread.values().sum::<usize>());
                let total: usize = account.state.lock().streams.values().map(|stored| stored.cost()).sum();
                prop_assert_eq!(total, account.state.lock().total);
                prop_assert_eq!(total, waiting(&budget));
            }
        }
    }
}

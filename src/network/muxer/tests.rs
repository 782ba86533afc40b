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

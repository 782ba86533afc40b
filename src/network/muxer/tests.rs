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

fn is_told_to_go(account: &Account) -> bool {
    account.poll_verdict(futures::task::noop_waker_ref()).is_ready()
}

fn waiting(budget: &Budget) -> usize {
    budget.waiting.load(Ordering::Relaxed)
}

#[test]
fn what_comes_is_counted_until_it_is_read_or_thrown_away_however_it_is_cut() {
    let bytes = [
        data(1, 1, 1000),
        frame(2, 1, 0, 99, &[]), // a ping
        data(0, 1, 500),
        frame(WINDOW_UPDATE, 1, 3, 0, &[]),
        data(0, 3, 200),
        data(0, 5, 300), // of a stream that nobody opened
        data(0, 2, 70),  // of one of ours
    ]
    .concat();
    for cut in [1, 2, 7, 11, 12, 13, 100, bytes.len()] {
        let budget = budget(usize::MAX);
        // The peer has dialed: its streams are the odd ones.
        let account = Account::new(Some(Arc::clone(&budget)), false);
        account.opened(2);
        let mut headers = Headers::default();
        for part in bytes.chunks(cut) {
            headers.feed(part, &account);
        }
        assert_eq!(headers.body, None);
        assert_eq!(waiting(&budget), 1700 + 3 * FRAME_COST, "cut into {cut}");
        assert_eq!(account.lock().total, 1770 + 4 * FRAME_COST);
        account.read(1, 1500);
        assert_eq!(waiting(&budget), 200 + FRAME_COST);
        account.read(3, 100);
        account.dropped(3);
        assert_eq!(waiting(&budget), 0);
        account.dropped(2);
        assert_eq!(account.lock().total, 0);
    }
}

/// A stream is dropped while a frame of it comes, and the frame is thrown away when it is there.
#[test]
fn what_is_still_coming_waits_though_its_stream_has_gone() {
    let budget = budget(usize::MAX);
    let account = Account::new(Some(Arc::clone(&budget)), false);
    let mut headers = Headers::default();
    let bytes = [data(1, 1, 100), data(0, 1, 1000)].concat();
    headers.feed(&bytes[..500], &account);
    account.dropped(1);
    assert_eq!(waiting(&budget), 1000 + FRAME_COST);
    headers.feed(&bytes[500..], &account);
    assert_eq!((waiting(&budget), account.lock().total), (0, 0));
}

#[test]
fn the_largest_is_told_to_go_and_no_more_than_needed() {
    let budget = budget(10_000);
    let accounts: Vec<_> = (0..3).map(|_| Account::new(Some(Arc::clone(&budget)), false)).collect();
    let trusted = Account::new(None, false);
    Headers::default().feed(&data(1, 1, 50_000), &trusted);
    for (account, len) in accounts.iter().zip([2_000, 5_000, 3_000]) {
        Headers::default().feed(&data(1, 1, len), account);
    }
    let verdicts = || accounts.iter().map(|account| is_told_to_go(account)).collect::<Vec<_>>();
    assert_eq!(verdicts(), [false, true, false]);
    assert_eq!(waiting(&budget), 5_000 + 2 * FRAME_COST);
    assert!(!is_told_to_go(&trusted));
    // What it still sends counts no more, nor does its end.
    Headers::default().feed(&data(1, 3, 9_000), &accounts[1]);
    accounts[1].read(1, 5_000);
    assert_eq!(waiting(&budget), 5_000 + 2 * FRAME_COST);
    drop(accounts);
    assert_eq!(waiting(&budget), 0);
}

/// What a link has of a frame that is not whole yet.
#[test]
fn what_is_held_elsewhere_counts_as_well() {
    let budget = budget(1000);
    let account = Account::new(Some(Arc::clone(&budget)), true);
    for held in [400, 900, 300, 0, 999] {
        account.hold(held);
        assert_eq!(waiting(&budget), held);
    }
    assert!(!is_told_to_go(&account));
    account.hold(1001);
    assert!(is_told_to_go(&account));
    assert_eq!(waiting(&budget), 0);
}

#[test]
fn crumbs_weigh_more_than_their_bytes() {
    let account = Account::new(None, false);
    let mut headers = Headers::default();
    headers.feed(&data(1, 1, 1), &account);
    let crumb = data(0, 1, 1);
    let mut count = 1;
    while !is_told_to_go(&account) {
        headers.feed(&crumb, &account);
        count += 1;
    }
    assert_eq!(count, MAX_WAITING / (1 + FRAME_COST) + 1);
    account.read(1, count);
    assert_eq!(account.lock().total, 0);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever a peer sends, counting it does not panic, and forgetting the connection forgets all of it.
        #[test]
        fn any_bytes_are_counted(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..32)) {
            let budget = budget(1 << 20);
            let account = Account::new(Some(Arc::clone(&budget)), true);
            let mut headers = Headers::default();
            for part in &parts {
                headers.feed(part, &account);
            }
            drop(account);
            prop_assert_eq!(waiting(&budget), 0);
        }

        /// What is opened, sent, read and dropped in any order adds up.
        #[test]
        fn nothing_is_lost_in_the_count(steps in prop::collection::vec((0u8..4, 1u32..8, 1usize..5000), 0..64)) {
            let budget = budget(usize::MAX);
            let account = Account::new(Some(Arc::clone(&budget)), false);
            let mut headers = Headers::default();
            let mut unread = std::collections::HashMap::<u32, usize>::new();
            for (step, stream, len) in steps {
                let stream = 2 * stream + 1;
                match step {
                    0 | 1 => {
                        let opens = u8::from(!unread.contains_key(&stream));
                        headers.feed(&data(opens, stream, len), &account);
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
                let bytes: usize = account.lock().streams.values().map(|stored| stored.bytes).sum();
                prop_assert_eq!(bytes, unread.values().sum::<usize>());
                let total: usize = account.lock().streams.values().map(|stored| stored.cost()).sum();
                prop_assert_eq!(total, account.lock().total);
                prop_assert_eq!(total, waiting(&budget));
            }
        }
    }
}

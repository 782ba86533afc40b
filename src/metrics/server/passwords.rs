//! Checks passwords against bcrypt hashes, which takes tens of milliseconds each on purpose.
//!
//! A thread of its own does it, so that the endpoint never waits. A password that was right is remembered for a while
//! under a keyed hash: a scraper that comes 300 times a second must not cost 300 checks. Guessing is bounded however
//! many try: after a wrong password the thread rests, clients take turns by address, and those whose password was
//! right before go first.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::mem;
use std::net::{IpAddr, Ipv6Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::header::HeaderValue;
use parking_lot::{Condvar, Mutex};
use ring::hmac;
use tokio::sync::oneshot;

use crate::metrics::web_config::{BcryptHash, MAX_BCRYPT_COST};

/// How long a wrong password is not checked again after its check, and a right one after its last use.
const REMEMBERED: Duration = Duration::from_secs(60);

/// How long a client whose password was right is preferred when it has to be checked again.
const PREFERRED: Duration = Duration::from_secs(3600);

/// The most wrong passwords that are remembered.
const MAX_WRONG: usize = 1_024;

/// The most passwords that wait to be checked, without those that were right before.
const MAX_WAITING: usize = 64;

/// How long a request waits for the check of its password.
const PATIENCE: Duration = Duration::from_secs(5);

/// After a wrong password the thread rests this many times as long as the check took: guesses use up to a quarter of
/// one core.
const REST: u32 = 3;

/// How much of a password bcrypt looks at, in bytes.
const BCRYPT_BYTES: usize = 72;

/// A user and a password, as a keyed hash.
type Tag = [u8; 32];

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    /// Wrong, or not given.
    Wrong,
    /// Too many passwords are waiting to be checked.
    Busy,
}

/// Checks passwords. Dropping it ends the thread.
pub(super) struct Passwords {
    shared: Arc<Shared>,
}

// Without the passwords that wait.
impl std::fmt::Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passwords").finish_non_exhaustive()
    }
}

struct Shared {
    key: hmac::Key,
    book: Mutex<Book>,
    work: Condvar,
}

/// What is known, and what is to be checked.
#[derive(Default)]
struct Book {
    /// When each was last used. As many as there are users: only a right one gets in, and each user has only one.
    right: HashMap<Tag, Instant>,
    wrong: HashMap<Tag, Instant>,
    queue: Queue,
    stopped: bool,
}

impl Passwords {
    pub(super) fn start() -> Result<Self, String> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new())
            .map_err(|_| "the system gives no random numbers".to_owned())?;
        let shared = Arc::new(Shared { key, book: Mutex::default(), work: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        let run = move || {
            // The panic hook has logged it; whoever waited for that check is told that we are busy.
            while catch_unwind(AssertUnwindSafe(|| of_thread.run())).is_err() {}
        };
        std::thread::Builder::new()
            .name("web-passwords".into())
            .spawn(run)
            .map_err(|error| format!("cannot start its thread: {error}"))?;
        Ok(Self { shared })
    }

    /// Whether `authorization` is that of one of the users (RFC 7617). `client` is where the request is from.
    pub(super) async fn check(
        &self,
        users: &BTreeMap<String, BcryptHash>,
        client: IpAddr,
        authorization: Option<&HeaderValue>,
    ) -> Verdict {
        let Some((user, mut password)) = authorization.and_then(credentials) else { return Verdict::Wrong };
        // To bcrypt, what follows these bytes or a NUL makes no difference: each user has one right password here.
        if password.contains(&0) {
            return Verdict::Wrong;
        }
        password.truncate(BCRYPT_BYTES);
        let user = str::from_utf8(&user).unwrap_or_default();
        let hash = users.get(user);
        // An unknown user takes as long as a known one: otherwise the time would tell which exist.
        let hash_text = hash.map_or_else(|| nobody(users), |hash| hash.as_str().to_owned());
        let tag = self.tag(user, &hash_text, &password);
        let waiting = {
            let mut book = self.shared.book.lock();
            if let Some(verdict) = book.known(&tag, Instant::now()) {
                return verdict;
            }
            let (answer, waiting) = oneshot::channel();
            let check = Check { tag, exists: hash.is_some(), hash: hash_text, password, waiting: vec![answer] };
            let preferred = book.right.contains_key(&tag);
            if !book.queue.push(lane(client), preferred, check) {
                return Verdict::Busy;
            }
            waiting
        };
        self.shared.work.notify_one();
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(Ok(true)) => Verdict::Right,
            Ok(Ok(false)) => Verdict::Wrong,
            // It stays in the queue: its next request finds the result.
            Err(_) | Ok(Err(_)) => Verdict::Busy,
        }
    }

    fn tag(&self, user: &str, hash: &str, password: &[u8]) -> Tag {
        let mut context = hmac::Context::with_key(&self.shared.key);
        context.update(&(user.len() as u64).to_le_bytes());
        context.update(user.as_bytes());
        // In the tag, so that a changed hash is a new check. All have the same length.
        context.update(hash.as_bytes());
        context.update(password);
        let mut tag = Tag::default();
        tag.iter_mut().zip(context.sign().as_ref()).for_each(|(to, from)| *to = *from);
        tag
    }
}

impl Drop for Passwords {
    fn drop(&mut self) {
        self.shared.book.lock().stopped = true;
        self.shared.work.notify_one();
    }
}

impl Shared {
    /// Checks until there is nobody left to ask.
    fn run(&self) {
        // Left behind by a panic.
        self.book.lock().queue.under_way = None;
        let mut rest = Instant::now();
        while let Some(check) = self.next(rest) {
            let began = Instant::now();
            // In this order: an unknown user takes as long as a known one.
            let right = bcrypt::verify(&check.password, &check.hash).unwrap_or(false) && check.exists;
            let ended = Instant::now();
            let waiting = {
                let mut book = self.book.lock();
                book.learn(check.tag, right, ended);
                let later = mem::take(&mut book.queue.under_way).map(|(_, later)| later).unwrap_or_default();
                check.waiting.into_iter().chain(later)
            };
            for waiting in waiting {
                // It may have left.
                let _ = waiting.send(right);
            }
            if !right {
                rest = ended + (ended - began) * REST;
            }
        }
    }

    /// Waits for the next password to check; `None` once there is nobody left to ask. Before `rest` is over, only one
    /// that was right before.
    fn next(&self, rest: Instant) -> Option<Check> {
        let mut book = self.book.lock();
        loop {
            if book.stopped {
                return None;
            }
            let now = Instant::now();
            if let Some(check) = book.queue.pop(now >= rest) {
                return Some(check);
            }
            if now < rest {
                self.work.wait_until(&mut book, rest);
            } else {
                self.work.wait(&mut book);
            }
        }
    }
}

impl Book {
    fn known(&mut self, tag: &Tag, now: Instant) -> Option<Verdict> {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < REMEMBERED;
        if let Some(used) = self.right.get_mut(tag).filter(|used| recent(used)) {
            *used = now;
            return Some(Verdict::Right);
        }
        self.wrong.get(tag).is_some_and(recent).then_some(Verdict::Wrong)
    }

    fn learn(&mut self, tag: Tag, right: bool, now: Instant) {
        if right {
            self.right.retain(|_, at| now.saturating_duration_since(*at) < PREFERRED);
            self.right.insert(tag, now);
            return;
        }
        self.right.remove(&tag);
        if self.wrong.len() >= MAX_WRONG {
            self.wrong.retain(|_, at| now.saturating_duration_since(*at) < REMEMBERED);
        }
        // With the usual costs, fewer checks than this are made while one is remembered.
        if self.wrong.len() < MAX_WRONG {
            self.wrong.insert(tag, now);
        }
    }
}

/// A password to check, and who waits for the result.
struct Check {
    tag: Tag,
    /// Whether there is such a user.
    exists: bool,
    hash: String,
    password: Vec<u8>,
    waiting: Vec<oneshot::Sender<bool>>,
}

/// The passwords to check. Clients take turns by address.
#[derive(Default)]
struct Queue {
    preferred: VecDeque<Check>,
    /// The lane whose turn is next comes first. None is empty.
    lanes: VecDeque<(IpAddr, VecDeque<Check>)>,
    waiting: usize,
    /// What is being checked now, and who asked for the same meanwhile.
    under_way: Option<(Tag, Vec<oneshot::Sender<bool>>)>,
}

impl Queue {
    /// `false` if there are too many already. In a full queue the longest lane loses its latest.
    fn push(&mut self, lane: IpAddr, preferred: bool, check: Check) -> bool {
        let same = self.lanes.iter_mut().flat_map(|(_, lane)| lane).chain(&mut self.preferred);
        if let Some(same) = same.into_iter().find(|same| same.tag == check.tag) {
            join(&mut same.waiting, check.waiting);
            return true;
        }
        if let Some((_, waiting)) = self.under_way.as_mut().filter(|(tag, _)| *tag == check.tag) {
            join(waiting, check.waiting);
            return true;
        }
        if preferred {
            self.preferred.push_back(check);
            return true;
        }
        let own = self.lanes.iter().find(|(address, _)| *address == lane).map_or(0, |(_, lane)| lane.len());
        if self.waiting >= MAX_WAITING {
            let Some((_, longest)) = self.lanes.iter_mut().max_by_key(|(_, lane)| lane.len()) else { return false };
            if longest.len() <= own + 1 {
                return false;
            }
            longest.pop_back();
            self.waiting -= 1;
        }
        self.waiting += 1;
        match self.lanes.iter_mut().find(|(address, _)| *address == lane) {
            Some((_, lane)) => lane.push_back(check),
            None => self.lanes.push_back((lane, VecDeque::from([check]))),
        }
        true
    }

    /// The next one; one that was not right before only if `all`.
    fn pop(&mut self, all: bool) -> Option<Check> {
        let mut check = self.preferred.pop_front();
        if check.is_none() && all {
            let (address, mut lane) = self.lanes.pop_front()?;
            check = lane.pop_front();
            self.waiting -= 1;
            if !lane.is_empty() {
                self.lanes.push_back((address, lane));
            }
        }
        if let Some(check) = &check {
            self.under_way = Some((check.tag, Vec::new()));
        }
        check
    }
}

/// Adds those who wait for the same check. A client may ask, leave and ask again.
fn join(waiting: &mut Vec<oneshot::Sender<bool>>, more: Vec<oneshot::Sender<bool>>) {
    waiting.retain(|waiting| !waiting.is_closed());
    waiting.extend(more);
}

/// User and password of an `Authorization: Basic` header.
fn credentials(header: &HeaderValue) -> Option<(Vec<u8>, Vec<u8>)> {
    let (scheme, rest) = header.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("Basic") {
        return None;
    }
    let mut user = BASE64_STANDARD.decode(rest.trim()).ok()?;
    let colon = user.iter().position(|byte| *byte == b':')?;
    let password = user.split_off(colon + 1);
    user.truncate(colon);
    Some((user, password))
}

/// A hash that no password has, as slow as the slowest of the users'.
fn nobody(users: &BTreeMap<String, BcryptHash>) -> String {
    let cost = users.values().map(BcryptHash::cost).max().unwrap_or(MAX_BCRYPT_COST);
    format!("$2b${cost:02}${}", ".".repeat(53))
}

/// Whom a client shares its turn with: an IPv6 network of 48 bits is one customer's.
fn lane(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, ..] = address.segments();
            Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tag: u8) -> (Check, oneshot::Receiver<bool>) {
        let (answer, waiting) = oneshot::channel();
        let check =
            Check { tag: [tag; 32], exists: true, hash: String::new(), password: Vec::new(), waiting: vec![answer] };
        (check, waiting)
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn clients_take_turns_and_those_who_were_right_go_first() {
        let mut queue = Queue::default();
        let mut waiting = Vec::new();
        let mut push = |queue: &mut Queue, from, preferred, tag| {
            let (check, receiver) = check(tag);
            waiting.push(receiver);
            queue.push(address(from), preferred, check)
        };
        for tag in 0..10 {
            assert!(push(&mut queue, 1, false, tag));
        }
        assert!(push(&mut queue, 2, false, 20) && push(&mut queue, 3, true, 30));
        // The same password again is no second check.
        assert!(push(&mut queue, 2, false, 20));
        assert_eq!(queue.waiting, 11);
        let order = std::iter::from_fn(|| queue.pop(true)).map(|check| (check.tag[0], check.waiting.len()));
        let order: Vec<_> = order.take(5).collect();
        assert_eq!(order, [(30, 1), (0, 1), (20, 2), (1, 1), (2, 1)]);
        assert!(queue.pop(false).is_none(), "while the thread rests, only a preferred one");
    }

    #[test]
    fn a_full_queue_makes_room_at_the_cost_of_whoever_has_most_in_it() {
        let mut queue = Queue::default();
        let mut flood = Vec::new();
        for tag in 0..u8::try_from(MAX_WAITING).unwrap() {
            let (check, receiver) = check(tag);
            assert!(queue.push(address(1), false, check));
            flood.push(receiver);
        }
        assert!(!queue.push(address(1), false, check(200).0), "its own share is used up");
        let (newcomer, mut waiting) = check(201);
        assert!(queue.push(address(2), false, newcomer));
        assert_eq!(queue.waiting, MAX_WAITING);
        assert_eq!(flood.pop().unwrap().try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(waiting.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert_eq!((queue.pop(true).unwrap().tag[0], queue.pop(true).unwrap().tag[0]), (0, 201));
    }

    #[test]
    fn what_is_known_is_forgotten_in_time_and_bounded() {
        let (mut book, start) = (Book::default(), Instant::now());
        book.learn([1; 32], true, start);
        book.learn([2; 32], false, start);
        let later = start + REMEMBERED;
        let in_use = later - Duration::from_secs(1);
        assert_eq!(
            (book.known(&[1; 32], start), book.known(&[2; 32], start)),
            (Some(Verdict::Right), Some(Verdict::Wrong))
        );
        assert_eq!(book.known(&[2; 32], later), None);
        assert_eq!(book.known(&[1; 32], in_use), Some(Verdict::Right));
        assert_eq!(book.known(&[1; 32], later), Some(Verdict::Right), "it was in use");
        assert_eq!(book.known(&[1; 32], later + REMEMBERED), None);
        for wrong in 0..2 * MAX_WRONG {
            let mut tag = [9; 32];
            tag[..8].copy_from_slice(&wrong.to_le_bytes());
            book.learn(tag, false, start);
        }
        assert_eq!(book.wrong.len(), MAX_WRONG);
        book.learn([3; 32], false, later);
        assert_eq!(book.wrong.len(), 1);
        book.learn([1; 32], false, later);
        assert!(book.right.is_empty(), "a password that is no longer right is not preferred");
    }

    #[test]
    fn nobody_has_a_hash_that_can_be_checked_and_never_fits() {
        let hash = nobody(&BTreeMap::new()).replacen("14", "04", 1);
        assert!(!bcrypt::verify("", &hash).unwrap());
        let (one, other) = (lane("2001:db8::1".parse().unwrap()), lane("2001:db8::ffff:2".parse().unwrap()));
        assert_eq!(one, other);
        assert_eq!(lane("::ffff:192.0.2.1".parse().unwrap()), address(1));
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_read_without_a_panic(bytes in proptest::collection::vec(32u8..=255, 0..200), basic: bool) {
            let bytes = if basic { [b"Basic ", BASE64_STANDARD.encode(&bytes).as_bytes()].concat() } else { bytes };
            if let Ok(header) = HeaderValue::from_bytes(&bytes) {
                let _either = credentials(&header);
            }
        }

        #[test]
        fn user_and_password_come_back(user in "[^:\\x00-\\x1f]{0,20}", password in ".{0,80}") {
            let text = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
            let header = HeaderValue::from_str(&text).unwrap();
            proptest::prop_assert_eq!(credentials(&header), Some((user.into_bytes(), password.into_bytes())));
        }
    }
}

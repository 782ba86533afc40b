use proptest::prelude::*;

use super::*;
use crate::gateway::PeerList;
use crate::network::PeerIdText;
use crate::network::protocol::Introduction;

fn second(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn info(peer: PeerId, name: Option<&str>) -> PeerInfo {
    PeerInfo {
        peer,
        address: "/ip4/192.0.2.1/tcp/4001".parse().unwrap(),
        direction: Direction::Inbound,
        connections: 1,
        connected_at: Instant::now(),
        agent: Some("peerscope/0.1.0".into()),
        introduction: name.map(|name| Introduction {
            name: name.into(),
            exposed: vec!["node".into()],
            withdrawn: false,
        }),
        link: true,
    }
}

fn open(max_peers: u32, now: Instant) -> Members {
    Members::new(&Config { max_peers, ..Config::default() }, now)
}

fn targets(members: &Members) -> Vec<PeerId> {
    members.iter().filter(|(_, member)| member.admitted).map(|(peer, _)| *peer).collect()
}

#[test]
fn a_peer_that_leaves_stays_a_target_for_the_grace_period() {
    let start = Instant::now();
    let (mut members, peer) = (open(10, start), PeerId::random());
    members.up(&info(peer, Some("edge")), start);
    assert_eq!(targets(&members), [peer]);
    members.down(&peer, "gone", start + second(10));
    members.tick(start + second(10) + second(3599));
    assert_eq!((targets(&members), members.count(PeerState::Departed)), (vec![peer], 1));
    assert_eq!(members.get(&peer).unwrap().name.as_deref(), Some("edge"), "as it was known");
    members.tick(start + second(10) + second(3600));
    assert_eq!((targets(&members), members.get(&peer).is_none()), (vec![], true));
}

#[test]
fn a_peer_that_comes_back_is_the_same_target() {
    let start = Instant::now();
    let (mut members, peer) = (open(10, start), PeerId::random());
    members.up(&info(peer, Some("edge")), start);
    members.down(&peer, "gone", start + second(1));
    members.up(&info(peer, Some("edge")), start + second(2));
    members.tick(start + second(10_000));
    assert_eq!((targets(&members), members.count(PeerState::Connected)), (vec![peer], 1));
}

#[test]
fn a_peer_that_does_not_allow_scrapes_is_not_a_target() {
    let start = Instant::now();
    let (mut members, peer) = (open(10, start), PeerId::random());
    members.up(&info(peer, None), start);
    assert_eq!((targets(&members), members.count(PeerState::Refusing)), (vec![], 1));
    // The introduction follows the hello.
    members.up(&info(peer, Some("edge")), start);
    assert_eq!(targets(&members), [peer]);
    members.down(&peer, "restarted with other rules", start + second(1));
    members.up(&info(peer, None), start + second(2));
    members.tick(start + second(3));
    assert_eq!((targets(&members), members.count(PeerState::Refusing)), (vec![peer], 1), "still shown, as failing");
    members.tick(start + second(2 + 3600));
    assert_eq!(targets(&members), []);
    members.down(&peer, "gone", start + second(4000));
    assert!(members.get(&peer).is_none());
}

#[test]
fn named_peers_are_always_targets_and_others_never_are() {
    let start = Instant::now();
    let (named, stranger) = (PeerId::random(), PeerId::random());
    let config = Config { peers: PeerList::These(vec![PeerIdText(named)]), max_peers: 1, ..Config::default() };
    let mut members = Members::new(&config, start);
    assert_eq!(targets(&members), [named]);
    assert!(members.settling(start).is_some());
    members.up(&info(stranger, Some("stranger")), start);
    members.up(&info(named, Some("named")), start);
    assert_eq!(members.settling(start), None, "every named peer has connected");
    members.down(&named, "gone", start);
    members.tick(start + second(1_000_000));
    assert_eq!(targets(&members), [named]);
    assert!(members.get(&stranger).is_none());
}

#[test]
fn an_open_fleet_settles_only_with_time() {
    let start = Instant::now();
    let members = open(10, start);
    assert_eq!(members.settling(start + second(10)), Some(second(20)));
    assert_eq!(members.settling(start + second(30)), None);
}

#[test]
fn newcomers_are_admitted_in_order_of_arrival_at_a_limited_rate() {
    let start = Instant::now();
    let mut members = open(10_000, start);
    let peers: Vec<PeerId> = (0..1200).map(|_| PeerId::random()).collect();
    for (index, &peer) in peers.iter().enumerate() {
        members.up(&info(peer, Some("x")), start + Duration::from_micros(index as u64));
    }
    // Counts the targets, and checks that they are the peers that came first.
    let admitted = |members: &Members| {
        let admitted = peers.iter().map(|peer| members.get(peer).unwrap().admitted);
        assert!(admitted.clone().is_sorted_by(|earlier, later| earlier >= later));
        admitted.filter(|&admitted| admitted).count()
    };
    assert_eq!(admitted(&members), 1000);
    members.tick(start + Duration::from_millis(2010));
    assert_eq!(admitted(&members), 1100);
    members.tick(start + second(5));
    assert_eq!((admitted(&members), members.count(PeerState::Waiting)), (1200, 0));
}

/// A flood that fills the table and leaves must not keep other peers out for the whole grace period.
#[test]
fn a_full_table_drops_the_departed_peer_that_was_connected_for_the_shortest_time() {
    let start = Instant::now();
    let mut members = open(2, start);
    let [old, brief, new, last] = [(); 4].map(|()| PeerId::random());
    members.up(&info(old, Some("old")), start);
    members.up(&info(brief, Some("brief")), start + second(100));
    members.down(&brief, "gone", start + second(101));
    members.down(&old, "gone", start + second(102));
    members.up(&info(new, Some("new")), start + second(103));
    let mut expected = vec![old, new];
    expected.sort();
    assert_eq!(targets(&members), expected);
    members.up(&info(old, Some("old")), start + second(104));
    members.up(&info(last, Some("last")), start + second(104));
    assert_eq!((targets(&members), members.count(PeerState::Waiting)), (expected, 1), "connected peers stay");
}

#[test]
fn what_a_peer_says_about_itself_is_sanitized_and_truncated() {
    assert_eq!(clean("\u{200b} a\u{61c}b\u{2060}\u{202e} \u{feff}\n"), Some("ab".into()));
    assert_eq!(clean("\u{200f} \u{feff}\r\n"), None);
    assert_eq!(clean(&format!("{} {}", "x".repeat(63), "y")), Some("x".repeat(63)));
    let start = Instant::now();
    let (mut members, peer) = (open(10, start), PeerId::random());
    let mut said = info(peer, Some(" a\nb\u{1b}[31m\u{202e}c\u{0} "));
    let names = ["node", "node", "no/de", "NODE", "", "x".repeat(33).as_str(), "a-1_b"].map(str::to_owned);
    said.introduction.as_mut().unwrap().exposed = names.into_iter().chain((0..100).map(|n| format!("n{n}"))).collect();
    members.up(&said, start);
    let member = members.get(&peer).unwrap();
    assert_eq!(member.name.as_deref(), Some("ab[31mc"));
    assert_eq!(member.exposed.len(), 15, "sixteen valid names, two of them the same");
    assert_eq!(member.exposed[..2], ["a-1_b", "n0"]);
    said.introduction.as_mut().unwrap().name = "\u{e4}".repeat(1000);
    members.up(&said, start);
    assert_eq!(members.get(&peer).unwrap().name, Some("\u{e4}".repeat(64)));
    said.introduction.as_mut().unwrap().name = "\n".into();
    members.up(&said, start);
    assert_eq!(members.get(&peer).unwrap().name, None);
}

/// A flood of newcomers that waited for a place once caused the whole list to be written every second.
#[test]
fn only_what_the_next_run_needs_counts_as_a_change() {
    let start = Instant::now();
    let (mut members, peer, stranger) = (open(1, start), PeerId::random(), PeerId::random());
    members.up(&info(peer, Some("edge")), start);
    assert_eq!(members.take_changed().map(|known| known.len()), Some(1));
    members.up(&info(stranger, Some("other")), start);
    members.down(&stranger, "gone", start + second(1));
    members.up(&info(peer, Some("edge")), start + second(1));
    assert_eq!(members.take_changed(), None);
    members.up(&info(peer, Some("renamed")), start + second(1));
    assert!(members.take_changed().is_some());
    members.down(&peer, "gone", start + second(2));
    assert!(members.take_changed().is_some());
}

/// A scrape that was rejected for want of a place once counted as an answer, and so did anything that came just before
/// the deadline. Slow pages could then take the places that are kept for prompt ones.
#[test]
fn only_a_quick_answer_makes_a_page_prompt() {
    let start = Instant::now();
    let (mut members, peer) = (open(10, start), PeerId::random());
    members.up(&info(peer, Some("edge")), start);
    let outcome = ScrapeOutcome::Failed; // any outcome
    let last = || LastScrape { at: start, duration: second(9), bytes: 0, outcome, problem: None };
    let mut after = |exposed: Option<&str>, took: Option<u64>| {
        let of = second(10);
        members.scraped(&peer, exposed, took.map(|took| Took { took: Duration::from_millis(took), of }), last());
        let member = members.get(&peer).unwrap();
        (member.is_slow(None), member.is_slow(Some("node")))
    };
    assert_eq!(after(None, None), (true, true), "nothing is known about it yet");
    assert_eq!(after(None, Some(1000)), (false, true));
    assert_eq!(after(Some("node"), Some(3)), (false, false));
    assert_eq!(after(Some("node"), Some(1001)), (false, true), "an exporter that hangs does not make the peer slow");
    assert_eq!(after(None, Some(9000)), (true, true));
    assert_eq!(after(None, None), (true, true));
    // Waiting for a place left the peer less than a second. The second answer uses up all of that.
    let quick = Took { took: Duration::from_millis(300), of: Duration::from_millis(600) };
    for (took, is_slow) in [(quick, false), (Took { took: Duration::from_millis(599), ..quick }, true)] {
        members.scraped(&peer, None, Some(took), last());
        assert_eq!(members.get(&peer).unwrap().is_slow(None), is_slow);
    }
    // Exporters that it no longer exposes are forgotten.
    members.scraped(&peer, Some("node"), Some(Took { took: second(0), of: second(1) }), last());
    let mut other = info(peer, Some("edge"));
    other.introduction.as_mut().unwrap().exposed = vec!["other".into()];
    members.up(&other, start);
    assert!(members.get(&peer).unwrap().is_slow(Some("node")));
}

/// A peer that is away while the gateway is restarted must not vanish from the list: its alert would resolve.
#[test]
fn the_next_run_knows_the_peers_of_the_last_one() {
    let start = Instant::now();
    let mut members = open(10, start);
    let [there, away, refusing] = [(); 3].map(|()| PeerId::random());
    assert_eq!(members.take_changed(), None);
    members.up(&info(there, Some("there")), start);
    members.up(&info(away, Some("away")), start);
    members.up(&info(refusing, None), start);
    members.down(&away, "gone", start);
    let known = members.take_changed().unwrap();
    assert_eq!((known.len(), members.take_changed()), (2, None));
    members.up(&info(there, Some("there")), start + second(1));
    assert_eq!(members.take_changed(), None, "nothing new");

    let mut next = open(10, start);
    next.restore(known.clone(), start);
    let mut expected = vec![there, away];
    expected.sort();
    assert_eq!((targets(&next), next.settling(start)), (expected, Some(second(30))));
    assert_eq!(next.get(&away).unwrap().name.as_deref(), Some("away"));
    assert_eq!(next.count(PeerState::Departed), 2);
    next.up(&info(there, Some("there")), start + second(1));
    next.tick(start + second(3600));
    assert_eq!(targets(&next), [there], "the grace period goes on");

    // Peers that the configuration no longer names are not restored, and never more than it allows.
    let named = PeerList::These(vec![PeerIdText(there)]);
    let mut closed = Members::new(&Config { peers: named, ..Config::default() }, start);
    closed.restore(known.clone(), start);
    assert_eq!(targets(&closed), [there]);
    let mut small = open(1, start);
    small.restore(known, start);
    assert_eq!(targets(&small).len(), 1);
}

proptest! {
    /// Whatever happens in whatever order, reloads included: named peers are targets, and every peer is counted in
    /// exactly one state.
    #[test]
    fn reloads_keep_the_books_straight(steps in proptest::collection::vec((0usize..8, 0u8..6), 1..120)) {
        let start = Instant::now();
        let mut members = open(100, start);
        let peers: Vec<PeerId> = (0..8).map(|_| PeerId::random()).collect();
        let mut connected = std::collections::BTreeSet::new();
        let mut named = Vec::new();
        for (at, (index, step)) in steps.into_iter().enumerate() {
            let (peer, now) = (peers[index], start + second(at as u64));
            match step {
                0 | 1 => { connected.insert(peer); members.up(&info(peer, Some("x")), now) }
                2 => if connected.remove(&peer) { members.down(&peer, "gone", now) },
                _ => {
                    named = if step == 3 { Vec::new() } else { peers[index..].to_vec() };
                    let list = named.iter().map(|peer| PeerIdText(*peer)).collect();
                    let peers = if step == 3 { PeerList::Any } else { PeerList::These(list) };
                    members.configure(&Config { peers, max_peers: 100, ..Config::default() }, now);
                    // As the fleet does.
                    connected.iter().for_each(|peer| members.up(&info(*peer, Some("x")), now));
                }
            }
            let counted: Vec<_> = members.iter().filter_map(|(_, member)| member.state()).collect();
            for &state in PeerState::ALL {
                prop_assert_eq!(members.count(state), counted.iter().filter(|&&counted| counted == state).count());
            }
            let shown = targets(&members);
            prop_assert!(named.iter().all(|peer| shown.contains(peer)));
            if members.takes_any() {
                prop_assert!(connected.iter().all(|peer| shown.contains(peer)));
            } else {
                prop_assert_eq!(shown.len(), named.len());
                prop_assert_eq!(members.iter().count(), named.len());
            }
        }
    }

    /// Whatever happens in whatever order: the limit holds, and every peer is counted in exactly one state.
    #[test]
    fn the_limit_holds_and_every_peer_has_a_state(steps in proptest::collection::vec((0usize..12, 0u8..4), 1..200)) {
        let start = Instant::now();
        let mut members = open(4, start);
        let peers: Vec<PeerId> = (0..12).map(|_| PeerId::random()).collect();
        let mut connected = std::collections::HashSet::new();
        for (at, (index, step)) in steps.into_iter().enumerate() {
            let (peer, now) = (peers[index], start + second(at as u64 * 300));
            match step {
                0 => { connected.insert(peer); members.up(&info(peer, Some("x")), now) }
                1 => { connected.insert(peer); members.up(&info(peer, None), now) }
                2 if connected.remove(&peer) => members.down(&peer, "gone", now),
                _ => members.tick(now),
            }
            prop_assert!(targets(&members).len() <= 4);
            let counted: Vec<_> = members.iter().filter_map(|(_, member)| member.state()).collect();
            for &state in PeerState::ALL {
                prop_assert_eq!(members.count(state), counted.iter().filter(|&&counted| counted == state).count());
            }
            prop_assert!(members.iter().all(|(_, member)| member.state().is_some()));
            for peer in &connected {
                let standing = members.get(peer).map(|member| member.standing.clone());
                prop_assert!(matches!(standing, Some(Standing::Connected { .. } | Standing::Refusing { .. })), "{standing:?}");
            }
        }
    }
}

//! Hostile or broken peers behind a real gateway. Each affects only its own scrape.
//!
//! For docs/security.md, "A gateway", `a_hundred_good_peers_are_scraped_among_hostile_ones` checks that a peer cannot
//! end, delay or change another peer's scrape, that it costs no more than one page, and what an error of its own can
//! contain. What a peer can say about itself is in `introductions.rs`.

mod answers;
pub(super) mod introductions;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use libp2p::identity::Keypair;

use self::answers::{CAP, Case, cases};
use super::fixture::{await_targets, outcomes, scrape, targets};
use super::scene::{HostilePeer, LightPeer, Scene, introduce, named, page};

/// The timeout of scrapes of good peers: much more than they take, to allow for a busy machine.
const GOOD_TIME: (&str, &str) = ("X-Prometheus-Scrape-Timeout-Seconds", "20");

/// The timeout of scrapes of hostile peers.
const TIME: (&str, &str) = ("X-Prometheus-Scrape-Timeout-Seconds", "2");

/// The pause between two scrapes of a hostile peer.
const PACE: Duration = Duration::from_millis(200);

/// What the kernel reports about a process's memory (`proc_pid_status(5)`), in bytes.
pub(super) fn memory(pid: u32, field: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// Scrapes a hostile peer, and checks that the result is the expected one.
#[track_caller]
fn assert_harmless(scene: &Scene, peer: &HostilePeer, case: &Case) {
    let began = Instant::now();
    let reply = scrape(&scene.gateway, &peer.id, &[TIME, ("Accept-Encoding", "gzip")]);
    let (what, text) = (case.what, reply.text());
    assert_eq!(reply.status, case.status, "{what}: {text}");
    if case.status == 200 {
        assert_eq!(text.as_bytes(), answers::PAGE, "{what}: the page, and nothing else that the peer sent");
        assert!(reply.header("x-evil").is_none(), "{what}");
        return;
    }
    let sentence = text.strip_suffix('\n').unwrap();
    assert!(case.sentences.iter().any(|expected| sentence.contains(expected)), "{what}: {sentence:?}");
    assert_eq!(reply.reason, sentence, "{what}: Prometheus sees the sentence");
    assert!(sentence.len() < 1000 && !sentence.contains(char::is_control), "{what}: {sentence:?}");
    let names: Vec<&str> = reply.headers.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "cache-control",
        "x-content-type-options",
        "content-type",
        "content-security-policy",
        "referrer-policy",
        "content-length",
        "date",
    ];
    assert_eq!(names, expected, "{what}");
    // Ten times the timeout: punctuality is measured elsewhere, not tested here.
    assert!(began.elapsed() < Duration::from_secs(20), "{what}: {:?}", began.elapsed());
}

/// Scrapes all of `good`, `at_once` at a time, and checks that each page is complete and arrives in time.
fn assert_round(scene: &Scene, good: &[LightPeer], at_once: usize) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(peer) = good.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let reply = scrape(&scene.gateway, &peer.id, &[GOOD_TIME]);
                    assert_eq!(reply.status, 200, "{}", reply.text());
                    assert!(reply.body == page(&peer.id, PAGE).body, "the page is not the one that its peer sent");
                }
            });
        }
    });
}

const PAGE: usize = 30_000;
const GOOD: usize = 100;

#[test]
fn a_hundred_good_peers_are_scraped_among_hostile_ones() {
    let scene = Scene::set(&format!("  max_body_size: {CAP}\n"));
    let good: Vec<LightPeer> = (0..GOOD)
        .map(|number| {
            let key = Keypair::generate_ed25519();
            let id = key.public().to_peer_id().to_string();
            let body = page(&id, PAGE);
            scene.light_as(key, &format!("good-{number}"), move |_| std::future::ready(Ok(body.clone())))
        })
        .collect();
    let hostile: Vec<(Case, HostilePeer)> = cases()
        .into_iter()
        .map(|case| {
            let serve = std::sync::Arc::clone(&case.serve);
            let frames = vec![introduce(named(case.what))];
            let peer = scene.hostile_from_the_start(&Keypair::generate_ed25519(), frames, move |offer| serve(offer));
            (case, peer)
        })
        .collect();
    await_targets(&scene.gateway, GOOD + hostile.len());
    assert_round(&scene, &good, 64);
    let before = memory(scene.gateway.pid(), "VmRSS");

    let stop = AtomicBool::new(false);
    let mut expected = BTreeMap::from([("ok", GOOD)]);
    std::thread::scope(|scope| {
        let attacks: Vec<_> = hostile
            .iter()
            .map(|(case, peer)| {
                let (scene, stop) = (&scene, &stop);
                let attack = move || {
                    let mut count = 0;
                    // At least once each.
                    while count == 0 || !stop.load(Ordering::SeqCst) {
                        assert_harmless(scene, peer, case);
                        count += 1;
                        std::thread::sleep(PACE);
                    }
                    (case.outcome, count)
                };
                scope.spawn(attack)
            })
            .collect();
        let rounds = 5;
        for _ in 0..rounds {
            if attacks.iter().any(std::thread::ScopedJoinHandle::is_finished) {
                break; // it failed
            }
            assert_round(&scene, &good, 64);
        }
        *expected.get_mut("ok").unwrap() += rounds * GOOD;
        stop.store(true, Ordering::SeqCst);
        for attack in attacks {
            let (outcome, count) = attack.join().unwrap();
            *expected.entry(outcome).or_default() += count;
        }
    });
    for (outcome, count) in expected {
        assert_eq!(outcomes(&scene.gateway, outcome), count as f64, "{outcome}");
    }
    // At most one body of at most `CAP` bytes per peer; nothing is decompressed.
    let more = memory(scene.gateway.pid(), "VmHWM") - before;
    assert!(more < 48 * CAP, "the gateway took {} MiB more", more >> 20);
    assert_eq!(targets(&scene.gateway).len(), GOOD + hostile.len());
}

/// A substream once went to the scrape that had waited longest for one. Here that scraper had long gone, so the next
/// one waited in vain.
#[test]
fn a_substream_that_is_never_accepted_affects_only_its_own_scrape() {
    let scene = Scene::set("");
    let good = answers::good();
    let offered = std::sync::atomic::AtomicUsize::new(0);
    let peer =
        scene.hostile_from_the_start(&Keypair::generate_ed25519(), vec![introduce(named("sometimes"))], move |offer| {
            match offered.fetch_add(1, Ordering::SeqCst) {
                0 => answers::mute()(offer),
                _ => good(offer),
            }
        });
    await_targets(&scene.gateway, 1);
    let late = scrape(&scene.gateway, &peer.id, &[("X-Prometheus-Scrape-Timeout-Seconds", "0.5")]);
    assert_eq!(late.status, 504, "{}", late.reason);
    for _ in 0..3 {
        assert_eq!(scrape(&scene.gateway, &peer.id, &[TIME]).status, 200);
    }
}

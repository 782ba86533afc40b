//! When peers are scraped, and which scrapes can delay others.
//!
//! docs/security.md, "A gateway": that slow peers share half of the places, and that a scrape delays no message.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use peerscope::metrics::Page;
use peerscope::network::RequestError;
use peerscope::network::protocol::{ErrorCode, Request};
use tokio::sync::Semaphore;

use super::fixture::{await_targets, outcomes, scrape, value};
use super::scene::{LightPeer, Scene, named, page};
use crate::support::agent::{connect, eventually};

const TIME: &str = "X-Prometheus-Scrape-Timeout-Seconds";

/// A peer that answers one scrape for every permit that the test adds.
fn held(scene: &Scene) -> (LightPeer, Arc<Semaphore>) {
    let go = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&go);
    let peer = scene.light("held", move |_| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            Ok(page("held", 1000))
        }
    });
    await_targets(&scene.gateway, 1);
    (peer, go)
}

fn in_flight(scene: &Scene) -> f64 {
    value(&scene.gateway, "http_requests_in_flight", &[("handler", "gateway")])
}

#[test]
fn at_most_eight_scrapers_get_the_same_page_at_once() {
    let scene = Scene::set("");
    let (peer, go) = held(&scene);
    std::thread::scope(|scope| {
        let scrapers: Vec<_> = (0..8).map(|_| scope.spawn(|| scrape(&scene.gateway, &peer.id, &[]))).collect();
        eventually("all have reached the peer", || peer.seen.under_way() == 8);
        let ninth = scrape(&scene.gateway, &peer.id, &[]);
        assert_eq!(ninth.status, 503);
        assert_eq!(ninth.reason, "too many scrapes of this page are under way; try again later");
        go.add_permits(9);
        for scraper in scrapers {
            assert_eq!(scraper.join().unwrap().status, 200);
        }
    });
    assert_eq!(scrape(&scene.gateway, &peer.id, &[]).status, 200, "the places are free again");
    assert_eq!((peer.seen.begun(), outcomes(&scene.gateway, "ok")), (9, 9.0));
}

#[test]
fn a_scraper_that_goes_away_ends_its_scrape_at_the_peer() {
    let scene = Scene::set("");
    let (peer, _never) = held(&scene);
    let mut client = connect(scene.gateway.metrics_socket()).unwrap();
    write!(client, "GET /peers/{}/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", peer.id).unwrap();
    eventually("the scrape is under way at the peer", || peer.seen.under_way() == 1);
    drop(client);
    eventually("the peer has given it up", || peer.seen.given_up() == 1);
    eventually("the peer has counted it", || peer.failed("cancelled") == 1.0);
    eventually("the gateway has counted it", || outcomes(&scene.gateway, "cancelled") == 1.0);
    assert_eq!((peer.seen.begun(), peer.seen.under_way(), in_flight(&scene)), (1, 0, 0.0));
}

#[test]
fn the_peer_learns_how_long_the_scraper_waits() {
    let scene = Scene::set("");
    let (peer, go) = held(&scene);
    go.add_permits(3);
    for (said, least, most) in [("3", 2000, 2700), ("0.5", 300, 450), ("1e9", 110_000, 119_500)] {
        assert_eq!(scrape(&scene.gateway, &peer.id, &[(TIME, said)]).status, 200);
        let heard = peer.seen.timeout_ms();
        assert!((least..=most).contains(&heard), "{said} s became {heard} ms");
    }
}

/// The peer once gave up at the same moment as the gateway. If it was first, the connection looked lost.
#[test]
fn a_peer_that_takes_too_long_is_a_timeout_and_not_a_lost_connection() {
    let scene = Scene::set("");
    let (peer, _never) = held(&scene);
    for _ in 0..30 {
        let reply = scrape(&scene.gateway, &peer.id, &[(TIME, "0.05")]);
        assert_eq!(reply.status, 504, "{}", reply.reason);
    }
    eventually("the peer has given all of them up", || peer.seen.under_way() == 0);
    assert_eq!(outcomes(&scene.gateway, "timeout"), 30.0);
}

/// Peers that never answer once got every place: a scrape that was rejected for want of a place made its peer count as
/// prompt the next time.
#[test]
fn peers_that_never_answer_leave_half_of_the_places_to_others() {
    let scene = Scene::set("  max_scrapes: 8\n");
    let stalled: Vec<_> = (0..24)
        .map(|n| scene.hostile(named(&format!("stalled-{n}")), |stream| async move { hold(stream).await }))
        .collect();
    let good: Vec<_> = (0..8)
        .map(|n| {
            let name = format!("good-{n}");
            scene.light(&name.clone(), move |_| std::future::ready(Ok(page(&name, 30_000))))
        })
        .collect();
    await_targets(&scene.gateway, stalled.len() + good.len());
    // Peers that have not been asked yet count as slow, too.
    for peer in &good {
        assert_eq!(scrape(&scene.gateway, &peer.id, &[]).status, 200);
    }
    let (begin, attempts) = (Instant::now(), std::sync::atomic::AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let attacks: Vec<_> = stalled
            .iter()
            .map(|peer| {
                let (scene, attempts) = (&scene, &attempts);
                scope.spawn(move || {
                    while begin.elapsed() < Duration::from_secs(4) {
                        attempts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        let reply = scrape(&scene.gateway, &peer.id, &[(TIME, "1.5")]);
                        assert!(matches!(reply.status, 503 | 504), "{}", reply.text());
                    }
                })
            })
            .collect();
        eventually("they wait", || in_flight(&scene) >= 8.0);
        let mut scraped = 0;
        while !attacks.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            for peer in &good {
                let reply = scrape(&scene.gateway, &peer.id, &[(TIME, "20")]);
                assert_eq!(reply.status, 200, "{}", reply.reason);
                scraped += 1;
            }
        }
        assert!(scraped > 8, "{scraped}");
    });
    assert!(outcomes(&scene.gateway, "timeout") >= 4.0 && outcomes(&scene.gateway, "busy") >= 1.0);
    assert_eq!(outcomes(&scene.gateway, "timeout") + outcomes(&scene.gateway, "busy"), attempts.into_inner() as f64);
}

async fn hold(mut stream: libp2p::core::muxing::SubstreamBox) {
    use futures::AsyncReadExt as _;
    while stream.read(&mut [0; 64]).await.is_ok_and(|n| n > 0) {}
}

#[test]
fn a_large_page_delays_no_messages_of_the_same_peer() {
    const LARGE: usize = 15 << 20;
    let scene = Scene::set("access: [{peer: \"*\", allow: [get]}]\n");
    let large: Page = page("large", LARGE);
    let (whole, len) = (large.body.clone(), large.body.len());
    let peer = scene.light("large", move |_| std::future::ready(Ok(large.clone())));
    await_targets(&scene.gateway, 1);
    scene.gateway.cli(&["put", "key", "value"]).ok();
    std::thread::scope(|scope| {
        let scraper = scope.spawn(|| scrape(&scene.gateway, &peer.id, &[(TIME, "30")]));
        eventually("the scrape has begun", || peer.seen.begun() == 1);
        let (mut asked, mut longest) = (0, Duration::ZERO);
        while !scraper.is_finished() {
            let began = Instant::now();
            let key = bytes::Bytes::from_static(b"key");
            let got: Result<_, RequestError> =
                scene.runtime.block_on(peer.network.request(scene.gateway_id, Request::Get { key }));
            got.unwrap();
            longest = longest.max(began.elapsed());
            asked += 1;
        }
        let reply = scraper.join().unwrap();
        assert_eq!((reply.status, reply.body.len()), (200, len), "{:?}", reply.reason);
        assert!(reply.body == whole, "byte for byte");
        assert!(asked > 5 && longest < Duration::from_millis(500), "{asked} asked, the longest took {longest:?}");
    });
    // Its permission covers `get` only.
    let put = Request::Put { key: "k".into(), value: "v".into() };
    let refused = scene.runtime.block_on(peer.network.request(scene.gateway_id, put));
    assert!(matches!(refused, Err(RequestError::Remote(error)) if error.code == ErrorCode::Refused));
}

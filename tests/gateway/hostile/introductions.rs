//! What hostile peers say about themselves and on their links.

use bytes::Bytes;
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::core::muxing::SubstreamBox;
use libp2p::identity::Keypair;
use peerscope::network::protocol::{Introduction, ResponseBody, ResponseFrame};

use super::super::fixture::{await_targets, outcomes, scrape};
use super::super::scene::{Scene, TEXT, introduce, named, read_ask};
use super::answers::whole;
use crate::support::agent::eventually;

/// A page whose labels claim to be another target's. Prometheus deals with that, by `honor_labels: false`.
const SPOOFED: &str = "# TYPE a gauge\na{instance=\"someone-else\",job=\"node\",peer_name=\"edge-1\"} 1\n";

pub(crate) async fn answer(mut stream: SubstreamBox) {
    read_ask(&mut stream).await;
    stream.write_all(&whole(TEXT, false, SPOOFED.as_bytes())).await.unwrap();
    stream.close().await.unwrap();
    let _ = stream.read(&mut [0]).await;
}

#[test]
fn what_a_peer_says_about_itself_becomes_at_most_a_clean_label_and_sixteen_exporters() {
    let scene = Scene::set("");
    let name = format!("edge\r\n\u{1b}[31m\u{202e}\u{200f}\u{61c}17{}", "x".repeat(10_000));
    let bad = ["", "a/b", "../../sd", "a\nb", "Ä", "a b", "%2e%2e", "A", "a\"b", &"x".repeat(33)];
    let mut exposed: Vec<String> = (0..1000).map(|n| format!("{}{n}\n", bad[n % bad.len()])).collect();
    exposed.extend(bad.map(str::to_owned));
    exposed.extend((0..100).map(|n| format!("good-{n:02}")));
    // The good ones come first: those after many bad ones may be left out.
    exposed.reverse();
    let peer = scene.hostile(Introduction { name, exposed, withdrawn: false }, answer);
    let targets = await_targets(&scene.gateway, 17);
    for target in &targets {
        let labels = &target["labels"];
        assert_eq!(labels["peer_name"], format!("edge[31m17{}", "x".repeat(64 - 10)));
        let path = labels["__metrics_path__"].as_str().unwrap();
        match labels["exposed"].as_str() {
            None => assert_eq!(path, format!("/peers/{}/metrics", peer.id)),
            Some(name) => {
                assert!(name.starts_with("good-"), "{name}");
                assert_eq!(path, format!("/peers/{}/exposed/{name}/metrics", peer.id));
            }
        }
    }
    let reply = scrape(&scene.gateway, &peer.id, &[]);
    assert_eq!((reply.status, reply.text().as_str()), (200, SPOOFED), "passed on unchanged");
    // Nor do its control characters reach a terminal.
    let shown = String::from_utf8(scene.gateway.cli(&["peers"]).ok()).unwrap();
    assert!(shown.contains("edge") && !shown.contains(['\u{1b}', '\u{202e}', '\u{200f}', '\u{61c}']), "{shown:?}");
}

/// An honest agent introduces itself again when its configuration changes.
#[test]
fn the_newest_introduction_counts_up_to_a_limit_and_unrequested_answers_change_nothing() {
    let scene = Scene::set("");
    let value = |id| ResponseFrame { id, body: Some(ResponseBody::Value(Bytes::from_static(b"unasked"))) };
    let mut frames = vec![introduce(named("first")), value(1), value(77), value(u64::MAX)];
    // 1,000 of one link count.
    frames.extend((2..=1100).map(|number| introduce(named(&format!("name-{number}")))));
    frames.push(ResponseFrame { id: 5, body: None });
    let peer = scene.hostile_as(&Keypair::generate_ed25519(), frames, answer);
    let name = || await_targets(&scene.gateway, 1)[0]["labels"]["peer_name"].clone();
    eventually("all that count have arrived", || name() == "name-1000");
    for _ in 0..3 {
        assert_eq!(scrape(&scene.gateway, &peer.id, &[]).text(), SPOOFED);
        assert_eq!(name(), "name-1000");
    }
    assert!(!peer.raw.is_closed());
    assert_eq!(outcomes(&scene.gateway, "ok"), 3.0);
}

#[test]
fn a_peer_without_the_scrape_protocol_is_reported_as_such() {
    let scene = Scene::set("");
    let peer = scene.without_scrapes("old");
    await_targets(&scene.gateway, 1);
    let reply = scrape(&scene.gateway, &peer.id, &[]);
    assert_eq!((reply.status, reply.reason.as_str()), (502, "the peer does not speak /peerscope/scrape/1"));
    assert_eq!(outcomes(&scene.gateway, "invalid"), 1.0);
}

/// A frame may be as large as the largest value. All of an introduction was once kept, so that a thousand strangers
/// would have taken gigabytes of an agent that is not even a gateway.
#[test]
fn a_large_introduction_is_not_kept() {
    let scene = Scene::set("");
    let introduction =
        Introduction { name: "n".repeat(10_000), exposed: vec![String::new(); 500_000], withdrawn: false };
    let before = super::memory(scene.gateway.pid(), "VmRSS");
    let strangers: Vec<_> = (0..20).map(|_| scene.hostile(introduction.clone(), answer)).collect();
    await_targets(&scene.gateway, strangers.len());
    let more = super::memory(scene.gateway.pid(), "VmRSS").saturating_sub(before);
    assert!(more < 100 << 20, "each stranger costs {} KiB", (more >> 10) / strangers.len());
}

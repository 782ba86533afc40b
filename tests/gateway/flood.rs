//! More strangers than there are places.
//!
//! docs/security.md, "A gateway": what many keys can do with `gateway.peers: any`, and with a list.

use libp2p::identity::Keypair;

use super::fixture::{await_targets, scrape, targets, value};
use super::hostile::introductions::answer;
use super::scene::{HostilePeer, LightPeer, Scene, introduce, named, page};
use crate::support::agent::eventually;

fn light(scene: &Scene, key: Keypair) -> LightPeer {
    scene.light_as(key, "good", |_| std::future::ready(Ok(page("good", 1000))))
}

fn stranger(scene: &Scene) -> HostilePeer {
    scene.hostile(named("stranger"), answer)
}

fn ids(scene: &Scene) -> Vec<String> {
    let targets = targets(&scene.gateway).into_iter();
    targets.map(|target| target["labels"]["instance"].as_str().unwrap().to_owned()).collect()
}

fn state(scene: &Scene, state: &str) -> f64 {
    value(&scene.gateway, "gateway_peers", &[("state", state)])
}

#[test]
fn a_flood_of_newcomers_adds_no_targets_and_takes_no_places() {
    let scene = Scene::set("  max_peers: 5\n");
    let good: Vec<_> = (0..5).map(|_| light(&scene, Keypair::generate_ed25519())).collect();
    await_targets(&scene.gateway, 5);
    let before = ids(&scene);
    for _ in 0..3 {
        let flood: Vec<_> = (0..40).map(|_| stranger(&scene)).collect();
        eventually("all of them wait", || state(&scene, "waiting") == 40.0);
        assert_eq!(ids(&scene), before);
        let reply = scrape(&scene.gateway, &flood[7].id, &[]);
        assert_eq!(reply.status, 404);
        assert!(reply.reason.starts_with("the peer is not a target yet: "), "{}", reply.reason);
        for peer in &good {
            assert_eq!(scrape(&scene.gateway, &peer.id, &[]).status, 200);
        }
        drop(flood);
        eventually("all of them are forgotten", || state(&scene, "waiting") == 0.0);
        assert_eq!((ids(&scene), state(&scene, "departed")), (before.clone(), 0.0));
    }
}

#[test]
fn with_a_list_strangers_are_not_targets_and_keep_no_listed_peer_out() {
    let keys = [Keypair::generate_ed25519(), Keypair::generate_ed25519()];
    let mut listed = keys.clone().map(|key| key.public().to_peer_id().to_string());
    let list = listed.join(", ");
    let scene = Scene::set(&format!("  peers: [{list}]\nnetwork: {{max_peers: 3}}\n"));
    let strangers: Vec<_> = (0..3).map(|_| stranger(&scene)).collect();
    let connected = || value(&scene.gateway, "agent_peers_connected", &[]);
    eventually("the strangers are connected", || connected() == 3.0);
    let mut one_more = stranger(&scene);
    scene.runtime.block_on(one_more.raw.closed());

    let good = keys.map(|key| light(&scene, key));
    eventually("those on the list are connected", || state(&scene, "connected") == 2.0);
    assert_eq!(connected(), 5.0);
    listed.sort();
    let mut found = ids(&scene);
    found.sort();
    assert_eq!(found, listed);
    for peer in &good {
        assert_eq!(scrape(&scene.gateway, &peer.id, &[]).status, 200);
    }
    let reply = scrape(&scene.gateway, &strangers[0].id, &[]);
    assert_eq!((reply.status, reply.reason.as_str()), (404, "gateway.peers does not name this peer"));
}

/// A key takes one place, however many connections use it.
#[test]
fn a_peer_with_several_connections_is_one_target() {
    let scene = Scene::set("");
    let key = Keypair::generate_ed25519();
    let connect = |name| scene.hostile_as(&key, vec![introduce(named(name))], answer);
    let first = connect("first");
    await_targets(&scene.gateway, 1);
    let second = connect("second");
    eventually("the newest connection gives the name", || {
        targets(&scene.gateway)[0]["labels"]["peer_name"] == "second"
    });
    assert_eq!((targets(&scene.gateway).len(), first.id == second.id), (1, true));
    assert_eq!(scrape(&scene.gateway, &first.id, &[]).status, 200);
    drop(second);
    eventually("over the remaining connection", || scrape(&scene.gateway, &first.id, &[]).status == 200);
}

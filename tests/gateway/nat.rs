//! Unreachable peers behind a router that translates addresses, scraped by a real Prometheus.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::fixture::{joining, targets, value};
use super::observer::{JOB, assert_promtool_agrees, await_error, observe, targets_of};
use crate::support::agent::{TestAgent, eventually};
use crate::support::metrics;
use crate::support::nat::{self, INSIDE, Nat, OTHER_ROUTER, OUTSIDE, ROUTER};
use crate::support::scraper::Scraper;

/// What Prometheus shows for a peer whose connection is gone.
const LEFT: &str = "HTTP status 502 the peer is not connected; it left ";

const NAMES: [&str; 3] = ["kitchen", "cellar", "attic"];

/// A gateway on the Internet, and peers in a house behind a router.
struct House {
    prometheus: Scraper,
    peers: Vec<TestAgent>,
    ids: Vec<String>,
    gateway: TestAgent,
    nat: Nat,
}

impl House {
    /// Returns once every peer is up in Prometheus. Must run inside [`nat::apart`].
    fn new() -> Self {
        let nat = Nat::new();
        let config = "node: {name: gw}\ngateway: {enabled: true, settle: 1s}\n";
        let gateway = TestAgent::prepare().on_address(OUTSIDE).configured(config).started();
        let peer = |name| {
            let agent = TestAgent::prepare().on_address(INSIDE).behind(nat.inside());
            joining(agent, &[&gateway], name, "").started()
        };
        let peers: Vec<_> = NAMES.into_iter().map(peer).collect();
        let ids = peers.iter().map(TestAgent::peer_id).collect();
        let house = Self { prometheus: observe(&gateway), peers, ids, gateway, nat };
        house.await_up([1.0; 3]);
        house
    }

    /// Waits for new scrapes after which the peers have this `up`. Returns how long that took.
    #[track_caller]
    fn await_up(&self, up: [f64; 3]) -> Duration {
        let expected: Vec<_> = self.ids.iter().map(String::as_str).zip(up).collect();
        self.prometheus.await_up(JOB, &expected)
    }

    /// Waits until this expression has these values for the peers.
    #[track_caller]
    fn await_values(&self, expression: &str, values: &[f64]) {
        let value = |id: &str| {
            let series = self.prometheus.query(&format!("{expression} and on(instance) up{{instance=\"{id}\"}}"));
            assert!(series.len() < 2, "more than one series: {series:?}");
            series.first().map(|(_, value)| *value)
        };
        for (id, expected) in self.ids.iter().zip(values) {
            eventually(&format!("{expression} of {id} is {expected}"), || value(id) == Some(*expected));
        }
    }

    /// What the gateway tells Prometheus about its peers' connections.
    fn seen(&self) -> Vec<String> {
        let connection = |target: &Value| {
            let label = |name: &str| target["labels"][name].as_str().unwrap().to_owned();
            format!("{} from {}", label("__meta_peerscope_direction"), label("__meta_peerscope_ip"))
        };
        targets(&self.gateway).iter().map(connection).collect()
    }
}

/// A value of the local store's puts, as the peer itself serves it.
fn puts(peer: &TestAgent, name: &str) -> f64 {
    metrics::value(&peer.cli(&["metrics"]).text(), name, &[("operation", "put"), ("backend", "local")])
}

#[test]
fn peers_behind_a_router_are_targets_like_any_other() {
    nat::apart("gateway::nat::peers_behind_a_router_are_targets_like_any_other", || {
        let mut house = House::new();
        assert_promtool_agrees(&house.gateway);
        for (id, name) in house.ids.iter().zip(NAMES) {
            let known =
                house.prometheus.query(&format!("up{{job=\"{JOB}\", instance=\"{id}\", peer_name=\"{name}\"}}"));
            assert_eq!(known.len(), 1, "{name}: {known:?}");
        }
        assert_eq!(house.seen(), vec![format!("inbound from {ROUTER}"); 3]);

        // The peers cannot be reached from outside: the router answers for itself and forwards nothing.
        for peer in &house.peers {
            let port = peer.peer_socket().port();
            let refused = TcpStream::connect((ROUTER, port)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            let dropped = TcpStream::connect_timeout(&peer.peer_socket(), Duration::from_millis(500)).unwrap_err();
            assert_eq!(dropped.kind(), ErrorKind::TimedOut);
        }

        for (peer, count) in house.peers.iter().zip(1..) {
            (0..count).for_each(|key| drop(peer.cli(&["put", &format!("key-{key}"), "value"]).ok()));
        }
        let own: Vec<_> = house.peers.iter().map(|peer| puts(peer, "storage_operations_total")).collect();
        assert_eq!(own, [1.0, 2.0, 3.0]);
        house.await_values("storage_operations_total{job=\"peerscope\", operation=\"put\", backend=\"local\"}", &own);
        // This function returns nothing for a histogram without native buckets.
        let own: Vec<_> =
            house.peers.iter().map(|peer| puts(peer, "storage_operation_duration_seconds_count")).collect();
        house.await_values(
            "histogram_count(storage_operation_duration_seconds{job=\"peerscope\", operation=\"put\", backend=\"local\"})",
            &own,
        );

        house.peers[0].kill();
        println!("killed: up is 0 after {:.1?}", house.await_up([0.0, 1.0, 1.0]));
        println!("Prometheus shows: {}", await_error(&house.prometheus, &house.ids[0], LEFT));
        assert_eq!(targets_of(&house.prometheus, JOB), 3);
        house.peers[0].restart();
        println!("started again: up is 1 after {:.1?}", house.await_up([1.0; 3]));
    });
}

#[test]
fn a_router_that_drops_everything_silently_is_noticed_and_mended() {
    nat::apart("gateway::nat::a_router_that_drops_everything_silently_is_noticed_and_mended", || {
        let house = House::new();
        // Too short for the agents to notice: the connections survive.
        house.nat.fall_silent();
        println!("silent: up is 0 after {:.1?}", house.await_up([0.0; 3]));
        let late = "HTTP status 504 the peer did not answer in time";
        println!("Prometheus shows: {}", await_error(&house.prometheus, &house.ids[0], late));
        house.nat.speak_again();
        println!("mended at once: up is 1 after {:.1?}", house.await_up([1.0; 3]));

        house.nat.fall_silent();
        let begin = Instant::now();
        println!("silent again: up is 0 after {:.1?}", house.await_up([0.0; 3]));
        eventually("the gateway notices", || value(&house.gateway, "gateway_peers", &[("state", "connected")]) == 0.0);
        println!("the gateway has given up all connections after {:.1?}", begin.elapsed());
        house.await_up([0.0; 3]);
        for id in &house.ids {
            println!("Prometheus shows: {}", await_error(&house.prometheus, id, LEFT));
        }
        assert_eq!(targets_of(&house.prometheus, JOB), 3);
        house.nat.speak_again();
        println!("mended: up is 1 after {:.1?}", house.await_up([1.0; 3]));
    });
}

#[test]
fn a_router_with_a_new_address_costs_seconds() {
    nat::apart("gateway::nat::a_router_with_a_new_address_costs_seconds", || {
        let house = House::new();
        house.nat.change_address();
        let begin = Instant::now();
        let new = vec![format!("inbound from {OTHER_ROUTER}"); 3];
        eventually("all peers are seen at the new address", || house.seen() == new);
        println!("all peers are back after {:.1?}", begin.elapsed());
        house.await_up([1.0; 3]);
        let back = begin.elapsed();
        println!("a new address: up is 1 after {back:.1?}");
        // The peers notice when they ask for a sign of life, after 16 s of silence. The gateway does not give the old
        // connections up before 24 s, so it has to accept the new ones at once.
        assert!(back < Duration::from_secs(20), "{back:?}");
    });
}

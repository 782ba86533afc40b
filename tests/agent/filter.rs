//! Which addresses that peers tell are dialed.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::agent::{TestAgent, eventually};
use crate::support::nat::{self, INSIDE, Nat, OUTSIDE};

/// How many connections to private addresses this network has begun, or tried to, since the rules were loaded.
fn begun() -> u64 {
    let output = Command::new("nft").args(["list", "table", "ip", "scan_test"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, count) = text.split_once("counter packets ").unwrap();
    count.split(' ').next().unwrap().parse().unwrap()
}

const RULES: &str = "
table ip scan_test {
    chain leaving {
        type filter hook output priority filter;
        ip daddr 10.0.0.0/8 tcp flags syn / syn,ack counter
    }
}
";

/// Peers behind a NAT tell their private addresses. A public agent that dials them looks like a scanner to its provider.
#[test]
fn a_public_agent_dials_no_private_address_that_peers_tell() {
    nat::apart("agent::filter::a_public_agent_dials_no_private_address_that_peers_tell", || {
        let nat = Nat::new();
        nat::rules(RULES);
        let mut took = Duration::ZERO;
        for (mode, scans) in [("always", true), ("auto", false), ("never", false)] {
            let config = format!("network: {{ dial_private: {mode} }}\n");
            let public = TestAgent::prepare().configured(&config).on_address(OUTSIDE).started();
            let before = begun();
            let began = Instant::now();
            let inside: Vec<_> = (0..5)
                .map(|_| TestAgent::prepare().on_address(INSIDE).behind(nat.inside()).bootstrap(&public).started())
                .collect();
            eventually("all are connected", || public.status()["peers_connected"] == inside.len());
            // Each of them leaves, and is asked for: the public agent then dials whatever it knows of it.
            let gone = inside[0].peer_id();
            drop(inside);
            eventually("all are gone", || public.status()["peers_connected"] == 0);
            let refused = public.cli(&["get", "key", "--peer", &gone]);
            assert_ne!(refused.code, 0);
            if scans {
                eventually("it dials them", || begun() > before);
                took = began.elapsed();
            } else {
                while began.elapsed() < 2 * took {
                    std::thread::sleep(Duration::from_millis(50));
                }
                assert_eq!(begun(), before, "{mode}");
            }
        }
    });
}

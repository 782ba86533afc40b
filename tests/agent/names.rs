//! Bootstrap peers by name, as laptops roam, networks come up late, and one of two servers is down.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::agent::{TestAgent, eventually, within};
use crate::support::apart;
use crate::support::dns::{NameServer, ResolvConf};
use crate::support::packets::{FAR, NEAR, Path};

const FIRST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const SECOND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// An agent that stays connected to `other` under a name.
fn by_name(agent: TestAgent, other: &TestAgent) -> TestAgent {
    let port = other.peer_socket().port();
    agent.flag("--bootstrap").flag(&format!("/dns4/gateway.test/tcp/{port}/p2p/{}", other.peer_id()))
}

fn is_connected(agent: &TestAgent) -> bool {
    agent.status()["peers_connected"] == 1
}

fn lo_up() {
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
}

/// A laptop in another network: other name servers, and the name leads elsewhere.
#[test]
fn new_name_servers_count_without_a_restart() {
    apart::run("-nm", "agent::names::new_name_servers_count_without_a_restart", || {
        lo_up();
        let mut gateway = TestAgent::prepare().on_address(Ipv4Addr::new(127, 1, 0, 1)).started();
        let home = NameServer::start(FIRST, &[gateway.address()]);
        let resolver = ResolvConf::new(&ResolvConf::to(FIRST));
        let agent = by_name(TestAgent::prepare(), &gateway).started();
        eventually("it is connected", || is_connected(&agent));
        assert!(home.asked() > 0);

        drop(home);
        assert!(gateway.stop().success());
        gateway = gateway.on_address(Ipv4Addr::new(127, 1, 0, 2));
        gateway.restart();
        let away = NameServer::start(SECOND, &[gateway.address()]);
        resolver.write(&ResolvConf::to(SECOND));
        eventually("it is connected again", || is_connected(&agent));
        assert!(away.asked() > 0);
    });
}

/// The agent starts before the network is configured.
#[test]
fn an_agent_starts_without_name_servers_and_finds_them_later() {
    apart::run("-nm", "agent::names::an_agent_starts_without_name_servers_and_finds_them_later", || {
        lo_up();
        let gateway = TestAgent::start();
        let _server = NameServer::start(FIRST, &[gateway.address()]);
        let resolver = ResolvConf::new("");
        for text in ["", "search example.org\n", "nameserver nonsense\n\u{0}\n"] {
            resolver.write(text);
            let agent = by_name(TestAgent::prepare(), &gateway).started();
            let said = agent.await_log("A bootstrap or mDNS peer cannot be reached");
            assert!(said.contains("the name gateway.test was not found: "), "{said}");
            assert!(!is_connected(&agent));
            resolver.write(&ResolvConf::to(FIRST));
            eventually("it is connected", || is_connected(&agent));
        }
    });
}

/// One of two servers swallows everything: the other one is tried after a quarter of a second, not after ten.
#[test]
fn a_dead_first_address_holds_up_nobody() {
    apart::run("-nm", "agent::names::a_dead_first_address_holds_up_nobody", || {
        lo_up();
        let path = Path::new();
        let dead = Ipv4Addr::new(10, 9, 0, 3);
        let inside = path.far();
        let run = |script: &str| {
            let mut command = Command::new(&inside[0]);
            assert!(command.args(&inside[1..]).args(["sh", "-ec", script]).status().unwrap().success());
        };
        run(&format!(
            "ip addr add {dead}/24 dev far
             nft add table ip dead
             nft 'add chain ip dead in {{ type filter hook input priority 0; }}'
             nft add rule ip dead in ip daddr {dead} drop"
        ));
        let gateway = TestAgent::prepare().on_address(FAR).behind(path.far()).started();
        let _server = NameServer::start(FIRST, &[dead, FAR]);
        let _resolver = ResolvConf::new(&ResolvConf::to(FIRST));
        let began = Instant::now();
        let agent = by_name(TestAgent::prepare().on_address(NEAR), &gateway).started();
        within(Duration::from_secs(3), "it is connected", || is_connected(&agent));
        assert!(began.elapsed() >= Duration::from_millis(250), "the dead one was tried first");

        // If all are dead, the log says what was tried.
        run("nft add rule ip dead in drop");
        let lonely = by_name(TestAgent::prepare().on_address(NEAR), &gateway).started();
        let said = lonely.await_log("A bootstrap or mDNS peer cannot be reached");
        for ip in [dead, FAR] {
            assert!(said.contains(&format!("/ip4/{ip}/tcp/")), "{said}");
        }
        assert!(said.contains("not established within 5s"), "{said}");
    });
}

//! Where an agent listens for peers, whatever the machine has.

use std::net::Ipv4Addr;
use std::process::Command;

use crate::support::agent::{TestAgent, eventually};
use crate::support::apart;

fn ip(args: &str) {
    assert!(Command::new("ip").args(args.split(' ')).status().unwrap().success(), "ip {args}");
}

fn listens(agent: &TestAgent, address: &str) -> bool {
    let status = agent.status();
    status["listen"].as_array().unwrap().iter().any(|listen| listen.as_str().unwrap().starts_with(address))
}

#[test]
fn an_address_of_a_family_that_the_host_lacks_is_left_out() {
    let without = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/without_ipv6.py");
    let agent = TestAgent::prepare().behind(vec!["python3".into(), without.into()]);
    let agent = agent.flag("--listen").flag("/ip6/::1/tcp/0").started();
    agent.await_log("cannot listen for peers on /ip6/::1/tcp/0");
    assert!(listens(&agent, "/ip4/127.") && !listens(&agent, "/ip6/"));
    let both = TestAgent::prepare().flag("--listen").flag("/ip6/::1/tcp/0").started();
    assert!(listens(&both, "/ip4/127.") && listens(&both, "/ip6/::1/"));
}

/// The link comes up after the start, and its address changes later.
#[test]
fn status_shows_where_the_agent_listens_now() {
    apart::run("--net", "agent::listening::status_shows_where_the_agent_listens_now", || {
        ip("link set lo up");
        let agent = TestAgent::prepare().on_address(Ipv4Addr::UNSPECIFIED).started();
        assert!(listens(&agent, "/ip4/127.0.0.1/") && !listens(&agent, "/ip4/10.1.0."));
        ip("link add one type veth peer name other");
        ip("addr add 10.1.0.1/24 dev one");
        ip("link set one up");
        eventually("the new address is shown", || listens(&agent, "/ip4/10.1.0.1/"));
        agent.await_log("Listening for peers on another address address=/ip4/10.1.0.1/");
        ip("addr del 10.1.0.1/24 dev one");
        ip("addr add 10.1.0.2/24 dev one");
        eventually("the next one is shown", || listens(&agent, "/ip4/10.1.0.2/") && !listens(&agent, "/ip4/10.1.0.1/"));
        agent.await_log("No longer listening for peers on this address address=/ip4/10.1.0.1/");
    });
}

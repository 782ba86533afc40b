//! A NAT router with its two networks, within this machine: unnamed network namespaces, which end with the processes
//! that hold them, even if a test panics or is killed.
//!
//! Needs `unshare` and `nsenter` (util-linux), `ip`, `nft`, and either root or user namespaces.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};

use super::apart;

/// The address at which peers behind the router reach the test: on the router's outer side, the Internet to them.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The router's first address there, which is the only visible address of the peers.
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// The address that the router may change to.
pub(crate) const OTHER_ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 3);
/// The address that all peers behind the router listen on.
pub(crate) const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// The usual rules of a home router: everyone inside shares its address, and no connection may come in from outside.
const RULES: &str = "
table ip nat_test {
    chain leaving {
        type nat hook postrouting priority srcnat; policy accept;
        oifname \"out\" masquerade
    }
    chain passing {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname \"in\" oifname \"out\" accept
    }
}
";

const SILENCE: &str = "
table ip silence_test {
    chain passing {
        type filter hook forward priority filter - 10; policy drop;
    }
}
";

/// Runs `story` in a process of its own in a network of its own, which it may change in any way. `test` is the full
/// name of the calling test, which must do nothing else.
pub(crate) fn apart(test: &str, story: impl FnOnce()) {
    apart::run("--net", test, || {
        shell(Command::new("sh"), "ip link set lo up");
        story();
    });
}

/// Loads nftables rules into the test's own network, which must be [`apart`].
pub(crate) fn rules(rules: &str) {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]);
    run(command, rules);
}

/// A network namespace in addition to the test's own, which lasts as long as this.
pub(super) struct Namespace(Child);

impl Namespace {
    pub(super) fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`unshare` (util-linux) is installed");
        // It prints a line once it is inside.
        let said = BufReader::new(holder.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        assert_eq!(said, 1, "a network namespace in addition to the test's own");
        Self(holder)
    }

    pub(super) fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// The prefix of a command that is to run in it; no extra process remains.
    pub(super) fn enter(&self) -> Vec<String> {
        ["nsenter", "--target", &self.pid(), "--net", "--"].map(str::to_owned).to_vec()
    }

    pub(super) fn shell(&self, script: &str) {
        let enter = self.enter();
        let mut command = Command::new(&enter[0]);
        command.args(&enter[1..]).arg("sh");
        shell(command, script);
    }

    fn load_rules(&self, rules: &str) {
        let enter = self.enter();
        let mut command = Command::new(&enter[0]);
        command.args(&enter[1..]).args(["nft", "-f", "-"]);
        run(command, rules);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The router, and the network behind it. The test's own network, which must be [`apart`], is outside.
pub(crate) struct Nat {
    router: Namespace,
    inside: Namespace,
}

impl Nat {
    pub(crate) fn new() -> Self {
        let nat = Self { router: Namespace::new(), inside: Namespace::new() };
        let (router, inside) = (nat.router.pid(), nat.inside.pid());
        let here = format!(
            "ip link add internet type veth peer name out netns {router}
             ip addr add {OUTSIDE}/24 dev internet
             ip link set internet up"
        );
        shell(Command::new("sh"), &here);
        nat.router.shell(&format!(
            "ip link set lo up
             ip addr add {ROUTER}/24 dev out
             ip link set out up
             ip link add in type veth peer name lan netns {inside}
             ip addr add 10.0.0.1/24 dev in
             ip link set in up
             echo 1 >/proc/sys/net/ipv4/ip_forward"
        ));
        nat.router.load_rules(RULES);
        nat.inside.shell(&format!(
            "ip link set lo up
             ip addr add {INSIDE}/24 dev lan
             ip link set lan up
             ip route add default via 10.0.0.1"
        ));
        nat.route_inside(ROUTER);
        nat
    }

    /// Gives the test a route to the peers, which the Internet would not have, so that only the router keeps it out.
    fn route_inside(&self, router: Ipv4Addr) {
        shell(Command::new("sh"), &format!("ip route replace 10.0.0.0/24 via {router}"));
    }

    /// The prefix of a command that is to run behind the router.
    pub(crate) fn inside(&self) -> Vec<String> {
        self.inside.enter()
    }

    /// Makes the router silently drop everything that it should forward.
    pub(crate) fn fall_silent(&self) {
        self.router.load_rules(SILENCE);
    }

    /// Ends [`fall_silent`](Self::fall_silent).
    pub(crate) fn speak_again(&self) {
        self.router.load_rules("delete table ip silence_test\n");
    }

    /// Changes the router's address from [`ROUTER`] to [`OTHER_ROUTER`], as a provider may at night. The connections
    /// through it are lost, since the kernel forgets a masquerade with its address.
    pub(crate) fn change_address(&self) {
        self.router.shell(&format!(
            "ip addr del {ROUTER}/24 dev out
             ip addr add {OTHER_ROUTER}/24 dev out"
        ));
        self.route_inside(OTHER_ROUTER);
    }
}

/// Runs this script in a shell, which `command` starts. Every command must succeed.
pub(super) fn shell(mut command: Command, script: &str) {
    command.arg("-es");
    run(command, script);
}

/// Runs `command` with `input`; it must succeed.
fn run(mut command: Command, input: &str) {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("cannot start {command:?} ({error}); {HOW}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{input}\n{}{HOW}", String::from_utf8_lossy(&output.stderr));
}

const HOW: &str = "`ip` and `nft` come with eval \"$(tests/tools.sh)\"";

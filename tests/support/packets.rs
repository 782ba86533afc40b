//! A network path that delays, reorders, duplicates and loses packets. It does not need `netem` in the kernel, because
//! `packets.py` carries the frames.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};

use super::nat::{Namespace, shell};

/// The address at this end of the path, in the test's own network, which must be [`apart`](super::nat::apart).
pub(crate) const NEAR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// The address at the far end.
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// The path, and the network at its far end.
pub(crate) struct Path {
    far: Namespace,
    carrier: Child,
}

impl Path {
    pub(crate) fn new() -> Self {
        let far = Namespace::new();
        shell(
            Command::new("sh"),
            &format!(
                "ip link add near type veth peer name near-end
                 ip link add far-end type veth peer name far netns {}
                 ip addr add {NEAR}/24 dev near
                 for link in near near-end far-end; do ip link set $link up; done",
                far.pid()
            ),
        );
        far.shell(&format!(
            "ip link set lo up
             ip addr add {FAR}/24 dev far
             ip link set far up"
        ));
        let mut carrier = Command::new("python3")
            .args(["tests/support/packets.py", "near-end", "far-end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 comes with eval \"$(tests/tools.sh)\"");
        let mut said = String::new();
        BufReader::new(carrier.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n", "packets.py must be able to open packet sockets");
        Self { far, carrier }
    }

    /// The prefix of a command that is to run at the far end.
    pub(crate) fn far(&self) -> Vec<String> {
        self.far.enter()
    }

    /// Delays each packet by up to `delay` milliseconds, so that packets overtake each other, and duplicates and drops
    /// the given percentages of them.
    pub(crate) fn storm(&self, delay: u32, duplicated: u32, dropped: u32) {
        self.mistreat(delay, duplicated, dropped, 0);
    }

    /// Delays only packets of the connection with the source port `port`, each by up to `delay` milliseconds.
    pub(crate) fn slow(&self, port: u16, delay: u32) {
        self.mistreat(delay, 0, 0, port);
    }

    /// Delays, duplicates and drops no more packets.
    pub(crate) fn calm(&self) {
        self.mistreat(0, 0, 0, 0);
    }

    fn mistreat(&self, delay: u32, duplicated: u32, dropped: u32, port: u16) {
        let line = format!("{delay} {duplicated} {dropped} {port}\n");
        // In one write, which a pipe does not split.
        self.carrier.stdin.as_ref().unwrap().write_all(line.as_bytes()).unwrap();
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.carrier.kill();
        let _ = self.carrier.wait();
    }
}

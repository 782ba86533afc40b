//! Two agents that know no peers find each other on their local network. It is a network of their own: two namespaces
//! with one cable between them, so that it reaches no other machine and no other agent answers. Needs `ip` and
//! `nsenter`, and either root or user namespaces.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use peerscope::identity;

/// Runs in a namespace of its own (`unshare`): makes the second one and the cable, and runs an agent in each. When the
/// writer of its standard input goes away, it stops everything that it has started.
const SCRIPT: &str = r#"
set -eu
ip link set lo up
ip link add name va type veth peer name vb
exec 3<&0 # a job in the background would get /dev/null
unshare -n cat <&3 &
other=$!
# The namespace is there when the process is no longer in ours.
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do :; done
ip link set vb netns $other
exec 3<&-
there="nsenter -t $other -n"
ip addr add 10.9.9.1/24 dev va && ip link set va up && ip route add 224.0.0.0/4 dev va
$there ip link set lo up
$there ip addr add 10.9.9.2/24 dev vb && $there ip link set vb up && $there ip route add 224.0.0.0/4 dev vb
"$AGENT" run --config "$FOLDER/agent.yaml" --data-dir "$FOLDER/a" 2>"$FOLDER/a.log" &
first=$!
$there "$AGENT" run --config "$FOLDER/agent.yaml" --data-dir "$FOLDER/b" 2>"$FOLDER/b.log" &
second=$!
wait $other || true
kill $first $second
wait
"#;

struct Namespaces(Child);

impl Namespaces {
    fn run(folder: &Path) -> Self {
        let root = rustix::process::geteuid().is_root();
        let child = Command::new("unshare")
            .args(if root { &["-n"][..] } else { &["-r", "-n"][..] })
            .args(["sh", "-c", SCRIPT])
            .env("AGENT", env!("CARGO_BIN_EXE_peerscope"))
            .env("FOLDER", folder)
            .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap()))
            .stdin(Stdio::piped())
            .spawn()
            .expect("`unshare` (util-linux) is installed");
        Self(child)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ended = self.0.wait();
    }
}

/// The agent's peers as `peerscope peers --json` prints them; empty while it is not running.
fn peers(data_dir: &Path) -> String {
    let agent = env!("CARGO_BIN_EXE_peerscope");
    let output = Command::new(agent).args(["peers", "--json", "--data-dir"]).arg(data_dir).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn peer_id(data_dir: &Path) -> String {
    let key = identity::load(&data_dir.join(identity::FILE_NAME)).unwrap();
    key.public().to_peer_id().to_string()
}

#[test]
fn two_agents_on_one_local_network_find_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let config = "{ network: { mdns: true, listen: [/ip4/0.0.0.0/tcp/4001] }, metrics: { enabled: false } }";
    std::fs::write(folder.path().join("agent.yaml"), config).unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let namespaces = Namespaces::run(folder.path());
    let deadline = Instant::now() + Duration::from_secs(30);
    let found = |from: &Path, address: &str, other: &Path| {
        let peers = peers(from);
        peers.contains(address) && peers.contains(&peer_id(other))
    };
    while !(found(&a, "/ip4/10.9.9.2/", &b) && found(&b, "/ip4/10.9.9.1/", &a)) {
        let log = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
        assert!(Instant::now() < deadline, "not found\na:\n{}\nb:\n{}", log("a.log"), log("b.log"));
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(namespaces);
}

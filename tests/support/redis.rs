//! Real Redis servers: one process each, on a free port, in a temporary directory.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::port::ReservedPort;

/// How long these tests wait for anything, even on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A `redis-server` that is killed when this is dropped.
pub(crate) struct RedisServer {
    pub(crate) port: u16,
    bus: ReservedPort,
    _port: ReservedPort,
    directory: TempDir,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl RedisServer {
    /// Starts a server with these additional arguments, and waits until it answers.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut server = Self::prepare(arguments);
        server.restart();
        server
    }

    /// Chooses the port and the directory, but starts nothing.
    pub(crate) fn prepare(arguments: &[&str]) -> Self {
        let port = ReservedPort::new();
        Self {
            port: port.number(),
            bus: ReservedPort::new(),
            _port: port,
            directory: tempfile::tempdir().unwrap(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            child: None,
        }
    }

    /// Starts a node of a cluster that knows no other node yet.
    fn start_cluster_node(arguments: &[&str]) -> Self {
        let mut node = Self::prepare(arguments);
        let bus = node.bus.number().to_string();
        let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "1500"];
        node.arguments.extend(cluster.map(str::to_owned));
        node.restart();
        node
    }

    /// Starts the process (again) on the same port and directory, and waits until it serves.
    pub(crate) fn restart(&mut self) {
        self.restart_until(&[b"+PONG", b"-NOAUTH"]);
    }

    /// Like [`restart`](Self::restart), but only waits until the server is loading its data.
    pub(crate) fn restart_until_loading(&mut self) {
        self.restart_until(&[b"-LOADING"]);
    }

    fn restart_until(&mut self, answers: &[&[u8]]) {
        assert!(self.child.is_none(), "the server is already running");
        let deadline = Instant::now() + DEADLINE;
        // If the port is taken for a short time, the server ends at once.
        loop {
            let child = self.child.insert(self.spawn());
            while child.try_wait().unwrap().is_none() {
                if ping(self.port).is_ok_and(|answer| answers.iter().any(|expected| answer.starts_with(expected))) {
                    return;
                }
                assert!(Instant::now() < deadline, "redis-server does not answer on port {}", self.port);
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(Instant::now() < deadline, "redis-server does not start on port {}", self.port);
        }
    }

    fn spawn(&self) -> Child {
        Command::new("redis-server")
            .args([
                "--port",
                &self.port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--dir",
            ])
            .arg(self.directory.path())
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server must be on the PATH")
    }

    /// Kills the process as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops the process (SIGSTOP): the kernel still accepts connections, but nothing answers.
    pub(crate) fn freeze(&self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
    }

    /// Lets a frozen process continue.
    pub(crate) fn thaw(&self) {
        kill_process(self.pid(), Signal::CONT).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("the server is running"))
    }

    /// `redis://127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The server's own directory.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Runs one command on a connection of its own, and panics if it fails.
    pub(crate) fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        self.command_at(&self.url(), words)
    }

    /// Like [`command`](Self::command), with a user, password or database in the URL.
    pub(crate) fn command_at<T: redis::FromRedisValue>(&self, url: &str, words: &[&str]) -> T {
        let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word);
        }
        command.query(&mut connection).unwrap_or_else(|error| panic!("{words:?} on port {}: {error}", self.port))
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts three nodes, divides the slots among them, and waits until each reports that the cluster works.
pub(crate) fn start_cluster() -> Vec<RedisServer> {
    start_cluster_with(&[])
}

/// Like [`start_cluster`], with these arguments for each node.
pub(crate) fn start_cluster_with(arguments: &[&str]) -> Vec<RedisServer> {
    let nodes: Vec<_> = (0..3).map(|_| RedisServer::start_cluster_node(arguments)).collect();
    let slots = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];
    for (index, (node, (from, to))) in nodes.iter().zip(slots).enumerate() {
        let () = node.command(&["CLUSTER", "ADDSLOTSRANGE", from, to]);
        let () = node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
    }
    for node in &nodes[1..] {
        let (port, bus) = (node.port.to_string(), node.bus.number().to_string());
        let () = nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
    }
    await_cluster(&nodes);
    nodes
}

/// Waits until every node sees all three nodes, with all slots served.
pub(crate) fn await_cluster(nodes: &[RedisServer]) {
    let deadline = Instant::now() + DEADLINE;
    for node in nodes {
        loop {
            let info: String = node.command(&["CLUSTER", "INFO"]);
            let nodes: String = node.command(&["CLUSTER", "NODES"]);
            if info.contains("cluster_state:ok")
                && nodes.lines().filter(|line| line.contains(" connected ")).count() == 3
            {
                break;
            }
            assert!(Instant::now() < deadline, "the cluster did not form:\n{info}\n{nodes}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Waits until `condition` holds; otherwise panics with `what` it waited for.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "this did not happen within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A server's answer to a PING on a connection of its own.
fn ping(port: u16) -> std::io::Result<Vec<u8>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut socket = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.write_all(b"PING\r\n")?;
    let mut answer = vec![0; 64];
    let read = socket.read(&mut answer)?;
    answer.truncate(read);
    Ok(answer)
}

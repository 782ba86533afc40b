//! A real agent: the built binary as a process, with a data directory, a loopback address and a log of its own.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::http::{self, Reply};
pub(crate) use super::process::Process;

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What an agent that is ready tells systemd (`sd_notify(3)`).
const READY: &str = "READY=1";

/// An agent, running or not; killed when this is dropped.
pub(crate) struct TestAgent {
    home: TempDir,
    address: Ipv4Addr,
    /// 0 until the first start; a restart uses the same ports.
    peer_port: u16,
    metrics_port: u16,
    /// Whether the configuration says where the endpoint listens.
    metrics_address_configured: bool,
    flags: Vec<String>,
    /// What a shell runs before it becomes the agent, such as `ulimit -n 64`.
    before: Option<&'static str>,
    /// The beginning of the command line, such as a command that enters a namespace.
    prefix: Vec<String>,
    process: Option<Process>,
}

/// The result of one command.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Done {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    /// Its output as JSON, on one line.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "{self:?}");
        let text = self.text();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// The output of a command that succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Vec<u8> {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "{}", String::from_utf8_lossy(&self.stdout));
        self.stdout
    }

    /// The message of a command that failed with `code`: printed once, with nothing on standard output.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.stdout.is_empty(), "{self:?}");
        let message = self.stderr.strip_prefix("peerscope: ").unwrap_or_else(|| panic!("{self:?}"));
        assert_eq!(message.matches("peerscope: ").count(), 0, "printed once: {message}");
        message.trim_end().to_owned()
    }
}

impl TestAgent {
    /// With an empty data directory and the default configuration, except for ports and addresses.
    pub(crate) fn prepare() -> Self {
        Self {
            home: tempfile::Builder::new().prefix("ps").tempdir().unwrap(),
            address: own_address(),
            peer_port: 0,
            metrics_port: 0,
            metrics_address_configured: false,
            flags: Vec::new(),
            before: None,
            prefix: Vec::new(),
            process: None,
        }
    }

    pub(crate) fn start() -> Self {
        Self::prepare().started()
    }

    /// Starts with this configuration file.
    pub(crate) fn start_with(config: &str) -> Self {
        Self::prepare().configured(config).started()
    }

    pub(crate) fn configured(self, config: &str) -> Self {
        std::fs::write(self.config_file(), config).unwrap();
        self
    }

    pub(crate) fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Makes a shell run this first and then become the agent.
    pub(crate) fn after(mut self, before: &'static str) -> Self {
        self.before = Some(before);
        self
    }

    /// Uses this address for all its listeners.
    pub(crate) fn on_address(mut self, address: Ipv4Addr) -> Self {
        self.address = address;
        self
    }

    /// Runs with this prefix of the command line, whose program in the end becomes the agent.
    pub(crate) fn behind(mut self, prefix: Vec<String>) -> Self {
        self.prefix = prefix;
        self
    }

    /// Lets the endpoint listen where the configuration says.
    pub(crate) fn on_configured_address(mut self) -> Self {
        self.metrics_address_configured = true;
        self
    }

    pub(crate) fn on_metrics_port(mut self, port: u16) -> Self {
        self.metrics_port = port;
        self
    }

    /// Uses `other` as its bootstrap peer.
    pub(crate) fn bootstrap(self, other: &Self) -> Self {
        self.flag("--bootstrap").flag(&other.listen_address())
    }

    pub(crate) fn started(mut self) -> Self {
        self.restart();
        self
    }

    /// Starts the process (again), on the same ports, and waits until it has notified that it is ready and has opened
    /// its store. Where a sync takes long, as on some machines, the store is opened only after the notification.
    pub(crate) fn restart(&mut self) {
        self.spawn();
        self.await_ready();
        self.await_store();
    }

    /// Waits until an agent whose control socket answers has opened its store.
    pub(crate) fn await_store(&self) {
        eventually("the store is open", || {
            let status = self.control("GET", "/v1/status", b"").unwrap();
            !status.text().contains("the store is being opened")
        });
    }

    /// Starts the process without waiting for it.
    pub(crate) fn spawn(&mut self) {
        assert!(self.process.is_none(), "the agent is already running");
        let mut command = self.command(&["run"]);
        let listen = format!("/ip4/{}/tcp/{}", self.address, self.peer_port);
        command.args(["--listen", &listen]);
        if !self.metrics_address_configured {
            command.args(["--metrics-address", &self.address.to_string()]);
        }
        command.args(["--metrics-port", &self.metrics_port.to_string()]).args(&self.flags);
        if let Some(before) = self.before {
            command = through_shell(before, &command);
        }
        if let Some((program, args)) = self.prefix.split_first() {
            let mut first = Command::new(program);
            first.args(args);
            command = appended(first, &command);
        }
        self.process = Some(Process::spawn(command, &self.home.path().join("notify.sock")));
    }

    /// Waits for `READY=1`, and then reads the ports from the log.
    pub(crate) fn await_ready(&mut self) {
        let said = self.process().await_notification();
        assert_eq!(said, READY);
        let listening = self.await_log("Listening for peers on ");
        let (_, port) = listening.split_once("/tcp/").unwrap();
        self.peer_port = port.split('/').next().unwrap().parse().unwrap();
        let log = &self.process().log;
        let line = log.await_any(&["Metrics at http", "no metrics endpoint yet", "Metrics endpoint disabled"]);
        if let Some((_, url)) = line.split_once("Metrics at http").and_then(|(_, url)| url.split_once("://")) {
            let address: SocketAddr = url.split('/').next().unwrap().parse().unwrap();
            self.metrics_port = address.port();
        }
    }

    /// Asks it to stop with SIGTERM and waits for the end.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended()
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.ended();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process().child), signal).unwrap();
    }

    /// Waits until the process has ended.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        self.process.take().expect("the agent is running").ended(PATIENCE)
    }

    pub(crate) fn notification(&self) -> String {
        self.process().await_notification()
    }

    /// Whether there is an unread notification, which this reads.
    pub(crate) fn has_notified(&self) -> bool {
        self.process().has_notified()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process().child.id()
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        self.address
    }

    pub(crate) fn peer_socket(&self) -> SocketAddr {
        (self.address, self.peer_port).into()
    }

    pub(crate) fn metrics_socket(&self) -> SocketAddr {
        (self.address, self.metrics_port).into()
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.data_dir().join("control.sock")
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.home.path().join("peerscope.yaml")
    }

    /// Its PeerId, as the command line prints it. The first start creates the key.
    pub(crate) fn peer_id(&self) -> String {
        String::from_utf8(self.cli(&["id"]).ok()).unwrap().trim_end().to_owned()
    }

    /// The address at which peers reach it, with its PeerId.
    pub(crate) fn listen_address(&self) -> String {
        format!("/ip4/{}/tcp/{}/p2p/{}", self.address, self.peer_port, self.peer_id())
    }

    /// The lines logged so far, without colours and line ends.
    pub(crate) fn log(&self) -> Vec<String> {
        self.process().log.lines()
    }

    /// Waits for a log line that contains `text`.
    #[track_caller]
    pub(crate) fn await_log(&self, text: &str) -> String {
        self.process().log.await_line(text)
    }

    /// Runs a command with this agent's data directory and configuration.
    pub(crate) fn cli(&self, args: &[&str]) -> Done {
        run(self.command(args), b"")
    }

    /// Like [`cli`](Self::cli), with something on standard input.
    pub(crate) fn cli_with_input(&self, args: &[&str], input: &[u8]) -> Done {
        run(self.command(args), input)
    }

    /// The binary, with this agent's data directory and configuration.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = peerscope();
        command.args(args).arg("--data-dir").arg(self.data_dir());
        if self.config_file().exists() {
            command.arg("--config").arg(self.config_file());
        }
        command
    }

    /// Sends a GET to its endpoint.
    pub(crate) fn http(&self, path: &str) -> Reply {
        http::exchange(connect(self.metrics_socket()).unwrap(), "GET", path, b"").unwrap()
    }

    /// The metrics page.
    pub(crate) fn scrape(&self) -> String {
        let reply = self.http("/metrics");
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.text()
    }

    /// Opens a connection to its control socket.
    pub(crate) fn connect_control(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(self.control_socket())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Sends a request to its control socket.
    pub(crate) fn control(&self, method: &str, target: &str, body: &[u8]) -> io::Result<Reply> {
        http::exchange(self.connect_control()?, method, target, body)
    }

    /// `peerscope status --json`
    pub(crate) fn status(&self) -> serde_json::Value {
        self.cli(&["status", "--json"]).json()
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("the agent is running")
    }
}

/// The binary under test, in an environment without Peerscope's variables.
pub(crate) fn peerscope() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peerscope"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PEERSCOPE_")) {
        command.env_remove(name);
    }
    command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// `command`, run by a shell that runs something else first; no extra process remains.
fn through_shell(before: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{before} && exec \"$0\" \"$@\"")]);
    appended(shell, command)
}

/// `first` with all of `command` as its last arguments, in the environment of `command`.
fn appended(mut first: Command, command: &Command) -> Command {
    first.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => first.env(name, value),
            None => first.env_remove(name),
        };
    }
    first.stdin(Stdio::null());
    first
}

/// Runs a command to its end.
pub(crate) fn run(mut command: Command, input: &[u8]) -> Done {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // On a thread of its own: a command may write output before it has read all input, or read none at all.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Done {
        code: output.status.code().expect("it was not ended by a signal"),
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

pub(crate) fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Calls `check` until it returns true.
#[track_caller]
pub(crate) fn eventually(what: &str, check: impl FnMut() -> bool) {
    within(PATIENCE, what, check);
}

#[track_caller]
pub(crate) fn within(limit: Duration, what: &str, check: impl FnMut() -> bool) {
    within_or(limit, || what.to_owned(), check);
}

/// Like [`within`]. What `why` returns tells a failure that a name does not explain.
#[track_caller]
pub(crate) fn within_or(limit: Duration, why: impl Fn() -> String, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !check() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {}", why());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An address of the loopback network that no other agent of these tests has, so that no other can take a port that it
/// frees.
pub(crate) fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 16 + high % 200, low, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A free port of `address`. Nothing else will take it if the address is used by only one agent.
pub(crate) fn free_port(address: Ipv4Addr) -> u16 {
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port()
}

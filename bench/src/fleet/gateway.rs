//! The gateway: the real program in a separate process, observed from outside.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libp2p::PeerId;
use tempfile::TempDir;

use super::client::{Answer, Connection, request};
use crate::process::Process;
use crate::{Error, Result};

/// The timeout for connecting and listing all peers.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often to poll the gateway. Each poll makes it write a page.
const LOOK: Duration = Duration::from_millis(20);

pub(super) struct Gateway {
    pub(super) process: Process,
    /// Its multiaddress for peers, with its PeerId.
    pub(super) for_peers: String,
    /// The address of its endpoint.
    pub(super) endpoint: String,
    connection: Connection,
    /// Holds the key, the store and the log output.
    dir: TempDir,
}

impl Gateway {
    /// Starts `program` as the gateway of `peers`, or of any peer if none are given. With `core`, it runs on that core
    /// only.
    pub(super) async fn start(program: &Path, peers: &[PeerId], max_peers: usize, core: Option<usize>) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let id = peerscope::identity::load_or_create(dir.path())?.public().to_peer_id();
        // Another process could take a port before the gateway does; then the start or the check below fails.
        let free = || Ok::<_, Error>(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
        let (metrics, listen) = (free()?, free()?);
        let config = dir.path().join("peerscope.yaml");
        fs::write(&config, yaml(dir.path(), metrics, listen, peers, max_peers)?)?;
        let mut command = match core {
            Some(core) => {
                let mut command = Command::new("taskset");
                command.arg("--cpu-list").arg(core.to_string()).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.arg("run").arg("--config").arg(&config).env_clear().stdin(Stdio::null()).stdout(Stdio::null());
        command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        let process = Process::spawn(command.stderr(File::create(dir.path().join("log"))?))?;
        let endpoint = format!("127.0.0.1:{metrics}");
        let begin = Instant::now();
        let connection = loop {
            match Connection::open(&endpoint).await {
                Ok(connection) => break connection,
                Err(error) if begin.elapsed() > Duration::from_secs(10) => {
                    let log = fs::read_to_string(dir.path().join("log")).unwrap_or_default();
                    return Err(format!("the gateway does not start: {error}; its log: {log}").into());
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let for_peers = format!("/ip4/127.0.0.1/tcp/{listen}/p2p/{id}");
        let mut gateway = Self { process, for_peers, endpoint, connection, dir };
        if !gateway.page("/metrics").await?.contains(&format!("peer_id=\"{id}\"")) {
            return Err("another program has taken the gateway's port; start again".into());
        }
        Ok(gateway)
    }

    /// Fetches one of its pages.
    pub(super) async fn page(&mut self, path: &str) -> Result<String> {
        let Answer { status, body } = self.connection.get(&request(path, &self.endpoint)).await?;
        match status {
            200 => Ok(std::str::from_utf8(body)?.to_owned()),
            _ => Err(format!("{path} returned {status}: {}", String::from_utf8_lossy(body)).into()),
        }
    }

    /// The sum of the series of its own metrics whose lines begin with `prefix`.
    pub(super) async fn number(&mut self, prefix: &str) -> Result<f64> {
        let page = self.page("/metrics").await?;
        let lines = page.lines().filter(|line| line.starts_with(prefix));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Waits until `count` peers have a link with it and let it scrape them. Returns the time that this took.
    pub(super) async fn connected(&mut self, count: usize) -> Result<Duration> {
        let begin = Instant::now();
        loop {
            let linked = self.number("gateway_peers{state=\"connected\"}").await?
                + self.number("gateway_peers{state=\"waiting\"}").await?;
            if linked >= count as f64 {
                return Ok(begin.elapsed());
            }
            if begin.elapsed() > PATIENCE {
                return Err(format!("after {PATIENCE:?} only {linked} of {count} peers are connected").into());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until `/sd` lists `count` peers as connected.
    pub(super) async fn listed(&mut self, count: usize) -> Result<()> {
        let begin = Instant::now();
        while self.page("/sd").await?.matches("\"__meta_peerscope_connected\":\"true\"").count() < count {
            if begin.elapsed() > PATIENCE {
                return Err(format!("after {PATIENCE:?} /sd does not list {count} peers").into());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// The number of its open file descriptors.
    pub(super) fn descriptors(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.process.id()))?.count())
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

fn yaml(dir: &Path, metrics: u16, listen: u16, peers: &[PeerId], max_peers: usize) -> Result<String> {
    let mut yaml = format!(
        "node: {{name: gateway, data_dir: {dir:?}}}\n\
         metrics: {{port: {metrics}}}\n\
         network: {{listen: [/ip4/127.0.0.1/tcp/{listen}], max_peers: {max_peers}}}\n\
         gateway:\n  enabled: true\n  settle: 0s\n"
    );
    if !peers.is_empty() {
        yaml.push_str("  peers:\n");
    }
    for peer in peers {
        writeln!(yaml, "  - {peer}")?;
    }
    Ok(yaml)
}

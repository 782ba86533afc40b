//! Ours: two complete agents, each with identity, store, links and metrics endpoint. The server's only access rule is
//! for the client. Every caller is a task that calls `Network::request`.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use libp2p::PeerId;
use peerscope::config::{AccessRule, Config, PeerSelector, Permission};
use peerscope::metrics::MissingLines;
use peerscope::network::protocol::{Request, Response};
use peerscope::network::{BootstrapAddr, ListenAddr, Network, RequestError};
use peerscope::node::Node;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{Contender, Flavour, KEYS, Load, Operation, PAYLOAD, check, key};
use crate::Result;
use crate::measure::{Round, closed_loop};
use crate::process::announce_and_wait;

/// How long the client may take to connect.
const CONNECT: Duration = Duration::from_secs(10);

/// The configuration of an agent with nothing but a folder.
fn config(dir: &Path, listen: bool) -> Result<Config> {
    let mut config = Config::default();
    config.node.data_dir = dir.to_owned();
    config.metrics.port = 0;
    config.network.listen = if listen { vec!["/ip4/127.0.0.1/tcp/0".parse::<ListenAddr>()?] } else { Vec::new() };
    Ok(config)
}

/// The server side; only `client` may read its store.
pub(super) fn serve(client: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut config = config(dir.path(), true)?;
    config.access = vec![AccessRule { peer: client.parse::<PeerSelector>()?, allow: vec![Permission::Get] }];
    let runtime = Flavour::MultiThread.runtime()?;
    let node = runtime.block_on(Node::bind(&config, &MissingLines::default()))?;
    let storage = node.storage();
    runtime.block_on(async {
        let puts = (0..KEYS).map(|number| storage.put(key(number), vec![7; PAYLOAD].into()));
        futures::future::try_join_all(puts).await
    })?;
    let address = node.listen_addresses().first().ok_or("the node does not listen")?.clone();
    let address = address.with_p2p(node.peer_id()).map_err(|_| "not the node's PeerId")?;
    runtime.spawn(node.serve(std::future::pending()));
    announce_and_wait(&address.to_string())
}

/// A folder with the client's key, and the PeerId that the server must admit.
pub(super) fn identity() -> Result<(TempDir, PeerId)> {
    let dir = tempfile::tempdir()?;
    let key = peerscope::identity::load_or_create(dir.path())?;
    Ok((dir, key.public().to_peer_id()))
}

pub(super) struct Client {
    runtime: Runtime,
    network: Network,
    server: PeerId,
    _dir: TempDir,
}

impl Client {
    pub(super) fn connect(address: &str, dir: TempDir) -> Result<Self> {
        let mut config = config(dir.path(), false)?;
        let server = address.parse::<BootstrapAddr>()?;
        let peer = server.peer;
        config.network.bootstrap = vec![server];
        let runtime = Flavour::MultiThread.runtime()?;
        let node = runtime.block_on(Node::bind(&config, &MissingLines::default()))?;
        let network = node.network();
        runtime.spawn(node.serve(std::future::pending()));
        let ready = async {
            // A request connects by itself, but fails as unreachable until the first dial has begun.
            let hello = Request::Ping { payload: Bytes::new() };
            while let Err(RequestError::Unreachable { .. }) = network.request(peer, hello.clone()).await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        runtime
            .block_on(async { tokio::time::timeout(CONNECT, ready).await })
            .map_err(|_| format!("the client did not connect within {CONNECT:?}"))?;
        Ok(Self { runtime, network, server: peer, _dir: dir })
    }
}

impl Contender for Client {
    fn round(&mut self, load: &Load) -> Result<Round> {
        let (network, server, operation) = (self.network.clone(), self.server, load.operation);
        self.runtime.block_on(closed_loop(load.in_flight, load.window, move |number| {
            let network = network.clone();
            async move {
                let bytes = operation.request(number);
                let request = match operation {
                    Operation::Ping => Request::Ping { payload: bytes },
                    Operation::Get => Request::Get { key: bytes },
                };
                match network.request(server, request).await? {
                    Response::Pong(payload) => check(&payload),
                    Response::Value(Some(value)) => check(&value),
                    other => Err(format!("unexpected answer: {other:?}").into()),
                }
            }
        }))
    }
}

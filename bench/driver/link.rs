//! A message over the link between two agents in one process, each with its store, handler and network, over loopback
//! TCP, Noise and Yamux. A round trip includes the metrics of both: those of the answering side, the requesting side
//! and libp2p.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use libp2p::PeerId;
use libp2p::identity::Keypair;
use peerscope::config::{AccessRule, PeerSelector, Permission};
use peerscope::metrics::{AgentInfo, Exposer, Health, MetricsCollector, Registry};
use peerscope::network::protocol::{Request, Response};
use peerscope::network::{BootstrapAddr, Config, ListenAddr, Network, RequestError};
use peerscope::node::{Handler, Policy, ScrapeSources};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{PAYLOAD, Result, key, per_operation, storage};

const WARM_UP: usize = 1000;

pub(super) fn run(runtime: &Runtime, get: bool, in_flight: usize, count: usize) -> Result<f64> {
    runtime.block_on(async {
        let listen = vec!["/ip4/127.0.0.1/tcp/0".parse::<ListenAddr>()?];
        let (server, peer, _server_dir) = agent(Config { listen, ..Config::default() }).await?;
        let address = server.listen_addresses().first().ok_or("the server side does not listen")?.clone();
        let bootstrap = vec![BootstrapAddr { peer, address }];
        let (client, _, _client_dir) = agent(Config { listen: Vec::new(), bootstrap, ..Config::default() }).await?;
        connect(&client, peer).await?;
        callers(&client, peer, get, in_flight, WARM_UP).await?;
        let begin = Instant::now();
        callers(&client, peer, get, in_flight, count).await?;
        Ok(per_operation(begin, count))
    })
}

/// The parts of a node, without the identity file, the endpoint, the control socket and the `process_*` metrics, which
/// are read through the vDSO in a way that Valgrind does not support.
async fn agent(config: Config) -> Result<(Network, PeerId, TempDir)> {
    let registry = Registry::default();
    let agent = AgentInfo { peer_id: "bench".into(), name: "bench".into() };
    let metrics = MetricsCollector::new(&registry, &agent);
    let (storage, dir) = storage::open(metrics.clone()).await?;
    let rule = AccessRule { peer: PeerSelector::Any, allow: vec![Permission::Get] };
    let exposer = Exposer::new(Arc::default(), metrics.clone(), 1);
    let sources = ScrapeSources::new(exposer, None);
    let policy = Policy::new(&peerscope::config::Config { access: vec![rule], ..Default::default() });
    let handler = Arc::new(Handler::new(policy, storage, metrics.clone(), sources));
    let keypair = Keypair::generate_ed25519();
    let peer = keypair.public().to_peer_id();
    let (network, driver) =
        Network::bind(&config, keypair, 1 << 20, handler, metrics, &registry, Health::default()).await?;
    tokio::spawn(driver.run());
    Ok((network, peer, dir))
}

async fn connect(network: &Network, peer: PeerId) -> Result<()> {
    let hello = Request::Ping { payload: Bytes::new() };
    let ready = async {
        while let Err(RequestError::Unreachable { .. }) = network.request(peer, hello.clone()).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    Ok(tokio::time::timeout(Duration::from_secs(30), ready).await?)
}

/// `in_flight` tasks that together make `count` requests, each task one at a time.
async fn callers(network: &Network, peer: PeerId, get: bool, in_flight: usize, count: usize) -> Result<()> {
    let tasks: Vec<_> = (0..in_flight)
        .map(|caller| {
            let network = network.clone();
            tokio::spawn(async move {
                for number in (caller..count).step_by(in_flight) {
                    let request = match get {
                        true => Request::Get { key: key(number) },
                        false => Request::Ping { payload: Bytes::from_static(&[0; PAYLOAD]) },
                    };
                    match network.request(peer, request).await? {
                        Response::Pong(bytes) | Response::Value(Some(bytes)) if bytes.len() == PAYLOAD => {}
                        other => return Err(format!("unexpected answer: {other:?}").into()),
                    }
                }
                Result::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

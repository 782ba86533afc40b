//! A message over the link: two whole agents in one process, connected over loopback by TCP, Noise and Yamux. What one
//! round trip costs both of them, each with its own metrics: the answering side's and the asking side's.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use libp2p::PeerId;
use peerscope::config::{AccessRule, Config, PeerSelector, Permission};
use peerscope::network::protocol::{Request, Response};
use peerscope::network::{BootstrapAddr, ListenAddr, Network, RequestError};
use peerscope::node::Node;
use tokio::runtime::Runtime;

use super::{KEYS, PAYLOAD, Result, key, per_operation};

const WARM_UP: usize = 1000;

pub(super) fn run(runtime: &Runtime, get: bool, in_flight: usize, count: usize) -> Result<f64> {
    let (server_dir, client_dir) = (tempfile::tempdir()?, tempfile::tempdir()?);
    runtime.block_on(async {
        let mut server = config(server_dir.path());
        server.network.listen = vec!["/ip4/127.0.0.1/tcp/0".parse::<ListenAddr>()?];
        server.access = vec![AccessRule { peer: PeerSelector::Any, allow: vec![Permission::Get] }];
        let server = Node::bind(&server).await?;
        for number in 0..KEYS {
            server.storage().put(key(number), vec![7; PAYLOAD].into()).await?;
        }
        let peer = server.peer_id();
        let address = server.listen_addresses().first().ok_or("the node does not listen")?.clone();
        tokio::spawn(server.serve(std::future::pending()));

        let mut client = config(client_dir.path());
        client.network.bootstrap = vec![BootstrapAddr { peer, address }];
        let client = Node::bind(&client).await?;
        let network = client.network();
        tokio::spawn(client.serve(std::future::pending()));
        connect(&network, peer).await?;
        callers(&network, peer, get, in_flight, WARM_UP).await?;
        let begin = Instant::now();
        callers(&network, peer, get, in_flight, count).await?;
        Ok(per_operation(begin, count))
    })
}

fn config(dir: &Path) -> Config {
    let mut config = Config::default();
    config.node.data_dir = dir.to_owned();
    // Recording goes on without the endpoint; nobody scrapes here.
    config.metrics.enabled = false;
    config.network.listen = Vec::new();
    config
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

/// `in_flight` tasks that together make `count` requests, one after the other.
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
                        other => return Err(format!("an answer that does not fit: {other:?}").into()),
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

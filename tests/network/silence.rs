//! A path that dies silently: no packet tells that the peer is gone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use libp2p::PeerId;
use peerscope::network::{BootstrapAddr, Config, RequestError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::fixture::{Agent, config, get, pair, pong, within};
use crate::support::raw_peer::RawPeer;

/// Forwards bytes between its clients and one server, or holds them back without closing anything.
struct Proxy {
    address: SocketAddr,
    open: Arc<watch::Sender<bool>>,
}

impl Proxy {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (address, open) = (listener.local_addr().unwrap(), Arc::new(watch::Sender::new(true)));
        let gate = Arc::clone(&open);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let ((client_in, client_out), (server_in, server_out)) = (client.into_split(), server.into_split());
                tokio::spawn(pass(client_in, server_out, gate.subscribe()));
                tokio::spawn(pass(server_in, client_out, gate.subscribe()));
            }
        });
        Self { address, open }
    }
}

/// Not even the end of a stream gets past a closed gate.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut gate: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if gate.wait_for(|open| *open).await.is_err() || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
    let _ended = gate.wait_for(|open| *open).await;
}

/// When `agent` was connected to `peer`.
async fn since(agent: &Agent, peer: PeerId) -> std::time::Instant {
    agent.network.peers().await.iter().find(|info| info.peer == peer).expect("connected").connected_at
}

/// A slow test: it uses the agent's own patience of 24 s.
#[tokio::test]
async fn a_dead_path_is_noticed_within_25_seconds_and_the_link_recovers_with_it() {
    let server = Agent::start(config()).await;
    let proxy = Proxy::to(server.port()).await;
    let address = format!("/ip4/127.0.0.1/tcp/{}", proxy.address.port()).parse().unwrap();
    // It does not listen, so that the server cannot dial it past the proxy.
    let behind = Config {
        listen: Vec::new(),
        bootstrap: vec![BootstrapAddr { peer: server.peer, address }],
        request_timeout: Duration::from_secs(60),
        ..config()
    };
    let client = Agent::start(behind).await;
    server.connected(1).await;
    client.connected(1).await;
    assert_eq!(client.ping(server.peer).await.unwrap(), pong(b"x"));
    // A peer that accepts a link and never sends anything is as dead as one whose path is.
    let mut mute = RawPeer::dial(&server).await;
    let _link = mute.link().await;
    super::fixture::eventually("both connected", || async { server.peers_connected() == 2.0 }).await;

    let (network, to) = (client.network.clone(), server.peer);
    let in_flight = tokio::spawn(async move { network.request(to, get("never")).await });
    super::fixture::eventually("begun", || async { server.handler.begun() == 2 }).await;
    let connected = [since(&client, server.peer).await, since(&server, client.peer).await];
    proxy.open.send_replace(false);
    let silent_since = Instant::now();
    // The client may learn the server's own address, past the proxy, and reconnect at once.
    let ended = |agent: &Agent, since| {
        let network = agent.network.clone();
        async move { network.peers().await.iter().all(|peer| peer.connected_at != since) }
    };
    let limit = Duration::from_secs(25);
    within(limit, "the client notices", || ended(&client, connected[0])).await;
    within(limit, "the server notices", || ended(&server, connected[1])).await;
    let noticed = silent_since.elapsed();
    assert!(noticed >= Duration::from_secs(15) && noticed <= limit, "{noticed:?}");
    assert!(matches!(in_flight.await.unwrap().unwrap_err(), RequestError::LinkLost));
    mute.closed().await;
    println!("noticed after {noticed:?}");

    let limit = Duration::from_secs(30);
    proxy.open.send_replace(true);
    // An attempt that is stuck in the proxy may have to reach its timeout of 10 s first, and then wait for the backoff.
    within(limit, "connected again", || async { client.peers_connected() == 1.0 && server.peers_connected() == 1.0 })
        .await;
    client.connected(1).await;
    assert_eq!(client.ping(server.peer).await.unwrap(), pong(b"x"));
}

/// Otherwise a link would be closed for having nothing to say. It outlives the longest silence twice, on Yamux's pings
/// alone: no protocol says anything.
#[tokio::test]
async fn an_idle_link_lives_and_no_protocol_speaks() {
    let (server, client) = pair().await;
    let since = [since(&client, server.peer).await, since(&server, client.peer).await];
    // What the protocols have to say first is said.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = client.sum("libp2p_bandwidth_bytes_total{");
    tokio::time::sleep(Duration::from_secs(50)).await;
    let taken = client.sum("libp2p_bandwidth_bytes_total{") - before;
    for (agent, since) in [(&client, since[0]), (&server, since[1])] {
        let peers = agent.network.peers().await;
        assert!(peers.len() == 1 && peers[0].connected_at == since, "{peers:?}");
    }
    assert_eq!(taken, 0.0, "bytes of protocols");
    assert_eq!(client.ping(server.peer).await.unwrap(), pong(b"x"));
}

//! The ceiling: bare swarms over the agent's transport, TCP with Noise and Yamux, without a link, other protocols,
//! HTTP, queues or metrics. The gateway's swarm opens a substream to each peer, writes a few bytes and reads to the
//! end.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::core::upgrade::{ReadyUpgrade, Version};
use libp2p::core::{Endpoint, Transport, transport::PortUse};
use libp2p::identity::Keypair;
use libp2p::swarm::handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    StreamProtocol, SubstreamProtocol, SwarmEvent, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, Stream, Swarm, SwarmBuilder, noise, tcp, yamux};
use tokio::sync::{mpsc, oneshot};

use super::client::AT_ONCE;
use super::page::page;
use super::{Sweep, raise_descriptors};
use crate::measure::nanos;
use crate::process::announce_and_answer;
use crate::{Error, Result};

const PROTOCOL: StreamProtocol = StreamProtocol::new("/bench/page/1");
/// A request, as long as the agent's own with Prometheus's `Accept`.
const ASK: [u8; 32] = [7; 32];
/// Concurrent handshakes. A swarm that all peers dial at once drops some.
const DIALS: usize = 128;

type Open = oneshot::Sender<Stream>;
type Opens = mpsc::Sender<Open>;

/// Opens substreams on request, and answers inbound ones with the page.
struct Pages {
    page: Bytes,
    /// One for each connection ever made.
    connections: Arc<Mutex<Vec<Opens>>>,
}

struct Handler {
    page: Bytes,
    opens: mpsc::Receiver<Open>,
    opening: Option<Open>,
}

impl Pages {
    fn handler(&self) -> Handler {
        let (sender, opens) = mpsc::channel(1);
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        Handler { page: self.page.clone(), opens, opening: None }
    }
}

impl NetworkBehaviour for Pages {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> std::result::Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> std::result::Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Self::ToBehaviour>> {
        if let Poll::Ready(Some(caller)) = self.opens.poll_recv(cx) {
            self.opening = Some(caller);
            let protocol = SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ());
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. }) => {
                tokio::spawn(answer(protocol, self.page.clone()));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, .. }) => {
                if let Some(caller) = self.opening.take() {
                    let _ = caller.send(protocol);
                }
            }
            // Dropping it notifies the caller.
            ConnectionEvent::DialUpgradeError(_) => drop(self.opening.take()),
            _ => {}
        }
    }
}

async fn answer(mut stream: Stream, page: Bytes) -> std::io::Result<()> {
    stream.read_exact(&mut [0; ASK.len()]).await?;
    stream.write_all(&page).await?;
    stream.close().await
}

async fn fetch(opens: &Opens, page: &[u8], buffer: &mut Vec<u8>) -> Result<u32> {
    let begin = Instant::now();
    let (caller, opened) = oneshot::channel();
    opens.send(caller).await.map_err(|_| "a connection is gone")?;
    let mut stream = opened.await?;
    stream.write_all(&ASK).await?;
    stream.flush().await?;
    buffer.clear();
    stream.read_to_end(buffer).await?;
    let taken = nanos(begin.elapsed());
    if buffer == page { Ok(taken) } else { Err("not the page".into()) }
}

/// A swarm with its own key.
fn swarm(connections: &Arc<Mutex<Vec<Opens>>>, page: &Bytes) -> Result<Swarm<Pages>> {
    let key = Keypair::generate_ed25519();
    let transport = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(&key)?)
        .multiplex(yamux::Config::default());
    let pages = Pages { page: page.clone(), connections: Arc::clone(connections) };
    Ok(SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_other_transport(|_| transport)?
        .with_behaviour(|_| pages)?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(24 * 3600)))
        .build())
}

/// Runs the gateway's swarm: `connected` returns the number of connections, `sweep` fetches a page over each.
pub(super) fn serve_gateway() -> Result<()> {
    raise_descriptors()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let connections = Arc::new(Mutex::new(Vec::new()));
    let page = Bytes::from(page());
    let (address, swarm) = runtime.block_on(async {
        let mut swarm = swarm(&connections, &page)?;
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                return Ok::<_, Error>((address, swarm));
            }
        }
    })?;
    runtime.spawn(run(swarm));
    announce_and_answer(&address.to_string(), |question| {
        let all = connections.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match question {
            "connected" => Ok(all.len().to_string()),
            "sweep" => {
                let begin = Instant::now();
                let taken = runtime.block_on(sweep(all, &page))?;
                let Sweep { seconds, p50, p99 } = Sweep::new(begin.elapsed(), taken)?;
                Ok(format!("{seconds} {p50} {p99}"))
            }
            _ => Err(format!("the bare gateway does not know the question `{question}`").into()),
        }
    })
}

async fn sweep(all: Vec<Opens>, page: &Bytes) -> Result<Vec<u32>> {
    let (all, next) = (Arc::new(all), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let (all, next, page) = (Arc::clone(&all), Arc::clone(&next), page.clone());
            tokio::spawn(async move {
                let (mut taken, mut buffer) = (Vec::new(), Vec::with_capacity(2 * page.len()));
                while let Some(opens) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    taken.push(fetch(opens, &page, &mut buffer).await?);
                }
                Ok::<_, Error>(taken)
            })
        })
        .collect();
    let mut taken = Vec::with_capacity(all.len());
    for caller in callers {
        taken.extend(caller.await??);
    }
    Ok(taken)
}

/// Runs the peers' swarms, where `at` is `COUNT ADDRESS`. Any question, such as `dial`, connects them all.
pub(super) fn serve_peers(at: &str) -> Result<()> {
    raise_descriptors()?;
    let (count, gateway) = at.split_once(' ').ok_or("peers need COUNT ADDRESS")?;
    let (count, gateway): (usize, Multiaddr) = (count.parse()?, gateway.parse()?);
    let runtime = tokio::runtime::Runtime::new()?;
    let page = Bytes::from(page());
    announce_and_answer("ready", |_| {
        let connections = Arc::default();
        let _guard = runtime.enter();
        let swarms = (0..count).map(|_| swarm(&connections, &page)).collect::<Result<Vec<_>>>()?;
        let gateway = gateway.clone();
        let dial = async move {
            let dials = swarms.into_iter().map(|mut swarm| {
                let gateway = gateway.clone();
                async move {
                    swarm.dial(gateway)?;
                    loop {
                        match swarm.select_next_some().await {
                            SwarmEvent::ConnectionEstablished { .. } => break,
                            SwarmEvent::OutgoingConnectionError { error, .. } => return Err(Error::from(error)),
                            _ => {}
                        }
                    }
                    tokio::spawn(run(swarm));
                    Ok(())
                }
            });
            let mut dials = futures::stream::iter(dials).buffer_unordered(DIALS);
            while let Some(dialed) = dials.next().await {
                dialed?;
            }
            Ok::<_, Error>(())
        };
        runtime.block_on(dial).map(|()| "0".into())
    })
}

async fn run(mut swarm: Swarm<Pages>) {
    loop {
        swarm.select_next_some().await;
    }
}

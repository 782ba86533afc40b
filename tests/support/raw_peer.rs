//! A handmade peer: TCP, Noise and Yamux are libp2p's, and everything above is written by hand, so that it can
//! misbehave in any way.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _};
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt as _, SubstreamBox};
use libp2p::core::transport::{Boxed, DialOpts, PortUse, TransportEvent};
use libp2p::core::upgrade::Version;
use libp2p::core::{Endpoint, Transport as _};
use libp2p::{Multiaddr, PeerId, identity, noise, tcp, yamux};
use peerscope::network::protocol::{
    self, FRAME_OVERHEAD, FrameReader, Hello, RequestBody, RequestFrame, ResponseBody, ResponseFrame,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::agent::TestAgent;

/// No test waits longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// The longest frame that a raw peer announces that it accepts: the same as an agent's by default.
const MAX_FRAME: usize = 1024 * 1024 + 1024 + FRAME_OVERHEAD;

/// Something that a raw peer can dial.
pub(crate) trait Listening {
    /// The address on which it listens, without its PeerId.
    fn address(&self) -> Multiaddr;
}

impl Listening for TestAgent {
    fn address(&self) -> Multiaddr {
        let socket = self.peer_socket();
        format!("/ip4/{}/tcp/{}", socket.ip(), socket.port()).parse().unwrap()
    }
}

type Transport = Boxed<(PeerId, StreamMuxerBox)>;

/// One connection to an agent.
pub(crate) struct RawPeer {
    pub(crate) peer: PeerId,
    open: mpsc::Sender<oneshot::Sender<SubstreamBox>>,
    inbound: mpsc::Receiver<SubstreamBox>,
    task: JoinHandle<()>,
}

pub(crate) fn transport(key: &identity::Keypair) -> Transport {
    // More streams than the agent allows, because the limit under test is the agent's.
    let mut muxer = yamux::Config::default();
    muxer.set_max_num_streams(4096);
    tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(key).unwrap())
        .multiplex(muxer)
        .boxed()
}

impl RawPeer {
    /// Dials `agent` with a new identity.
    pub(crate) async fn dial(agent: &impl Listening) -> Self {
        Self::dial_as(agent, &identity::Keypair::generate_ed25519()).await
    }

    pub(crate) async fn dial_as(agent: &impl Listening, key: &identity::Keypair) -> Self {
        let opts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let dialing = transport(key).dial(agent.address(), opts).unwrap();
        let (_, muxer) = timeout(PATIENCE, dialing).await.expect("dialed in time").unwrap();
        Self::on(key.public().to_peer_id(), muxer)
    }

    /// Listens with the identity `key`. Returns its address, and a channel of the connections made to it.
    pub(crate) async fn listen(key: identity::Keypair) -> (Multiaddr, mpsc::Receiver<Self>) {
        let mut transport = transport(&key);
        transport
            .listen_on(libp2p::core::transport::ListenerId::next(), "/ip4/127.0.0.1/tcp/0".parse().unwrap())
            .unwrap();
        let Some(TransportEvent::NewAddress { listen_addr, .. }) = transport.next().await else {
            panic!("the raw peer cannot listen")
        };
        let (sender, connections) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Some(event) = transport.next().await {
                if let TransportEvent::Incoming { upgrade, .. } = event
                    && let Ok((_, muxer)) = upgrade.await
                    && sender.send(Self::on(key.public().to_peer_id(), muxer)).await.is_err()
                {
                    return;
                }
            }
        });
        (listen_addr, connections)
    }

    fn on(peer: PeerId, muxer: StreamMuxerBox) -> Self {
        let (open, opening) = mpsc::channel(16);
        let (sender, inbound) = mpsc::channel(64);
        Self { peer, open, inbound, task: tokio::spawn(drive(muxer, opening, sender)) }
    }

    /// Opens a substream on which nothing has been sent yet.
    pub(crate) async fn open(&self) -> SubstreamBox {
        self.try_open().await.expect("the connection is open")
    }

    pub(crate) async fn try_open(&self) -> Option<SubstreamBox> {
        let (reply, stream) = oneshot::channel();
        self.open.send(reply).await.ok()?;
        timeout(PATIENCE, stream).await.expect("a substream in time").ok()
    }

    /// Opens a substream and negotiates `protocol`.
    pub(crate) async fn open_protocol(&self, protocol: &str) -> SubstreamBox {
        let mut stream = self.open().await;
        timeout(PATIENCE, propose(&mut stream, protocol)).await.expect("negotiated in time");
        stream
    }

    /// Opens a substream of the link for its own requests, on which nothing has been sent yet.
    pub(crate) async fn link(&self) -> Link {
        Link::new(self.open_protocol(protocol::PROTOCOL.as_ref()).await)
    }

    /// Opens one, and exchanges hellos.
    pub(crate) async fn link_with_hello(&self) -> Link {
        let mut link = self.link().await;
        link.send(&request(0, Some(RequestBody::Hello(Hello { max_frame: MAX_FRAME as u64, max_in_flight: 0 })))).await;
        let frame: ResponseFrame = link.read().await.expect("a hello");
        assert!(matches!(frame.body, Some(ResponseBody::Hello(_))), "{frame:?}");
        link
    }

    /// Accepts the first substream for `protocol` that the agent opens, and rejects all others.
    pub(crate) async fn accept(&mut self, protocol: &str) -> SubstreamBox {
        let accepting = async {
            loop {
                let stream = self.inbound.recv().await.expect("the connection is open");
                if let Some(offer) = offered(stream, &[protocol]).await {
                    return offer.accept().await;
                }
            }
        };
        timeout(PATIENCE, accepting).await.expect("the agent opens a substream")
    }

    /// From now on passes every substream for one of `protocols` that the agent opens to `serve`, each in a task of its
    /// own, and rejects all others.
    pub(crate) fn serve_all<F>(
        &mut self,
        protocols: &'static [&'static str],
        serve: impl Fn(Offer) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let (_closed, nothing) = mpsc::channel(1);
        let mut inbound = std::mem::replace(&mut self.inbound, nothing);
        let serve = Arc::new(serve);
        tokio::spawn(async move {
            while let Some(stream) = inbound.recv().await {
                let serve = Arc::clone(&serve);
                tokio::spawn(async move {
                    if let Some(offer) = offered(stream, protocols).await {
                        serve(offer).await;
                    }
                });
            }
        });
    }

    /// From now on rejects every substream that the agent opens.
    pub(crate) fn refuse_all(&mut self) {
        let (_closed, nothing) = mpsc::channel(1);
        let mut inbound = std::mem::replace(&mut self.inbound, nothing);
        tokio::spawn(async move {
            while let Some(stream) = inbound.recv().await {
                offered(stream, &[]).await;
            }
        });
    }

    /// Waits until the agent has closed the connection.
    pub(crate) async fn closed(&mut self) {
        timeout(PATIENCE, &mut self.task).await.expect("the agent closes the connection").unwrap();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for RawPeer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs the connection until the agent closes it.
async fn drive(
    mut muxer: StreamMuxerBox,
    mut opening: mpsc::Receiver<oneshot::Sender<SubstreamBox>>,
    inbound: mpsc::Sender<SubstreamBox>,
) {
    let mut replies = VecDeque::new();
    poll_fn(move |cx: &mut Context<'_>| {
        loop {
            if let Poll::Ready(Err(_)) = muxer.poll_unpin(cx) {
                return Poll::Ready(());
            }
            match muxer.poll_inbound_unpin(cx) {
                Poll::Ready(Ok(stream)) => {
                    let _nobody_looks = inbound.try_send(stream);
                    continue;
                }
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            while let Poll::Ready(Some(reply)) = opening.poll_recv(cx) {
                replies.push_back(reply);
            }
            if !replies.is_empty() {
                match muxer.poll_outbound_unpin(cx) {
                    Poll::Ready(Ok(stream)) => {
                        let _nobody_waits = replies.pop_front().unwrap().send(stream);
                        continue;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            return Poll::Pending;
        }
    })
    .await;
}

/// Frames on one substream.
pub(crate) struct Link {
    pub(crate) stream: SubstreamBox,
    reader: FrameReader,
}

impl Link {
    pub(crate) fn new(stream: SubstreamBox) -> Self {
        Self { stream, reader: FrameReader::new(16 * 1024 * 1024) }
    }

    pub(crate) async fn send(&mut self, frame: &impl prost::Message) {
        let mut bytes = Vec::new();
        protocol::encode(frame, &mut bytes);
        self.send_bytes(&bytes).await;
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next frame; `None` if the agent has ended the stream.
    pub(crate) async fn read<F: prost::Message + Default>(&mut self) -> Option<F> {
        let reading = async {
            loop {
                if let Some(frame) = self.reader.next_frame().unwrap() {
                    return Some(frame);
                }
                match self.stream.read(self.reader.room()).await {
                    Ok(0) | Err(_) => return None,
                    Ok(n) => self.reader.filled(n),
                }
            }
        };
        timeout(PATIENCE, reading).await.expect("a frame in time")
    }

    /// The next frame that answers a request.
    pub(crate) async fn answer(&mut self) -> Option<ResponseFrame> {
        loop {
            let frame: ResponseFrame = self.read().await?;
            match frame.body {
                Some(ResponseBody::Hello(_) | ResponseBody::Heartbeat(_)) => {}
                _ => return Some(frame),
            }
        }
    }
}

pub(crate) fn request(id: u64, body: Option<RequestBody>) -> RequestFrame {
    RequestFrame { id, body }
}

const MULTISTREAM: &str = "/multistream/1.0.0";

/// The dialer's side of multistream-select 1.0.
pub(crate) async fn propose(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), protocol: &str) {
    say(stream, MULTISTREAM).await;
    say(stream, protocol).await;
    assert_eq!(hear(stream).await.as_deref(), Some(MULTISTREAM));
    assert_eq!(hear(stream).await.as_deref(), Some(protocol));
}

/// A substream on which the agent has proposed a protocol and is waiting for the answer.
pub(crate) struct Offer {
    pub(crate) protocol: String,
    stream: SubstreamBox,
}

impl Offer {
    /// Accepts the protocol.
    pub(crate) async fn accept(mut self) -> SubstreamBox {
        say(&mut self.stream, &self.protocol).await;
        self.stream
    }
}

/// The listener's side, up to the proposal of one of `protocols`.
async fn offered(mut stream: SubstreamBox, protocols: &[&str]) -> Option<Offer> {
    let negotiating = async {
        if hear(&mut stream).await.as_deref() != Some(MULTISTREAM) {
            return None;
        }
        say(&mut stream, MULTISTREAM).await;
        while let Some(proposed) = hear(&mut stream).await {
            if protocols.contains(&proposed.as_str()) {
                return Some(proposed);
            }
            say(&mut stream, "na").await;
        }
        None
    };
    let protocol = timeout(Duration::from_secs(5), negotiating).await.unwrap_or(None)?;
    Some(Offer { protocol, stream })
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), line: &str) {
    // Shorter than 128 bytes, so its length is a varint of one byte. The agent may have closed the stream.
    let mut message = vec![u8::try_from(line.len() + 1).unwrap()];
    message.extend_from_slice(line.as_bytes());
    message.push(b'\n');
    if stream.write_all(&message).await.is_ok() {
        let _closed = stream.flush().await;
    }
}

async fn hear(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut len = [0];
    stream.read_exact(&mut len).await.ok()?;
    let mut line = vec![0; usize::from(len[0])];
    stream.read_exact(&mut line).await.ok()?;
    assert_eq!(line.pop(), Some(b'\n'));
    Some(String::from_utf8(line).unwrap())
}

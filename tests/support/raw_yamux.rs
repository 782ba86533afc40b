//! A peer whose Yamux is written by hand, on libp2p's own TCP and Noise, so that a test decides when it answers pings,
//! how it splits data into frames, and when it grants the agent credit.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::io::{ReadHalf, WriteHalf};
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::core::transport::{DialOpts, PortUse};
use libp2p::core::upgrade::OutboundConnectionUpgrade as _;
use libp2p::core::{Endpoint, Transport as _};
use libp2p::{identity, noise, tcp};
use peerscope::network::protocol::{self, PROTOCOL};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::raw_peer::{Listening, propose};

const PATIENCE: Duration = Duration::from_secs(20);

const DATA: u8 = 0;
const WINDOW_UPDATE: u8 = 1;
const PING: u8 = 2;
const SYN: u8 = 1;
const ACK: u8 = 2;
/// How many bytes each side may send on a new stream.
const CREDIT: u32 = 256 * 1024;

type Socket = noise::Output<tcp::tokio::TcpStream>;

/// One connection to an agent.
pub(crate) struct RawYamux {
    shared: Arc<Shared>,
    write: Arc<tokio::sync::Mutex<WriteHalf<Socket>>>,
    next_stream: AtomicU32,
}

#[derive(Default)]
struct Shared {
    streams: Mutex<HashMap<u32, Received>>,
    changed: Notify,
    is_closed: AtomicBool,
}

#[derive(Default)]
struct Received {
    /// How many bytes may still be sent.
    credit: u32,
    bytes: Vec<u8>,
}

impl RawYamux {
    /// Dials, and answers each ping of the agent after `pong_after`.
    pub(crate) async fn dial_as(agent: &impl Listening, key: &identity::Keypair, pong_after: Duration) -> Self {
        let opts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let mut tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
        let mut socket = timeout(PATIENCE, tcp.dial(agent.address(), opts).unwrap()).await.unwrap().unwrap();
        propose(&mut socket, "/noise").await;
        let noise = noise::Config::new(key).unwrap();
        let (_, mut socket) = timeout(PATIENCE, noise.upgrade_outbound(socket, "/noise")).await.unwrap().unwrap();
        propose(&mut socket, "/yamux/1.0.0").await;
        let (read, write) = socket.split();
        let (shared, write) = (Arc::<Shared>::default(), Arc::new(tokio::sync::Mutex::new(write)));
        tokio::spawn(hear(read, Arc::clone(&shared), Arc::clone(&write), pong_after));
        Self { shared, write, next_stream: AtomicU32::new(1) }
    }

    /// Opens a stream for requests, and sends the protocol negotiation on it.
    pub(crate) async fn link(&self) -> u32 {
        let stream = self.next_stream.fetch_add(2, Ordering::Relaxed);
        self.shared.streams.lock().unwrap().entry(stream).or_default().credit = CREDIT;
        self.header(WINDOW_UPDATE, SYN, stream, 0).await;
        let mut hello = Vec::new();
        for line in ["/multistream/1.0.0", PROTOCOL.as_ref()] {
            hello.push(u8::try_from(line.len() + 1).unwrap());
            hello.extend_from_slice(line.as_bytes());
            hello.push(b'\n');
        }
        self.send(stream, &hello).await;
        stream
    }

    /// Sends one frame of the link.
    pub(crate) async fn request(&self, stream: u32, frame: &impl prost::Message) -> bool {
        let mut bytes = Vec::new();
        protocol::encode(frame, &mut bytes);
        self.send(stream, &bytes).await
    }

    /// Sends all bytes, waiting for credit as needed; `false` if no credit comes for three seconds, or if the
    /// connection is closed.
    pub(crate) async fn send(&self, stream: u32, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let Ok(len) = timeout(Duration::from_secs(3), self.credit(stream, bytes.len())).await else { return false };
            let (now, later) = bytes.split_at(len);
            if self.is_closed() || !self.data(stream, now).await {
                return false;
            }
            bytes = later;
        }
        true
    }

    /// Sends up to `count` frames of one byte, as many as the present credit allows. Returns how many.
    pub(crate) async fn send_crumbs(&self, stream: u32, count: usize) -> usize {
        let credit = self
            .shared
            .streams
            .lock()
            .unwrap()
            .get_mut(&stream)
            .map_or(0, |received| std::mem::take(&mut received.credit));
        let count = count.min(credit as usize);
        let crumb = [header(DATA, 0, stream, 1).as_slice(), b"x"].concat();
        for crumbs in crumb.repeat(count).chunks(64 * 1024) {
            if self.write.lock().await.write_all(crumbs).await.is_err() {
                break;
            }
        }
        let _closed = self.write.lock().await.flush().await;
        count
    }

    async fn credit(&self, stream: u32, wanted: usize) -> usize {
        loop {
            let changed = self.shared.changed.notified();
            if self.is_closed() {
                return wanted.min(1);
            }
            if let Some(received) = self.shared.streams.lock().unwrap().get_mut(&stream) {
                let len = wanted.min(received.credit as usize).min(16 * 1024);
                received.credit -= len as u32;
                if len > 0 {
                    return len;
                }
            }
            changed.await;
        }
    }

    /// Lets the agent send this many more bytes.
    pub(crate) async fn grant(&self, stream: u32, bytes: u32) {
        self.header(WINDOW_UPDATE, 0, stream, bytes).await;
    }

    /// How many bytes have arrived on a stream.
    pub(crate) fn received(&self, stream: u32) -> usize {
        self.shared.streams.lock().unwrap().get(&stream).map_or(0, |received| received.bytes.len())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.shared.is_closed.load(Ordering::Relaxed)
    }

    async fn header(&self, kind: u8, flags: u8, stream: u32, len: u32) {
        let mut write = self.write.lock().await;
        if write.write_all(&header(kind, flags, stream, len)).await.is_ok() {
            let _closed = write.flush().await;
        }
    }

    async fn data(&self, stream: u32, bytes: &[u8]) -> bool {
        let frame = [header(DATA, 0, stream, bytes.len() as u32).as_slice(), bytes].concat();
        let mut write = self.write.lock().await;
        write.write_all(&frame).await.is_ok() && write.flush().await.is_ok()
    }
}

/// Version, type, flags, stream, length.
fn header(kind: u8, flags: u8, stream: u32, len: u32) -> [u8; 12] {
    let mut header = [0, kind, 0, flags, 0, 0, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&stream.to_be_bytes());
    header[8..].copy_from_slice(&len.to_be_bytes());
    header
}

async fn hear(
    mut read: ReadHalf<Socket>,
    shared: Arc<Shared>,
    write: Arc<tokio::sync::Mutex<WriteHalf<Socket>>>,
    pong_after: Duration,
) {
    let mut head = [0; 12];
    while read.read_exact(&mut head).await.is_ok() {
        let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let (stream, len) = (number(4), number(8));
        let mut bytes = vec![0; if head[1] == DATA { len as usize } else { 0 }];
        if read.read_exact(&mut bytes).await.is_err() {
            break;
        }
        match head[1] {
            PING if head[3] == SYN => {
                let write = Arc::clone(&write);
                tokio::spawn(async move {
                    tokio::time::sleep(pong_after).await;
                    let mut write = write.lock().await;
                    if write.write_all(&header(PING, ACK, 0, len)).await.is_ok() {
                        let _closed = write.flush().await;
                    }
                });
            }
            // The agent's own streams: each protocol that it proposes is rejected.
            DATA if stream % 2 == 0 => {
                let lines = bytes.iter().filter(|&&byte| byte == b'\n').count();
                let is_first = bytes.windows(12).any(|window| window == b"/multistream");
                let mut answer = if is_first { b"\x13/multistream/1.0.0\n".to_vec() } else { Vec::new() };
                answer.extend(b"\x03na\n".repeat(lines - usize::from(is_first)));
                let frame = [header(DATA, 0, stream, answer.len() as u32).as_slice(), &answer].concat();
                let mut write = write.lock().await;
                if write.write_all(&frame).await.is_ok() {
                    let _closed = write.flush().await;
                }
            }
            kind => {
                let mut streams = shared.streams.lock().unwrap();
                let received = streams.entry(stream).or_default();
                received.bytes.extend(bytes);
                if kind == WINDOW_UPDATE {
                    received.credit += len;
                }
            }
        }
        shared.changed.notify_waiters();
    }
    shared.is_closed.store(true, Ordering::Relaxed);
    shared.changed.notify_waiters();
}

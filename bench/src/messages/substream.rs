//! The ceiling: length-delimited frames on one long-lived substream over libp2p's TCP, Noise and Yamux, without a
//! swarm, ids or access control. Requests are pipelined and answered in order.
//!
//! Both sides process everything that has arrived and write the result at once: Yamux turns every write into a separate
//! frame, encryption and system call, so a batch costs as much as one message.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::time::Instant;

use bytes::Bytes;
use futures::future::{Either, select};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt};
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox};
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent};
use libp2p::core::{Endpoint, Transport, upgrade};
use libp2p::{Multiaddr, PeerId, identity, noise, tcp, yamux};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{Answers, Contender, Flavour, Load, Operation, check};
use crate::measure::{Round, Window, closed_loop, nanos};
use crate::process::announce_and_wait;
use crate::{Error, Result};

/// The most bytes of one read: more than 128 messages in flight.
const READ: usize = 64 * 1024;

/// Where the substream and its connection run. On an idle machine a single request is fastest with two tasks on two
/// threads, which keep each other's core from sleeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Variant {
    flavour: Flavour,
    /// Whether one task polls both, as in a handler's `poll`; otherwise each has its own task.
    one_task: bool,
    /// Whether each request has a task that waits for the answer, as an agent's callers do; otherwise the task of the
    /// substream makes all of them. The difference is what such tasks cost by themselves.
    callers: bool,
}

impl Variant {
    pub(super) fn named(name: &str) -> Option<Self> {
        let (flavour, one_task, callers) = match name {
            "substream, two tasks" => (Flavour::MultiThread, false, false),
            "substream, callers" => (Flavour::MultiThread, false, true),
            "substream, one task" => (Flavour::MultiThread, true, false),
            "substream, one thread" => (Flavour::CurrentThread, true, false),
            _ => return None,
        };
        Some(Self { flavour, one_task, callers })
    }
}

fn transport() -> Result<Boxed<(PeerId, StreamMuxerBox)>> {
    let key = identity::Keypair::generate_ed25519();
    Ok(tcp::tokio::Transport::new(tcp::Config::new())
        .upgrade(upgrade::Version::V1)
        .authenticate(noise::Config::new(&key)?)
        .multiplex(yamux::Config::default())
        .boxed())
}

/// Drives the connection and `work` until `work` is done or the connection fails.
async fn with_connection<T>(
    mut muxer: StreamMuxerBox,
    one_task: bool,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let connection = poll_fn(move |cx| match muxer.poll_unpin(cx) {
        std::task::Poll::Ready(Err(error)) => std::task::Poll::Ready(Error::from(error)),
        _ => std::task::Poll::Pending,
    });
    if !one_task {
        let connection = tokio::spawn(connection);
        let result = work.await;
        connection.abort();
        return result;
    }
    // The substream first, so that the connection sends its data in the same turn.
    match select(pin!(work), connection).await {
        Either::Left((result, _)) => result,
        Either::Right((error, _)) => Err(error),
    }
}

pub(super) fn serve(variant: Variant) -> Result<()> {
    let runtime = variant.flavour.runtime()?;
    let (address, server) = runtime.block_on(async {
        let mut transport = transport()?;
        transport.listen_on(ListenerId::next(), "/ip4/127.0.0.1/tcp/0".parse()?)?;
        let address = loop {
            if let TransportEvent::NewAddress { listen_addr, .. } = transport.select_next_some().await {
                break listen_addr;
            }
        };
        Ok::<_, Error>((address, accept(transport, variant)))
    })?;
    runtime.spawn(async move {
        if let Err(error) = server.await {
            eprintln!("substream: {error}");
        }
    });
    // A current-thread runtime runs only within `block_on`.
    runtime.block_on(runtime.spawn_blocking(move || announce_and_wait(&address.to_string())))?
}

async fn accept(mut transport: Boxed<(PeerId, StreamMuxerBox)>, variant: Variant) -> Result<()> {
    loop {
        if let TransportEvent::Incoming { upgrade, .. } = transport.select_next_some().await {
            let (_, mut muxer) = upgrade.await?;
            let stream = poll_fn(|cx| muxer.poll_inbound_unpin(cx)).await?;
            tokio::spawn(with_connection(muxer, variant.one_task, answer(stream)));
        }
    }
}

async fn answer(mut stream: SubstreamBox) -> Result<()> {
    let answers = Answers::new();
    let (mut input, mut output) = (Frames::new(), Vec::with_capacity(READ));
    while input.read(&mut stream).await? {
        output.clear();
        while let Some(request) = input.next() {
            push_frame(&mut output, answers.answer(request));
        }
        write(&mut stream, &output).await?;
    }
    Ok(())
}

pub(super) struct Client {
    runtime: Runtime,
    loads: tokio::sync::mpsc::Sender<(Operation, usize, Window)>,
    rounds: tokio::sync::mpsc::Receiver<Round>,
    task: JoinHandle<Result<()>>,
}

impl Client {
    pub(super) fn connect(address: &str, variant: Variant) -> Result<Self> {
        let runtime = variant.flavour.runtime()?;
        let address: Multiaddr = address.parse()?;
        let (loads, mut next_load) = tokio::sync::mpsc::channel::<(Operation, usize, Window)>(1);
        let (done, rounds) = tokio::sync::mpsc::channel(1);
        let task = runtime.spawn(async move {
            let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
            let (_, mut muxer) = transport()?.dial(address, options)?.await?;
            let mut stream = poll_fn(|cx| muxer.poll_outbound_unpin(cx)).await?;
            let rounds = async move {
                while let Some((operation, in_flight, window)) = next_load.recv().await {
                    let round = if variant.callers {
                        let (requests, queue) = tokio::sync::mpsc::channel(in_flight);
                        let callers = closed_loop(in_flight, window, move |number| {
                            call(requests.clone(), operation.request(number))
                        });
                        let callers = tokio::spawn(callers);
                        for_callers(&mut stream, queue).await?;
                        callers.await??
                    } else {
                        window.round(pipeline(&mut stream, operation, in_flight, window).await?)?
                    };
                    done.send(round).await?;
                }
                Ok(())
            };
            with_connection(muxer, variant.one_task, rounds).await
        });
        Ok(Self { runtime, loads, rounds, task })
    }
}

impl Contender for Client {
    fn round(&mut self, load: &Load) -> Result<Round> {
        self.runtime.block_on(async {
            // If the task has ended, its own error is reported below.
            let _ = self.loads.send((load.operation, load.in_flight, load.window)).await;
            match self.rounds.recv().await {
                Some(round) => Ok(round),
                None => Err((&mut self.task).await?.err().unwrap_or_else(|| "the substream ended".into())),
            }
        })
    }
}

/// A caller's request, and where its answer goes.
type Call = (Bytes, oneshot::Sender<Result<()>>);

async fn call(requests: tokio::sync::mpsc::Sender<Call>, request: Bytes) -> Result<()> {
    let (reply, answer) = oneshot::channel();
    requests.send((request, reply)).await?;
    answer.await?
}

/// Carries callers' requests over the substream until there are no callers.
async fn for_callers(stream: &mut SubstreamBox, mut queue: tokio::sync::mpsc::Receiver<Call>) -> Result<()> {
    let (mut input, mut output) = (Frames::new(), Vec::with_capacity(READ));
    let (mut begun, mut batch) = (VecDeque::new(), Vec::new());
    loop {
        tokio::select! {
            read = input.read(stream), if !begun.is_empty() => {
                if !read? {
                    return Err("the server side closed the substream".into());
                }
                while let Some(answer) = input.next() {
                    let reply: oneshot::Sender<_> = begun.pop_front().ok_or("an answer without a request")?;
                    let _caller_gone = reply.send(check(answer));
                }
            }
            count = queue.recv_many(&mut batch, READ) => {
                if count == 0 {
                    return Ok(());
                }
                output.clear();
                for (request, reply) in batch.drain(..) {
                    push_frame(&mut output, &request);
                    begun.push_back(reply);
                }
                write(stream, &output).await?;
            }
        }
    }
}

/// Keeps `in_flight` requests on the substream until the window ends, then waits for the last answers.
async fn pipeline(
    stream: &mut SubstreamBox,
    operation: Operation,
    in_flight: usize,
    window: Window,
) -> Result<Vec<u32>> {
    let mut begun = VecDeque::with_capacity(in_flight);
    let mut taken = Vec::with_capacity(1 << 20);
    let (mut input, mut output) = (Frames::new(), Vec::with_capacity(READ));
    let mut number = 0;
    let mut free = in_flight;
    let mut now = Instant::now();
    loop {
        if now < window.to && free > 0 {
            output.clear();
            for _ in 0..free {
                push_frame(&mut output, &operation.request(number));
                number += 1;
                begun.push_back(now);
            }
            write(stream, &output).await?;
            free = 0;
        } else if begun.is_empty() {
            return Ok(taken);
        }
        if !input.read(stream).await? {
            return Err("the server side closed the substream".into());
        }
        now = Instant::now();
        while let Some(answer) = input.next() {
            check(answer)?;
            let begin = begun.pop_front().ok_or("an answer without a request")?;
            if window.contains(now) {
                taken.push(nanos(now - begin));
            }
            free += 1;
        }
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes).await?;
    Ok(stream.flush().await?)
}

fn push_frame(output: &mut Vec<u8>, body: &[u8]) {
    output.extend_from_slice(&(body.len() as u32).to_be_bytes());
    output.extend_from_slice(body);
}

/// Splits the stream into frames: a length of four bytes in network order, and the body.
struct Frames {
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Frames {
    fn new() -> Self {
        Self { buffer: vec![0; READ], begin: 0, end: 0 }
    }

    /// Reads the available bytes, at least one; `false` at the end of the stream.
    async fn read(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> Result<bool> {
        self.buffer.copy_within(self.begin..self.end, 0);
        self.end -= self.begin;
        self.begin = 0;
        let count = stream.read(self.buffer.get_mut(self.end..).unwrap_or_default()).await?;
        self.end += count;
        Ok(count > 0)
    }

    /// The body of the next complete frame.
    fn next(&mut self) -> Option<&[u8]> {
        let (length, rest) = self.buffer.get(self.begin..self.end)?.split_first_chunk::<4>()?;
        let body = rest.get(..u32::from_be_bytes(*length) as usize)?;
        self.begin += 4 + body.len();
        Some(body)
    }
}

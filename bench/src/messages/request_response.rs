//! libp2p's request-response behaviour with its CBOR codec: one substream per request.
//!
//! On the client side the event loop itself sends the next request as soon as an answer arrives, without the cost of a
//! channel to a caller.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::swarm::{Swarm, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, SwarmBuilder, noise, tcp, yamux};
use libp2p_request_response::{Config, Event, Message, ProtocolSupport, cbor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::runtime::Runtime;

use super::{Answers, Contender, Flavour, Load, check};
use crate::Result;
use crate::measure::{Round, nanos};
use crate::process::announce_and_wait;

type Behaviour = cbor::Behaviour<Octets, Octets>;

/// Bytes that CBOR encodes as a byte string; a `Vec<u8>` would become an array of integers.
#[derive(Debug, Clone)]
struct Octets(Vec<u8>);

impl Serialize for Octets {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Octets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Octets;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> std::result::Result<Octets, E> {
                Ok(Octets(bytes.to_vec()))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> std::result::Result<Octets, E> {
                Ok(Octets(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}

fn swarm() -> Result<Swarm<Behaviour>> {
    let swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::new(), noise::Config::new, yamux::Config::default)?
        .with_behaviour(|_| {
            // The default of 100 streams, inbound and outbound together, would reject 128 in flight.
            let config = Config::default().with_max_concurrent_streams(400);
            Behaviour::new([(StreamProtocol::new("/bench/1"), ProtocolSupport::Full)], config)
        })?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(3600)))
        .build();
    Ok(swarm)
}

pub(super) fn serve() -> Result<()> {
    let runtime = Flavour::MultiThread.runtime()?;
    let (swarm, address) = runtime.block_on(async {
        let mut swarm = swarm()?;
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                let address = address.with_p2p(*swarm.local_peer_id()).map_err(|_| "not our PeerId")?;
                return Ok::<_, crate::Error>((swarm, address));
            }
        }
    })?;
    runtime.spawn(answer(swarm));
    announce_and_wait(&address.to_string())
}

async fn answer(mut swarm: Swarm<Behaviour>) {
    let answers = Answers::new();
    loop {
        if let SwarmEvent::Behaviour(Event::Message { message: Message::Request { request, channel, .. }, .. }) =
            swarm.select_next_some().await
        {
            let answer = Octets(answers.answer(&request.0).to_vec());
            // The requester may be gone.
            let _ = swarm.behaviour_mut().send_response(channel, answer);
        }
    }
}

pub(super) struct Client {
    runtime: Runtime,
    /// `None` while a round runs.
    swarm: Option<Swarm<Behaviour>>,
    server: PeerId,
}

impl Client {
    pub(super) fn connect(address: &str) -> Result<Self> {
        let runtime = Flavour::MultiThread.runtime()?;
        let (swarm, server) = runtime.block_on(async {
            let mut swarm = swarm()?;
            swarm.dial(address.parse::<Multiaddr>()?)?;
            loop {
                match swarm.select_next_some().await {
                    SwarmEvent::ConnectionEstablished { peer_id, .. } => return Ok((swarm, peer_id)),
                    SwarmEvent::OutgoingConnectionError { error, .. } => return Err(crate::Error::from(error)),
                    _ => {}
                }
            }
        })?;
        Ok(Self { runtime, swarm: Some(swarm), server })
    }
}

impl Contender for Client {
    fn round(&mut self, load: &Load) -> Result<Round> {
        let swarm = self.swarm.take().ok_or("an earlier round failed")?;
        let (server, operation, in_flight, window) = (self.server, load.operation, load.in_flight, load.window);
        // On a worker thread: with `block_on` alone, every wake-up would cross threads.
        let (swarm, taken) =
            self.runtime.block_on(self.runtime.spawn(drive(swarm, server, operation, in_flight, window)))??;
        self.swarm = Some(swarm);
        window.round(taken)
    }
}

async fn drive(
    mut swarm: Swarm<Behaviour>,
    server: PeerId,
    operation: super::Operation,
    in_flight: usize,
    window: crate::measure::Window,
) -> Result<(Swarm<Behaviour>, Vec<u32>)> {
    let mut begun = HashMap::with_capacity(in_flight);
    let mut taken = Vec::with_capacity(1 << 16);
    let send = |swarm: &mut Swarm<Behaviour>, number| {
        let request = Octets(operation.request(number).to_vec());
        swarm.behaviour_mut().send_request(&server, request)
    };
    for number in 0..in_flight {
        begun.insert(send(&mut swarm, number), Instant::now());
    }
    let mut number = in_flight;
    while !begun.is_empty() {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(Event::Message { message: Message::Response { request_id, response }, .. }) => {
                check(&response.0)?;
                let end = Instant::now();
                let begin = begun.remove(&request_id).ok_or("an answer without a request")?;
                if window.contains(end) {
                    taken.push(nanos(end - begin));
                }
                if end < window.to {
                    begun.insert(send(&mut swarm, number), end);
                    number += 1;
                }
            }
            SwarmEvent::Behaviour(Event::OutboundFailure { error, .. }) => return Err(error.into()),
            SwarmEvent::ConnectionClosed { cause, .. } => return Err(format!("connection closed: {cause:?}").into()),
            _ => {}
        }
    }
    Ok((swarm, taken))
}

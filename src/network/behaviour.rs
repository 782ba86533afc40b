//! The libp2p behaviours, how they are built, and the transport under them.

use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use libp2p::allow_block_list::{self, AllowedPeers};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::ConnectedPoint;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::core::transport::timeout::{TransportTimeout, TransportTimeoutError};
use libp2p::core::upgrade::Version;
use libp2p::kad::store::MemoryStore;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    PeerId, StreamProtocol, Swarm, SwarmBuilder, Transport as _, identify, identity, kad, mdns, noise, pnet, tcp,
};
use rustix::process::{Resource, getrlimit};

use super::addresses::UsualStacks;
use super::boxed::BoxedHandlers;
use super::contact;
use super::filter::DialFilter;
use super::link::{LinkContext, Links};
use super::muxer::{Budget, Multiplex};
use super::names::Names;
use super::scrape::{self, ScrapeTable, Scrapes};
use super::silence::Watched;
use super::telemetry::Telemetry;
use super::{Config, NetworkError, PeerIdText, RequestHandler};
use crate::metrics::Registry;

/// The protocol name of Peerscope's own Kademlia network: agents do not join the public one.
pub(super) const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/peerscope/kad/1");

/// The most handshakes in progress in each direction. A peer that is refused comes back after a while, in which this
/// agent would do nothing. But each takes 22 KiB, and strangers can keep all of them in progress.
pub(super) const MAX_PENDING: u32 = 2048;
/// How many handshakes get descriptors before established connections get all of theirs.
pub(super) const FIRST_PENDING: u32 = 256;

/// How many addresses of a peer are dialed at once, with a socket each. The first to connect is used.
const DIALED_AT_ONCE: NonZeroU8 = NonZeroU8::new(4).unwrap();

/// How often peers ask what the other one is, after the first time: rarely, since each pushes its new addresses. But a
/// question that failed is not repeated earlier.
const IDENTIFY_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// How long an unused connection stays open, that is, one to a peer that does not support the link protocol.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

// The limiting behaviours come first: the others never see what these deny.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) limits: connection_limits::Behaviour,
    pub(super) allowed: Toggle<allow_block_list::Behaviour<AllowedPeers>>,
    pub(super) links: Links,
    pub(super) scrapes: Scrapes,
    pub(super) identify: identify::Behaviour,
    pub(super) kad: kad::Behaviour<MemoryStore>,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
}

/// Builds the swarm, which does not listen yet.
pub(super) fn build(
    config: &Config,
    keypair: identity::Keypair,
    context: Arc<LinkContext>,
    scrapes: ScrapeTable,
    filter: Arc<DialFilter>,
    registry: &Registry,
) -> Result<(Swarm<BoxedHandlers<Behaviour>>, Telemetry), NetworkError> {
    let psk = config.psk_file.as_deref().map(read_psk).transpose()?;
    let (handler, budget) = (Arc::clone(&context.handler), Arc::clone(&context.budget));
    let transport = transport(&keypair, psk, handler, budget, Arc::clone(&scrapes.unread), filter)?;
    let behaviour = BoxedHandlers(Behaviour::new(config, &keypair, context, scrapes)?);
    let (telemetry, transport) = Telemetry::new(transport, registry);
    // Wraps the measuring transport, so that an address that is not dialed is not measured.
    let transport = UsualStacks(transport);
    let swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)
        .map_err(build_error)?
        .with_behaviour(|_| behaviour)
        .map_err(build_error)?
        .with_swarm_config(|swarm| {
            swarm.with_idle_connection_timeout(IDLE_TIMEOUT).with_dial_concurrency_factor(DIALED_AT_ONCE)
        })
        .build();
    Ok((swarm, telemetry))
}

/// TCP, encrypted by Noise and multiplexed by Yamux; with a pre-shared key, encrypted by that first. With the cargo
/// feature `quic` also QUIC, unless there is a pre-shared key, which QUIC does not support.
fn transport(
    keypair: &identity::Keypair,
    psk: Option<pnet::PreSharedKey>,
    requests: Arc<dyn RequestHandler>,
    budget: Arc<Budget>,
    asked: Arc<AtomicUsize>,
    filter: Arc<DialFilter>,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, NetworkError> {
    let multiplex = move |peer: &PeerId, _: &ConnectedPoint| Multiplex {
        budget: (!requests.has_permission(peer)).then_some(budget),
        asked: requests.scrapes().then(|| Arc::clone(&asked)),
    };
    let noise = noise::Config::new(keypair).map_err(build_error)?;
    let tcp = || {
        let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
        // Tells an address where nothing answers from one where no handshake succeeds.
        let tcp = TransportTimeout::with_outgoing_timeout(tcp, contact::TCP_CONNECT).map_err(|error| match error {
            TransportTimeoutError::Timeout => contact::no_answer(),
            TransportTimeoutError::TimerError(error) | TransportTimeoutError::Other(error) => error,
        });
        tcp.map(|socket, endpoint| Watched::new(socket, endpoint.is_dialer()))
    };
    let open = match psk {
        Some(psk) => tcp()
            .and_then(move |socket, _| pnet::PnetConfig::new(psk).handshake(socket))
            .upgrade(Version::V1Lazy)
            .authenticate(noise)
            .multiplex_ext(multiplex)
            .boxed(),
        None => {
            let tcp = tcp().upgrade(Version::V1Lazy).authenticate(noise).multiplex_ext(multiplex).boxed();
            with_quic(tcp, keypair)
        }
    };
    Ok(Names::new(open, filter).boxed())
}

#[cfg(feature = "quic")]
fn with_quic(tcp: Boxed<(PeerId, StreamMuxerBox)>, keypair: &identity::Keypair) -> Boxed<(PeerId, StreamMuxerBox)> {
    let quic = libp2p::quic::tokio::Transport::new(libp2p::quic::Config::new(keypair));
    quic.map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
        .or_transport(tcp)
        .map(|either, _| either.into_inner())
        .boxed()
}

#[cfg(not(feature = "quic"))]
fn with_quic(tcp: Boxed<(PeerId, StreamMuxerBox)>, _: &identity::Keypair) -> Boxed<(PeerId, StreamMuxerBox)> {
    tcp
}

impl Behaviour {
    fn new(
        config: &Config,
        keypair: &identity::Keypair,
        context: Arc<LinkContext>,
        scrapes: ScrapeTable,
    ) -> Result<Self, NetworkError> {
        let local = keypair.public().to_peer_id();
        let share = Share::of(getrlimit(Resource::Nofile).current, config);
        // Established connections are limited by `Links`, which knows which peers to prefer.
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(share.pending))
            .with_max_pending_outgoing(Some((share.pending / u32::from(DIALED_AT_ONCE.get())).max(1)));
        let limits = connection_limits::Behaviour::new(limits);
        let identify = identify::Config::new("/peerscope/1".into(), keypair.public())
            .with_agent_version(concat!("peerscope/", env!("CARGO_PKG_VERSION")).into())
            .with_push_listen_addr_updates(true)
            .with_interval(IDENTIFY_INTERVAL);
        let mdns = match config.mdns {
            true => Some(mdns::tokio::Behaviour::new(mdns::Config::default(), local).map_err(build_error)?),
            false => None,
        };
        let mut kad = kad::Behaviour::with_config(local, MemoryStore::new(local), kad_config());
        if !config.listen.is_empty() {
            // An agent that listens can be found; one that does not (behind NAT) only searches.
            kad.set_mode(Some(kad::Mode::Server));
        }
        let answering = scrape::Context { requests: Arc::clone(&context.handler), metrics: context.metrics.clone() };
        Ok(Self {
            limits,
            allowed: allowed(config.allow_peers.as_deref()).into(),
            scrapes: Scrapes::new(answering, scrapes),
            links: Links::new(context, share.established as usize),
            identify: identify::Behaviour::new(identify),
            kad,
            mdns: mdns.into(),
        })
    }
}

/// Lets only these peers connect, if there is a list.
pub(super) fn allowed(peers: Option<&[PeerIdText]>) -> Option<allow_block_list::Behaviour<AllowedPeers>> {
    peers.map(|peers| {
        let mut allowed = allow_block_list::Behaviour::default();
        for peer in peers {
            allowed.allow_peer(peer.0);
        }
        allowed
    })
}

/// How many connections there may be: as many as configured, but never so many that strangers could leave the endpoint,
/// the control socket and the store without file descriptors.
#[derive(Debug, PartialEq, Eq)]
struct Share {
    established: u32,
    /// In each direction; outbound, it counts addresses being dialed.
    pending: u32,
}

impl Share {
    /// For a limit of `descriptors`; `None` means no limit.
    fn of(descriptors: Option<u64>, config: &Config) -> Self {
        let wanted = Self { established: config.max_peers.saturating_mul(2), pending: MAX_PENDING };
        let Some(descriptors) = descriptors else { return wanted };
        let left = descriptors.saturating_sub(u64::from(config.beside_peers)).max(descriptors / 2);
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        let spare = left.saturating_sub(wanted.established) / 2;
        let pending = wanted.pending.min(spare.max(FIRST_PENDING.min(left / 4)));
        Self { established: wanted.established.min(left - 2 * pending), pending }
    }
}

fn kad_config() -> kad::Config {
    let mut config = kad::Config::new(KAD_PROTOCOL);
    config
        // Peers may find each other through this agent, but may not store records in its memory.
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_query_timeout(Duration::from_secs(30));
    if let Some(parallelism) = NonZeroUsize::new(3) {
        config.set_parallelism(parallelism);
    }
    config
}

fn read_psk(path: &std::path::Path) -> Result<pnet::PreSharedKey, NetworkError> {
    let error = |reason: String| NetworkError::PreSharedKey { path: path.to_owned(), reason };
    let text = crate::identity::read_secret(path).map_err(|problem| error(problem.to_string()))?;
    let text = std::str::from_utf8(&text).map_err(|_| error("it is not text".into()))?;
    // The parser's own errors could quote the key; this one does not.
    text.parse().map_err(|_| {
        error("it must have three lines: /key/swarm/psk/1.0.0/ then /base16/ then 64 hexadecimal digits".into())
    })
}

fn build_error(error: impl std::fmt::Display) -> NetworkError {
    NetworkError::Build(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_leave_descriptors_for_the_rest() {
        let share = |descriptors| {
            let Share { established, pending } = Share::of(descriptors, &Config::default());
            (established, pending)
        };
        for enough in [None, Some(1 << 20), Some(256 + 2048 + 2 * 2048)] {
            assert_eq!(share(enough), (2048, 2048));
        }
        assert_eq!(share(Some(4096)), (2048, (4096 - 256 - 2048) / 2));
        assert_eq!(share(Some(256 + 2048 + 512)), (2048, 256));
        assert_eq!(share(Some(1024)), (768 - 2 * 192, 192));
        assert_eq!(share(Some(100)), (26, 12));
        assert_eq!(share(Some(0)), (0, 0));
    }
}

//! Owns the swarm: commands in, events out.

mod contacts;
mod listening;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use libp2p::core::ConnectedPoint;
use libp2p::core::transport::ListenerId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionError, DialError, ListenError, StreamProtocol, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, identify, mdns};
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};

use super::addresses::is_usual_stack;
use super::behaviour::{Behaviour, BehaviourEvent, KAD_PROTOCOL};
use super::boxed::BoxedHandlers;
use super::comings::Comings;
use super::contact::{PeerContact, dial_problem, innermost};
use super::filter::{DialFilter, ip_of, is_public};
use super::link::{self, LinkError};
use super::peers::{Dial, Direction, Input, PeerInfo, Peers};
use super::protocol::PROTOCOL;
use super::refusals::Refusals;
use super::telemetry::Telemetry;
use super::{Config, NetworkError, Reconfigured, RequestError};
use crate::metrics::labels::{Component, Contact, Label as _};
use crate::metrics::{Health, MetricsCollector, Seldom};

/// How long connections stay open after the last answers.
const FAREWELL: Duration = Duration::from_millis(100);
/// How long connections may take to close when the agent stops.
const GOODBYE: Duration = Duration::from_secs(1);
/// How many callers may wait for one peer to be dialed.
const MAX_WAITING: usize = 256;
/// How many addresses that a peer claims for itself are accepted at a time. Twice as many are kept, to leave room for
/// those from the configuration or from a connection.
const MAX_PEER_ADDRESSES: usize = 8;

/// What the names of the link protocol's versions begin with.
const LINK_PREFIX: &str = "/peerscope/link/";

/// A command from the handle to the event loop.
#[derive(Debug)]
pub(super) enum Command {
    /// Connects to a peer at one of its known addresses.
    Connect {
        peer: PeerId,
        reply: oneshot::Sender<Result<(), RequestError>>,
    },
    Peers {
        reply: oneshot::Sender<Vec<PeerInfo>>,
    },
    Contacts {
        reply: oneshot::Sender<Vec<PeerContact>>,
    },
    /// Replies at once, to show that the loop is running.
    Turn {
        reply: oneshot::Sender<()>,
    },
    /// Takes over what a reload has changed.
    Reconfigure {
        peers: Reconfigured,
        reply: oneshot::Sender<()>,
    },
    /// Accepts nothing new; what is in progress continues.
    Drain,
    Shutdown {
        grace: Duration,
        reply: oneshot::Sender<()>,
    },
}

type Event = SwarmEvent<BehaviourEvent>;

/// The network's listeners and connections, which [`Driver::run`] serves.
pub struct Driver {
    swarm: Swarm<BoxedHandlers<Behaviour>>,
    commands: mpsc::Receiver<Command>,
    peers: Peers,
    waiting: HashMap<PeerId, Vec<oneshot::Sender<Result<(), RequestError>>>>,
    listeners: HashMap<ListenerId, Multiaddr>,
    comings: Comings,
    /// When a failed accept was last logged.
    listener_failed: Seldom,
    refusals: Refusals,
    /// The addresses that the listeners have now.
    addresses: Arc<RwLock<Vec<Multiaddr>>>,
    /// What may be dialed.
    filter: Arc<DialFilter>,
    /// How many connections there are with public addresses.
    in_public: usize,
    /// Whether the addresses at the start are known.
    listening: bool,
    metrics: MetricsCollector,
    health: Health,
    telemetry: Telemetry,
    links_drained: bool,
    /// Why this side is closing its connection to a peer.
    lost: HashMap<PeerId, String>,
    /// Peers that the agent stays connected to and that do not speak its link protocol.
    strange: HashMap<PeerId, Contact>,
    /// Whether shutdown has begun: from then on no peer is dialed.
    stopping: bool,
}

impl Driver {
    pub(super) async fn bind(
        swarm: Swarm<BoxedHandlers<Behaviour>>,
        telemetry: Telemetry,
        config: &Config,
        filter: Arc<DialFilter>,
        commands: mpsc::Receiver<Command>,
        metrics: MetricsCollector,
        health: Health,
    ) -> Result<Self, NetworkError> {
        let local = *swarm.local_peer_id();
        let mut driver = Self {
            swarm,
            commands,
            peers: Peers::new(&config.bootstrap, local, Instant::now(), rand::random::<f64>),
            waiting: HashMap::new(),
            listeners: HashMap::new(),
            comings: Comings::new(Instant::now()),
            listener_failed: Seldom::default(),
            refusals: Refusals::default(),
            addresses: Arc::default(),
            filter,
            in_public: 0,
            listening: false,
            metrics,
            health,
            telemetry,
            links_drained: false,
            lost: HashMap::new(),
            strange: HashMap::new(),
            stopping: false,
        };
        for target in &config.bootstrap {
            driver.swarm.behaviour_mut().0.kad.add_address(&target.peer, target.address.clone());
        }
        driver.name_addresses();
        driver.listen(config).await?;
        driver.health.ready(Component::Network);
        Ok(driver)
    }

    pub(super) fn listen_addresses(&self) -> Arc<RwLock<Vec<Multiaddr>>> {
        Arc::clone(&self.addresses)
    }

    /// Serves until [`super::Network::shutdown`] is called or every handle is dropped.
    pub async fn run(mut self) {
        self.tell(Input::Tick);
        loop {
            let tick = self.peers.next_tick().map(tokio::time::Instant::from_std);
            let summary = self.comings.summary_at();
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                command = self.commands.recv() => match command {
                    Some(Command::Connect { peer, reply }) => self.connect(peer, reply),
                    Some(Command::Turn { reply }) => {
                        let _caller_gone = reply.send(());
                    }
                    Some(Command::Peers { reply }) => {
                        let _caller_gone = reply.send(self.list());
                    }
                    Some(Command::Reconfigure { peers, reply }) => {
                        self.reconfigure(&peers);
                        let _caller_gone = reply.send(());
                    }
                    Some(Command::Contacts { reply }) => {
                        let _caller_gone = reply.send(self.peers.contacts(Instant::now()).collect());
                    }
                    Some(Command::Drain) => self.drain(),
                    Some(Command::Shutdown { grace, reply }) => {
                        self.shut_down(grace).await;
                        let _caller_gone = reply.send(());
                        return;
                    }
                    None => return,
                },
                () = tokio::time::sleep_until(tick.unwrap_or_else(tokio::time::Instant::now)), if tick.is_some() => {
                    self.tell(Input::Tick);
                }
                () = tokio::time::sleep_until(summary.map_or_else(tokio::time::Instant::now, Into::into)),
                    if summary.is_some() =>
                {
                    let left_out = self.comings.take_left_out();
                    tracing::info!(
                        left_out,
                        "Too many peers connect and disconnect to log each one; set log.level to debug to log all"
                    );
                }
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        self.telemetry.record(&event);
        match event {
            SwarmEvent::NewListenAddr { address, .. } => {
                if self.listening {
                    tracing::info!(%address, "Listening for peers on another address");
                }
                self.addresses.write().push(address);
                self.note_public();
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                tracing::info!(%address, "No longer listening for peers on this address");
                self.addresses.write().retain(|known| *known != address);
                self.note_public();
            }
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => self.on_listener_closed(listener_id, &reason),
            SwarmEvent::ListenerError { error, .. } => self.on_listener_error(&error),
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, num_established, .. } => {
                if num_established.get() == 1 {
                    let address = endpoint.get_remote_address();
                    if self.may_tell(&peer_id) {
                        tracing::info!(peer = %peer_id, %address, "Peer connected");
                    } else {
                        tracing::debug!(peer = %peer_id, %address, "Peer connected");
                    }
                }
                if is_public_endpoint(&endpoint) {
                    self.in_public += 1;
                    self.note_public();
                }
                self.answer_waiting(peer_id, || Ok(()));
                let direction = match &endpoint {
                    ConnectedPoint::Dialer { .. } => Direction::Outbound,
                    ConnectedPoint::Listener { .. } => Direction::Inbound,
                };
                let address = endpoint.get_remote_address().clone();
                self.tell(Input::Connected { peer: peer_id, address, direction });
            }
            SwarmEvent::ConnectionClosed { peer_id, endpoint, num_established, cause, .. } => {
                if is_public_endpoint(&endpoint) {
                    self.in_public = self.in_public.saturating_sub(1);
                    self.note_public();
                }
                let lost = self.lost.remove(&peer_id);
                if num_established == 0 {
                    let by_peer = matches!(cause, Some(ConnectionError::IO(_)));
                    let closed = || lost.unwrap_or_else(|| "closed by this agent".into());
                    let cause = cause.map_or_else(closed, |cause| innermost(&cause));
                    self.note_closed(peer_id, &cause, by_peer);
                    if self.may_tell(&peer_id) {
                        tracing::info!(peer = %peer_id, cause, "Peer disconnected");
                    } else {
                        tracing::debug!(peer = %peer_id, cause, "Peer disconnected");
                    }
                    self.swarm.behaviour().0.links.requests().peer_down(&peer_id, &cause);
                }
                self.tell(Input::Disconnected { peer: peer_id, remaining: num_established as usize });
            }
            SwarmEvent::IncomingConnectionError {
                peer_id: Some(peer),
                error: ListenError::Denied { cause },
                send_back_addr,
                ..
            } => self.on_refused(peer, send_back_addr, cause),
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => self.on_dial_failed(peer, &error),
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            _ => {}
        }
    }

    fn log_lost(&self, peer: PeerId, error: &LinkError) {
        match error {
            LinkError::Closed | LinkError::Io(_) => tracing::debug!(%peer, %error, "link lost"),
            // Any stranger can cause these at will; the metrics count them.
            error if self.peers.is_target(&peer) => tracing::warn!(%peer, %error, "link closed"),
            error => tracing::debug!(%peer, %error, "link closed"),
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Links(link::Event::Up(peer)) => {
                self.tell(Input::LinkUp { peer });
                self.tell_handler(&peer);
            }
            BehaviourEvent::Links(link::Event::Introduced(peer, introduction)) => {
                let introduction = (!introduction.withdrawn).then_some(introduction);
                self.tell(Input::Introduced { peer, introduction });
                self.tell_handler(&peer);
            }
            BehaviourEvent::Links(link::Event::Unsupported(peer)) => {
                tracing::debug!(%peer, "the peer does not support the link protocol");
                if self.peers.is_target(&peer) {
                    self.strange.entry(peer).or_insert(Contact::NotPeerscope);
                }
            }
            BehaviourEvent::Links(link::Event::Lost(peer, error)) => {
                self.lost.insert(peer, error.to_string());
                self.log_lost(peer, &error);
            }
            BehaviourEvent::Links(link::Event::Drained) => self.links_drained = true,
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                let is_link = |name: &StreamProtocol| name.as_ref().starts_with(LINK_PREFIX);
                if !info.protocols.contains(&PROTOCOL)
                    && info.protocols.iter().any(is_link)
                    && self.peers.is_target(&peer_id)
                {
                    self.strange.insert(peer_id, Contact::OtherVersion);
                }
                if info.protocols.contains(&KAD_PROTOCOL) {
                    self.remember(peer_id, info.listen_addrs);
                }
                self.tell(Input::Identified { peer: peer_id, agent: info.agent_version });
                self.tell_handler(&peer_id);
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, address) in found {
                    tracing::debug!(%peer, %address, "found by mDNS");
                    self.tell(Input::Found { peer, address });
                }
            }
            BehaviourEvent::Mdns(mdns::Event::Expired(gone)) => {
                for (peer, address) in gone {
                    self.tell(Input::Expired { peer, address });
                }
            }
            _ => {}
        }
    }

    /// Keeps the newest of the addresses that a peer claims for itself, within a bound: it can keep sending new
    /// ones, and Kademlia itself forgets none.
    fn remember(&mut self, peer: PeerId, said: Vec<Multiaddr>) {
        let kad = &mut self.swarm.behaviour_mut().0.kad;
        for address in said.into_iter().filter(is_usual_stack).take(MAX_PEER_ADDRESSES) {
            kad.add_address(&peer, address);
        }
        let known: Vec<Multiaddr> = kad
            .kbucket(peer)
            .into_iter()
            .flat_map(|bucket| {
                let entry = bucket.iter().find(|entry| entry.node.key.preimage() == &peer);
                entry.map(|entry| entry.node.value.iter().cloned().collect::<Vec<_>>()).unwrap_or_default()
            })
            .collect();
        for oldest in known.iter().take(known.len().saturating_sub(2 * MAX_PEER_ADDRESSES)) {
            kad.remove_address(&peer, oldest);
        }
    }

    /// Tells the handler what is known about a peer, if its link is up.
    fn tell_handler(&self, peer: &PeerId) {
        let links = &self.swarm.behaviour().0.links;
        if let Some(info) = self.peers.get(peer).filter(|_| links.table().is_up(peer)) {
            links.requests().peer_up(&PeerInfo { link: true, ..info.clone() });
        }
    }

    /// Passes an event to the table of peers, and dials the peers that it returns.
    fn tell(&mut self, input: Input) {
        let is_found = matches!(input, Input::Found { .. } | Input::Expired { .. });
        let dials = self.peers.handle(input, Instant::now());
        if is_found {
            self.name_addresses();
        }
        self.metrics.set_peers_connected(self.peers.count());
        for (state, count) in Contact::ALL.iter().zip(self.peers.count_contacts()) {
            self.metrics.set_bootstrap_peers(*state, count);
        }
        self.dial(dials);
    }

    fn dial(&mut self, dials: Vec<Dial>) {
        if self.stopping {
            return;
        }
        for Dial { peer, addresses } in dials {
            let options = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing);
            match self.swarm.dial(options.addresses(addresses).build()) {
                Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {}
                Err(error) => self.on_dial_failed(peer, &error),
            }
        }
    }

    fn connect(&mut self, peer: PeerId, reply: oneshot::Sender<Result<(), RequestError>>) {
        if self.peers.is_connected(&peer) {
            let _caller_gone = reply.send(Ok(()));
            return;
        }
        let unreachable = |reason: String| Err(RequestError::Unreachable { peer, reason });
        if peer == *self.swarm.local_peer_id() {
            let _caller_gone =
                reply.send(unreachable("it is this agent itself; send the request without a peer".into()));
            return;
        }
        let options = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing);
        match self.swarm.dial(options.build()) {
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(DialError::NoAddresses) => {
                let _caller_gone = reply.send(unreachable("no address is known for it (network.bootstrap)".into()));
                return;
            }
            Err(error) => {
                let _caller_gone = reply.send(unreachable(dial_problem(&error).1));
                return;
            }
        }
        let waiting = self.waiting.entry(peer).or_default();
        waiting.retain(|caller| !caller.is_closed());
        if waiting.len() < MAX_WAITING {
            waiting.push(reply);
        } else {
            let _caller_gone = reply.send(Err(RequestError::Busy));
        }
    }

    fn answer_waiting(&mut self, peer: PeerId, answer: impl Fn() -> Result<(), RequestError>) {
        for caller in self.waiting.remove(&peer).unwrap_or_default() {
            let _caller_gone = caller.send(answer());
        }
    }

    fn list(&self) -> Vec<PeerInfo> {
        let table = self.swarm.behaviour().0.links.table();
        let mut list: Vec<_> =
            self.peers.list().map(|info| PeerInfo { link: table.is_up(&info.peer), ..info.clone() }).collect();
        list.sort_by_key(|info| (info.connected_at, info.peer));
        list
    }

    fn drain(&mut self) {
        if std::mem::replace(&mut self.stopping, true) {
            return;
        }
        for (id, _) in std::mem::take(&mut self.listeners) {
            self.swarm.remove_listener(id);
        }
        self.swarm.behaviour_mut().0.links.drain();
    }

    async fn shut_down(&mut self, grace: Duration) {
        self.drain();
        self.serve_until(grace, |driver| driver.links_drained).await;
        if self.peers.count() > 0 {
            self.let_answers_arrive().await;
        }
        let connected: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in connected {
            let _already_gone = self.swarm.disconnect_peer_id(peer);
        }
        self.serve_until(GOODBYE, |driver| driver.peers.count() == 0).await;
    }

    /// If a peer receives the last answers and the end of the connection in one read, the answers are lost: libp2p
    /// closes the connection before the link has read them. So connections are closed a little later.
    async fn let_answers_arrive(&mut self) {
        let deadline = tokio::time::Instant::now() + FAREWELL;
        while let Ok(event) = tokio::time::timeout_at(deadline, self.swarm.select_next_some()).await {
            self.on_event(event);
        }
    }

    async fn serve_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + limit;
        while !done(self) {
            match tokio::time::timeout_at(deadline, self.swarm.select_next_some()).await {
                Ok(event) => self.on_event(event),
                Err(_) => {
                    tracing::warn!(?limit, "stopping before all requests and connections have ended");
                    return;
                }
            }
        }
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// Whether the peer is at a public address.
fn is_public_endpoint(endpoint: &ConnectedPoint) -> bool {
    ip_of(endpoint.get_remote_address()).is_some_and(is_public)
}

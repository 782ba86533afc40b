//! Where the agent listens for peers.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use libp2p::Multiaddr;
use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use super::super::contact::innermost;
use super::super::filter::{ip_of, is_public};
use super::super::{Config, NetworkError};
use super::Driver;
use crate::metrics::labels::Component;

/// How long the listeners may take to learn their addresses.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(2);

impl Driver {
    pub(super) async fn listen(&mut self, config: &Config) -> Result<(), NetworkError> {
        // Check all addresses before opening any, because two of them may share a port.
        let mut usable = Vec::new();
        let mut lacking = None;
        for address in &config.listen {
            match check_free(&address.0) {
                Ok(()) => usable.push(address),
                Err(error) => {
                    let remedy = match error.kind() {
                        ErrorKind::AddrInUse => "; stop the program that listens there, or choose another port",
                        ErrorKind::AddrNotAvailable => "; this machine does not have that address",
                        _ => "",
                    };
                    let reason = format!("{error}{remedy}");
                    let problem = NetworkError::Listen { address: address.0.clone(), reason };
                    if Errno::from_io_error(&error) != Some(Errno::AFNOSUPPORT) {
                        return Err(problem);
                    }
                    lacking = Some(problem);
                }
            }
        }
        match lacking {
            Some(problem) if usable.is_empty() => return Err(problem),
            Some(problem) => tracing::warn!("{problem}; the agent listens on its other addresses"),
            None => {}
        }
        for address in usable {
            let refused = |reason: String| NetworkError::Listen { address: address.0.clone(), reason };
            let id = self.swarm.listen_on(address.0.clone()).map_err(|error| refused(innermost(&error)))?;
            self.listeners.insert(id, address.0.clone());
        }
        let mut silent: Vec<ListenerId> = self.listeners.keys().copied().collect();
        let deadline = tokio::time::Instant::now() + LISTEN_TIMEOUT;
        while !silent.is_empty() {
            let Ok(event) = tokio::time::timeout_at(deadline, self.swarm.select_next_some()).await else { break };
            match &event {
                SwarmEvent::NewListenAddr { listener_id, .. } => silent.retain(|id| id != listener_id),
                SwarmEvent::ListenerClosed { listener_id, reason: Err(error), .. } => {
                    let address = self.listeners.get(listener_id).cloned().unwrap_or_else(Multiaddr::empty);
                    return Err(NetworkError::Listen { address, reason: error.to_string() });
                }
                _ => {}
            }
            self.on_event(event);
        }
        // A wildcard listener has one address per interface; they are all reported at once.
        while let Some(event) = self.swarm.select_next_some().now_or_never() {
            self.on_event(event);
        }
        self.listening = true;
        Ok(())
    }

    /// Notes whether this agent is on the Internet, or has a connection with it.
    pub(super) fn note_public(&self) {
        let listens = self.addresses.read().iter().filter_map(ip_of).any(is_public);
        self.filter.set_in_public(listens || self.in_public > 0);
    }

    /// Usually the process is out of file descriptors. Then every incoming connection fails.
    pub(super) fn on_listener_error(&mut self, error: &std::io::Error) {
        self.listener_failed.at_most_once_a_minute(|| {
            tracing::warn!(%error, "cannot accept a connection from a peer; the listener stays open");
        });
    }

    pub(super) fn on_listener_closed(&mut self, id: ListenerId, reason: &Result<(), std::io::Error>) {
        let Some(address) = self.listeners.remove(&id) else { return };
        let reason = reason.as_ref().err().map_or_else(|| "closed".to_owned(), ToString::to_string);
        tracing::error!(%address, reason, "A listener for peers stopped; restart the agent to reopen it");
        self.health.not_ready(Component::Network, format!("the listener on {address} stopped: {reason}"));
    }
}

/// Fails if another process listens on a TCP address. libp2p-tcp listens with `SO_REUSEPORT`, so a second agent could
/// listen on the same port, and the kernel would distribute connections between the two.
fn check_free(address: &Multiaddr) -> std::io::Result<()> {
    let mut parts = address.iter();
    let ip = match parts.next() {
        Some(Protocol::Ip4(ip)) => IpAddr::V4(ip),
        Some(Protocol::Ip6(ip)) => IpAddr::V6(ip),
        _ => return Ok(()),
    };
    let Some(Protocol::Tcp(port)) = parts.next() else { return Ok(()) };
    let socket = Socket::new(Domain::for_address((ip, port).into()), Type::STREAM, None)?;
    if port == 0 {
        return Ok(());
    }
    if ip.is_ipv6() {
        socket.set_only_v6(true)?; // as libp2p-tcp does
    }
    // Closed connections in `TIME_WAIT` must not make the address look taken.
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(ip, port).into())
}

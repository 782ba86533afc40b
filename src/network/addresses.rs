//! Which addresses of peers are used: a peer can claim any address.

use std::pin::Pin;
use std::task::{Context, Poll};

use libp2p::Multiaddr;
use libp2p::core::Transport;
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::multiaddr::Protocol;

/// A transport that dials only addresses with a usual protocol stack.
///
/// libp2p's TCP transport dials an address however often the PeerId is repeated at its end. A peer can spread such
/// addresses of itself, and the stack of a dialed address becomes a label value in libp2p's metrics.
pub(super) struct UsualStacks<T>(pub(super) T);

impl<T: Transport + Unpin> Transport for UsualStacks<T> {
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = T::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.0.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.0.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        if is_usual_stack(&address) {
            self.0.dial(address, opts)
        } else {
            Err(TransportError::MultiaddrNotSupported(address))
        }
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// Whether the address has one of the few forms that an agent can listen on or be reached at: a host, TCP or QUIC, and
/// at most one PeerId at its end.
pub(super) fn is_usual_stack(address: &Multiaddr) -> bool {
    let mut parts = address.iter().peekable();
    let reachable = match parts.next() {
        Some(Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)) => {
            match parts.next() {
                Some(Protocol::Tcp(_)) => true,
                Some(Protocol::Udp(_)) => matches!(parts.next(), Some(Protocol::QuicV1)),
                _ => false,
            }
        }
        Some(Protocol::Dnsaddr(_)) => true,
        _ => false,
    };
    let _peer = parts.next_if(|part| matches!(part, Protocol::P2p(_)));
    reachable && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_an_agent_can_have_are_usual() {
        let peer = libp2p::PeerId::random();
        for (text, usual) in [
            ("/ip4/1.2.3.4/tcp/1".to_owned(), true),
            ("/ip6/::1/udp/1/quic-v1".to_owned(), true),
            (format!("/dns4/example.org/tcp/1/p2p/{peer}"), true),
            ("/dnsaddr/example.org".to_owned(), true),
            ("/ip4/1.2.3.4/tcp/1/ws".to_owned(), false),
            ("/ip4/1.2.3.4/tcp/1/tcp/2".to_owned(), false),
            ("/ip4/1.2.3.4/udp/1".to_owned(), false),
            ("/ip4/1.2.3.4".to_owned(), false),
            ("/memory/1".to_owned(), false),
            (format!("/ip4/1.2.3.4/tcp/1/p2p/{peer}/p2p/{peer}"), false),
            (format!("/ip4/1.2.3.4/tcp/1/p2p/{peer}/p2p-circuit/p2p/{peer}"), false),
        ] {
            assert_eq!(is_usual_stack(&text.parse().unwrap()), usual, "{text}");
        }
        assert!(!is_usual_stack(&Multiaddr::empty()));
    }
}

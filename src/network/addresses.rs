//! Which addresses of peers are believed. A peer can say anything about where it is.

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

/// Whether the address is of one of the few kinds that an agent can listen on or be reached at: a host,
/// TCP or QUIC, and at most one PeerId at its end.
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
    fn only_addresses_of_our_own_kinds_are_usual() {
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

//! Which addresses that others tell this agent are dialed.
//!
//! Peers behind a NAT tell their private addresses to everybody. An agent on the Internet that dials them scans its
//! provider's network: hosting companies close such machines. So addresses of private networks are dialed only if the
//! configuration names them, mDNS found them, or this agent seems to be in a private network itself.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

/// Whether addresses of private networks that other peers tell are dialed: `network.dial_private`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DialPrivate {
    /// Unless this agent has a public address, or a connection with one.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Decides which addresses are dialed. The event loop keeps it up to date.
#[derive(Debug)]
pub(super) struct DialFilter {
    mode: DialPrivate,
    /// Addresses from the configuration and from mDNS, without PeerIds: they are always dialed.
    named: RwLock<HashSet<Multiaddr>>,
    /// Whether this agent is on the Internet, or has a connection with it.
    in_public: AtomicBool,
}

impl DialFilter {
    pub(super) fn new(mode: DialPrivate) -> Self {
        Self { mode, named: RwLock::default(), in_public: AtomicBool::new(false) }
    }

    pub(super) fn set_named(&self, addresses: impl Iterator<Item = Multiaddr>) {
        *self.named.write() = addresses.map(|address| without_peer(&address)).collect();
    }

    pub(super) fn set_in_public(&self, in_public: bool) {
        self.in_public.store(in_public, Ordering::Relaxed);
    }

    /// Whether the configuration or mDNS has this address, which may end in a PeerId.
    pub(super) fn is_named(&self, address: &Multiaddr) -> bool {
        self.named.read().contains(&without_peer(address))
    }

    /// Whether an address that is not named may be dialed.
    pub(super) fn allows(&self, ip: IpAddr) -> bool {
        is_public(ip)
            || match self.mode {
                DialPrivate::Always => true,
                DialPrivate::Never => false,
                DialPrivate::Auto => !self.in_public.load(Ordering::Relaxed),
            }
    }
}

fn without_peer(address: &Multiaddr) -> Multiaddr {
    address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect()
}

/// The IP address that a multiaddress begins with.
pub(super) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// Whether the address belongs to no private network (RFC 6890): loopback, link-local, RFC 1918, carrier-grade NAT
/// (RFC 6598) and unique local IPv6 (RFC 4193).
pub(super) fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let is_carrier_grade = a == 100 && (64..128).contains(&b);
            let is_special = ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast();
            !(ip.is_private() || is_carrier_grade || is_special || ip == Ipv4Addr::BROADCAST || a == 0)
        }
        IpAddr::V6(ip) => {
            let is_special = ip.is_loopback() || ip == Ipv6Addr::UNSPECIFIED || ip.is_multicast();
            !(is_special || ip.is_unique_local() || ip.is_unicast_link_local())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_networks_of_every_kind_are_known() {
        for private in [
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "127.0.0.1",
            "169.254.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "fc00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in ["1.1.1.1", "172.32.0.1", "100.63.0.1", "100.128.0.1", "2606:4700::1", "::ffff:1.1.1.1"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn a_private_address_is_dialed_if_it_is_named_or_everything_is_private() {
        let private: IpAddr = "10.0.0.1".parse().unwrap();
        let (auto, always, never) = (
            DialFilter::new(DialPrivate::Auto),
            DialFilter::new(DialPrivate::Always),
            DialFilter::new(DialPrivate::Never),
        );
        assert!(auto.allows(private) && always.allows(private) && !never.allows(private));
        auto.set_in_public(true);
        always.set_in_public(true);
        assert!(!auto.allows(private) && always.allows(private));
        assert!(auto.allows("1.1.1.1".parse().unwrap()) && never.allows("1.1.1.1".parse().unwrap()));
        let named: Multiaddr = "/ip4/10.0.0.1/tcp/1".parse().unwrap();
        auto.set_named([named.clone()].into_iter());
        let peer = libp2p::PeerId::random();
        assert!(auto.is_named(&named) && auto.is_named(&format!("{named}/p2p/{peer}").parse().unwrap()));
        assert!(!auto.is_named(&"/ip4/10.0.0.1/tcp/2".parse().unwrap()));
    }
}

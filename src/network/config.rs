//! The `network` section of the configuration, and how its addresses and PeerIds are parsed.

use std::path::PathBuf;
use std::time::Duration;

use libp2p::identity::PublicKey;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};

use super::filter::DialPrivate;

/// The `network` section of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The addresses to listen on, for example `/ip4/0.0.0.0/tcp/4001`.
    pub listen: Vec<ListenAddr>,
    /// Peers to stay connected to: addresses that end in `/p2p/PEER_ID`.
    pub bootstrap: Vec<BootstrapAddr>,
    /// Whether to find peers on the local network by mDNS.
    pub mdns: bool,
    /// Whether addresses of private networks that other peers tell are dialed.
    pub dial_private: DialPrivate,
    /// The most peers that may be connected at once.
    pub max_peers: u32,
    /// The file with the pre-shared key of a private network.
    pub psk_file: Option<PathBuf>,
    /// If set, only these peers may connect or be dialed.
    pub allow_peers: Option<Vec<PeerIdText>>,
    /// The most requests in flight to or from one peer.
    pub max_in_flight: u32,
    /// How long a request to a peer may take in total.
    #[serde(with = "crate::units::duration")]
    pub request_timeout: Duration,
    /// How many file descriptors are kept for everything but connections to peers. Not a configuration key: it follows
    /// from the rest of the configuration.
    #[serde(skip)]
    pub beside_peers: u32,
}

/// A generous bound on the file descriptors that are open in addition to connections to peers: the store, Redis,
/// clients of the endpoint and of the control socket, and one for each exporter being fetched.
const BESIDE_PEERS: u32 = 256;

impl Default for Config {
    fn default() -> Self {
        Self {
            // On a host without IPv6, the second one is left out.
            listen: ["/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"]
                .map(|address| ListenAddr(address.parse().unwrap_or_else(|_| Multiaddr::empty())))
                .into(),
            bootstrap: Vec::new(),
            mdns: false,
            dial_private: DialPrivate::Auto,
            max_peers: 1024,
            psk_file: None,
            allow_peers: None,
            max_in_flight: 256,
            request_timeout: Duration::from_secs(15),
            beside_peers: BESIDE_PEERS,
        }
    }
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddr(pub Multiaddr);

/// The address and PeerId of a bootstrap peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapAddr {
    /// Its PeerId.
    pub peer: PeerId,
    /// Its address, without the `/p2p` part.
    pub address: Multiaddr,
}

/// A PeerId that (de)serialises as its base58 text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerIdText(pub PeerId);

macro_rules! serde_by_text {
    ($name:ident) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}
serde_by_text!(ListenAddr);
serde_by_text!(BootstrapAddr);
serde_by_text!(PeerIdText);

impl std::str::FromStr for ListenAddr {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let address = multiaddr(text, "/ip4/0.0.0.0/tcp/4001")?;
        let parts: Vec<Protocol<'_>> = address.iter().collect();
        match parts.as_slice() {
            [Protocol::Ip4(_) | Protocol::Ip6(_), Protocol::Tcp(_)] => Ok(Self(address)),
            [Protocol::Ip4(_) | Protocol::Ip6(_), Protocol::Udp(_), Protocol::QuicV1] if cfg!(feature = "quic") => {
                Ok(Self(address))
            }
            [.., Protocol::QuicV1] => Err(format!("`{text}` needs a build with the cargo feature `quic`")),
            _ => Err(format!(
                "`{text}` is not a valid listen address; write it like /ip4/0.0.0.0/tcp/4001 or /ip6/::/tcp/4001"
            )),
        }
    }
}

impl std::fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for BootstrapAddr {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut address = multiaddr(text, BOOTSTRAP_EXAMPLE)?;
        let Some(Protocol::P2p(peer)) = address.pop() else {
            return Err(format!("`{text}` does not end in /p2p/PEER_ID; write it like {BOOTSTRAP_EXAMPLE}"));
        };
        if !is_whole(&peer) {
            return Err(format!("`{peer}` in `{text}` is not a PeerId; write it like {EXAMPLE_PEER}"));
        }
        use Protocol::{Dns, Dns4, Dns6, Dnsaddr, Ip4, Ip6, QuicV1, Tcp, Udp};
        let parts: Vec<Protocol<'_>> = address.iter().collect();
        match parts.as_slice() {
            [.., Tcp(0) | Udp(0)] | [.., Udp(0), QuicV1] => Err(format!("`{text}` has port 0, which cannot be dialed")),
            [Dnsaddr(_)] | [Ip4(_) | Ip6(_) | Dns(_) | Dns4(_) | Dns6(_), Tcp(_)] => Ok(Self { peer, address }),
            [Ip4(_) | Ip6(_) | Dns(_) | Dns4(_) | Dns6(_), Udp(_), QuicV1] if cfg!(feature = "quic") => {
                Ok(Self { peer, address })
            }
            [.., QuicV1] => Err(format!("`{text}` needs a build with the cargo feature `quic`")),
            _ => Err(format!("`{text}` is not an address that can be dialed; write it like {BOOTSTRAP_EXAMPLE}")),
        }
    }
}

impl std::fmt::Display for BootstrapAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/p2p/{}", self.address, self.peer)
    }
}

impl std::str::FromStr for PeerIdText {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().ok().filter(is_whole).map(Self).ok_or_else(|| {
            format!("`{text}` is not a PeerId; write it like {EXAMPLE_PEER} (`peerscope id` prints an agent's PeerId)")
        })
    }
}

impl std::fmt::Display for PeerIdText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

const EXAMPLE_PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
const BOOTSTRAP_EXAMPLE: &str = "/ip4/203.0.113.1/tcp/4001/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

/// Whether a PeerId that embeds a public key (as those of Ed25519 keys do) embeds a complete one. libp2p accepts any
/// bytes as the key, so `12D3KooWnope` would pass.
fn is_whole(peer: &PeerId) -> bool {
    const IDENTITY: u64 = 0; // the multihash code of the identity function (multiformats' table)
    let hash = peer.as_ref();
    hash.code() != IDENTITY || PublicKey::try_decode_protobuf(hash.digest()).is_ok()
}

fn multiaddr(text: &str, example: &str) -> Result<Multiaddr, String> {
    text.parse().map_err(|error| format!("`{text}` is not a multiaddress ({error}); write it like {example}"))
}

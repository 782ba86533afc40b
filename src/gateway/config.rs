//! The `gateway` section of the configuration.

use std::fmt;
use std::time::Duration;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::metrics::ExternalUrl;
use crate::network::PeerIdText;

/// The `gateway` section of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether this agent is a gateway.
    pub enabled: bool,
    /// Which peers it offers to Prometheus, among those that allow it to scrape them.
    pub peers: PeerList,
    /// The most peers that are offered at once if `peers` is `any`.
    pub max_peers: u32,
    /// How long a departed peer is still offered.
    #[serde(with = "crate::units::duration")]
    pub grace: Duration,
    /// How long after the start `/sd` waits for peers to connect before it returns its list.
    #[serde(with = "crate::units::duration")]
    pub settle: Duration,
    /// The most scrapes under way at once.
    pub max_scrapes: u32,
    /// The size limit of one page as it crosses the network, in bytes.
    #[serde(with = "crate::units::size")]
    pub max_body_size: usize,
    /// Where Prometheus reaches this gateway, if that is not where it listens: behind a proxy.
    pub external_url: Option<ExternalUrl>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: false,
            peers: PeerList::Any,
            max_peers: 10_000,
            grace: Duration::from_secs(3600),
            settle: Duration::from_secs(30),
            max_scrapes: 512,
            max_body_size: 16 << 20,
            external_url: None,
        }
    }
}

/// Which peers a gateway offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerList {
    /// Every peer that allows the gateway to scrape it; written `any`.
    Any,
    /// Only these, whether they are connected or not.
    These(Vec<PeerIdText>),
}

impl PeerList {
    /// The named peers.
    pub fn named(&self) -> &[PeerIdText] {
        match self {
            Self::Any => &[],
            Self::These(peers) => peers,
        }
    }
}

impl Serialize for PeerList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Any => serializer.serialize_str("any"),
            Self::These(peers) => peers.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for PeerList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = PeerList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`any`, or a list of PeerIds")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PeerList, E> {
                match text {
                    "any" => Ok(PeerList::Any),
                    _ => Err(E::custom(format!("`{text}` is neither `any` nor a list of PeerIds"))),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<PeerList, A::Error> {
                let mut peers = Vec::new();
                while let Some(peer) = seq.next_element()? {
                    peers.push(peer);
                }
                Ok(PeerList::These(peers))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

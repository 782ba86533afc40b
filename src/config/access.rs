//! The `access` section: what peers may do on this agent.

use std::fmt;
use std::str::FromStr;

use libp2p::PeerId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::network::PeerIdText;

/// One entry of the `access` list. A peer to which none applies may only `ping`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRule {
    /// The peer that it applies to.
    pub peer: PeerSelector,
    /// What that peer may do; an empty list means nothing.
    pub allow: Vec<Permission>,
}

/// The peer that an access rule applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerSelector {
    /// Every peer that has no rule of its own, written `"*"`.
    Any,
    /// One peer.
    Peer(PeerId),
}

/// Something that a peer may ask this agent to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// Read values.
    Get,
    /// Write values.
    Put,
    /// Remove values.
    Delete,
    /// Fetch this agent's metrics, and those of the exporters that it exposes.
    Scrape,
}

impl FromStr for PeerSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "*" => Ok(Self::Any),
            _ => {
                Ok(Self::Peer(text.parse::<PeerIdText>().map_err(|error| format!("{error}; \"*\" means any peer"))?.0))
            }
        }
    }
}

impl fmt::Display for PeerSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Peer(peer) => peer.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for PeerSelector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for PeerSelector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

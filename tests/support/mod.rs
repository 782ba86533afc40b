//! Code that several test binaries share.
#![allow(dead_code, reason = "every test binary compiles this module and uses only its own part of it")]

pub(crate) mod agent;
pub(crate) mod apart;
#[cfg(feature = "metrics-prometheus")]
pub(crate) mod certificates;
pub(crate) mod disk;
pub(crate) mod dns;
pub(crate) mod history;
pub(crate) mod http;
#[cfg(feature = "metrics-prometheus")]
pub(crate) mod metrics;
pub(crate) mod nat;
pub(crate) mod packets;
pub(crate) mod port;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod raw_peer;
pub(crate) mod raw_yamux;
pub(crate) mod redis;
#[cfg(feature = "metrics-prometheus")]
pub(crate) mod scraper;

use peerscope::metrics::AgentInfo;

/// The identity in the info metrics of a test.
pub(crate) fn agent_info() -> AgentInfo {
    AgentInfo { peer_id: "12D3KooWTest".into(), name: "test".into() }
}

//! Peerscope: a peer-to-peer agent that its operator can see into.
//!
//! One binary joins a libp2p network, keeps data in an embedded store or in Redis, answers messages
//! from its peers, and exposes everything that it does as Prometheus metrics.
//!
//! The way in is [`node::Node`]: give it a [`config::Config`] and it binds every listener, serves, and
//! shuts down in order. What it is made of, from the top down:
//!
//! - [`cli`]: the commands of the `peerscope` binary.
//! - [`config`]: file, environment and flags, made into one valid [`config::Config`].
//! - [`node`]: the composition root, and the one entry point of a peer's message.
//! - [`control`]: the Unix socket through which the short commands talk to a running agent.
//! - [`gateway`]: one Prometheus finds and scrapes every peer through one agent.
//! - [`network`]: the libp2p swarm and the framed link to each peer.
//! - [`expose`]: other exporters on this machine, fetched for peers.
//! - [`storage`]: `get`, `put` and `delete` on the embedded store or on Redis.
//! - [`units`]: durations and sizes as people write them.
//! - [`metrics`]: what is recorded, and the endpoint that shows it.

pub mod cli;
pub mod config;
pub mod control;
pub mod expose;
mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod gateway;
pub mod identity;
pub mod metrics;
pub mod network;
pub mod node;
mod panics;
pub mod signal;
pub mod storage;
pub mod units;

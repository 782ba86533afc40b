//! Peerscope: an observable peer-to-peer agent.
//!
//! One binary joins a libp2p network, keeps data in an embedded store or in Redis, answers its peers'
//! requests, and exports everything that it does as Prometheus metrics.
//!
//! The entry point is [`node::Node`]: given a [`config::Config`], it binds every listener, serves, and
//! shuts down cleanly. Its parts, from the top down:
//!
//! - [`cli`]: the commands of the `peerscope` binary.
//! - [`config`]: file, environment and flags, merged into one valid [`config::Config`].
//! - [`node`]: the composition root, and the single entry point for peers' messages.
//! - [`control`]: the Unix socket through which the short-lived commands talk to a running agent.
//! - [`gateway`]: lets one Prometheus discover and scrape every peer through one agent.
//! - [`network`]: the libp2p swarm and the framed link to each peer.
//! - [`expose`]: other exporters on this machine, fetched for peers.
//! - [`storage`]: `get`, `put` and `delete` on the embedded store or on Redis.
//! - [`units`]: durations and sizes as written in the configuration.
//! - [`metrics`]: the instruments, and the endpoint that exposes them.

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

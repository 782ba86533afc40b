//! Tests of the gateway: one Prometheus discovers and scrapes every peer through one agent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

#[cfg(feature = "metrics-prometheus")]
mod support;

#[cfg(feature = "metrics-prometheus")]
mod gateway {
    mod asking;
    mod beside;
    mod contract;
    mod exposed;
    mod fixture;
    mod flood;
    mod hostile;
    mod names;
    mod nat;
    mod observer;
    mod operator;
    mod pipe;
    mod prometheus;
    mod protected;
    mod queue;
    mod reload;
    mod scene;
    mod statuses;
}

//! Tests of the network: what it promises to good peers, and what hostile peers cannot do to it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

#[cfg(feature = "metrics-prometheus")]
mod support;

// The tests read what happened from the metrics, as an operator would.
#[cfg(feature = "metrics-prometheus")]
mod network {
    mod access;
    mod backpressure;
    mod bounds;
    mod connections;
    mod discovery;
    mod fixture;
    mod hoard;
    mod hostile;
    mod link;
    mod mdns;
    mod series;
    mod shutdown;
    mod silence;
}

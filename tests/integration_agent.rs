//! Stories of the whole agent: the built binary as real processes, with real peers and a real Redis. What
//! it measures, and what real scrapers make of it, is told in `integration_metrics.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

mod support;

mod agent {
    mod cli;
    mod config;
    mod crash;
    mod data;
    mod load;
    #[cfg(not(feature = "metrics-prometheus"))]
    mod no_metrics;
    #[cfg(feature = "metrics-prometheus")]
    mod peers;
    #[cfg(feature = "metrics-prometheus")]
    mod redis;
    mod secrets;
    #[cfg(feature = "metrics-prometheus")]
    mod start;
    mod stop;
    mod systemd;
}

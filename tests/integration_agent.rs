//! Tests of the whole agent: the built binary as real processes, with real peers and a real Redis. Its metrics, and how
//! real scrapers read them, are tested in `integration_metrics.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

mod support;

mod agent {
    mod check_store;
    mod cli;
    mod config;
    mod contact;
    #[cfg(feature = "metrics-prometheus")]
    mod control;
    mod crash;
    mod data;
    #[cfg(feature = "metrics-prometheus")]
    mod descriptors;
    #[cfg(feature = "metrics-prometheus")]
    mod disk;
    #[cfg(feature = "metrics-prometheus")]
    mod everything;
    mod filter;
    mod limits;
    mod listening;
    mod load;
    #[cfg(feature = "metrics-prometheus")]
    mod log;
    mod names;
    #[cfg(not(feature = "metrics-prometheus"))]
    mod no_metrics;
    #[cfg(feature = "metrics-prometheus")]
    mod peers;
    #[cfg(feature = "metrics-prometheus")]
    mod redis;
    #[cfg(feature = "metrics-prometheus")]
    mod redis_history;
    mod reload;
    #[cfg(feature = "metrics-prometheus")]
    mod runtime;
    mod secrets;
    #[cfg(feature = "metrics-prometheus")]
    mod slow_disk;
    #[cfg(feature = "metrics-prometheus")]
    mod start;
    mod stop;
    #[cfg(feature = "metrics-prometheus")]
    mod store;
    #[cfg(feature = "metrics-prometheus")]
    mod store_files;
    mod systemd;
}

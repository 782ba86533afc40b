//! Tests of the metrics: the endpoint over real sockets, and what real scrapers read from it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

mod support;

mod metrics {
    #[cfg(feature = "metrics-prometheus")]
    mod agent;
    mod docs;
    #[cfg(feature = "metrics-prometheus")]
    mod embedding;
    #[cfg(feature = "metrics-prometheus")]
    mod fixture;
    #[cfg(feature = "metrics-prometheus")]
    mod hostile;
    #[cfg(feature = "metrics-prometheus")]
    mod lifecycle;
    #[cfg(feature = "metrics-prometheus")]
    mod limits;
    #[cfg(feature = "metrics-prometheus")]
    mod malformed;
    #[cfg(feature = "metrics-prometheus")]
    mod outsiders;
    #[cfg(feature = "metrics-prometheus")]
    mod pages;
    #[cfg(feature = "metrics-prometheus")]
    mod process;
    #[cfg(feature = "metrics-prometheus")]
    mod traffic;
    #[cfg(feature = "metrics-prometheus")]
    mod validators;
    #[cfg(feature = "metrics-prometheus")]
    mod web;
}

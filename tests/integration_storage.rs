//! Stories of the storage backends: one contract that both keep, and what is each one's own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

mod support;

mod storage {
    mod contract;
    mod local;
    mod redis;
    mod redis_cluster;
    mod redis_outage;
}

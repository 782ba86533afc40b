//! Stories of the storage backends: one contract that both keep, and what is each one's own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::default_constructed_unit_structs, // Registry is one without metrics-prometheus
    reason = "a test fails by panicking, in its helpers too"
)]

mod support;

mod storage {
    mod contract;
    mod local;
    mod local_carry;
    mod local_crash;
    mod local_damage;
    mod local_full;
    mod redis;
    mod redis_cluster;
    mod redis_history;
    mod redis_order;
    mod redis_outage;
}

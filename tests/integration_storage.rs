//! Tests of the storage backends: one contract that both fulfil, and the behaviour specific to each.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::default_constructed_unit_structs, // without metrics-prometheus, Registry is one
    reason = "a test fails by panicking, also in its helpers"
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

//! The gateway: one Prometheus finds and scrapes every peer through it, over the connections that the peers
//! opened themselves.
//!
//! [`Fleet`] knows which peers there are (`members.rs` decides, without IO), `discovery.rs` tells Prometheus,
//! [`Scraper`] has a page passed on live and bounded, and `pages.rs` is how the metrics endpoint offers both. What a page says
//! is Prometheus's to judge.
//!
//! In a build without the cargo feature `metrics-prometheus` there is only the configuration, which says so.

mod config;
#[cfg(feature = "metrics-prometheus")]
mod discovery;
#[cfg(feature = "metrics-prometheus")]
mod fetch;
#[cfg(feature = "metrics-prometheus")]
mod fleet;
#[cfg(feature = "metrics-prometheus")]
mod known;
#[cfg(feature = "metrics-prometheus")]
mod lanes;
#[cfg(feature = "metrics-prometheus")]
mod members;
#[cfg(feature = "metrics-prometheus")]
mod pages;
mod prometheus_config;
#[cfg(feature = "metrics-prometheus")]
mod scrape;

pub use self::config::{Config, PeerList};
#[cfg(feature = "metrics-prometheus")]
pub use self::fleet::{Fleet, keep};
#[cfg(feature = "metrics-prometheus")]
pub use self::members::{LastScrape, Member, Standing};
#[cfg(feature = "metrics-prometheus")]
pub use self::pages::Pages;
pub use self::prometheus_config::prometheus_config;
#[cfg(feature = "metrics-prometheus")]
pub use self::scrape::{Failure, Scraped, Scraper, Want};

//! The gateway: one Prometheus finds and scrapes every peer through it, over the connections that the peers
//! opened themselves.
//!
//! [`Fleet`] knows which peers there are (`members.rs` decides, without IO), `discovery.rs` tells Prometheus,
//! [`Scraper`] has a page passed on live and bounded, and `pages.rs` is how the metrics endpoint offers both. What a page says
//! is Prometheus's to judge.
//!
//! In a build without the cargo feature `metrics-prometheus` the configuration refuses to switch it on: there is no endpoint.

mod config;
mod discovery;
mod fetch;
mod fleet;
mod known;
mod lanes;
mod members;
mod pages;
mod prometheus_config;
mod scrape;

pub use self::config::{Config, PeerList};
pub use self::fleet::{Fleet, keep};
pub use self::members::{LastScrape, Member, Standing};
pub use self::pages::Pages;
pub use self::prometheus_config::prometheus_config;
pub use self::scrape::{ScrapeFailure, Scraper};

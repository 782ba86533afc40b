//! The gateway: one Prometheus discovers and scrapes every peer through it, over the connections that the peers
//! opened themselves.
//!
//! [`Fleet`] knows the peers (`members.rs` decides which are targets, without IO), `discovery.rs` lists them for
//! Prometheus, [`Scraper`] passes pages on live and within limits, and `pages.rs` serves both on the metrics endpoint.
//! Pages are not parsed; Prometheus does that.
//!
//! A build without the cargo feature `metrics-prometheus` has no endpoint, so the configuration cannot enable the
//! gateway there.

mod config;
mod discovery;
mod failure;
mod fetch;
mod fleet;
mod known;
mod lanes;
mod members;
mod pages;
mod prometheus_config;
mod scrape;
mod under_way;

pub use self::config::{Config, PeerList};
pub use self::failure::ScrapeFailure;
pub use self::fleet::{Fleet, keep};
pub use self::members::{LastScrape, Member, Standing};
pub use self::pages::Pages;
pub use self::prometheus_config::{Job, ScraperTls, prometheus_config};
pub use self::scrape::Scraper;

//! The page that answers a scrape, and the choice of its format. Pure functions.
//!
//! Our own families are written directly in the requested format (`page.rs`, `text.rs`, `protobuf.rs`).
//! Those that others keep in a prometheus-client registry arrive as the OpenMetrics text of its encoder,
//! which `foreign.rs` parses, checks and writes to the page.

mod family;
mod filter;
mod foreign;
mod negotiation;
mod number;
mod page;
mod protobuf;
mod text;

pub(crate) use self::family::{Metadata, Series, is_label_name, is_name};
pub use self::filter::FamilyFilter;
pub(crate) use self::foreign::{ForeignRegistry, write as write_foreign};
pub use self::negotiation::{negotiate, prefers_json};
pub(crate) use self::number::Number;
pub(crate) use self::page::{FamilyWriter, PageWriter};

/// A format of the metrics page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format 0.0.4: the default.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// OpenMetrics under its draft's version 0.0.1, which is Prometheus's second choice. The body is the
    /// same; like client_golang, we respond with the requested version.
    OpenMetricsDraft,
    /// `io.prometheus.client.MetricFamily` messages, each preceded by its length: the only format with
    /// native histograms.
    Protobuf,
}

impl Format {
    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::OpenMetricsDraft => "application/openmetrics-text; version=0.0.1; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! What a scrape is answered with: which format, which coding, and the page itself. Pure functions.
//!
//! The families of our own are written straight into the format that was asked for (`page.rs`, `text.rs`,
//! `protobuf.rs`). Those that others keep in prometheus-client's registry come as the OpenMetrics text of
//! its encoder, which `foreign.rs` reads, checks and writes on.

mod family;
mod filter;
mod foreign;
mod negotiation;
mod page;
mod protobuf;
mod text;

use bytes::Bytes;

pub(crate) use self::family::{Metadata, Series, is_label_name, is_name};
pub use self::filter::FamilyFilter;
pub(crate) use self::foreign::ForeignRegistry;
pub use self::negotiation::{negotiate, prefers_json};
pub(crate) use self::page::{FamilyWriter, Number, PageWriter};
use super::registry::Registry;

/// A format in which the metrics can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format 0.0.4: the default.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// OpenMetrics under its draft's number 0.0.1, which Prometheus asks for as its second choice. The
    /// body is the same; client_golang, too, answers with the version that was asked for.
    OpenMetricsDraft,
    /// Messages of `io.prometheus.client.MetricFamily`, each behind its length: the only format with native
    /// histograms.
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

/// The page with those families of `registry` that `filter` lets through.
///
/// Whatever is registered, no family comes twice, no sample comes twice, and no family comes without samples.
pub fn render(registry: &Registry, format: Format, filter: &FamilyFilter) -> Bytes {
    let mut page = PageWriter::new(format, filter);
    registry.registered().expose(&mut page);
    page.finish()
}

#[cfg(test)]
mod tests;

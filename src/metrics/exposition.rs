//! What a scrape is answered with: which format, which coding, and the text itself. Pure functions.
//!
//! prometheus-client writes OpenMetrics; `classic` makes the text format 0.0.4 of it, which is what
//! VictoriaMetrics, a bare `curl` and `promtool check metrics` want.

mod classic;
mod negotiation;

use std::io::Write as _;

use bytes::Bytes;
use prometheus_client::registry::Registry;

pub use negotiation::{accepts_gzip, negotiate, prefers_json};

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
}

impl Format {
    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::OpenMetricsDraft => "application/openmetrics-text; version=0.0.1; charset=utf-8",
        }
    }
}

/// The registry could not be encoded: a collector in it failed.
#[derive(Debug, thiserror::Error)]
#[error("a metric could not be encoded; every metric of this agent encodes, so this is a defect worth a report")]
pub struct RenderError;

impl From<std::fmt::Error> for RenderError {
    fn from(_: std::fmt::Error) -> Self {
        Self
    }
}

/// Room for the families of one agent, so that the text rarely has to move while it grows.
const USUAL_SIZE: usize = 64 * 1024;

/// The whole exposition of `registry`.
///
/// # Errors
///
/// When a collector in the registry fails to encode itself.
pub fn render(registry: &Registry, format: Format) -> Result<Bytes, RenderError> {
    let mut text = String::with_capacity(USUAL_SIZE);
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    let text = match format {
        Format::Text => classic::from_openmetrics(&text),
        Format::OpenMetrics | Format::OpenMetricsDraft => classic::escape_help(text),
    };
    Ok(text.into())
}

/// `body` as a gzip stream.
///
/// Level 1: on an exposition it takes a quarter of the default level's time or less, and the result is a
/// fifth larger.
///
/// # Errors
///
/// None that memory can give; the signature is the encoder's.
pub fn gzip(body: &[u8]) -> std::io::Result<Bytes> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(body.len() / 8), flate2::Compression::fast());
    encoder.write_all(body)?;
    Ok(encoder.finish()?.into())
}

#[cfg(test)]
mod tests;

//! Writes families whose values are owned elsewhere and read only when a scrape asks for them.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::catalogue::{Descriptor, Kind};

static SECONDS: Unit = Unit::Seconds;
static BYTES: Unit = Unit::Bytes;

/// Writes one metric without labels.
pub(super) fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    descriptor: &'static Descriptor,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(family(encoder, descriptor)?)
}

/// Writes a family's metadata, in the words that the registry would use.
pub(super) fn family<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    descriptor: &'static Descriptor,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    let unit = match descriptor.unit() {
        Some("seconds") => Some(&SECONDS),
        Some("bytes") => Some(&BYTES),
        _ => None,
    };
    let kind = match descriptor.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
        Kind::Info => MetricType::Info,
    };
    // The registry, too, ends every help text with a full stop.
    encoder.encode_descriptor(descriptor.registered_name(), &format!("{}.", descriptor.help), unit, kind)
}

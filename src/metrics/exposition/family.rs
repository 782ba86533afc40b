//! The metadata of families and the labels of series, encoded once, when they are registered.

use super::protobuf;
use super::text::push_escaped;
use crate::metrics::catalogue::{Kind, OF_PROMETHEUS};

/// A family's name, type, unit and help, in every format.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub(crate) kind: Kind,
    /// The name in OpenMetrics: without `_total` or `_info`.
    pub(super) name: Box<str>,
    /// The name of the samples, and of the family in the classic text; the samples of a histogram add a suffix.
    pub(super) sample: Box<str>,
    /// Whether a histogram with this name can have native buckets: not if Prometheus itself uses the name.
    pub(super) native: bool,
    pub(super) classic: Box<str>,
    pub(super) openmetrics: Box<str>,
    /// The fields of `MetricFamily` except its metrics.
    pub(super) protobuf: Box<[u8]>,
}

impl Metadata {
    /// `name` is the name in OpenMetrics, including the unit.
    pub(crate) fn new(kind: Kind, name: &str, unit: Option<&str>, help: &str) -> Self {
        let sample = match kind {
            Kind::Counter => format!("{name}_total"),
            Kind::Info => format!("{name}_info"),
            Kind::Gauge | Kind::Histogram | Kind::Unknown => name.to_owned(),
        };
        let mut classic = format!("# HELP {sample} ");
        push_escaped(&mut classic, help, false);
        classic.push_str(&format!("\n# TYPE {sample} {}\n", kind.classic()));
        let mut openmetrics = format!("# HELP {name} ");
        push_escaped(&mut openmetrics, help, true);
        openmetrics.push_str(&format!("\n# TYPE {name} {}\n", kind.as_str()));
        if let Some(unit) = unit {
            openmetrics.push_str(&format!("# UNIT {name} {unit}\n"));
        }
        Self {
            protobuf: protobuf::metadata(&sample, kind, unit, help).into(),
            kind,
            native: !OF_PROMETHEUS.contains(&name),
            name: name.into(),
            sample: sample.into(),
            classic: classic.into(),
            openmetrics: openmetrics.into(),
        }
    }

    /// Every name that no other family may use, because this one uses it for itself or a sample in some format.
    pub(crate) fn names(&self) -> Vec<String> {
        let name = &self.name;
        match self.kind {
            Kind::Histogram => ["", "_bucket", "_sum", "_count", "_created"].map(|end| format!("{name}{end}")).into(),
            Kind::Counter => vec![name.to_string(), self.sample.to_string(), format!("{name}_created")],
            Kind::Info => vec![name.to_string(), self.sample.to_string()],
            Kind::Gauge | Kind::Unknown => vec![name.to_string()],
        }
    }
}

/// The labels of one series, in every format.
#[derive(Debug, Default)]
pub(crate) struct Series {
    /// `name="value",name="value"`
    pub(super) text: Box<str>,
    /// The fields `label` of `Metric`.
    pub(super) protobuf: Box<[u8]>,
}

impl Series {
    pub(crate) fn new(labels: &[(&str, &str)]) -> Self {
        let (mut text, mut bytes) = (String::new(), Vec::new());
        for (name, value) in labels {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(name);
            text.push_str("=\"");
            push_escaped(&mut text, value, true);
            text.push('"');
            protobuf::label(&mut bytes, name, value);
        }
        Self { text: text.into(), protobuf: bytes.into() }
    }
}

/// `[a-zA-Z_:][a-zA-Z0-9_:]*`
pub(crate) fn is_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':'))
}

/// `[a-zA-Z_][a-zA-Z0-9_]*`, and not one of those that Prometheus reserves for itself.
pub(crate) fn is_label_name(name: &str) -> bool {
    is_name(name) && !name.contains(':') && !name.starts_with("__")
}

//! A page of families, in one format.

use bytes::Bytes;

use super::family::{Metadata, Series};
use super::number::Number;
use super::{FamilyFilter, Format, protobuf, text};
use crate::metrics::catalogue::Kind;
use crate::metrics::instruments::{Buckets, Snapshot};

/// Room for the families of one agent, so that the page rarely has to be moved while it grows.
const USUAL_SIZE: usize = 64 * 1024;

/// A page that is being written.
pub(crate) struct PageWriter<'a> {
    format: Format,
    wanted: &'a FamilyFilter,
    out: Vec<u8>,
    /// The metrics of the family that is being written. Their length has to be written before them.
    metrics: Vec<u8>,
}

/// One family of the page. Its metadata is written with its first sample, if it has one.
pub(crate) struct FamilyWriter<'p, 'a> {
    page: &'p mut PageWriter<'a>,
    family: &'p Metadata,
    empty: bool,
}

impl<'a> PageWriter<'a> {
    pub(crate) fn new(format: Format, wanted: &'a FamilyFilter) -> Self {
        Self { format, wanted, out: Vec::with_capacity(USUAL_SIZE), metrics: Vec::new() }
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// Whether the client wants one of these families.
    pub(crate) fn wants<'f>(&self, families: impl IntoIterator<Item = &'f Metadata>) -> bool {
        families.into_iter().any(|family| self.wanted.includes(family))
    }

    /// Begins a family; `None` if the client does not want it.
    pub(crate) fn family<'p>(&'p mut self, family: &'p Metadata) -> Option<FamilyWriter<'p, 'a>> {
        self.wanted.includes(family).then_some(FamilyWriter { page: self, family, empty: true })
    }

    pub(crate) fn finish(mut self) -> Bytes {
        if matches!(self.format, Format::OpenMetrics | Format::OpenMetricsDraft) {
            self.out.extend_from_slice(b"# EOF\n");
        }
        self.out.into()
    }
}

impl FamilyWriter<'_, '_> {
    /// Writes a sample of a counter, gauge, info or unknown family.
    pub(crate) fn number(&mut self, series: &Series, value: Number) {
        self.begin();
        match self.page.format {
            Format::Protobuf => protobuf::number(&mut self.page.metrics, self.family.kind, &series.protobuf, value),
            _ => text::number(&mut self.page.out, &self.family.sample, &series.text, value),
        }
    }

    /// Writes the samples of a histogram.
    pub(crate) fn histogram(&mut self, series: &Series, snapshot: &Snapshot, buckets: &Buckets) {
        self.begin();
        match self.page.format {
            Format::Protobuf => {
                let classic = snapshot.cumulative(buckets);
                let native = self.family.native.then(|| buckets.native().snapshot(&snapshot.fine));
                let sum = snapshot.sum_in_base_units(buckets);
                let metrics = &mut self.page.metrics;
                protobuf::histogram(metrics, &series.protobuf, snapshot.count, sum, classic, native.as_ref());
            }
            _ => text::histogram(&mut self.page.out, &self.family.sample, &series.text, snapshot, buckets),
        }
    }

    /// Writes a line, in the text formats. `parts` do not include the line end.
    pub(super) fn line(&mut self, parts: &[&str]) {
        self.begin();
        for part in parts {
            self.page.out.extend_from_slice(part.as_bytes());
        }
        self.page.out.push(b'\n');
    }

    /// Writes the samples of somebody else's histogram, in protobuf.
    pub(super) fn foreign_histogram(&mut self, series: &Series, count: u64, sum: f64, classic: &[(f64, u64)]) {
        self.begin();
        let classic = classic.iter().copied();
        protobuf::histogram(&mut self.page.metrics, &series.protobuf, count, sum, classic, None);
    }

    fn begin(&mut self) {
        if !std::mem::replace(&mut self.empty, false) {
            return;
        }
        match self.page.format {
            Format::Text => self.page.out.extend_from_slice(self.family.classic.as_bytes()),
            Format::OpenMetrics | Format::OpenMetricsDraft => {
                self.page.out.extend_from_slice(self.family.openmetrics.as_bytes());
            }
            Format::Protobuf => self.page.metrics.clear(),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.family.kind
    }
}

impl Drop for FamilyWriter<'_, '_> {
    fn drop(&mut self) {
        if self.page.format == Format::Protobuf && !self.empty {
            protobuf::family(&mut self.page.out, &self.family.protobuf, &self.page.metrics);
        }
    }
}

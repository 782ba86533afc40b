//! Whether a metrics page is what its content type says. Pure: no IO, no clock.
//!
//! The page comes from a peer that nobody trusts, and Prometheus reads it. So a page is refused as a whole when
//! Prometheus could not read all of it, when two readers could understand two things by it, or when it would write
//! what Prometheus itself writes after each scrape (`up` and the like).
//!
//! What is not looked at, because Prometheus lets it pass and it harms nobody but the peer's own series: two samples
//! of one series (a set of all series costs more than all the rest together), buckets that do not add up, counters
//! below zero, and samples whose suffix does not fit their family's type.

mod content_type;
mod families;
mod invalid;
mod labels;
mod metric;
mod number;
mod protobuf;
mod sample;
mod text;
mod wire;

pub use self::invalid::{Excerpt, Invalid, Place, Problem};
use self::protobuf::Protobuf;
use self::text::Text;

/// The longest line of a text, in bytes and without its end. A line that is cut across pieces is kept up to here.
pub const MAX_LINE: usize = 256 * 1024;
/// The longest message of protobuf, in bytes and without its length. One that is cut is kept up to here. So much more
/// than a line because a message holds all series of its family: of a large exporter they take more than 1 MiB.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// How many families a page may have. Each costs 16 bytes while the page is looked at.
pub const MAX_FAMILIES: usize = 20_000;
/// How many labels a sample may have. Prometheus's own limits are far below, where they are set.
pub const MAX_LABELS: usize = 256;

/// How a page is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFormat {
    /// Prometheus's text format, 0.0.4 or, with quoted names, 1.0.0.
    Text,
    /// OpenMetrics 1.0.0 or its draft 0.0.1.
    OpenMetrics,
    /// Messages of `io.prometheus.client.MetricFamily`, each behind its length.
    Protobuf,
}

impl BodyFormat {
    /// The format that a `Content-Type` names; `None` for what no scraper could read.
    pub fn from_content_type(value: &str) -> Option<Self> {
        content_type::format(value)
    }
}

/// Reads a page as it comes, and holds no more of it than one line or message.
#[derive(Debug)]
pub struct Validator {
    reader: Reader,
    refused: Option<Invalid>,
}

#[derive(Debug)]
enum Reader {
    Text(Text),
    Protobuf(Protobuf),
}

impl Validator {
    /// A page of this format, of which nothing has come.
    pub fn new(format: BodyFormat) -> Self {
        let reader = match format {
            BodyFormat::Text => Reader::Text(Text::new(false)),
            BodyFormat::OpenMetrics => Reader::Text(Text::new(true)),
            BodyFormat::Protobuf => Reader::Protobuf(Protobuf::new()),
        };
        Self { reader, refused: None }
    }

    /// Takes the next piece, cut anywhere: where the cuts are makes no difference to the verdict.
    ///
    /// # Errors
    ///
    /// When the page has to be refused; from then on every call gives this error again.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Invalid> {
        if let Some(refused) = &self.refused {
            return Err(refused.clone());
        }
        let fed = match &mut self.reader {
            Reader::Text(text) => text.feed(bytes),
            Reader::Protobuf(protobuf) => protobuf.feed(bytes),
        };
        fed.inspect_err(|invalid| self.refused = Some(invalid.clone()))
    }

    /// How many bytes are held for what is not whole yet.
    #[cfg(test)]
    fn held(&self) -> usize {
        match &self.reader {
            Reader::Text(text) => text.held(),
            Reader::Protobuf(protobuf) => protobuf.held(),
        }
    }

    /// The page ended here.
    ///
    /// # Errors
    ///
    /// When it was refused already, or may not end here.
    pub fn finish(self) -> Result<(), Invalid> {
        match (self.refused, self.reader) {
            (Some(refused), _) => Err(refused),
            (None, Reader::Text(text)) => text.finish(),
            (None, Reader::Protobuf(protobuf)) => protobuf.finish(),
        }
    }
}

/// Appends to what is kept of a line or message, of which `most` bytes can come. Room for them is made by doubling,
/// but never beyond that.
fn keep(partial: &mut Vec<u8>, bytes: &[u8], most: usize) {
    let needed = partial.len() + bytes.len();
    if needed > partial.capacity() {
        let room = needed.max((2 * partial.capacity()).min(most));
        partial.reserve_exact(room - partial.len());
    }
    partial.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests;

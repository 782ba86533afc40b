//! Messages of `io.prometheus.client.MetricFamily` (`metrics.proto` of Prometheus's client_model), each behind its
//! length. They are read field by field, where they lie: nothing is built of them.

use super::families::{Families, is_refused};
use super::invalid::{Excerpt, Invalid, Place, Problem};
use super::labels::Label;
use super::metric;
use super::text::ends_with_unit;
use super::wire::{Fields, Span, Value, varint};
use super::{MAX_MESSAGE, keep};

/// A page of messages.
#[derive(Debug)]
pub(super) struct Protobuf {
    families: Families,
    /// How many messages were looked at, the one that is looked at now among them.
    family: u64,
    /// What has come of the message that is not whole yet, with its length.
    partial: Vec<u8>,
    labels: Vec<Label>,
}

/// What a family says of itself.
#[derive(Default)]
struct Head<'a> {
    name: Option<&'a [u8]>,
    help: Option<&'a [u8]>,
    unit: Option<&'a [u8]>,
    kind: Option<u64>,
}

impl Protobuf {
    pub(super) fn new() -> Self {
        Self { families: Families::new(), family: 0, partial: Vec::new(), labels: Vec::new() }
    }

    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Invalid> {
        while !self.partial.is_empty() && !bytes.is_empty() {
            // Until its length is known byte by byte, and then as much as it needs.
            let message = frame(&self.partial).map_err(|problem| self.invalid_next(problem))?;
            let most = message.map_or(self.partial.len() + 1, |message| message.end);
            let missing = most.saturating_sub(self.partial.len());
            let (head, rest) = bytes.split_at(missing.min(bytes.len()));
            keep(&mut self.partial, head, most);
            bytes = rest;
            // What it takes is given back when it is whole.
            let message = std::mem::take(&mut self.partial);
            if self.messages(&message)? < message.len() {
                self.partial = message;
            }
        }
        let done = self.messages(bytes)?;
        self.partial.extend_from_slice(bytes.get(done..).unwrap_or_default());
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.partial.capacity()
    }

    pub(super) fn finish(self) -> Result<(), Invalid> {
        if self.partial.is_empty() { Ok(()) } else { Err(self.invalid_next(Problem::MessageCutOff)) }
    }

    /// Looks at the messages that are whole, and says where the first starts that is not.
    fn messages(&mut self, bytes: &[u8]) -> Result<usize, Invalid> {
        let mut done = 0;
        loop {
            let rest = bytes.get(done..).unwrap_or_default();
            let message = frame(rest).map_err(|problem| self.invalid_next(problem))?;
            let Some(message) = message.filter(|message| message.end <= rest.len()) else { return Ok(done) };
            self.message(rest, message).map_err(|problem| self.invalid_next(problem))?;
            self.family += 1;
            done += message.end;
        }
    }

    fn message(&mut self, bytes: &[u8], message: Span) -> Result<(), Problem> {
        let head = Head::read(bytes, message)?;
        let name = head.name.filter(|name| !name.is_empty()).ok_or(Problem::FamilyWithoutName)?;
        // What is not there is 0, a counter.
        let kind = head.kind.unwrap_or(0);
        let field = metric::field_of(kind).ok_or(Problem::TypeNumber(kind))?;
        let unit = head.unit.unwrap_or_default();
        let base = name.strip_suffix(b"_total").filter(|_| kind == 0);
        if !ends_with_unit(base.unwrap_or(name), unit) {
            return Err(Problem::Unit(Excerpt::new(unit)));
        }
        self.families.whole(name)?;
        let reserved = || Problem::Reserved(Excerpt::new(name));
        if is_refused(name, kind == 4) {
            return Err(reserved());
        }
        // Of what is left, a native histogram would be a series of that name.
        let never_bare = is_refused(name, false);
        let mut fields = Fields::new(bytes, message);
        while let Some((number, value)) = fields.next()? {
            let (4, Value::Bytes(span)) = (number, value) else { continue };
            let bare = metric::check(bytes, span, field, &mut self.labels)?;
            if never_bare && bare {
                return Err(reserved());
            }
        }
        Ok(())
    }

    /// What is wrong with the message behind those that were good.
    fn invalid_next(&self, problem: Problem) -> Invalid {
        Invalid { place: Place::Family(self.family + 1), problem }
    }
}

impl<'a> Head<'a> {
    /// Reads all fields first: they may stand behind the metrics.
    fn read(bytes: &'a [u8], message: Span) -> Result<Self, Problem> {
        let mut head = Self::default();
        let mut fields = Fields::new(bytes, message);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Value::Bytes(span)) => text(&mut head.name, span.of(bytes), "name")?,
                (2, Value::Bytes(span)) => text(&mut head.help, span.of(bytes), "help text")?,
                (5, Value::Bytes(span)) => text(&mut head.unit, span.of(bytes), "unit")?,
                (3, Value::Varint(kind)) if head.kind.is_none() => head.kind = Some(kind),
                (3, Value::Varint(_)) => return Err(Problem::Twice("type")),
                (4, Value::Bytes(_)) => {}
                (1..=5, _) => return Err(Problem::Wire("message")),
                _ => {}
            }
        }
        Ok(head)
    }
}

/// A text that may come once: of two, one reader would take the first, another one the last.
fn text<'a>(slot: &mut Option<&'a [u8]>, text: &'a [u8], what: &'static str) -> Result<(), Problem> {
    if std::str::from_utf8(text).is_err() {
        return Err(Problem::StringNotUtf8(what));
    }
    if slot.replace(text).is_some() { Err(Problem::Twice(what)) } else { Ok(()) }
}

/// Where the message lies whose length stands first; `None` when that is not whole.
fn frame(bytes: &[u8]) -> Result<Option<Span>, Problem> {
    let Some((length, start)) = varint(bytes).map_err(|_| Problem::Wire("length"))? else { return Ok(None) };
    match usize::try_from(length) {
        Ok(length) if length <= MAX_MESSAGE => Ok(Some(Span { start, end: start + length })),
        _ => Err(Problem::MessageTooLong),
    }
}

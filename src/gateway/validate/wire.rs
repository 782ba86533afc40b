//! Protobuf's wire format: numbered fields, one behind the other.

/// The bytes are no protobuf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// How deep groups may stand in each other; nobody writes any.
const MAX_GROUPS: u32 = 16;

/// A value as it is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value {
    Varint(u64),
    Fixed64(u64),
    Bytes(Span),
    Fixed32,
    Group,
}

/// A part of the bytes of a message, by positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Span {
    pub(super) fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start..self.end).unwrap_or_default()
    }
}

/// The fields of the message that lies in a span.
pub(super) struct Fields<'a> {
    /// Up to the message's end.
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8], span: Span) -> Self {
        Self { bytes: bytes.get(..span.end).unwrap_or_default(), at: span.start }
    }

    /// The next field's number and value; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Value)>, Malformed> {
        if self.at >= self.bytes.len() {
            return Ok(None);
        }
        let (field, wire) = self.tag()?;
        Ok(Some((field, self.value(field, wire, 0)?)))
    }

    fn tag(&mut self) -> Result<(u64, u64), Malformed> {
        let tag = self.varint()?;
        // Numbers of fields have 29 bits.
        if tag >> 3 == 0 || tag > u64::from(u32::MAX) { Err(Malformed) } else { Ok((tag >> 3, tag & 7)) }
    }

    fn value(&mut self, field: u64, wire: u64, depth: u32) -> Result<Value, Malformed> {
        match wire {
            0 => Ok(Value::Varint(self.varint()?)),
            1 => {
                let bytes = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk).ok_or(Malformed)?;
                self.at += 8;
                Ok(Value::Fixed64(u64::from_le_bytes(*bytes)))
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                let (start, end) = (self.at, self.at.checked_add(length).ok_or(Malformed)?);
                if end > self.bytes.len() {
                    return Err(Malformed);
                }
                self.at = end;
                Ok(Value::Bytes(Span { start, end }))
            }
            3 if depth < MAX_GROUPS => self.group(field, depth + 1),
            5 => {
                self.at += 4;
                if self.at > self.bytes.len() { Err(Malformed) } else { Ok(Value::Fixed32) }
            }
            _ => Err(Malformed),
        }
    }

    /// A group ends with a tag of its own.
    fn group(&mut self, field: u64, depth: u32) -> Result<Value, Malformed> {
        loop {
            match self.tag()? {
                (inner, 4) => return if inner == field { Ok(Value::Group) } else { Err(Malformed) },
                (inner, wire) => self.value(inner, wire, depth)?,
            };
        }
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        match varint(rest)? {
            Some((value, length)) => {
                self.at += length;
                Ok(value)
            }
            None => Err(Malformed),
        }
    }
}

/// The number that stands first, and how many bytes it takes; `None` when it goes on behind the end.
pub(super) fn varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, Malformed> {
    match bytes.first() {
        Some(byte) if *byte < 0x80 => return Ok(Some((u64::from(*byte), 1))),
        _ => {}
    }
    let mut value = 0;
    for (position, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * position);
        if *byte < 0x80 {
            // Of the tenth byte only one bit has a place.
            return if position == 9 && *byte > 1 { Err(Malformed) } else { Ok(Some((value, position + 1))) };
        }
    }
    if bytes.len() < 10 { Ok(None) } else { Err(Malformed) }
}

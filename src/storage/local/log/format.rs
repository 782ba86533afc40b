//! The format of a log: pure functions, and the only code that knows it.
//!
//! All numbers are little-endian. A *segment* is a file:
//!
//! ```text
//! header, 512 bytes   magic 16 | sequence u64 | previous u64 | store u64 | xxh3-64 of the 40 bytes before | zeros
//! frame, any number   magic u32 | body length u32 | number u64 | records u32 | head's checksum u32 | xxh3-64 | body
//! ```
//!
//! A *frame* is what one sync made durable. Its body is a sequence of records, each `key length u32 | value length u32
//! | key | value`, where the value length 2^32 - 1 removes the key. The checksum of a frame covers its header and
//! body. It is seeded (`frame_seed`) with the segment's sequence number, so that leftovers from an earlier use of the
//! file are never mistaken for frames of this one, and with the store's random number, so that no peer can put a value
//! that passes for a frame.
//!
//! Functions that take a `sequence` but no `store` expect this seed.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The first bytes of a segment, which include the version of the format.
const SEGMENT_MAGIC: &[u8; 16] = b"peerscope log 1\n";
/// One sector, which a disk writes entirely or not at all.
pub(in super::super) const HEADER: usize = 512;
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"PSfr");
const FRAME_HEADER: usize = 32;
/// In place of a value's length: the key is removed.
const REMOVED: u32 = u32::MAX;

/// The first sector of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct SegmentHeader {
    /// Grows from segment to segment; never reused.
    pub(in super::super) sequence: u64,
    /// The newest earlier segment that contained a durable frame when this one began.
    pub(in super::super) previous: u64,
    /// The store to which the log belongs.
    pub(in super::super) store: u64,
}

impl SegmentHeader {
    pub(in super::super) fn encode(&self) -> [u8; HEADER] {
        let mut out = Vec::with_capacity(HEADER);
        out.extend_from_slice(SEGMENT_MAGIC);
        for number in [self.sequence, self.previous, self.store] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&xxh3_64_with_seed(&out, 0).to_le_bytes());
        out.resize(HEADER, 0);
        out.try_into().unwrap_or([0; HEADER])
    }

    /// `Ok(None)` if nothing was ever written there.
    pub(in super::super) fn decode(bytes: &[u8]) -> Result<Option<Self>, &'static str> {
        let Some(header) = bytes.get(..HEADER) else { return Ok(None) };
        if header.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let (Some(magic), Some(sequence), Some(previous), Some(store), Some(checksum)) =
            (header.get(..16), u64_at(header, 16), u64_at(header, 24), u64_at(header, 32), u64_at(header, 40))
        else {
            return Ok(None);
        };
        if magic != SEGMENT_MAGIC {
            return Err("it is not a log that this version of Peerscope can read");
        }
        if header.get(..40).is_none_or(|covered| xxh3_64_with_seed(covered, 0) != checksum) {
            return Err("the first sector of the log does not match its checksum");
        }
        Ok(Some(Self { sequence, previous, store }))
    }
}

/// The seed of the checksums of a segment's frames.
pub(in super::super) fn frame_seed(sequence: u64, store: u64) -> u64 {
    xxh3_64_with_seed(&sequence.to_le_bytes(), store)
}

/// One put or removal in a frame. Key and value share the frame's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Record {
    pub(in super::super) key: Bytes,
    /// `None` removes the key.
    pub(in super::super) value: Option<Bytes>,
}

/// Builds a frame in the memory from which its records are later read.
#[derive(Debug, Default)]
pub(in super::super) struct FrameBuilder {
    bytes: Vec<u8>,
    records: u32,
}

/// A frame that is ready to be written.
#[derive(Debug, Clone)]
pub(in super::super) struct Frame {
    pub(in super::super) bytes: Bytes,
    /// The number of records.
    pub(in super::super) records: u32,
}

impl FrameBuilder {
    pub(in super::super) fn with_capacity(bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(FRAME_HEADER + bytes);
        buffer.resize(FRAME_HEADER, 0);
        Self { bytes: buffer, records: 0 }
    }

    /// The size of a record in bytes.
    pub(in super::super) fn record_size(key: &[u8], value: Option<&[u8]>) -> usize {
        8 + key.len() + value.map_or(0, <[u8]>::len)
    }

    /// Adds a record. Keys and values must be shorter than 2^32 - 1 bytes; the limits of the store are far lower.
    pub(in super::super) fn push(&mut self, key: &[u8], value: Option<&[u8]>) {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(REMOVED);
        self.bytes.extend_from_slice(&length(key).to_le_bytes());
        self.bytes.extend_from_slice(&value.map_or(REMOVED, length).to_le_bytes());
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value.unwrap_or_default());
        self.records += 1;
    }

    /// Completes the frame as number `number` of a segment.
    pub(in super::super) fn finish(mut self, sequence: u64, number: u64) -> Frame {
        seal(&mut self.bytes, self.records, sequence, number);
        Frame { bytes: self.bytes.into(), records: self.records }
    }
}

impl Frame {
    /// The same records as number `number` of another segment.
    pub(in super::super) fn renumbered(&self, sequence: u64, number: u64) -> Self {
        let mut bytes = self.bytes.to_vec();
        seal(&mut bytes, self.records, sequence, number);
        Self { bytes: bytes.into(), records: self.records }
    }

    /// The records, in order.
    pub(in super::super) fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let mut at = FRAME_HEADER;
        std::iter::from_fn(move || {
            let (record, next) = record_at(&self.bytes, at)?;
            at = next;
            Some(record)
        })
    }
}

fn seal(bytes: &mut [u8], records: u32, sequence: u64, number: u64) {
    let body = u32::try_from(bytes.len().saturating_sub(FRAME_HEADER)).unwrap_or(u32::MAX);
    put(bytes, 0, &FRAME_MAGIC.to_le_bytes());
    put(bytes, 4, &body.to_le_bytes());
    put(bytes, 8, &number.to_le_bytes());
    put(bytes, 16, &records.to_le_bytes());
    let head = head_checksum(bytes, sequence);
    put(bytes, 20, &head.to_le_bytes());
    let checksum = checksum(bytes, sequence);
    put(bytes, 24, &checksum.to_le_bytes());
}

fn put(bytes: &mut [u8], at: usize, data: &[u8]) {
    if let Some(target) = bytes.get_mut(at..at + data.len()) {
        target.copy_from_slice(data);
    }
}

/// The checksum of the first 20 bytes, to reject bytes that only look like a frame before a long body is hashed.
fn head_checksum(frame: &[u8], sequence: u64) -> u32 {
    let [a, b, c, d, ..] = xxh3_64_with_seed(frame.get(..20).unwrap_or_default(), sequence).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The checksum of a whole frame, without this checksum itself.
fn checksum(frame: &[u8], sequence: u64) -> u64 {
    let (head, body) = (frame.get(..24).unwrap_or_default(), frame.get(FRAME_HEADER..).unwrap_or_default());
    xxh3_64_with_seed(body, xxh3_64_with_seed(head, sequence))
}

fn record_at(bytes: &Bytes, at: usize) -> Option<(Record, usize)> {
    let key_len = usize::try_from(u32_at(bytes, at)?).ok()?;
    let value_len = u32_at(bytes, at + 4)?;
    let key_end = (at + 8).checked_add(key_len)?;
    let value_end =
        if value_len == REMOVED { key_end } else { key_end.checked_add(usize::try_from(value_len).ok()?)? };
    if value_end > bytes.len() {
        return None;
    }
    let value = (value_len != REMOVED).then(|| bytes.slice(key_end..value_end));
    Some((Record { key: bytes.slice(at + 8..key_end), value }, value_end))
}

/// The contents of a segment.
#[derive(Debug)]
pub(in super::super) struct Frames {
    pub(in super::super) frames: Vec<Frame>,
    /// Whether a frame follows bytes that are not one. The writer begins a frame only when the previous one is durable,
    /// so this is damage and not the end of the log.
    pub(in super::super) damaged: bool,
}

/// Finds the frames of a segment, up to the first incomplete one, where a crash or a power cut ended it.
pub(in super::super) fn frames(segment: &Bytes, sequence: u64) -> Frames {
    let mut frames = Vec::new();
    let mut at = HEADER;
    while let Some(frame) = frame_at(segment, at, sequence, frames.len() as u64) {
        at += frame.bytes.len();
        frames.push(frame);
    }
    let rest = segment.get(at..).unwrap_or_default();
    let next = frames.len() as u64;
    let damaged = memchr::memmem::find_iter(rest, &FRAME_MAGIC.to_le_bytes())
        .any(|found| later_frame_at(segment, at + found, sequence, next));
    Frames { frames, damaged }
}

fn frame_at(segment: &Bytes, at: usize, sequence: u64, number: u64) -> Option<Frame> {
    let length = frame_length(segment, at)?;
    if u32_at(segment, at + 20)? != head_checksum(segment.get(at..)?, sequence) {
        return None;
    }
    let bytes = segment.slice(at..at + length);
    if u64_at(&bytes, 8)? != number || u64_at(&bytes, 24)? != checksum(&bytes, sequence) {
        return None;
    }
    Some(Frame { records: u32_at(&bytes, 16)?, bytes })
}

fn later_frame_at(segment: &Bytes, at: usize, sequence: u64, next: u64) -> bool {
    let number = u64_at(segment, at.saturating_add(8));
    number.is_some_and(|number| number > next && frame_at(segment, at, sequence, number).is_some())
}

/// The length of a possible frame: it starts with the magic number and ends within the segment.
fn frame_length(segment: &[u8], at: usize) -> Option<usize> {
    if u32_at(segment, at)? != FRAME_MAGIC {
        return None;
    }
    let length = FRAME_HEADER.checked_add(usize::try_from(u32_at(segment, at + 4)?).ok()?)?;
    (at.checked_add(length)? <= segment.len()).then_some(length)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Arbitrary bytes do not make decoding panic, even with valid checksums, and a frame contains what it was built from.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    let _whatever = SegmentHeader::decode(data);
    let segment = Bytes::copy_from_slice(data);
    for frame in frames(&segment, 7).frames {
        assert!(frame.records().count() <= frame.bytes.len());
    }
    // The same bytes as the body of a frame with valid checksums and an arbitrary number of records.
    let mut sealed = vec![0; HEADER + FRAME_HEADER];
    sealed.extend_from_slice(data);
    if let Some(frame) = sealed.get_mut(HEADER..) {
        seal(frame, u32::from(data.first().copied().unwrap_or_default()), 7, 0);
    }
    let found = frames(&sealed.into(), 7);
    assert_eq!(found.frames.len(), 1);
    let mut again = FrameBuilder::with_capacity(0);
    let mut size = 0;
    for record in found.frames.iter().flat_map(Frame::records) {
        size += FrameBuilder::record_size(&record.key, record.value.as_deref());
        again.push(&record.key, record.value.as_deref());
    }
    assert!(size <= data.len());
    let again = again.finish(7, 0);
    assert!(again.bytes.get(FRAME_HEADER..) == data.get(..size));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Pairs = Vec<(Vec<u8>, Option<Vec<u8>>)>;

    fn pairs() -> impl Strategy<Value = Pairs> {
        let value = prop::option::of(prop::collection::vec(any::<u8>(), 0..60));
        prop::collection::vec((prop::collection::vec(any::<u8>(), 1..20), value), 0..8)
    }

    fn frame(pairs: &Pairs, sequence: u64, number: u64) -> Frame {
        let mut builder = FrameBuilder::with_capacity(0);
        for (key, value) in pairs {
            builder.push(key, value.as_deref());
        }
        builder.finish(sequence, number)
    }

    fn said(frame: &Frame) -> Pairs {
        frame.records().map(|record| (record.key.to_vec(), record.value.map(|value| value.to_vec()))).collect()
    }

    fn segment(frames: &[Pairs], sequence: u64, tail: &[u8]) -> Vec<u8> {
        let mut bytes = SegmentHeader { sequence, previous: 1, store: 2 }.encode().to_vec();
        for (number, pairs) in frames.iter().enumerate() {
            bytes.extend_from_slice(&frame(pairs, sequence, number as u64).bytes);
        }
        bytes.extend_from_slice(tail);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn written_frames_are_read_back(
            content in prop::collection::vec(pairs(), 0..5),
            tail in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let found = frames(&segment(&content, 7, &tail).into(), 7);
            assert_eq!(found.frames.iter().map(said).collect::<Vec<_>>(), content);
            assert!(!found.damaged);
        }

        #[test]
        fn frames_of_an_earlier_use_of_the_file_are_ignored(content in prop::collection::vec(pairs(), 1..5)) {
            let found = frames(&segment(&content, 7, &[]).into(), 8);
            assert!(found.frames.is_empty() && !found.damaged);
        }

        #[test]
        fn a_truncated_segment_yields_only_whole_frames(
            content in prop::collection::vec(pairs(), 1..5),
            cut in 0.0..1.0_f64,
        ) {
            let whole = segment(&content, 7, &[]);
            let cut = HEADER + ((whole.len() - HEADER) as f64 * cut) as usize;
            let found = frames(&Bytes::copy_from_slice(&whole[..cut]), 7);
            let said: Vec<_> = found.frames.iter().map(said).collect();
            assert_eq!(said, content[..said.len()]);
            assert!(!found.damaged);
        }

        #[test]
        fn a_changed_byte_is_detected(
            content in prop::collection::vec(pairs(), 2..5),
            at in 0.0..1.0_f64,
            xor in 1..=255_u8,
        ) {
            let mut bytes = segment(&content, 7, &[]);
            let at = HEADER + ((bytes.len() - HEADER - 1) as f64 * at) as usize;
            bytes[at] ^= xor;
            let found = frames(&bytes.into(), 7);
            let said: Vec<_> = found.frames.iter().map(said).collect();
            assert!(said.len() < content.len());
            assert_eq!(said, content[..said.len()]);
            // The last frame may have been cut short by a crash; an earlier one may not.
            assert_eq!(found.damaged, said.len() + 1 < content.len());
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
            let _any = SegmentHeader::decode(&bytes);
            let _any = frames(&bytes.into(), 0).frames.iter().map(said).count();
        }

        #[test]
        fn a_header_is_read_as_written(sequence: u64, previous: u64, store: u64, at in 0..48_usize, xor in 1..=255_u8) {
            let header = SegmentHeader { sequence, previous, store };
            let mut bytes = header.encode();
            assert_eq!(SegmentHeader::decode(&bytes), Ok(Some(header)));
            bytes[at] ^= xor;
            assert!(SegmentHeader::decode(&bytes).is_err());
        }
    }

    /// A peer with write permission can put any bytes, and a reused slot keeps old values behind the new frames.
    #[test]
    fn a_value_that_imitates_a_frame_is_not_mistaken_for_one() {
        let (sequence, store) = (7, 0x005e_ed0f_5706);
        let pairs: Pairs = vec![(b"k".to_vec(), Some(b"v".to_vec()))];
        let mut bytes = SegmentHeader { sequence, previous: 1, store }.encode().to_vec();
        bytes.extend_from_slice(&frame(&pairs, frame_seed(sequence, store), 0).bytes);
        for number in [1, 99] {
            bytes.extend_from_slice(&frame(&pairs, sequence, number).bytes);
        }
        let found = frames(&bytes.into(), frame_seed(sequence, store));
        assert!(found.frames.len() == 1 && !found.damaged);
    }

    #[test]
    fn a_frame_can_move_to_another_segment() {
        let pairs: Pairs = vec![(b"k".to_vec(), Some(b"v".to_vec())), (b"gone".to_vec(), None)];
        let moved = frame(&pairs, 1, 5).renumbered(2, 0);
        assert_eq!(moved.bytes, frame(&pairs, 2, 0).bytes);
        assert_eq!(said(&moved), pairs);
    }
}

//! The log: every acknowledged write is synced to it before redb has it.
//!
//! # Segments
//!
//! A log is a few files next to the store, its *slots*: `store.redb.log0` and so on. Each use of a slot is a *segment*
//! with a sequence number of its own, which only grows. A slot is reused once redb has the contents of its segment:
//! overwriting a file costs half as much as extending it.
//!
//! # Which frames are durable
//!
//! A frame is begun only after the previous one was synced successfully. After a failure nothing more is written to
//! that segment, and the frame whose fate is unknown becomes the first of a new segment. So *a frame proves the frame
//! before it*. Only the last frame of a log is unproven: it may exist only in the page cache. An opening therefore
//! writes the same bytes to the same place again, which is harmless, and syncs them before any reader sees them.
//!
//! Data written to blocks that failed once could be synced successfully and still be lost (see
//! [`forget`](DiskFile::forget)). So an opening makes the page cache drop a slot before it reads it, and a slot is
//! truncated to zero before a process first uses it and after a failure in it.

mod format;

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

#[cfg(any(test, fuzzing))]
pub use self::format::fuzz;
pub(super) use self::format::{Frame, FrameBuilder};
use self::format::{HEADER, SegmentHeader, frame_seed, frames};
use super::disk::{Disk, DiskFile, beside};
use super::file::DiskActivity;
use crate::storage::OpenError;

/// The maximum number of segments: the one being written, those on their way to redb, and more after failures. Without
/// a free slot, writes wait for redb.
const SLOTS: usize = 8;

/// The step in which the log grows, in bytes. The new bytes are zeros, synced with the frame that needs them. Later
/// frames overwrite them, which changes neither the file's length nor its blocks.
const STEP: usize = 1 << 20;

/// The slots, and the place of the next frame.
#[derive(Debug)]
pub(super) struct Log {
    disk: Arc<dyn Disk>,
    /// The path of the store, from which the names of the slots are derived.
    path: PathBuf,
    /// The random number that identifies the store.
    store: u64,
    next_sequence: u64,
    /// The newest segment that contains a durable frame.
    proven: u64,
    slots: Vec<Slot>,
    /// The segment being written.
    current: Option<Segment>,
}

#[derive(Debug, Default)]
struct Slot {
    file: Option<Arc<dyn DiskFile>>,
    /// Whether a segment in it is still needed.
    taken: bool,
    /// Whether all of its contents were written by this process, without a failure.
    sound: bool,
    /// Its length in bytes.
    len: u64,
}

/// A segment in use.
#[derive(Debug)]
struct Segment {
    slot: usize,
    sequence: u64,
    file: Arc<dyn DiskFile>,
    /// The offset of the next frame.
    end: u64,
    /// The length that has been written, including zeros.
    allocated: u64,
    frames: u64,
}

/// The segments that contain one table, to be released once redb has it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Segments {
    slots: Vec<usize>,
    /// The highest sequence among them.
    pub(super) last: u64,
}

/// Why a frame is not in the log.
#[derive(Debug)]
pub(super) enum AppendError {
    /// All slots are in use.
    Full,
    /// Nothing of it is in the log, so the caller can be told that it was not written.
    NotWritten(io::Error),
    /// It is unknown how much of it is on the disk. The frame goes into the next segment, before anything else.
    Unknown(io::Error),
}

/// A frame that was not made durable, and why.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) error: AppendError,
    pub(super) frame: Frame,
}

/// What an opening found in the log.
#[derive(Debug)]
pub(super) struct Replay {
    /// The log, ready for the next frame.
    pub(super) log: Log,
    /// The frames that redb does not have, in order.
    pub(super) frames: Vec<Frame>,
    pub(super) segments: Segments,
    last: Option<LastFrame>,
}

/// The last frame, which no later one proves.
#[derive(Debug)]
struct LastFrame {
    slot: usize,
    header: SegmentHeader,
    offset: u64,
    frame: Frame,
}

impl LastFrame {
    fn new(header: &SegmentHeader, slot: usize, frames: &[Frame]) -> Option<Self> {
        let (last, before) = frames.split_last()?;
        let offset = before.iter().fold(HEADER as u64, |end, frame| end + frame.bytes.len() as u64);
        Some(Self { slot, header: *header, offset, frame: last.clone() })
    }

    /// Makes sure that the frame is on the disk.
    fn prove(&self, file: &dyn DiskFile) -> io::Result<()> {
        file.write(self.offset, &self.frame.bytes)?;
        file.write(0, &self.header.encode())?;
        file.sync()
    }
}

impl Log {
    /// Reads the log of the store `store` at `path`, of which redb has all segments up to `applied`.
    pub(super) fn replay(
        disk: &Arc<dyn Disk>,
        path: &Path,
        store: u64,
        applied: u64,
        activity: &DiskActivity,
    ) -> Result<Replay, OpenError> {
        // The previous process may have been killed between creating a file (the store or a slot) and syncing its name.
        activity.watch(|| disk.sync_names(path)).map_err(|source| OpenError::io(path, source))?;
        let replay = Self::read(disk, path, store, applied, activity)?;
        if let Some(last) = &replay.last {
            let file = replay.log.slots.get(last.slot).and_then(|slot| slot.file.as_ref());
            let proved = file.map_or(Ok(()), |file| activity.watch(|| last.prove(&**file)));
            proved.map_err(|source| OpenError::io(&slot_path(path, last.slot), source))?;
        }
        Ok(replay)
    }

    /// How many writes are in the log but not in redb. Nothing is written.
    pub(super) fn inspect(disk: &Arc<dyn Disk>, path: &Path, store: u64, applied: u64) -> Result<u64, OpenError> {
        let replay = Self::read(disk, path, store, applied, &DiskActivity::default())?;
        Ok(replay.frames.iter().map(|frame| u64::from(frame.records)).sum())
    }

    fn read(
        disk: &Arc<dyn Disk>,
        path: &Path,
        store: u64,
        applied: u64,
        activity: &DiskActivity,
    ) -> Result<Replay, OpenError> {
        let mut slots = Vec::with_capacity(SLOTS);
        let mut live = Vec::new();
        let mut newest = applied;
        for slot in 0..SLOTS {
            let at = slot_path(path, slot);
            let io = |source| OpenError::io(&at, source);
            let Some(file) = activity.watch(|| open_slot(&**disk, &at)).map_err(io)? else {
                slots.push(Slot::default());
                continue;
            };
            let len = file.len().map_err(io)?;
            slots.push(Slot { file: Some(file.clone()), len, ..Slot::default() });
            let damaged = |reason: &str| OpenError::Damaged { path: at.clone(), reason: reason.into() };
            let header = activity.watch(|| read_slot(&*file, HEADER)).map_err(io)?;
            let Some(header) = SegmentHeader::decode(&header).map_err(damaged)? else { continue };
            if header.store != store {
                return Err(damaged("it belongs to another store"));
            }
            newest = newest.max(header.sequence);
            if header.sequence <= applied {
                continue;
            }
            let content = activity.watch(|| read_slot(&*file, usize::MAX)).map_err(io)?;
            let found = frames(&content, frame_seed(header.sequence, store));
            if found.damaged {
                return Err(damaged("a part in the middle of the log does not match its checksum"));
            }
            if !found.frames.is_empty() {
                live.push((header, slot, found.frames));
            }
        }
        live.sort_by_key(|(header, ..)| header.sequence);
        let last = live.last().and_then(|(header, slot, frames)| LastFrame::new(header, *slot, frames));
        let mut log = Self {
            disk: disk.clone(),
            path: path.to_owned(),
            store,
            next_sequence: newest + 1,
            proven: applied,
            slots,
            current: None,
        };
        let mut segments = Segments::default();
        let mut all_frames = Vec::new();
        let mut known = vec![applied];
        for (header, slot, frames) in live {
            if header.previous > applied && !known.contains(&header.previous) {
                let reason = format!("segment {} of its log is missing", header.previous);
                return Err(OpenError::Damaged { path: path.to_owned(), reason });
            }
            known.push(header.sequence);
            log.proven = header.sequence;
            log.take(slot, true);
            segments.add(slot, header.sequence);
            all_frames.extend(frames);
        }
        Ok(Replay { log, frames: all_frames, segments, last })
    }

    /// Makes the records of `frame` durable, as the next frame of the current segment or the first of a new one. On
    /// success `segments` includes that segment.
    pub(super) fn append(&mut self, frame: FrameBuilder, segments: &mut Segments) -> Result<Frame, Refused> {
        let begun = if self.current.is_some() { Ok(()) } else { self.begin() };
        let (sequence, number) = self.current.as_ref().map_or((0, 0), |segment| (segment.sequence, segment.frames));
        let frame = frame.finish(frame_seed(sequence, self.store), number);
        let written = begun.and_then(|()| self.write(&frame, segments));
        match written {
            Ok(()) => Ok(frame),
            Err(error) => Err(Refused { error, frame }),
        }
    }

    /// Writes a frame whose fate is unknown to a new segment and makes it durable there.
    pub(super) fn append_again(&mut self, frame: &Frame, segments: &mut Segments) -> Result<Frame, AppendError> {
        self.begin()?;
        let (sequence, number) = self.current.as_ref().map_or((0, 0), |segment| (segment.sequence, segment.frames));
        let frame = frame.renumbered(frame_seed(sequence, self.store), number);
        self.write(&frame, segments)?;
        Ok(frame)
    }

    /// By how many bytes the files grow if `bytes` more are written.
    pub(super) fn growth(&self, bytes: u64) -> u64 {
        let lies_ready = match &self.current {
            Some(segment) => segment.allocated.saturating_sub(segment.end),
            None => {
                let free = self.slots.iter().find(|slot| !slot.taken).filter(|slot| slot.sound);
                free.map_or(0, |slot| slot.len).saturating_sub(HEADER as u64)
            }
        };
        bytes.saturating_sub(lies_ready).next_multiple_of(STEP as u64)
    }

    /// Extends the current segment for `bytes` more, to find out whether the disk has the room.
    pub(super) fn reserve(&mut self, bytes: u64) -> Result<(), AppendError> {
        if self.current.is_none() {
            self.begin()?;
        }
        let Some(segment) = &mut self.current else { return Err(AppendError::Full) };
        segment.grow(segment.end + bytes)
    }

    /// Ends the current segment: the next frame begins a new one.
    pub(super) fn end_segment(&mut self) {
        let Some(segment) = self.current.take() else { return };
        if let Some(slot) = self.slots.get_mut(segment.slot) {
            slot.len = segment.allocated;
            slot.taken = segment.frames > 0;
        }
    }

    /// Frees the disk space of free slots, except for what the next writes need at once.
    pub(super) fn shrink(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| !slot.taken) {
            let keep = if slot.sound { STEP as u64 } else { 0 };
            if slot.len > keep
                && let Some(file) = &slot.file
            {
                slot.sound = file.set_len(keep).is_ok();
                if slot.sound {
                    slot.len = keep;
                }
            }
        }
    }

    /// Whether another segment can begin.
    pub(super) fn has_free_slot(&self) -> bool {
        self.slots.iter().any(|slot| !slot.taken)
    }

    /// Frees the slots of `segments`, whose contents are in redb.
    pub(super) fn release(&mut self, segments: &Segments) {
        for &slot in &segments.slots {
            self.take(slot, false);
        }
    }

    /// Whether every file that is still needed is where the next opening looks for it.
    pub(super) fn is_all_in_place(&mut self) -> io::Result<bool> {
        if !self.is_in_place()? {
            return Ok(false);
        }
        let current = self.current.as_ref().map(|segment| segment.slot);
        for (number, slot) in self.slots.iter().enumerate().filter(|(_, slot)| slot.taken) {
            if let Some(file) = &slot.file
                && current != Some(number)
                && !file.is_at(&slot_path(&self.path, number))?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the file of the current segment is still where the next opening looks for it. If it is gone but the
    /// segment is empty, the segment is abandoned.
    pub(super) fn is_in_place(&mut self) -> io::Result<bool> {
        let Some(segment) = &self.current else { return Ok(true) };
        let in_place = segment.file.is_at(&slot_path(&self.path, segment.slot))?;
        if !in_place && segment.frames == 0 {
            self.end_segment();
            return Ok(true);
        }
        Ok(in_place)
    }

    /// Removes all slots, once redb has everything.
    pub(super) fn remove(self) {
        for (slot, state) in self.slots.iter().enumerate() {
            // If one remains, the next opening finds that redb already has it.
            if state.file.is_some() {
                let _stays = self.disk.remove(&slot_path(&self.path, slot));
            }
        }
    }

    fn take(&mut self, slot: usize, taken: bool) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.taken = taken;
        }
    }

    /// Takes a free slot for a new segment. Nothing is written yet.
    fn begin(&mut self) -> Result<(), AppendError> {
        self.end_segment();
        let path = self.path.clone();
        let Some((slot, state)) = self.slots.iter_mut().enumerate().find(|(_, slot)| !slot.taken) else {
            return Err(AppendError::Full);
        };
        let in_place = match &state.file {
            // A slot that was removed is created again.
            Some(file) if file.is_at(&slot_path(&path, slot)).map_err(AppendError::NotWritten)? => Some(file.clone()),
            _ => None,
        };
        let file = match in_place {
            Some(file) => file,
            None => {
                let at = slot_path(&path, slot);
                let file = self.disk.open(&at, true).map_err(AppendError::NotWritten)?;
                // A power cut may lose an unsynced name, and with it acknowledged writes.
                self.disk.sync_names(&at).map_err(AppendError::NotWritten)?;
                (state.file, state.sound) = (Some(file.clone()), false);
                file
            }
        };
        if !state.sound {
            file.set_len(0).map_err(AppendError::NotWritten)?;
            (state.sound, state.len) = (true, 0);
        }
        let allocated = state.len;
        state.taken = true;
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.current = Some(Segment { slot, sequence, file, end: HEADER as u64, allocated, frames: 0 });
        Ok(())
    }

    fn write(&mut self, frame: &Frame, segments: &mut Segments) -> Result<(), AppendError> {
        let Some(segment) = &mut self.current else { return Err(AppendError::Full) };
        let end = segment.end + frame.bytes.len() as u64;
        let header = SegmentHeader { sequence: segment.sequence, previous: self.proven, store: self.store };
        let outcome = segment.write(frame, end, &header);
        match outcome {
            Ok(()) => {
                segment.end = end;
                segment.frames += 1;
                if segment.frames == 1 {
                    segments.add(segment.slot, segment.sequence);
                    self.proven = segment.sequence;
                }
                Ok(())
            }
            Err(AppendError::NotWritten(error)) => Err(AppendError::NotWritten(error)),
            Err(error) => {
                if let Some(slot) = self.slots.get_mut(segment.slot) {
                    slot.sound = false;
                }
                // Nothing may follow the frame whose fate is unknown.
                self.end_segment();
                Err(error)
            }
        }
    }
}

impl Segment {
    fn write(&mut self, frame: &Frame, end: u64, header: &SegmentHeader) -> Result<(), AppendError> {
        // This may find the disk full, so it comes before any part of the frame is written.
        self.grow(end)?;
        self.file.write(self.end, &frame.bytes).map_err(AppendError::Unknown)?;
        if self.frames == 0 {
            // The header comes last: without it the file has no content.
            self.file.write(0, &header.encode()).map_err(AppendError::Unknown)?;
        }
        self.file.sync().map_err(AppendError::Unknown)
    }

    fn grow(&mut self, end: u64) -> Result<(), AppendError> {
        while self.allocated < end {
            self.file.write(self.allocated, &vec![0; STEP]).map_err(AppendError::NotWritten)?;
            self.allocated += STEP as u64;
        }
        Ok(())
    }
}

impl Segments {
    fn add(&mut self, slot: usize, sequence: u64) {
        self.slots.push(slot);
        self.last = self.last.max(sequence);
    }
}

fn slot_path(store: &Path, slot: usize) -> PathBuf {
    beside(store, &format!("log{slot}"))
}

/// Whether a store at `path` has a log that is not empty, even if the store itself is missing.
pub(super) fn exists(disk: &dyn Disk, path: &Path) -> io::Result<bool> {
    for slot in 0..SLOTS {
        if let Some(file) = open_slot(disk, &slot_path(path, slot))? {
            // A header that cannot be decoded counts as well.
            if !matches!(SegmentHeader::decode(&read_slot(&*file, HEADER)?), Ok(None)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Opens a slot as it is on the disk; `None` if it does not exist.
fn open_slot(disk: &dyn Disk, at: &Path) -> io::Result<Option<Arc<dyn DiskFile>>> {
    match disk.open(at, false) {
        Ok(file) => file.forget().map(|()| Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads at most the first `most` bytes of a slot.
fn read_slot(file: &dyn DiskFile, most: usize) -> io::Result<Bytes> {
    let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
    let mut content = vec![0; len.min(most)];
    file.read(0, &mut content, true)?;
    Ok(content.into())
}

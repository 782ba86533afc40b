//! The log: what is acknowledged is in it, synced, before redb has it.
//!
//! # Segments
//!
//! A log is a few files beside the store, its *slots*: `store.redb.log0` and so on. Each use of a slot is a *segment*
//! with a sequence number of its own, which only grows. A slot is written anew when redb has what its segment held:
//! overwriting costs half of what it costs to let a file grow.
//!
//! # Which frames are durable
//!
//! A frame is begun only after the one before was synced with success, and after a failure nothing more is written to
//! its segment: another segment begins, with the frame whose fate is unknown. So *a frame proves the frame before it*.
//! Only the last frame of a log proves nothing: it may be in the page cache alone. An opening therefore writes it again
//! before anybody reads it, the same bytes to the same place, which harms nothing that is there, and syncs them.
//!
//! What was written to blocks that failed once would be synced with success and lost all the same (see
//! [`forget`](DiskFile::forget)). So an opening has the page cache drop a slot before it reads it, and a slot is cut to
//! nothing before its first use by a process and after a failure in it.

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

/// How many segments there may be: the one that is written, those of the state that goes to redb, and as many more as
/// failures need. Without a free one, writes wait for redb.
const SLOTS: usize = 8;

/// How far the log grows at a time, in bytes of zeros that are synced with the frame that needs the room. Later frames
/// then overwrite, and leave the file's length and blocks alone.
const STEP: usize = 1 << 20;

/// The slots, and where the next frame goes.
#[derive(Debug)]
pub(super) struct Log {
    disk: Arc<dyn Disk>,
    /// Of the store beside which the slots are.
    path: PathBuf,
    /// Which store it is.
    store: u64,
    next_sequence: u64,
    /// The newest segment that holds something durable.
    proven: u64,
    slots: Vec<Slot>,
    /// The segment that is written, by its slot.
    current: Option<Segment>,
}

#[derive(Debug, Default)]
struct Slot {
    file: Option<Arc<dyn DiskFile>>,
    /// Whether a segment in it is still needed.
    taken: bool,
    /// Whether all that is in it was written by this process, without a failure.
    sound: bool,
    /// How long it is.
    len: u64,
}

/// A segment in use.
#[derive(Debug)]
struct Segment {
    slot: usize,
    sequence: u64,
    file: Arc<dyn DiskFile>,
    /// Where the next frame goes.
    end: u64,
    /// How far the file was written, zeros included.
    allocated: u64,
    frames: u64,
}

/// The segments that hold one state of the store, to be given back when redb has it.
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
    /// Nothing of it is in the log: the caller may be told that it was not written.
    NotWritten(io::Error),
    /// Nobody knows how much of it is on the disk. The frame goes into the next segment, before anything else.
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
    /// Where the log goes on.
    pub(super) log: Log,
    /// What redb has not, in order.
    pub(super) frames: Vec<Frame>,
    pub(super) segments: Segments,
    last: Option<LastFrame>,
}

/// The frame that no other one proves.
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

    /// Makes sure that it is on the disk.
    fn prove(&self, file: &dyn DiskFile) -> io::Result<()> {
        file.write(self.offset, &self.frame.bytes)?;
        file.write(0, &self.header.encode())?;
        file.sync()
    }
}

impl Log {
    /// Reads the log of the store `store` at `path`, whose segments up to `applied` redb has.
    pub(super) fn replay(
        disk: &Arc<dyn Disk>,
        path: &Path,
        store: u64,
        applied: u64,
        activity: &DiskActivity,
    ) -> Result<Replay, OpenError> {
        // The process before may have been killed between making a name, the store's or a slot's, and its sync.
        activity.watch(|| disk.sync_names(path)).map_err(|source| OpenError::io(path, source))?;
        let replay = Self::read(disk, path, store, applied, activity)?;
        if let Some(last) = &replay.last {
            let file = replay.log.slots.get(last.slot).and_then(|slot| slot.file.as_ref());
            let proved = file.map_or(Ok(()), |file| activity.watch(|| last.prove(&**file)));
            proved.map_err(|source| OpenError::io(&slot_path(path, last.slot), source))?;
        }
        Ok(replay)
    }

    /// How many writes the log has that redb has not. Nothing is written.
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
                return Err(damaged("it is the log of another store"));
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
                let reason = format!("the part {} of its log is missing", header.previous);
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

    /// Makes the records of `frame` durable, as the next frame of the current segment or the first one of a new segment.
    /// On success `segments` holds that segment.
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

    /// Makes a frame whose fate is unknown durable, in a new segment.
    pub(super) fn append_again(&mut self, frame: &Frame, segments: &mut Segments) -> Result<Frame, AppendError> {
        self.begin()?;
        let (sequence, number) = self.current.as_ref().map_or((0, 0), |segment| (segment.sequence, segment.frames));
        let frame = frame.renumbered(frame_seed(sequence, self.store), number);
        self.write(&frame, segments)?;
        Ok(frame)
    }

    /// How much larger `bytes` more make the files.
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

    /// Makes room for `bytes` more in the current segment, to see whether there is any.
    pub(super) fn reserve(&mut self, bytes: u64) -> Result<(), AppendError> {
        if self.current.is_none() {
            self.begin()?;
        }
        let Some(segment) = &mut self.current else { return Err(AppendError::Full) };
        segment.grow(segment.end + bytes)
    }

    /// The next frame begins a new segment.
    pub(super) fn end_segment(&mut self) {
        let Some(segment) = self.current.take() else { return };
        if let Some(slot) = self.slots.get_mut(segment.slot) {
            slot.len = segment.allocated;
            slot.taken = segment.frames > 0;
        }
    }

    /// Gives back what free slots took on the disk, but for what the next writes need at once.
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

    /// What `segments` hold is in redb: their slots are free.
    pub(super) fn release(&mut self, segments: &Segments) {
        for &slot in &segments.slots {
            self.take(slot, false);
        }
    }

    /// Whether all that is still needed is where the next opening looks for it.
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

    /// Whether what the current segment holds is still where the next opening looks for it. One that holds nothing yet
    /// is given up when its file is gone.
    pub(super) fn is_in_place(&mut self) -> io::Result<bool> {
        let Some(segment) = &self.current else { return Ok(true) };
        let in_place = segment.file.is_at(&slot_path(&self.path, segment.slot))?;
        if !in_place && segment.frames == 0 {
            self.end_segment();
            return Ok(true);
        }
        Ok(in_place)
    }

    /// Removes all slots: redb has everything.
    pub(super) fn remove(self) {
        for (slot, state) in self.slots.iter().enumerate() {
            // One that stays is found to be applied by the next opening.
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
            // A slot that somebody removed is made again.
            Some(file) if file.is_at(&slot_path(&path, slot)).map_err(AppendError::NotWritten)? => Some(file.clone()),
            _ => None,
        };
        let file = match in_place {
            Some(file) => file,
            None => {
                let at = slot_path(&path, slot);
                let file = self.disk.open(&at, true).map_err(AppendError::NotWritten)?;
                // Before anything is promised: a name that is not synced may go in a power cut.
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
        // What may find the disk full comes first, while nothing of the frame is there.
        self.grow(end)?;
        self.file.write(self.end, &frame.bytes).map_err(AppendError::Unknown)?;
        if self.frames == 0 {
            // The header comes last: without it the file says nothing.
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

/// Whether a log in which there is something lies beside the store at `path`, or where it was.
pub(super) fn exists(disk: &dyn Disk, path: &Path) -> io::Result<bool> {
    for slot in 0..SLOTS {
        if let Some(file) = open_slot(disk, &slot_path(path, slot))? {
            // What is there and cannot be read is something, too.
            if !matches!(SegmentHeader::decode(&read_slot(&*file, HEADER)?), Ok(None)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// A slot as the disk has it.
fn open_slot(disk: &dyn Disk, at: &Path) -> io::Result<Option<Arc<dyn DiskFile>>> {
    match disk.open(at, false) {
        Ok(file) => file.forget().map(|()| Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The beginning of a slot, or all of it.
fn read_slot(file: &dyn DiskFile, most: usize) -> io::Result<Bytes> {
    let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
    let mut content = vec![0; len.min(most)];
    file.read(0, &mut content, true)?;
    Ok(content.into())
}

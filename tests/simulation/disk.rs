//! A disk in memory that fails, tears writes and loses pages on command, with the semantics of Linux's page cache.
//!
//! A file has two states: the contents of the *medium*, and those of the *cache*. Calls see only the cache. Changes
//! reach the medium with a sync, or at any time before it, page by page and in any order. Names are cached too. Their
//! changes reach the medium in the order in which they were made, as with ext4's journal.
//!
//! Where file systems differ, this one behaves like the least friendly of them: syncing a file does not make its name
//! durable, and a length may be durable before the data, which then reads as zeros. A page that was never on the medium
//! and whose first sync fails may be *stuck*. As on ext4, which caches a block for it that its extent tree marks as
//! unwritten, it can be written again and synced successfully any number of times, but reads as zeros as soon as the
//! cache drops it. Only folders are friendlier than in reality: they are not simulated, so none can be lost.
//!
//! All randomness comes from one seed: the same calls on a disk with the same seed have the same outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug, Formatter};
use std::io::{self, ErrorKind};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::storage::local::disk::{Disk, DiskFile, folder};

/// The unit of the cache, in bytes.
const PAGE: usize = 4096;

/// The unit that the medium writes entirely or not at all, in bytes.
const SECTOR: usize = 512;

/// Linux's error numbers.
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// The free space on a disk without a capacity: large, but no sum with it overflows.
const PLENTY: u64 = u64::MAX / 2;

/// The probabilities (0.0 to 1.0) that calls fail, and when the power fails. By default nothing fails.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// Opening gives EIO.
    pub(super) open_error: f64,
    /// Reading from the medium gives EIO. Cached data can always be read.
    pub(super) read_error: f64,
    /// Writing gives EIO or ENOSPC, and none of the data reaches the cache.
    pub(super) write_error: f64,
    /// Writing gives ENOSPC after some of the data has reached the cache.
    pub(super) short_write: f64,
    /// Setting the length gives EIO or ENOSPC, and the length stays the same.
    pub(super) set_len_error: f64,
    /// Syncing gives EIO or ENOSPC. Some of the data is then on the medium, and all of it is marked clean.
    pub(super) sync_error: f64,
    /// Renaming, removing and syncing names give EIO. A failed sync may have made some of the first changes durable.
    pub(super) names_error: f64,
    /// The power fails after this many more calls. The next call stops in the middle, and it and all later ones fail
    /// until [`SimDisk::power_cut`] or [`SimDisk::restart`].
    pub(super) stop_after: Option<u64>,
}

/// A simulated disk, as one run of a process sees it. Clones share the disk.
///
/// A run ends with [`power_cut`](Self::power_cut) or [`restart`](Self::restart), which return the disk for the next
/// run. All handles of the previous run are dead from then on, so a thread that it left behind does no harm.
#[derive(Clone)]
pub(super) struct SimDisk {
    state: Arc<Mutex<State>>,
    run: u64,
}

impl SimDisk {
    /// An empty disk.
    pub(super) fn new(seed: u64) -> Self {
        let state = State {
            rng: SmallRng::seed_from_u64(seed),
            files: BTreeMap::new(),
            next_id: 0,
            names: Names::default(),
            faults: Faults::default(),
            capacity: None,
            calls: 0,
            late_reports: 0,
            stops_at: None,
            trace: 0,
            run: 0,
            stopped: false,
        };
        Self { state: Arc::new(Mutex::new(state)), run: 0 }
    }

    /// Makes calls fail like this from now on, also in later runs; `stop_after` applies only to this run.
    pub(super) fn set_faults(&self, faults: Faults) {
        let mut state = self.state();
        state.faults = faults;
        state.stops_at = faults.stop_after.map(|calls| state.calls + calls);
    }

    /// Sets the maximum total size of all files, in bytes, each rounded up to whole pages. Holes count too: a page is
    /// allocated as soon as the length covers it.
    pub(super) fn set_capacity(&self, capacity: Option<u64>) {
        self.state().capacity = capacity;
    }

    /// Writes each dirty page to the medium with probability `p`, as the kernel does in the background. If syncs fail,
    /// so may this; the next sync reports it, in this process or another.
    pub(super) fn write_back(&self, p: f64) {
        let State { files, rng, faults, .. } = &mut *self.state();
        for file in files.values_mut() {
            let is_dirty = file.pages.values().any(|page| page.dirty);
            if is_dirty && faults.sync_error > 0.0 && rng.random_bool(faults.sync_error) {
                file.fail_sync(rng);
                file.unreported = true;
            } else {
                file.write_pages(|| rng.random_bool(p));
            }
        }
    }

    /// Drops each clean page from the cache with probability `p`, as the kernel does when memory is short. Later reads
    /// of it come from the medium.
    pub(super) fn evict(&self, p: f64) {
        let State { files, rng, .. } = &mut *self.state();
        files.values_mut().for_each(|file| file.pages.retain(|_, page| page.dirty || !rng.random_bool(p)));
    }

    /// Cuts the power and restores it. Changes that were not durable survive completely, partly, or not at all.
    #[must_use = "the previous disk is dead"]
    pub(super) fn power_cut(&self) -> Self {
        let mut state = self.state();
        let State { files, names, rng, .. } = &mut *state;
        names.lose_power(rng);
        files.values_mut().for_each(|file| file.lose_power(rng));
        state.next_run();
        Self { state: self.state.clone(), run: state.run }
    }

    /// Ends the process but not the kernel: the cache stays, and the locks are released.
    #[must_use = "the previous disk is dead"]
    pub(super) fn restart(&self) -> Self {
        let mut state = self.state();
        state.next_run();
        Self { state: self.state.clone(), run: state.run }
    }

    /// Changes a byte of a file on the medium, and in the cache if it is cached.
    pub(super) fn damage(&self, path: &Path, offset: u64, xor: u8) {
        let mut state = self.state();
        let id = state.names.cached[path];
        state.file(id).damage(offset, xor);
    }

    /// The length of a file, if it exists.
    pub(super) fn len_of(&self, path: &Path) -> Option<u64> {
        let state = self.state();
        state.names.cached.get(path).map(|id| state.files[id].len)
    }

    /// The names of all files.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.state().names.cached.keys().cloned().collect()
    }

    /// The number of calls so far that do I/O, without those that failed because the power was off.
    pub(super) fn calls(&self) -> u64 {
        self.state().calls
    }

    /// How many syncs failed only because they reported an earlier failure.
    pub(super) fn late_reports(&self) -> u64 {
        self.state().late_reports
    }

    /// A hash of the calls that do I/O. Stories with the same hash made the same calls in the same order.
    pub(super) fn trace_hash(&self) -> u64 {
        self.state().trace
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Begins a call on the name `path`.
    fn begin(&self, call: Call, path: &Path) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.begin(self.run, call)?;
        state.note_path(path);
        Ok(state)
    }
}

impl Debug for SimDisk {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").field("run", &self.run).finish_non_exhaustive()
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.begin(Call::Open, path)?;
        if state.chance(|faults| faults.open_error) {
            return Err(io_error());
        }
        let file = match state.names.cached.get(path) {
            Some(&file) => file,
            // Even a new file needs some space.
            None if create && state.capacity.is_some() && state.room() < PAGE as u64 => return Err(disk_full()),
            None if create => state.create(path),
            None => return Err(ErrorKind::NotFound.into()),
        };
        state.file(file).handles += 1;
        let handle = state.new_id();
        Ok(Arc::new(SimFile { state: self.state.clone(), run: self.run, file, handle }))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.state();
        state.check_power(self.run)?;
        Ok(state.names.cached.contains_key(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        assert_eq!(folder(from), folder(to), "renaming across folders is not simulated");
        let mut state = self.begin(Call::Rename, from)?;
        state.note_path(to);
        state.change_name(NameChange::Rename { from: from.to_owned(), to: to.to_owned() })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.begin(Call::Remove, path)?;
        state.change_name(NameChange::Remove { path: path.to_owned() })
    }

    fn sync_names(&self, path: &Path) -> io::Result<()> {
        let mut state = self.begin(Call::SyncNames, path)?;
        let fails = state.chance(|faults| faults.names_error);
        let State { names, rng, .. } = &mut *state;
        if fails {
            names.fail_sync(folder(path), rng);
            return Err(io_error());
        }
        names.sync(folder(path));
        state.forget_unreachable();
        Ok(())
    }
}

/// An open file of a [`SimDisk`].
struct SimFile {
    state: Arc<Mutex<State>>,
    /// The run that opened it.
    run: u64,
    file: FileId,
    /// The number of the handle, for the lock.
    handle: u64,
}

impl SimFile {
    fn begin(&self, call: Call, offset: u64, len: u64) -> io::Result<MutexGuard<'_, State>> {
        let mut state = lock(&self.state);
        state.begin(self.run, call)?;
        [self.file, offset, len].into_iter().for_each(|word| state.note(word));
        Ok(state)
    }

    /// The state, for a call that does no I/O.
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = lock(&self.state);
        state.check_power(self.run)?;
        Ok(state)
    }
}

impl Debug for SimFile {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("run", &self.run).field("file", &self.file).finish_non_exhaustive()
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.file(self.file).len)
    }

    fn read(&self, offset: u64, out: &mut [u8], wait: bool) -> io::Result<()> {
        let mut state = self.begin(Call::Read, offset, out.len() as u64)?;
        let end = offset.saturating_add(out.len() as u64);
        if !out.is_empty() && end > state.file(self.file).len {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if !state.file(self.file).has_cached(offset, end) {
            if !wait {
                return Err(ErrorKind::WouldBlock.into());
            }
            if state.chance(|faults| faults.read_error) {
                return Err(io_error());
            }
        }
        state.file(self.file).read(offset, out);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        if state.power(self.run) == Power::Failing {
            // A process can be killed in the middle of a write. The cache then keeps the first part.
            state.write_some(self.file, offset, data);
        }
        drop(state);
        self.begin(Call::Write, offset, data.len() as u64)?.write(self.file, offset, data)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.begin(Call::SetLen, 0, len)?;
        if state.chance(|faults| faults.set_len_error) {
            return Err(state.io_error_or_disk_full());
        }
        if len > state.file(self.file).len && len > state.longest(self.file) {
            return Err(disk_full());
        }
        state.file(self.file).set_len(len);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.begin(Call::Sync, 0, 0)?;
        let failed_before = mem::take(&mut state.file(self.file).unreported);
        if !state.chance(|faults| faults.sync_error) {
            state.file(self.file).sync();
            state.late_reports += u64::from(failed_before);
            return if failed_before { Err(state.io_error_or_disk_full()) } else { Ok(()) };
        }
        let State { files, rng, .. } = &mut *state;
        files.get_mut(&self.file).unwrap().fail_sync(rng);
        Err(state.io_error_or_disk_full())
    }

    fn forget(&self) -> io::Result<()> {
        self.sync()?;
        let mut state = self.begin(Call::Forget, 0, 0)?;
        state.file(self.file).pages.retain(|_, page| page.dirty);
        Ok(())
    }

    fn try_lock(&self) -> io::Result<bool> {
        let mut state = self.state()?;
        Ok(*state.file(self.file).lock.get_or_insert(self.handle) == self.handle)
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        Ok(self.state()?.names.cached.get(path) == Some(&self.file))
    }

    fn room(&self) -> io::Result<u64> {
        Ok(self.state()?.room())
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        // The end of a run has already closed its files.
        if state.run == self.run {
            state.close(self.file, self.handle);
        }
    }
}

/// The identity of a file, like an inode number.
type FileId = u64;

/// The calls that do I/O, as recorded in the trace.
#[derive(Clone, Copy)]
enum Call {
    Open = 1,
    Read,
    Write,
    SetLen,
    Sync,
    Rename,
    Remove,
    SyncNames,
    Forget,
}

#[derive(PartialEq)]
enum Power {
    On,
    /// It fails during this call.
    Failing,
    Off,
}

/// The state of a disk.
struct State {
    rng: SmallRng,
    files: BTreeMap<FileId, SimInode>,
    next_id: u64,
    names: Names,
    faults: Faults,
    capacity: Option<u64>,
    calls: u64,
    late_reports: u64,
    /// The number of calls at which the power fails.
    stops_at: Option<u64>,
    trace: u64,
    /// The number of power cuts and restarts so far.
    run: u64,
    /// Whether the power has failed by itself in this run.
    stopped: bool,
}

impl State {
    fn power(&mut self, run: u64) -> Power {
        if self.stopped || run != self.run {
            return Power::Off;
        }
        if self.stops_at.is_none_or(|at| self.calls < at) {
            return Power::On;
        }
        self.stopped = true;
        Power::Failing
    }

    fn check_power(&mut self, run: u64) -> io::Result<()> {
        if self.power(run) == Power::On { Ok(()) } else { Err(power_is_off()) }
    }

    fn begin(&mut self, run: u64, call: Call) -> io::Result<()> {
        self.check_power(run)?;
        self.calls += 1;
        self.note(call as u64);
        Ok(())
    }

    /// Adds a word to the trace.
    fn note(&mut self, word: u64) {
        self.trace = (self.trace.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn note_path(&mut self, path: &Path) {
        path.as_os_str().as_encoded_bytes().iter().for_each(|&byte| self.note(byte.into()));
    }

    /// Decides randomly whether an event of this probability happens now.
    fn chance(&mut self, probability: impl FnOnce(&Faults) -> f64) -> bool {
        let p = probability(&self.faults);
        p > 0.0 && self.rng.random_bool(p)
    }

    fn io_error_or_disk_full(&mut self) -> io::Error {
        if self.rng.random() { io_error() } else { disk_full() }
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// A file that is open or has a name.
    fn file(&mut self, id: FileId) -> &mut SimInode {
        self.files.get_mut(&id).unwrap()
    }

    fn create(&mut self, path: &Path) -> FileId {
        let id = self.new_id();
        self.files.insert(id, SimInode::default());
        self.names.change(NameChange::Add { path: path.to_owned(), file: id });
        id
    }

    fn change_name(&mut self, change: NameChange) -> io::Result<()> {
        if self.chance(|faults| faults.names_error) {
            return Err(io_error());
        }
        if !self.names.cached.contains_key(change.path()) {
            return Err(ErrorKind::NotFound.into());
        }
        self.names.change(change);
        self.forget_unreachable();
        Ok(())
    }

    fn write(&mut self, file: FileId, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.chance(|faults| faults.write_error) {
            return Err(self.io_error_or_disk_full());
        }
        if self.chance(|faults| faults.short_write) {
            self.write_some(file, offset, data);
            return Err(disk_full());
        }
        let fits = self.fits(file, offset, data.len());
        self.file(file).write(offset, &data[..fits]);
        if fits == data.len() { Ok(()) } else { Err(disk_full()) }
    }

    /// Writes some of the bytes, but not all.
    fn write_some(&mut self, file: FileId, offset: u64, data: &[u8]) {
        let some = self.rng.random_range(0..data.len().max(1)).min(self.fits(file, offset, data.len()));
        // The kernel copies page by page, and is not interrupted within one.
        let end = (offset + some as u64) / PAGE as u64 * PAGE as u64;
        self.file(file).write(offset, &data[..end.saturating_sub(offset) as usize]);
    }

    /// How many of the bytes fit on the disk.
    fn fits(&mut self, file: FileId, offset: u64, len: usize) -> usize {
        if self.capacity.is_none() {
            return len;
        }
        usize::try_from(self.longest(file).saturating_sub(offset)).unwrap_or(usize::MAX).min(len)
    }

    /// The maximum length of a file, given the free space.
    fn longest(&mut self, file: FileId) -> u64 {
        let whole_pages = self.room() / PAGE as u64 * PAGE as u64;
        self.file(file).allocated() + whole_pages
    }

    fn room(&self) -> u64 {
        let Some(capacity) = self.capacity else { return PLENTY };
        let allocated: u64 = self.names.cached.values().map(|id| self.files[id].allocated()).sum();
        capacity.saturating_sub(allocated)
    }

    fn close(&mut self, file: FileId, handle: u64) {
        let file = self.file(file);
        file.handles -= 1;
        file.lock = file.lock.filter(|&holder| holder != handle);
        if file.handles == 0 {
            self.forget_unreachable();
        }
    }

    /// Ends the run of the process, and with it all of its handles and locks.
    fn next_run(&mut self) {
        self.run += 1;
        self.stopped = false;
        self.stops_at = None;
        for file in self.files.values_mut() {
            file.handles = 0;
            file.lock = None;
        }
        self.forget_unreachable();
    }

    /// Drops the files that are not open, have no name, and could not get one back through a power cut.
    fn forget_unreachable(&mut self) {
        let named = self.names.all_files();
        self.files.retain(|id, file| file.handles > 0 || named.contains(id));
    }
}

/// The names of the files.
#[derive(Default)]
struct Names {
    cached: BTreeMap<PathBuf, FileId>,
    durable: BTreeMap<PathBuf, FileId>,
    /// The changes between the durable names and the cached ones, for each folder in the order in which they were made.
    unsynced: BTreeMap<PathBuf, Vec<NameChange>>,
}

impl Names {
    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.cached);
        self.unsynced.entry(folder(change.path()).to_owned()).or_default().push(change);
    }

    fn sync(&mut self, folder: &Path) {
        for change in self.unsynced.remove(folder).unwrap_or_default() {
            change.apply(&mut self.durable);
        }
    }

    /// Makes some of the first changes durable. The others are not lost, because the journal still has them.
    fn fail_sync(&mut self, folder: &Path, rng: &mut SmallRng) {
        let Some(changes) = self.unsynced.get_mut(folder) else { return };
        let done = rng.random_range(0..=changes.len());
        changes.drain(..done).for_each(|change| change.apply(&mut self.durable));
    }

    fn lose_power(&mut self, rng: &mut SmallRng) {
        for (_, changes) in mem::take(&mut self.unsynced) {
            let done = rng.random_range(0..=changes.len());
            changes.iter().take(done).for_each(|change| change.apply(&mut self.durable));
        }
        self.cached.clone_from(&self.durable);
    }

    /// The files that have a name, or may have one after a power cut.
    fn all_files(&self) -> BTreeSet<FileId> {
        let added = self.unsynced.values().flatten().filter_map(|change| match change {
            NameChange::Add { file, .. } => Some(file),
            NameChange::Rename { .. } | NameChange::Remove { .. } => None,
        });
        self.cached.values().chain(self.durable.values()).chain(added).copied().collect()
    }
}

/// A change of a folder.
enum NameChange {
    Add { path: PathBuf, file: FileId },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
}

impl NameChange {
    /// The name that changes; for a rename, the old one.
    fn path(&self) -> &Path {
        match self {
            Self::Add { path, .. } | Self::Rename { from: path, .. } | Self::Remove { path } => path,
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, FileId>) {
        match self {
            Self::Add { path, file } => {
                names.insert(path.clone(), *file);
            }
            Self::Rename { from, to } => {
                let file = names.remove(from).unwrap();
                names.insert(to.clone(), file);
            }
            Self::Remove { path } => {
                names.remove(path).unwrap();
            }
        }
    }
}

/// A file, with or without a name.
#[derive(Default)]
struct SimInode {
    medium: Medium,
    pages: BTreeMap<u64, Page>,
    /// The length that calls see.
    len: u64,
    /// The length that the next sync makes durable. It lags behind `len` while the end of the file is in dirty pages,
    /// and stays behind if a failed sync marks these clean: a length that results from writes is committed with their
    /// data.
    next_len: u64,
    /// The length to which the file was truncated, while the medium still has all of it. Data on the medium from here
    /// on no longer belongs to the file, and reads as zeros.
    cut: Option<u64>,
    /// Whether a failed write-back has not been reported yet.
    unreported: bool,
    handles: usize,
    /// The handle that holds the lock.
    lock: Option<u64>,
}

struct Page {
    data: Box<[u8; PAGE]>,
    dirty: bool,
    /// Whether it cannot reach the medium while it is cached.
    stuck: bool,
}

impl SimInode {
    fn allocated(&self) -> u64 {
        self.len.next_multiple_of(PAGE as u64)
    }

    fn has_cached(&self, from: u64, to: u64) -> bool {
        from == to || (from / PAGE as u64..to.div_ceil(PAGE as u64)).all(|number| self.pages.contains_key(&number))
    }

    /// A page of the cache, read from the medium if it is not cached.
    fn page(&mut self, number: u64) -> &mut Page {
        let (medium, cut) = (&self.medium, self.cut);
        self.pages.entry(number).or_insert_with(|| Page { data: medium.read(number, cut), dirty: false, stuck: false })
    }

    fn read(&mut self, offset: u64, out: &mut [u8]) {
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let within = (at % PAGE as u64) as usize;
            let len = rest.len().min(PAGE - within);
            let (part, more) = rest.split_at_mut(len);
            part.copy_from_slice(&self.page(at / PAGE as u64).data[within..within + len]);
            at += len as u64;
            rest = more;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let within = (at % PAGE as u64) as usize;
            let (part, more) = rest.split_at(rest.len().min(PAGE - within));
            let page = self.page(at / PAGE as u64);
            page.data[within..within + part.len()].copy_from_slice(part);
            page.dirty = true;
            at += part.len() as u64;
            rest = more;
            self.len = self.len.max(at);
        }
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.cut_off(len);
        }
        self.len = len;
        self.next_len = len;
    }

    fn cut_off(&mut self, len: u64) {
        drop(self.pages.split_off(&len.div_ceil(PAGE as u64)));
        let within = (len % PAGE as u64) as usize;
        if within > 0 {
            let page = self.page(len / PAGE as u64);
            page.data[within..].fill(0);
            page.dirty = true;
        }
        self.cut = Some(self.cut.map_or(len, |before| before.min(len)));
    }

    /// Applies the truncation to the medium. This must happen before data written after it gets there, because the
    /// freed blocks cannot be reused earlier.
    fn finish_cut(&mut self) {
        self.medium.cut_off(self.cut.take());
    }

    fn sync(&mut self) {
        self.finish_cut();
        self.write_pages(|| true);
        self.medium.len = self.next_len;
    }

    /// Writes the dirty pages for which `chosen` returns true.
    fn write_pages(&mut self, mut chosen: impl FnMut() -> bool) {
        for (&number, page) in self.pages.iter_mut().filter(|(_, page)| page.dirty) {
            if chosen() {
                self.medium.cut_off(self.cut.take());
                if !page.stuck {
                    self.medium.write(number, &page.data);
                }
                page.dirty = false;
                self.next_len = grown(self.next_len, number, self.len);
            }
        }
    }

    /// Writes some pages, some of them only in part, and marks all of them clean.
    fn fail_sync(&mut self, rng: &mut SmallRng) {
        let luck = if self.cut.is_some() && rng.random() { Luck::NONE } else { Luck::new(rng) };
        if luck.reaches > 0.0 {
            self.finish_cut();
        }
        let sticks: bool = rng.random();
        for (&number, page) in self.pages.iter_mut().filter(|(_, page)| page.dirty) {
            page.dirty = false;
            if sticks && !self.medium.has(number) && !rng.random_bool(luck.reaches) {
                page.stuck = true;
            } else if luck.write(&mut self.medium, number, page, rng) == Outcome::Written {
                self.next_len = grown(self.next_len, number, self.len);
            }
        }
        if self.cut.is_some() {
            return;
        }
        if rng.random() {
            self.next_len = self.len;
        }
        if rng.random() {
            self.medium.len = self.next_len;
        }
    }

    fn lose_power(&mut self, rng: &mut SmallRng) {
        let durable_len = self.medium.len;
        let cut = self.cut.map_or(durable_len, |cut| cut.min(durable_len));
        let cut_to = one_of(cut, durable_len, rng);
        self.medium.len = if cut_to == cut {
            self.finish_cut();
            self.lose_pages(rng)
        } else {
            self.lose_pages_before(cut, rng);
            cut_to
        };
        self.medium.bytes.truncate(self.medium.len as usize);
        self.pages.clear();
        self.cut = None;
        self.unreported = false;
        self.len = self.medium.len;
        self.next_len = self.medium.len;
    }

    /// Returns the length of the file afterwards.
    fn lose_pages(&mut self, rng: &mut SmallRng) -> u64 {
        let luck = Luck::new(rng);
        let mut next_len = self.next_len;
        for (&number, page) in self.pages.iter().filter(|(_, page)| page.dirty) {
            luck.write(&mut self.medium, number, page, rng);
            next_len = grown(next_len, number, self.len);
        }
        one_of(self.medium.len, next_len, rng)
    }

    /// For a medium that has not truncated the file to `cut`: it has no page that was written beyond that.
    fn lose_pages_before(&mut self, cut: u64, rng: &mut SmallRng) {
        let luck = Luck::new(rng);
        let in_place = self.pages.range(..cut.div_ceil(PAGE as u64));
        for (&number, page) in in_place.filter(|(_, page)| page.dirty) {
            luck.write(&mut self.medium, number, page, rng);
        }
    }

    fn damage(&mut self, offset: u64, xor: u8) {
        assert!(offset < self.len, "there is no byte {offset}");
        self.finish_cut();
        self.medium.damage(offset, xor);
        if let Some(page) = self.pages.get_mut(&(offset / PAGE as u64)) {
            page.data[(offset % PAGE as u64) as usize] ^= xor;
        }
    }
}

/// The part of a file that survives without power.
#[derive(Default)]
struct Medium {
    /// Shorter than `len` if the file ends in a hole, and longer if data got here before the length.
    bytes: Vec<u8>,
    len: u64,
    /// The pages that have been written at least once.
    written: BTreeSet<u64>,
}

impl Medium {
    fn has(&self, number: u64) -> bool {
        self.written.contains(&number)
    }

    /// A page, with zeros from `cut` on.
    fn read(&self, number: u64, cut: Option<u64>) -> Box<[u8; PAGE]> {
        let mut page = Box::new([0; PAGE]);
        let end = cut.map_or(self.bytes.len(), |cut| self.bytes.len().min(cut as usize));
        let start = number as usize * PAGE;
        if start < end {
            let len = PAGE.min(end - start);
            page[..len].copy_from_slice(&self.bytes[start..start + len]);
        }
        page
    }

    fn write(&mut self, number: u64, page: &[u8; PAGE]) {
        self.place(number).copy_from_slice(page);
    }

    /// Writes a random subset of the sectors.
    fn tear(&mut self, number: u64, page: &[u8; PAGE], rng: &mut SmallRng) {
        for (old, new) in self.place(number).chunks_exact_mut(SECTOR).zip(page.chunks_exact(SECTOR)) {
            if rng.random() {
                old.copy_from_slice(new);
            }
        }
    }

    fn place(&mut self, number: u64) -> &mut [u8] {
        self.written.insert(number);
        let start = number as usize * PAGE;
        // Not with `resize`, which goes byte by byte in unoptimized builds.
        while self.bytes.len() < start + PAGE {
            let missing = start + PAGE - self.bytes.len();
            self.bytes.extend_from_slice(&[0; PAGE][..missing.min(PAGE)]);
        }
        &mut self.bytes[start..start + PAGE]
    }

    fn cut_off(&mut self, to: Option<u64>) {
        if let Some(to) = to {
            self.bytes.truncate(to as usize);
            self.len = self.len.min(to);
            drop(self.written.split_off(&to.div_ceil(PAGE as u64)));
        }
    }

    fn damage(&mut self, offset: u64, xor: u8) {
        let within = (offset % PAGE as u64) as usize;
        self.place(offset / PAGE as u64)[within] ^= xor;
    }
}

/// The probabilities that a dirty page reaches the medium, or is torn, when a sync or the power fails. All pages of a
/// file share them, so that losing all, none or a few of them is as common as losing half.
struct Luck {
    reaches: f64,
    tears: f64,
}

#[derive(PartialEq)]
enum Outcome {
    Lost,
    Torn,
    Written,
}

impl Luck {
    const NONE: Self = Self { reaches: 0.0, tears: 0.0 };

    fn new(rng: &mut SmallRng) -> Self {
        let reaches = [0.0, 0.1, 0.5, 0.9, 1.0][rng.random_range(0..5)];
        let tears = [0.0, 0.0, 0.3, 1.0][rng.random_range(0..4)];
        Self { reaches, tears }
    }

    fn write(&self, medium: &mut Medium, number: u64, page: &Page, rng: &mut SmallRng) -> Outcome {
        if page.stuck || !rng.random_bool(self.reaches) {
            Outcome::Lost
        } else if rng.random_bool(self.tears) {
            medium.tear(number, &page.data, rng);
            Outcome::Torn
        } else {
            medium.write(number, &page.data);
            Outcome::Written
        }
    }
}

/// `a`, `b`, or a whole number of pages in between: file systems commit a length that was set in one step, and one that
/// results from writes page by page.
fn one_of(a: u64, b: u64, rng: &mut SmallRng) -> u64 {
    let (low, high) = (a.min(b), a.max(b));
    match rng.random_range(0..3) {
        0 => a,
        1 => b,
        _ => (rng.random_range(low..=high) / PAGE as u64 * PAGE as u64).max(low),
    }
}

/// The length to make durable after page `number` was written, for a file of length `len`.
fn grown(next_len: u64, number: u64, len: u64) -> u64 {
    next_len.max(len.min((number + 1) * PAGE as u64))
}

/// Ignores poisoning, so that a test that panics while it holds the lock does not make others fail.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn io_error() -> io::Error {
    io::Error::from_raw_os_error(EIO)
}

fn disk_full() -> io::Error {
    io::Error::from_raw_os_error(ENOSPC)
}

/// Has a text instead of EIO's number (an error has only one of the two), because the store retries EIO.
fn power_is_off() -> io::Error {
    io::Error::other("the power is off")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many seeds each test tries.
    const SEEDS: u64 = 300;

    fn path() -> &'static Path {
        Path::new("folder/file")
    }

    /// A disk with one durable file of this many pages, filled with `fill`.
    fn disk_with(seed: u64, pages: usize, fill: u8) -> (SimDisk, Arc<dyn DiskFile>) {
        let disk = SimDisk::new(seed);
        let file = disk.open(path(), true).unwrap();
        file.write(0, &vec![fill; pages * PAGE]).unwrap();
        file.sync().unwrap();
        disk.sync_names(path()).unwrap();
        (disk, file)
    }

    fn read(file: &dyn DiskFile, offset: usize, len: usize) -> Vec<u8> {
        let mut out = vec![0xEE; len];
        file.read(offset as u64, &mut out, true).unwrap();
        out
    }

    fn read_all(file: &dyn DiskFile) -> Vec<u8> {
        read(file, 0, file.len().unwrap() as usize)
    }

    /// The contents of a file after a power cut, if it still exists.
    fn after_power_cut(disk: &SimDisk, path: &Path) -> Option<Vec<u8>> {
        disk.power_cut().open(path, false).ok().map(|file| read_all(&*file))
    }

    fn errno(result: io::Result<()>) -> i32 {
        result.unwrap_err().raw_os_error().unwrap()
    }

    fn assert_dead<T: Debug>(result: io::Result<T>) {
        assert_eq!(result.unwrap_err().to_string(), "the power is off");
    }

    fn failing(faults: Faults) -> (SimDisk, Arc<dyn DiskFile>) {
        let (disk, file) = disk_with(1, 2, 1);
        disk.set_faults(faults);
        (disk, file)
    }

    /// Each page of a file: `Some(byte)` if all of its bytes are the same, otherwise `None`.
    fn pages(bytes: &[u8]) -> Vec<Option<u8>> {
        bytes.chunks(PAGE).map(|page| page.iter().all(|&byte| byte == page[0]).then_some(page[0])).collect()
    }

    #[test]
    fn written_data_can_be_read() {
        let disk = SimDisk::new(0);
        let file = disk.open(path(), true).unwrap();
        file.write(PAGE as u64 - 2, &[1, 2, 3, 4]).unwrap();
        assert_eq!(disk.len_of(path()), Some(PAGE as u64 + 2));
        for evicted in [0.0, 1.0] {
            disk.write_back(evicted);
            disk.evict(evicted);
            assert_eq!(read(&*file, PAGE - 4, 6), [0, 0, 1, 2, 3, 4]);
        }
        assert_eq!(file.read(0, &mut [0; PAGE + 3], true).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        file.read(1 << 40, &mut [], true).unwrap();
    }

    #[test]
    fn a_read_that_may_not_wait_finds_only_cached_data() {
        let (disk, file) = disk_with(0, 2, 1);
        disk.evict(1.0);
        read(&*file, 0, 1);
        let mut out = [0; PAGE];
        file.read(0, &mut out, false).unwrap();
        assert_eq!(file.read(1, &mut out, false).unwrap_err().kind(), ErrorKind::WouldBlock);
        read(&*file, PAGE, 1);
        file.read(1, &mut out, false).unwrap();
    }

    #[test]
    fn truncated_data_reads_as_zeros() {
        for seed in 0..SEEDS {
            let (disk, file) = disk_with(seed, 3, 7);
            file.set_len(PAGE as u64 + 10).unwrap();
            disk.write_back(0.5);
            file.set_len(3 * PAGE as u64).unwrap();
            disk.evict(0.5);
            let mut expected = vec![7; 3 * PAGE];
            expected[PAGE + 10..].fill(0);
            assert_eq!(read_all(&*file), expected);
            file.sync().unwrap();
            assert_eq!(after_power_cut(&disk, path()).unwrap(), expected);
        }
    }

    #[test]
    fn data_written_after_a_truncation_stays() {
        for seed in 0..SEEDS {
            let (disk, file) = disk_with(seed, 2, 1);
            file.set_len(0).unwrap();
            file.write(0, &[2; 2 * PAGE]).unwrap();
            disk.write_back(0.5);
            disk.evict(1.0);
            assert_eq!(pages(&read_all(&*file)), [Some(2), Some(2)]);
        }
    }

    #[test]
    fn synced_data_survives_a_power_cut() {
        for seed in 0..SEEDS {
            let (disk, file) = disk_with(seed, 3, 7);
            file.write(4 * PAGE as u64, &[9; 100]).unwrap();
            file.sync().unwrap();
            let expected = read_all(&*file);
            assert_eq!(after_power_cut(&disk, path()).unwrap(), expected);
        }
    }

    #[test]
    fn any_part_of_unsynced_data_may_survive_a_power_cut() {
        let mut seen = BTreeSet::new();
        for seed in 0..SEEDS {
            let (disk, file) = disk_with(seed, 2, 1);
            file.write(0, &[2; 2 * PAGE]).unwrap();
            seen.insert(pages(&after_power_cut(&disk, path()).unwrap()));
        }
        // `None` is a torn page.
        for outcome in [[Some(1), Some(1)], [Some(1), Some(2)], [Some(2), Some(1)], [Some(2), Some(2)], [None, None]] {
            assert!(seen.contains(outcome.as_slice()), "{outcome:?}");
        }
    }

    #[test]
    fn pages_are_torn_only_between_sectors() {
        let mut torn = 0;
        for seed in 0..SEEDS {
            let (disk, file) = disk_with(seed, 1, 1);
            file.write(0, &[2; PAGE]).unwrap();
            let bytes = after_power_cut(&disk, path()).unwrap();
            assert!(bytes.chunks(SECTOR).all(|sector| sector == [1; SECTOR] || sector == [2; SECTOR]));
            torn += usize::from(pages(&bytes) == [None]);
        }
        assert!(torn > 0);
    }

    #[test]
    fn an_extended_file_may_have_any_length_after_a_power_cut_and_ends_in_zeros() {
        let mut lens = BTreeSet::new();
        for seed in 0..SEEDS {
            let (disk, file) = disk_with(seed, 1, 1);
            file.set_len(20 * PAGE as u64).unwrap();
            let bytes = after_power_cut(&disk, path()).unwrap();
            assert!(bytes[..PAGE].iter().all(|&byte| byte == 1) && bytes[PAGE..].iter().all(|&byte| byte == 0));
            lens.insert(bytes.len());
        }
        assert!(lens.first() == Some(&PAGE) && lens.last() == Some(&(20 * PAGE)) && lens.len() > 10, "{lens:?}");
    }

    #[test]
    fn a_truncated_file_may_have_any_length_after_a_power_cut() {
        let mut lens = BTreeSet::new();
        for seed in 0..SEEDS {
            let (disk, file) = disk_with(seed, 3, 1);
            file.set_len(0).unwrap();
            file.write(PAGE as u64, &[2; PAGE]).unwrap();
            let bytes = after_power_cut(&disk, path()).unwrap();
            if bytes.contains(&2) {
                assert!(!bytes.contains(&1), "truncated data is back, next to later data");
            }
            lens.insert(bytes.len());
        }
        assert!(lens.first() == Some(&0) && lens.last() == Some(&(3 * PAGE)), "{lens:?}");
        assert!(lens.contains(&(2 * PAGE)) && lens.len() > 3, "{lens:?}");
    }

    #[test]
    fn a_write_back_alone_does_not_make_the_length_durable() {
        let mut lens = BTreeSet::new();
        for seed in 0..SEEDS {
            let (disk, file) = disk_with(seed, 1, 1);
            file.write(PAGE as u64, &[2; PAGE]).unwrap();
            disk.write_back(1.0);
            disk.evict(1.0);
            assert_eq!(pages(&read_all(&*file)), [Some(1), Some(2)]);
            let file = disk.power_cut().open(path(), false).unwrap();
            let len = file.len().unwrap() as usize;
            // Data beyond the length is gone for good.
            file.set_len(2 * PAGE as u64).unwrap();
            assert!(read_all(&*file)[len..].iter().all(|&byte| byte == 0));
            lens.insert(len);
        }
        assert!(lens.contains(&PAGE) && lens.contains(&(2 * PAGE)));
    }

    #[test]
    fn a_failed_sync_leaves_pages_that_look_written() {
        let mut seen = BTreeSet::new();
        for seed in 0..SEEDS {
            let (disk, file) = disk_with(seed, 2, 1);
            file.write(0, &[2; 2 * PAGE]).unwrap();
            disk.set_faults(Faults { sync_error: 1.0, ..Faults::default() });
            assert!([EIO, ENOSPC].contains(&errno(file.sync())));
            disk.set_faults(Faults::default());
            // Everything looks fine as long as it is cached.
            assert_eq!(pages(&read_all(&*file)), [Some(2), Some(2)]);
            file.sync().unwrap();
            disk.evict(1.0);
            let on_medium = read_all(&*file);
            assert_eq!(after_power_cut(&disk, path()).unwrap(), on_medium, "the second sync was not complete");
            seen.insert(pages(&on_medium));
        }
        for outcome in [[Some(1), Some(1)], [Some(1), Some(2)], [Some(2), Some(1)], [Some(2), Some(2)], [None, None]] {
            assert!(seen.contains(outcome.as_slice()), "{outcome:?}");
        }
    }

    #[test]
    fn after_a_failed_sync_rewriting_saves_an_old_page_but_a_new_one_only_if_the_cache_dropped_it() {
        let mut stuck = 0;
        for seed in 0..SEEDS {
            for forget in [true, false] {
                let (disk, file) = disk_with(seed, 1, 1);
                // The second page is new, and the length depends on it.
                file.write(0, &[2; 2 * PAGE]).unwrap();
                disk.set_faults(Faults { sync_error: 1.0, ..Faults::default() });
                file.sync().unwrap_err();
                disk.set_faults(Faults::default());
                if forget {
                    file.forget().unwrap();
                }
                file.write(0, &[3]).unwrap();
                file.write(2 * PAGE as u64 - 1, &[3]).unwrap();
                file.sync().unwrap();
                let expected = read_all(&*file);
                let is = after_power_cut(&disk, path()).unwrap();
                assert!(is[..PAGE] == expected[..PAGE]);
                if is != expected {
                    assert!(!forget && is[PAGE..] == [0; PAGE]);
                    stuck += 1;
                }
            }
        }
        assert!(stuck > 0);
    }

    #[test]
    fn a_length_that_was_set_survives_a_failed_sync() {
        for seed in 0..SEEDS {
            for len in [5, 3 * PAGE as u64 + 5] {
                let (disk, file) = disk_with(seed, 2, 1);
                file.set_len(len).unwrap();
                disk.set_faults(Faults { sync_error: 1.0, ..Faults::default() });
                file.sync().unwrap_err();
                disk.set_faults(Faults::default());
                file.sync().unwrap();
                assert_eq!(after_power_cut(&disk, path()).unwrap().len() as u64, len);
            }
        }
    }

    #[test]
    fn a_length_from_a_write_may_be_lost_in_a_failed_sync() {
        let lens: BTreeSet<usize> = (0..SEEDS)
            .map(|seed| {
                let (disk, file) = disk_with(seed, 1, 1);
                file.write(PAGE as u64, &[2; PAGE]).unwrap();
                disk.set_faults(Faults { sync_error: 1.0, ..Faults::default() });
                file.sync().unwrap_err();
                disk.set_faults(Faults::default());
                file.sync().unwrap();
                assert_eq!(file.len().unwrap(), 2 * PAGE as u64);
                after_power_cut(&disk, path()).unwrap().len()
            })
            .collect();
        assert_eq!(lens, [PAGE, 2 * PAGE].into());
    }

    #[test]
    fn unsynced_changes_of_names_may_be_lost_but_stay_in_order() {
        let mut seen = BTreeSet::new();
        for seed in 0..SEEDS {
            let (disk, file) = disk_with(seed, 1, 1);
            let made = disk.open(Path::new("folder/made"), true).unwrap();
            made.write(0, &[2]).unwrap();
            made.sync().unwrap();
            disk.rename(Path::new("folder/made"), path()).unwrap();
            assert!(made.is_at(path()).unwrap() && !file.is_at(path()).unwrap());
            disk.open(Path::new("folder/other"), true).unwrap();
            disk.remove(path()).unwrap();
            let disk = disk.power_cut();
            let first = disk.open(path(), false).ok().map(|file| read(&*file, 0, 1)[0]);
            seen.insert((disk.files(), first));
        }
        let folder = |names: &[&str]| names.iter().map(|name| Path::new("folder").join(name)).collect::<Vec<_>>();
        let expected = [
            (folder(&["file"]), Some(1)),
            (folder(&["file", "made"]), Some(1)),
            (folder(&["file"]), Some(2)),
            (folder(&["file", "other"]), Some(2)),
            (folder(&["other"]), None),
        ];
        assert_eq!(seen, expected.into());
    }

    #[test]
    fn synced_names_survive() {
        for seed in 0..SEEDS {
            let (disk, _file) = disk_with(seed, 1, 1);
            disk.open(Path::new("folder/made"), true).unwrap();
            disk.rename(Path::new("folder/made"), Path::new("folder/renamed")).unwrap();
            disk.open(Path::new("elsewhere/made"), true).unwrap();
            disk.remove(path()).unwrap();
            disk.sync_names(path()).unwrap();
            let disk = disk.power_cut();
            assert!(disk.exists(Path::new("folder/renamed")).unwrap());
            assert!(!disk.exists(path()).unwrap() && !disk.exists(Path::new("folder/made")).unwrap());
        }
    }

    #[test]
    fn after_a_failed_sync_of_names_the_next_one_makes_them_durable() {
        for seed in 0..SEEDS {
            let (disk, _file) = disk_with(seed, 1, 1);
            disk.open(Path::new("folder/a"), true).unwrap();
            disk.open(Path::new("folder/b"), true).unwrap();
            disk.set_faults(Faults { names_error: 1.0, ..Faults::default() });
            assert_eq!(errno(disk.sync_names(path())), EIO);
            assert_eq!(errno(disk.remove(path())), EIO);
            disk.set_faults(Faults::default());
            disk.sync_names(path()).unwrap();
            assert_eq!(disk.power_cut().files().len(), 3);
        }
    }

    #[test]
    fn a_removed_file_exists_as_long_as_it_is_open() {
        let (disk, file) = disk_with(0, 1, 1);
        disk.remove(path()).unwrap();
        disk.sync_names(path()).unwrap();
        assert_eq!(disk.remove(path()).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(disk.open(path(), false).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(pages(&read_all(&*file)), [Some(1)]);
        assert_eq!(disk.state().files.len(), 1);
        drop(file);
        assert!(disk.state().files.is_empty());
    }

    #[test]
    fn a_restart_keeps_the_cache() {
        let (disk, file) = disk_with(0, 2, 1);
        file.write(0, &[2; PAGE]).unwrap();
        let next = disk.restart();
        assert_dead(file.read(0, &mut [0], true));
        assert_dead(disk.open(path(), true));
        let file = next.open(path(), false).unwrap();
        assert_eq!(pages(&read_all(&*file)), [Some(2), Some(1)]);
        // It is still dirty.
        next.evict(1.0);
        assert_eq!(pages(&read_all(&*file)), [Some(2), Some(1)]);
        file.sync().unwrap();
        assert_eq!(pages(&after_power_cut(&next, path()).unwrap()), [Some(2), Some(1)]);
    }

    #[test]
    fn a_lock_belongs_to_one_handle_until_it_is_dropped() {
        let (disk, first) = disk_with(0, 1, 1);
        let second = disk.open(path(), false).unwrap();
        assert!(first.try_lock().unwrap() && first.try_lock().unwrap());
        assert!(!second.try_lock().unwrap());
        drop(first);
        assert!(second.try_lock().unwrap());
        let next = disk.restart();
        let third = next.open(path(), false).unwrap();
        assert!(third.try_lock().unwrap());
        // A dead handle does not release a lock.
        drop(second);
        assert!(!next.open(path(), false).unwrap().try_lock().unwrap());
        assert!(next.power_cut().open(path(), false).unwrap().try_lock().unwrap());
    }

    #[test]
    fn the_power_fails_after_the_given_number_of_calls() {
        let (disk, file) = failing(Faults { stop_after: Some(2), ..Faults::default() });
        file.write(0, &[2]).unwrap();
        file.sync().unwrap();
        let calls = disk.calls();
        assert_dead(file.sync());
        assert_dead(file.write(0, &[3]));
        assert_dead(file.len());
        assert_dead(file.try_lock());
        assert_dead(disk.exists(path()));
        assert_eq!(disk.calls(), calls);
        let disk = disk.power_cut();
        assert_eq!(read(&*disk.open(path(), false).unwrap(), 0, 1), [2]);
    }

    #[test]
    fn a_write_during_which_the_power_fails_is_partly_in_the_cache() {
        let written: BTreeSet<usize> = (0..SEEDS)
            .map(|seed| {
                let (disk, file) = disk_with(seed, 20, 1);
                disk.set_faults(Faults { stop_after: Some(0), ..Faults::default() });
                assert_dead(file.write(0, &[2; 20 * PAGE]));
                assert_dead(file.write(0, &[3; 20 * PAGE]));
                let next = disk.restart();
                let bytes = read_all(&*next.open(path(), false).unwrap());
                assert!(!bytes.contains(&3));
                bytes.iter().take_while(|&&byte| byte == 2).count()
            })
            .collect();
        assert!(written.len() > 10 && written.last() < Some(&(20 * PAGE)));
        assert!(written.iter().all(|written| written.is_multiple_of(PAGE)));
    }

    #[test]
    fn calls_fail_as_configured() {
        let (_disk, file) = failing(Faults { write_error: 1.0, set_len_error: 1.0, ..Faults::default() });
        assert!([EIO, ENOSPC].contains(&errno(file.write(0, &[2; PAGE]))));
        assert!([EIO, ENOSPC].contains(&errno(file.set_len(0))));
        assert_eq!(pages(&read_all(&*file)), [Some(1), Some(1)]);

        let (_disk, file) = failing(Faults { short_write: 1.0, ..Faults::default() });
        assert_eq!(errno(file.write(0, &[2; 2 * PAGE])), ENOSPC);
        assert_eq!(read_all(&*file).last(), Some(&1));

        let (disk, file) = failing(Faults { read_error: 1.0, ..Faults::default() });
        read(&*file, 0, PAGE);
        disk.evict(1.0);
        assert_eq!(errno(file.read(0, &mut [0], true)), EIO);

        let (disk, _file) = failing(Faults { open_error: 1.0, ..Faults::default() });
        assert_eq!(errno(disk.open(Path::new("folder/made"), true).map(drop)), EIO);
        assert_eq!(disk.files(), [path()]);
    }

    #[test]
    fn a_full_disk_accepts_only_what_fits() {
        let (disk, file) = disk_with(0, 2, 1);
        assert_eq!(file.room().unwrap(), PLENTY);
        let other = disk.open(Path::new("folder/other"), true).unwrap();
        disk.set_capacity(Some(3 * PAGE as u64 + 100));
        assert_eq!(file.room().unwrap(), PAGE as u64 + 100);
        file.write(0, &[2; 2 * PAGE]).unwrap();
        assert_eq!(errno(file.set_len(3 * PAGE as u64 + 1)), ENOSPC);
        assert_eq!(errno(file.write(2 * PAGE as u64 - 1, &[3; 2 * PAGE])), ENOSPC);
        assert_eq!(disk.len_of(path()), Some(3 * PAGE as u64));
        assert_eq!(errno(disk.open(Path::new("folder/third"), true).map(drop)), ENOSPC);
        assert_eq!(errno(other.write(0, &[1])), ENOSPC);
        assert_eq!(disk.len_of(Path::new("folder/other")), Some(0));
        file.set_len(PAGE as u64).unwrap();
        other.write(0, &[1; 2 * PAGE]).unwrap();
        assert_eq!(other.room().unwrap(), 100);
        disk.remove(path()).unwrap();
        assert_eq!(other.room().unwrap(), PAGE as u64 + 100);
    }

    #[test]
    fn a_failed_write_back_is_reported_once_by_the_next_sync() {
        let (disk, file) = disk_with(0, 2, 1);
        file.write(0, &[2; PAGE]).unwrap();
        disk.set_faults(Faults { sync_error: 1.0, ..Faults::default() });
        disk.write_back(1.0);
        disk.set_faults(Faults::default());
        let disk = disk.restart();
        let file = disk.open(path(), false).unwrap();
        assert!([EIO, ENOSPC].contains(&errno(file.sync())));
        file.sync().unwrap();
        assert_eq!(disk.late_reports(), 1);
    }

    #[test]
    fn damage_changes_both_the_cache_and_the_medium() {
        let (disk, file) = disk_with(0, 1, 1);
        disk.damage(path(), 7, 0xF0);
        assert_eq!(read(&*file, 6, 3), [1, 0xF1, 1]);
        disk.evict(1.0);
        assert_eq!(read(&*file, 6, 3), [1, 0xF1, 1]);
    }

    /// A story with all kinds of calls and faults; returns the observable state at its end.
    fn story(seed: u64) -> (u64, u64, Vec<(PathBuf, Vec<u8>)>) {
        let mut disk = SimDisk::new(seed);
        for round in 0..4 {
            let faults = Faults { short_write: 0.2, sync_error: 0.3, names_error: 0.2, ..Faults::default() };
            disk.set_faults(Faults { stop_after: Some(30), ..faults });
            for step in 0..10 {
                let name = PathBuf::from(format!("folder/{}", step % 3));
                let Ok(file) = disk.open(&name, true) else { break };
                let _any = file.write(step * 3000, &[round; 5000]);
                let _any = file.sync();
                let _any = disk.rename(&name, Path::new("folder/renamed"));
                disk.write_back(0.3);
                disk.evict(0.3);
            }
            disk = disk.power_cut();
            disk.set_faults(Faults::default());
        }
        let (calls, trace) = (disk.calls(), disk.trace_hash());
        let read = |name: PathBuf| (name.clone(), read_all(&*disk.open(&name, false).unwrap()));
        (calls, trace, disk.files().into_iter().map(read).collect())
    }

    #[test]
    fn the_same_seed_gives_the_same_story() {
        for seed in 0..20 {
            assert_eq!(story(seed), story(seed));
        }
        assert_ne!(story(1).2, story(2).2);
    }

    #[test]
    fn the_trace_distinguishes_calls() {
        let hash = |calls: &dyn Fn(&SimDisk, &dyn DiskFile)| {
            let (disk, file) = disk_with(0, 1, 1);
            calls(&disk, &*file);
            disk.trace_hash()
        };
        let hashes = [
            hash(&|_, _| ()),
            hash(&|_, file| file.write(0, &[1]).unwrap()),
            hash(&|_, file| file.write(1, &[1]).unwrap()),
            hash(&|_, file| file.write(0, &[1, 2]).unwrap()),
            hash(&|_, file| file.set_len(1).unwrap()),
            hash(&|disk, _| disk.rename(path(), Path::new("folder/a")).unwrap()),
            hash(&|disk, _| disk.rename(path(), Path::new("folder/b")).unwrap()),
        ];
        assert_eq!(hashes.into_iter().collect::<BTreeSet<_>>().len(), hashes.len());
    }
}

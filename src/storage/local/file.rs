//! The file below redb, with three safeguards that redb itself lacks: a failed opening writes nothing, a failed write
//! does not stop reads, and neither does a read that fails or would have to wait for the disk.
//!
//! The first two share one mechanism: a [`View`] can keep redb's writes in memory and overlay them on the data read
//! from the file. It does so while a database is being opened, and writes everything out once the opening has succeeded
//! ([`View::release`]). After a failed write it does so for good: to redb the file appears to work, and the database
//! serves reads until another one replaces it.
//!
//! The third: a read error that redb sees shuts down the whole database. A caller's read that cannot be served
//! therefore unwinds through redb to [`read`](super::read), which started it. The only lock that redb holds at that
//! point is not poisoned by a panic.

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::ops::{Bound, Deref};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use redb::{BackendError, StorageBackend};

use super::disk::DiskFile;

/// The part of the file that holds redb's header, the only page that is overwritten in place.
const HEADER_PAGE: usize = 4096;

/// The open file and its lock. It outlives the databases that are opened on it one after another, so that no other
/// process can take the file in between.
#[derive(Debug)]
pub(super) struct StoreFile {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    activity: Arc<DiskActivity>,
    /// The length that redb has set.
    len: AtomicU64,
    /// Whether a sync has failed since the page cache last dropped the file.
    sync_failed: AtomicBool,
}

/// The disk activity of the thread that opens a store and, later, of the one that owns its database.
#[derive(Debug, Default)]
pub(super) struct DiskActivity {
    /// The bytes read from redb's file: the progress of a check.
    bytes_read: AtomicU64,
    /// When the current call to the disk began.
    waiting_since: Mutex<Option<Instant>>,
}

impl DiskActivity {
    /// Runs `call`, which may wait for the disk.
    pub(super) fn watch<T>(&self, call: impl FnOnce() -> T) -> T {
        *self.waiting_since() = Some(Instant::now());
        let result = call();
        *self.waiting_since() = None;
        result
    }

    fn waiting_since(&self) -> parking_lot::MutexGuard<'_, Option<Instant>> {
        self.waiting_since.lock()
    }

    /// How long the current call has been waiting for the disk.
    pub(super) fn waiting(&self) -> Option<Duration> {
        self.waiting_since().map(|since| since.elapsed())
    }

    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }
}

impl StoreFile {
    pub(super) fn new(path: &Path, file: Arc<dyn DiskFile>, activity: Arc<DiskActivity>) -> Self {
        let len = AtomicU64::new(file.len().unwrap_or(0));
        Self { path: path.to_owned(), file, activity, len, sync_failed: AtomicBool::new(false) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn disk_file(&self) -> &Arc<dyn DiskFile> {
        &self.file
    }

    /// The length that the file should have. It is shorter if another program has truncated it.
    pub(super) fn expected_len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.watched(|file| file.set_len(len))?;
        self.len.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.watched(|file| file.write(offset, data))
    }

    fn sync(&self) -> io::Result<()> {
        let synced = self.watched(|file| file.sync());
        if synced.is_err() {
            self.sync_failed.store(true, Ordering::Relaxed);
        }
        synced
    }

    /// Reads for the owner of the database.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.watched(|file| file.read(offset, out, true))?;
        self.activity.bytes_read.fetch_add(out.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the page cache drop the file; see [`DiskFile::forget`].
    pub(super) fn forget(&self) -> io::Result<()> {
        self.watched(|file| file.forget())?;
        self.sync_failed.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// The same, but only if a sync has failed, so that pages may never have reached the disk.
    pub(super) fn forget_failed(&self) -> io::Result<()> {
        if self.sync_failed.load(Ordering::Relaxed) { self.forget() } else { Ok(()) }
    }

    fn watched<T>(&self, call: impl FnOnce(&dyn DiskFile) -> T) -> T {
        // A caller's look-up, which has its own time limit, may write when redb evicts from its cache.
        if READING.get() == Reading::Owner { self.activity.watch(|| call(&*self.file)) } else { call(&*self.file) }
    }
}

/// On whose behalf the current thread reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// The thread that owns the database.
    Owner,
    /// A caller, on a thread that must not wait for the disk.
    Inline,
    /// A caller, on a thread that may wait.
    Waiting,
}

thread_local! {
    static READING: Cell<Reading> = const { Cell::new(Reading::Owner) };
}

/// Runs `read` on behalf of `who`. If the read cannot be served, it unwinds with [`ReadStopped`].
pub(super) fn reading<T>(who: Reading, read: impl FnOnce() -> T) -> T {
    struct Back(Reading);
    impl Drop for Back {
        fn drop(&mut self) {
            READING.set(self.0);
        }
    }
    let _back = Back(READING.replace(who));
    read()
}

/// The payload with which a caller's read unwinds.
#[derive(Debug)]
pub(super) struct ReadStopped {
    pub(super) error: io::Error,
    /// The part of the file that could not be read.
    pub(super) offset: u64,
    pub(super) len: usize,
}

/// Called when a read of the owner fails. Returns whether to try again; it may pause first.
pub(super) type ReadRetry = Arc<dyn Fn(&io::Error) -> bool + Send + Sync>;

/// The file as one database sees it.
pub(super) struct View {
    file: Arc<StoreFile>,
    /// Whether writes are kept in `pending`. Checked before every access, hence outside the lock.
    in_memory: AtomicBool,
    /// The changes that were kept, in the order of the calls.
    pending: RwLock<Vec<Change>>,
    failure: Mutex<Option<io::Error>>,
    retry_read: OnceLock<ReadRetry>,
    /// Whether all access is refused from now on.
    ended: AtomicBool,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("file", &self.file).field("in_memory", &self.in_memory).finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

impl View {
    /// A view that keeps writes in memory until [`release`](Self::release).
    pub(super) fn staged(file: Arc<StoreFile>) -> Arc<Self> {
        Arc::new(Self {
            file,
            in_memory: AtomicBool::new(true),
            pending: RwLock::default(),
            failure: Mutex::default(),
            retry_read: OnceLock::new(),
            ended: AtomicBool::new(false),
        })
    }

    /// Sets the function that decides about failed reads of the owner. Until it is set, they fail.
    pub(super) fn on_failed_read(&self, retry: ReadRetry) {
        let _only_once = self.retry_read.set(retry);
    }

    /// Writes out the changes that were kept, including the syncs between them, so that a crash in the middle leaves
    /// the same state as if redb had written to the file directly. From now on writes go to the file.
    ///
    /// Everything read so far came through the page cache, which after a failed sync may show data that is not on the
    /// disk. A commit goes to new pages, which are synced before the header refers to them. So the header is the only
    /// page that can differ, and it is rewritten and synced before anything builds on it. (redb 4.6 also writes it when
    /// it opens a database that was not closed; this does not rely on that.)
    pub(super) fn release(&self) -> io::Result<()> {
        let mut pending = self.pending.write();
        let file = &self.file;
        if file.file.len()? >= HEADER_PAGE as u64 {
            let mut header = vec![0; HEADER_PAGE];
            file.read(0, &mut header)?;
            file.write(0, &header)?;
            file.sync()?;
        }
        for change in pending.iter() {
            match change {
                Change::Write(offset, data) => file.write(*offset, data)?,
                Change::SetLen(len) => file.set_len(*len)?,
                Change::Sync => file.sync()?,
            }
        }
        pending.clear();
        self.in_memory.store(false, Ordering::Release);
        Ok(())
    }

    /// The error of the first write that failed, if any. Nothing has become durable since then.
    pub(super) fn take_failure(&self) -> Option<io::Error> {
        self.failure.lock().take()
    }

    /// Whether a write has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.lock().is_some()
    }

    /// Stops all writes to the file; from now on they are kept in memory.
    pub(super) fn freeze(&self) {
        self.in_memory.store(true, Ordering::Release);
    }

    /// Refuses all access from now on, so that a database that has failed closes without reading its pages: some may
    /// never have reached the disk.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    fn check_ended(&self) -> io::Result<()> {
        if self.ended.load(Ordering::Acquire) { Err(io::Error::other("this database has failed")) } else { Ok(()) }
    }

    /// Whether this view writes to memory, because the database is being opened or a write has failed.
    fn is_in_memory(&self) -> bool {
        self.in_memory.load(Ordering::Acquire)
    }

    fn change(&self, change: Change) {
        self.pending.write().push(change);
    }

    /// Runs `attempt`. If it fails, keeps `change` and everything after it in memory.
    fn attempt(&self, attempt: impl FnOnce(&StoreFile) -> io::Result<()>, change: impl FnOnce() -> Change) {
        if !self.is_in_memory() {
            let Err(error) = attempt(&self.file) else { return };
            self.failure.lock().get_or_insert(error);
            self.change(change());
            // Only now that the change is stored: a reader that sees the flag must find it.
            self.in_memory.store(true, Ordering::Release);
        } else {
            self.change(change());
        }
    }

    fn read_through(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let pending = || self.pending.read();
        let file_len = self.file.file.len()?;
        let end = offset.saturating_add(out.len() as u64);
        if end > changed_len(file_len, &pending()) {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let in_file = file_len.saturating_sub(offset).min(out.len() as u64);
        let (from_file, beyond) = out.split_at_mut(usize::try_from(in_file).unwrap_or(usize::MAX));
        // Not under the lock, because this may wait for the disk. Meanwhile changes are only appended.
        self.read_file(offset, from_file)?;
        beyond.fill(0);
        for change in pending().iter() {
            change.lay_over(offset, out);
        }
        Ok(())
    }

    fn read_file(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let who = READING.get();
        if who == Reading::Owner {
            while let Err(error) = self.file.read(offset, out) {
                if !self.retry_read.get().is_some_and(|retry| retry(&error)) {
                    return Err(error);
                }
            }
            return Ok(());
        }
        self.file.file.read(offset, out, who == Reading::Waiting).map_err(|error| {
            // Bypasses the panic hook: this is not a bug.
            std::panic::resume_unwind(Box::new(ReadStopped { error, offset, len: out.len() }))
        })
    }
}

impl Change {
    /// Applies this change to `out`, which holds the bytes of the file from `offset` on.
    fn lay_over(&self, offset: u64, out: &mut [u8]) {
        let position = |at: u64| usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        match self {
            Self::Write(start, data) => {
                let (from, to) = (position(*start), position(start.saturating_add(data.len() as u64)));
                let skipped = usize::try_from(offset.saturating_sub(*start)).unwrap_or(usize::MAX);
                let part = data.get(skipped..).and_then(|data| data.get(..to - from));
                if let (Some(target), Some(part)) = (out.get_mut(from..to), part) {
                    target.copy_from_slice(part);
                }
            }
            // Bytes that were cut off read as zeros when the file grows again.
            Self::SetLen(len) => {
                let from = position(*len);
                out.iter_mut().skip(from).for_each(|byte| *byte = 0);
            }
            Self::Sync => {}
        }
    }
}

fn changed_len(file_len: u64, changes: &[Change]) -> u64 {
    changes.iter().fold(file_len, |len, change| match change {
        Change::Write(offset, data) => len.max(offset.saturating_add(data.len() as u64)),
        Change::SetLen(len) => *len,
        Change::Sync => len,
    })
}

/// A view that refuses all access once this is dropped. Otherwise a database that was refused or has failed would write
/// while it is dropped.
#[derive(Debug)]
pub(super) struct OwnedView(pub(super) Arc<View>);

impl Deref for OwnedView {
    type Target = View;

    fn deref(&self) -> &View {
        &self.0
    }
}

impl Drop for OwnedView {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A view as redb's storage backend.
#[derive(Debug)]
pub(super) struct Backend(pub(super) Arc<View>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.check_ended()?;
        let len = self.0.file.file.len()?;
        if !self.0.is_in_memory() {
            return Ok(len);
        }
        Ok(changed_len(len, &self.0.pending.read()))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.check_ended()?;
        if self.0.is_in_memory() { self.0.read_through(offset, out) } else { self.0.read_file(offset, out) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.check_ended()?;
        self.0.attempt(|file| file.set_len(len), || Change::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.check_ended()?;
        self.0.attempt(StoreFile::sync, || Change::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.check_ended()?;
        self.0.attempt(|file| file.write(offset, data), || Change::Write(offset, data.to_vec()));
        Ok(())
    }

    // The lock belongs to the store file, which outlives this database.

    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn try_lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn query_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::disk::{Disk as _, LinuxDisk, ReadOnlyDisk};
    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Write(u64, Vec<u8>),
        SetLen(u64),
        Read(u64, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..300_u64, prop::collection::vec(any::<u8>(), 1..60)).prop_map(|(at, data)| Step::Write(at, data)),
            (0..400_u64).prop_map(Step::SetLen),
            (0..400_u64, 0..100_usize).prop_map(|(at, len)| Step::Read(at, len)),
        ]
    }

    fn view(folder: &Path, content: &[u8]) -> Arc<View> {
        let path = folder.join("file");
        std::fs::write(&path, content).unwrap();
        let file = LinuxDisk.open(&path, false).unwrap();
        View::staged(Arc::new(StoreFile::new(&path, file, Arc::default())))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_staged_view_reads_back_writes_and_writes_them_out_only_on_release(
            content in prop::collection::vec(any::<u8>(), 0..300),
            steps in prop::collection::vec(step(), 0..30),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let view = view(folder.path(), &content);
            let backend = Backend(view.clone());
            let mut model = content.clone();
            for step in steps {
                match step {
                    Step::Write(at, data) => {
                        backend.write(at, &data).unwrap();
                        let at = usize::try_from(at).unwrap();
                        model.resize(model.len().max(at + data.len()), 0);
                        model[at..at + data.len()].copy_from_slice(&data);
                    }
                    Step::SetLen(len) => {
                        backend.set_len(len).unwrap();
                        model.resize(usize::try_from(len).unwrap(), 0);
                    }
                    Step::Read(at, len) => {
                        let mut out = vec![0xee; len];
                        let read = backend.read(at, &mut out);
                        let at = usize::try_from(at).unwrap();
                        match model.get(at..at + len) {
                            Some(expected) => {
                                read.unwrap();
                                assert_eq!(out, expected);
                            }
                            None => assert_eq!(read.unwrap_err().kind(), ErrorKind::UnexpectedEof),
                        }
                    }
                }
                backend.sync_data().unwrap();
                assert_eq!(backend.len().unwrap(), model.len() as u64);
            }
            assert_eq!(std::fs::read(view.file.path()).unwrap(), content, "nothing is written before the release");
            view.release().unwrap();
            assert_eq!(std::fs::read(view.file.path()).unwrap(), model);
            assert!(view.take_failure().is_none());
        }
    }

    #[test]
    fn a_failed_write_and_everything_after_it_are_kept_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [1; 100]).unwrap();
        let view =
            View::staged(Arc::new(StoreFile::new(&path, ReadOnlyDisk.open(&path, false).unwrap(), Arc::default())));
        view.release().unwrap();
        let backend = Backend(view.clone());
        assert!(view.take_failure().is_none());
        backend.write(10, &[2; 5]).unwrap();
        backend.set_len(20).unwrap();
        backend.sync_data().unwrap();
        assert_eq!(view.take_failure().unwrap().raw_os_error(), Some(rustix::io::Errno::BADF.raw_os_error()));
        assert_eq!(backend.len().unwrap(), 20);
        let mut out = [0; 20];
        backend.read(0, &mut out).unwrap();
        assert_eq!(out, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1]);
        assert_eq!(std::fs::read(&path).unwrap(), [1; 100]);
    }
}

//! The file under redb, with three safeguards that redb itself does not have: an opening that fails writes nothing, a
//! write that fails does not end the reading, and a read that fails or would have to wait for the disk does not either.
//!
//! The first two are one mechanism: a [`View`] can keep what redb writes in memory and lay it over what it reads from
//! the file. While a database is being opened, its view does so, and writes everything out only when the opening has
//! succeeded ([`View::release`]). After a write has failed, it does so for good: redb sees a file that works, and goes on
//! serving reads until another database takes its place.
//!
//! The third: an error that redb sees from a read ends the whole database. A caller's read that cannot be served
//! therefore unwinds through redb to [`read`](super::read), which started it; redb holds no lock there but one that is
//! not poisoned by it.

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

/// The part of the file that holds redb's header: the one page that is written over in place.
const HEADER_PAGE: usize = 4096;

/// The open file and its lock. It outlives the databases that are opened on it one after the other, so that no other
/// process can come in between.
#[derive(Debug)]
pub(super) struct StoreFile {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    activity: Arc<DiskActivity>,
    /// How long redb has made it.
    len: AtomicU64,
    /// Whether a sync has failed since the page cache forgot it.
    sync_failed: AtomicBool,
}

/// What the thread that opens a store, and then the one that owns its database, is at.
#[derive(Debug, Default)]
pub(super) struct DiskActivity {
    /// What it has read of redb's file, in bytes: the progress of a check.
    bytes_read: AtomicU64,
    /// Since when it waits for the disk.
    waiting_since: Mutex<Option<Instant>>,
}

impl DiskActivity {
    /// Does `call`, which may wait for the disk.
    pub(super) fn watch<T>(&self, call: impl FnOnce() -> T) -> T {
        *self.waiting_since() = Some(Instant::now());
        let result = call();
        *self.waiting_since() = None;
        result
    }

    fn waiting_since(&self) -> parking_lot::MutexGuard<'_, Option<Instant>> {
        self.waiting_since.lock()
    }

    /// How long it has waited for the disk, in the call that it is at.
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

    /// How long it has to be; it is shorter when somebody else has cut it.
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

    /// Has the page cache forget it; see [`DiskFile::forget`].
    pub(super) fn forget(&self) -> io::Result<()> {
        self.watched(|file| file.forget())?;
        self.sync_failed.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// The same, if there are pages that the disk may never have got.
    pub(super) fn forget_failed(&self) -> io::Result<()> {
        if self.sync_failed.load(Ordering::Relaxed) { self.forget() } else { Ok(()) }
    }

    fn watched<T>(&self, call: impl FnOnce(&dyn DiskFile) -> T) -> T {
        // A look-up of a caller, whose time is bounded, may write where redb makes room in its cache.
        if READING.get() == Reading::Owner { self.activity.watch(|| call(&*self.file)) } else { call(&*self.file) }
    }
}

/// On whose behalf the thread reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// Of the thread that owns the database.
    Owner,
    /// Of a caller, on a thread that must not wait for the disk.
    Inline,
    /// Of a caller, on a thread that may.
    Waiting,
}

thread_local! {
    static READING: Cell<Reading> = const { Cell::new(Reading::Owner) };
}

/// Does `read` on behalf of a caller. The inner error is what its look-up unwound with.
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

/// What a caller's read unwinds with.
#[derive(Debug)]
pub(super) struct ReadStopped {
    pub(super) error: io::Error,
    /// What could not be read.
    pub(super) offset: u64,
    pub(super) len: usize,
}

/// Told of a failed read of the owner; answers, in its own time, whether to try again.
pub(super) type ReadRetry = Arc<dyn Fn(&io::Error) -> bool + Send + Sync>;

/// What one database sees of the file.
pub(super) struct View {
    file: Arc<StoreFile>,
    /// Whether writes are kept in `pending`. Read before every access, hence not inside the lock.
    in_memory: AtomicBool,
    /// In the order in which they were asked for.
    pending: RwLock<Vec<Change>>,
    failure: Mutex<Option<io::Error>>,
    retry_read: OnceLock<ReadRetry>,
    /// Whether nobody reads through it any more.
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

    /// Has `retry` asked about failed reads of the owner from now on. Until then they fail.
    pub(super) fn on_failed_read(&self, retry: ReadRetry) {
        let _only_once = self.retry_read.set(retry);
    }

    /// Writes out what was kept, with the syncs between: a crash in the middle leaves what it would have left
    /// if redb had written itself. From now on writes go to the file.
    ///
    /// What was read until now came through the page cache, which after a failed sync may hold what the disk does not.
    /// A commit is written to new pages, which are synced before the header names them; so the header is the only page
    /// that can be both, and it is written again and synced before anything builds on it. (redb 4.6 writes it while it
    /// opens a database that was not closed; this does not depend on that.)
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

    /// The first write that failed, if one did: since then nothing is durable any more.
    pub(super) fn take_failure(&self) -> Option<io::Error> {
        self.failure.lock().take()
    }

    /// Whether a write failed, for those who can stop early.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.lock().is_some()
    }

    /// From now on nothing is written to the file any more.
    pub(super) fn freeze(&self) {
        self.in_memory.store(true, Ordering::Release);
    }

    /// Lets nothing through any more. A database that has failed closes without a look at its pages, some of which may
    /// never have reached the disk.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    fn check_ended(&self) -> io::Result<()> {
        if self.ended.load(Ordering::Acquire) { Err(io::Error::other("this database has failed")) } else { Ok(()) }
    }

    /// Whether this view writes to memory, because the database is being opened or because a write failed.
    fn is_in_memory(&self) -> bool {
        self.in_memory.load(Ordering::Acquire)
    }

    fn change(&self, change: Change) {
        self.pending.write().push(change);
    }

    /// Does `attempt`, and when it fails, keeps `change` in memory and everything after it too.
    fn attempt(&self, attempt: impl FnOnce(&StoreFile) -> io::Result<()>, change: impl FnOnce() -> Change) {
        if !self.is_in_memory() {
            let Err(error) = attempt(&self.file) else { return };
            self.failure.lock().get_or_insert(error);
            self.change(change());
            // After the change is there: a reader that sees the flag has to find it.
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
        // Without the lock, since it may wait for the disk. What is changed meanwhile is only added to.
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
            // Without the panic hook: nothing is wrong with the program.
            std::panic::resume_unwind(Box::new(ReadStopped { error, offset, len: out.len() }))
        })
    }
}

impl Change {
    /// Does to `out`, which holds the bytes from `offset` on, what this change does to the file.
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
            // What is cut off is zero when the file grows again.
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

/// A view that nothing gets through any more once this is dropped. A database whose opening is refused, or that has failed,
/// would otherwise write as it is dropped.
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

/// The form in which redb takes a view.
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

    // The lock is the store file's, which outlives this database.

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
        fn a_staged_view_reads_what_was_written_and_writes_it_only_when_released(
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
    fn a_failed_write_is_kept_and_so_is_everything_after_it() {
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

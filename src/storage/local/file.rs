//! The file under redb, with two safeguards that redb itself does not have: an opening that fails
//! writes nothing, and a write that fails does not end the reading.
//!
//! Both are one mechanism: a [`View`] can keep what redb writes in memory and lay it over what it
//! reads from the file. While a database is being opened, its view does so, and writes everything out
//! only when the opening has succeeded ([`View::release`]). After a write has failed, it does so for good: redb
//! sees a file that works, and goes on serving reads until another database takes its place.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

/// The open file and its locks. It outlives the databases that are opened on it one after the other, so
/// that no other process can come in between.
#[derive(Debug)]
pub(super) struct StoreFile {
    path: PathBuf,
    file: File,
    backend: FileBackend,
    /// Whether redb has taken its locks, which then stand until this is dropped.
    locked: AtomicBool,
}

impl StoreFile {
    pub(super) fn new(path: &Path, file: File) -> Result<Self, redb::DatabaseError> {
        let backend = FileBackend::new(file.try_clone()?)?;
        Ok(Self { path: path.to_owned(), file, backend, locked: AtomicBool::new(false) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Says that the first database holds its locks: those opened on this file later take none.
    pub(super) fn keep_locks(&self) {
        self.locked.store(true, Ordering::Release);
    }

    /// How many more bytes fit on the disk.
    pub(super) fn room(&self) -> io::Result<u64> {
        let disk = rustix::fs::fstatvfs(&self.file)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}

impl Drop for StoreFile {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that is being forked at this moment has it open too,
        // and the locks would last until it executes its program.
        let _closed_anyway = self.backend.close();
    }
}

/// What one database sees of the file.
#[derive(Debug)]
pub(super) struct View {
    file: Arc<StoreFile>,
    /// Whether writes are kept in `pending`. Read before every access, hence not inside the lock.
    in_memory: AtomicBool,
    /// In the order in which they were asked for.
    pending: RwLock<Vec<Change>>,
    failure: Mutex<Option<io::Error>>,
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
        Arc::new(Self { file, in_memory: AtomicBool::new(true), pending: RwLock::default(), failure: Mutex::default() })
    }

    /// Writes out what was kept, with the syncs between: a crash in the middle leaves what it would have left
    /// if redb had written itself. From now on writes go to the file.
    pub(super) fn release(&self) -> io::Result<()> {
        let mut pending = self.pending.write().unwrap_or_else(PoisonError::into_inner);
        for change in pending.iter() {
            match change {
                Change::Write(offset, data) => self.file.backend.write(*offset, data)?,
                Change::SetLen(len) => self.file.backend.set_len(*len)?,
                Change::Sync => self.file.backend.sync_data()?,
            }
        }
        pending.clear();
        self.in_memory.store(false, Ordering::Release);
        Ok(())
    }

    /// The first write that failed, if one did: since then nothing is durable any more.
    pub(super) fn take_failure(&self) -> Option<io::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// From now on nothing is written to the file any more.
    pub(super) fn freeze(&self) {
        self.in_memory.store(true, Ordering::Release);
    }

    /// Whether this view writes to memory, because the database is being opened or because a write failed.
    fn is_in_memory(&self) -> bool {
        self.in_memory.load(Ordering::Acquire)
    }

    fn change(&self, change: Change) {
        self.pending.write().unwrap_or_else(PoisonError::into_inner).push(change);
    }

    /// Does `attempt`, and when it fails, keeps `change` in memory and everything after it too.
    fn attempt(&self, attempt: impl FnOnce(&FileBackend) -> io::Result<()>, change: impl FnOnce() -> Change) {
        if !self.is_in_memory() {
            let Err(error) = attempt(&self.file.backend) else { return };
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            self.change(change());
            // After the change is there: a reader that sees the flag has to find it.
            self.in_memory.store(true, Ordering::Release);
        } else {
            self.change(change());
        }
    }

    fn read_through(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let pending = self.pending.read().unwrap_or_else(PoisonError::into_inner);
        let file_len = self.file.backend.len()?;
        let end = offset.saturating_add(out.len() as u64);
        if end > changed_len(file_len, &pending) {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let in_file = file_len.saturating_sub(offset).min(out.len() as u64);
        let (from_file, beyond) = out.split_at_mut(usize::try_from(in_file).unwrap_or(usize::MAX));
        self.file.backend.read(offset, from_file)?;
        beyond.fill(0);
        for change in pending.iter() {
            change.lay_over(offset, out);
        }
        Ok(())
    }

    /// Asks for a lock, unless the file has them all already.
    fn lock<T>(
        &self,
        granted: T,
        ask: impl FnOnce(&FileBackend) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        if self.file.locked.load(Ordering::Acquire) { Ok(granted) } else { ask(&self.file.backend) }
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

/// The form in which redb takes a view.
#[derive(Debug)]
pub(super) struct Backend(pub(super) Arc<View>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        let len = self.0.file.backend.len()?;
        if !self.0.is_in_memory() {
            return Ok(len);
        }
        Ok(changed_len(len, &self.0.pending.read().unwrap_or_else(PoisonError::into_inner)))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.0.is_in_memory() { self.0.read_through(offset, out) } else { self.0.file.backend.read(offset, out) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.attempt(|file| file.set_len(len), || Change::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.attempt(StorageBackend::sync_data, || Change::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.attempt(|file| file.write(offset, data), || Change::Write(offset, data.to_vec()));
        Ok(())
    }

    // `close` is left out: the locks belong to the file, which the next database may be about to use.

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.lock(true, |file| file.try_lock_range(start, end))
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.lock(true, |file| file.try_lock_shared_range(start, end))
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock((), |file| file.lock_range(start, end))
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock((), |file| file.lock_shared_range(start, end))
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock((), |file| file.unlock_range(start, end))
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.lock(false, |file| file.query_lock_range(start, end))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use proptest::prelude::*;

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
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        View::staged(Arc::new(StoreFile::new(&path, file).unwrap()))
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
        // Open for reading only: every write fails.
        let view = View::staged(Arc::new(StoreFile::new(&path, File::open(&path).unwrap()).unwrap()));
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

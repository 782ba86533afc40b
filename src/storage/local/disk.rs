//! The interface through which the store uses a disk, and its implementation for Linux.
//!
//! It is a trait because a real disk does not fail on demand: `tests/simulation/` has a disk in memory that fails,
//! tears writes and loses pages on command, with the semantics of Linux's page cache.

use std::fmt::Debug;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, IoSliceMut};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Advice, AtFlags, OFlags, StatxFlags};
use rustix::io::ReadWriteFlags;

/// How many times, and how far apart, the page cache is asked to drop a file. A read takes much less than the pause.
const FORGET_PASSES: usize = 3;
const FORGET_PAUSE: Duration = Duration::from_millis(1);

/// A folder tree and its files.
pub(super) trait Disk: Debug + Send + Sync {
    /// Opens a regular file for reading and writing. With `create`, creates it (mode 0600) and its folders (0700) if
    /// they do not exist.
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>>;

    /// Whether anything exists at `path`.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Renames a file, replacing any file that already has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a name.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in the folder of `path` durable. Until then a power cut may undo a new name.
    fn sync_names(&self, path: &Path) -> io::Result<()>;
}

/// An open file.
///
/// Written data can be read at once, and is durable after [`sync`](Self::sync) has succeeded. After a failed sync,
/// nothing written since the last successful one is known to be on the disk, even though it can be read and the next
/// `sync` succeeds: Linux marks the pages clean regardless. The same holds for data that is then written to the same
/// place before [`forget`](Self::forget): ext4 caches the blocks that it allocated for a new page, but its extents
/// still mark them as unwritten. Further syncs of the page succeed, but it reads as zeros once the cache drops it.
pub(super) trait DiskFile: Debug + Send + Sync {
    fn len(&self) -> io::Result<u64>;

    /// Fills `out` with the bytes from `offset` on; [`ErrorKind::UnexpectedEof`] if the file is too short. If `wait` is
    /// false, returns [`ErrorKind::WouldBlock`] instead of waiting for the disk.
    fn read(&self, offset: u64, out: &mut [u8], wait: bool) -> io::Result<()>;

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes the data and the length durable.
    fn sync(&self) -> io::Result<()>;

    /// Writes out dirty pages and asks the page cache to drop the whole file. This is only advice: the kernel silently
    /// skips a page that is just being read or written back, or is mapped. So the request is repeated, and nothing maps
    /// a store.
    fn forget(&self) -> io::Result<()>;

    /// Takes the lock that marks the file as used by this process; `false` if another process holds it. It is released
    /// when the file is dropped.
    fn try_lock(&self) -> io::Result<bool>;

    /// Whether `path` still refers to this file.
    fn is_at(&self, path: &Path) -> io::Result<bool>;

    /// The free space on the disk, in bytes.
    fn room(&self) -> io::Result<u64>;
}

/// The parent folder of `path`.
pub(super) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `store.redb` becomes `store.redb.SUFFIX`.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// The file systems of this machine.
#[derive(Debug)]
pub(super) struct LinuxDisk;

impl Disk for LinuxDisk {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        if create {
            make_folders(folder(path))?;
        }
        let mut options = OpenOptions::new();
        LinuxFile::regular(options.read(true).write(true).create(create).truncate(false).mode(0o600).open(path)?)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        match path.symlink_metadata() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_names(&self, path: &Path) -> io::Result<()> {
        File::open(folder(path))?.sync_all()
    }
}

/// Creates the missing folders and makes each of them durable: if a power cut undoes a folder, synced files in it are
/// lost.
fn make_folders(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    make_folders(folder(path))?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(folder(path))?.sync_all()
}

/// The file systems of this machine, read only. Also works on a read-only snapshot.
#[derive(Debug)]
pub(super) struct ReadOnlyDisk;

impl Disk for ReadOnlyDisk {
    fn open(&self, path: &Path, _create: bool) -> io::Result<Arc<dyn DiskFile>> {
        // Opening a pipe would otherwise wait for a writer.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        LinuxFile::regular(OpenOptions::new().read(true).custom_flags(flags).open(path)?)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        LinuxDisk.exists(path)
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn remove(&self, _path: &Path) -> io::Result<()> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_names(&self, _path: &Path) -> io::Result<()> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// The identity of a file: device and inode.
///
/// Does not request timestamps: since Linux 6.13, the next write after a timestamp was read stores a new one, and
/// syncing after each write then takes half as long again.
fn identity(folder: impl AsFd, path: &Path, flags: AtFlags) -> io::Result<(u32, u32, u64)> {
    let found = rustix::fs::statx(folder, path, flags, StatxFlags::INO)?;
    Ok((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
}

#[derive(Debug)]
struct LinuxFile(File);

impl LinuxFile {
    fn regular(file: File) -> io::Result<Arc<dyn DiskFile>> {
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
        }
        Ok(Arc::new(Self(file)))
    }
}

impl DiskFile for LinuxFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8], wait: bool) -> io::Result<()> {
        if wait {
            return self.0.read_exact_at(out, offset);
        }
        let wanted = out.len();
        match rustix::io::preadv2(&self.0, &mut [IoSliceMut::new(out)], offset, ReadWriteFlags::NOWAIT) {
            Ok(read) if read == wanted => Ok(()),
            // Only a part is cached, the file is too short, or the file system cannot tell what is cached.
            Ok(_)
            | Err(
                rustix::io::Errno::AGAIN
                | rustix::io::Errno::OPNOTSUPP
                | rustix::io::Errno::NOSYS
                | rustix::io::Errno::INTR,
            ) => Err(ErrorKind::WouldBlock.into()),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn forget(&self) -> io::Result<()> {
        // Dirty pages are not dropped.
        self.0.sync_data()?;
        // More than once, because a page that is being read now is skipped.
        for _ in 0..FORGET_PASSES {
            rustix::fs::fadvise(&self.0, 0, None, Advice::DontNeed)?;
            std::thread::sleep(FORGET_PAUSE);
        }
        Ok(())
    }

    fn try_lock(&self) -> io::Result<bool> {
        match self.0.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        let open = identity(&self.0, Path::new(""), AtFlags::EMPTY_PATH)?;
        match identity(rustix::fs::CWD, path, AtFlags::empty()) {
            Ok(named) => Ok(open == named),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn room(&self) -> io::Result<u64> {
        let disk = rustix::fs::fstatvfs(&self.0)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}

impl Drop for LinuxFile {
    fn drop(&mut self) {
        // Closing the file is not enough: a child process that was just forked also has it open, and would hold the
        // lock until it executes its program.
        let _closed_anyway = self.0.unlock();
    }
}

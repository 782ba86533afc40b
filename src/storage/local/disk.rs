//! What the store asks of a disk, and Linux's answer.
//!
//! The seam is here because a disk's worst moments cannot be ordered from a real one: `tests/simulation/` has a disk
//! in memory that fails, tears and forgets on command, with the semantics of Linux's page cache.

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

/// How often and how far apart the page cache is asked to drop a file: a read lasts for much less.
const FORGET_PASSES: usize = 3;
const FORGET_PAUSE: Duration = Duration::from_millis(1);

/// A folder tree and its files.
pub(super) trait Disk: Debug + Send + Sync {
    /// Opens a regular file for reading and writing. With `create`, makes it (mode 0600) and its folders (0700) when
    /// they are not there.
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>>;

    /// Whether there is anything of that name.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Gives a file another name, in place of a file that has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Takes the name away.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in the folder of `path` durable. Until then a power cut may take a new name away again.
    fn sync_names(&self, path: &Path) -> io::Result<()>;
}

/// An open file.
///
/// What is written can be read at once, and is durable after [`sync`](Self::sync) has succeeded. After it has failed,
/// nothing that was written since the last success is known to be on the disk, even though it can be read and the next
/// `sync` succeeds: Linux marks the pages clean all the same. Nor is what is then written to the same place again, before
/// [`forget`](Self::forget): ext4 keeps in its cache the blocks that it had found for a new page, and in its extents that
/// they were never written. Further syncs of the page succeed, and it is zeros as soon as the cache drops it.
pub(super) trait DiskFile: Debug + Send + Sync {
    fn len(&self) -> io::Result<u64>;

    /// Fills `out` from `offset` on; [`ErrorKind::UnexpectedEof`] when the file ends before. With `wait` false,
    /// [`ErrorKind::WouldBlock`] when that would take a read from the disk.
    fn read(&self, offset: u64, out: &mut [u8], wait: bool) -> io::Result<()>;

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes data and length durable.
    fn sync(&self) -> io::Result<()>;

    /// Writes out what is dirty, and asks the page cache to drop all of it. That is an advice: the kernel passes over a page
    /// that somebody is reading or writing back at this very moment, or has mapped, and does not say so. Nobody maps a
    /// store, and what is asked is asked again.
    fn forget(&self) -> io::Result<()>;

    /// Takes the lock that says that this process uses the file; `false` when another one has it. It ends with the
    /// file.
    fn try_lock(&self) -> io::Result<bool>;

    /// Whether `path` still names this file.
    fn is_at(&self, path: &Path) -> io::Result<bool>;

    /// How many more bytes fit on the disk.
    fn room(&self) -> io::Result<u64>;
}

/// The folder that `path` is in.
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

/// The files of this machine.
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

/// Makes the folders that are not there, each of them durable: what is synced in a folder that a power cut takes away
/// is gone.
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

/// The files of this machine, of which nothing is changed: also those of a read-only snapshot.
#[derive(Debug)]
pub(super) struct ReadOnlyDisk;

impl Disk for ReadOnlyDisk {
    fn open(&self, path: &Path, _create: bool) -> io::Result<Arc<dyn DiskFile>> {
        // A pipe would wait for its writer.
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

/// Which file it is: device and inode.
///
/// By a `statx` that does not ask for times: since Linux 6.13 a time that somebody has seen makes the next write store a
/// new one, and a sync that comes after each write then takes half as long again.
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
            // Only a part is in the cache, or the file ends; or the file system cannot tell what is in the cache, and
            // then a read of any length might wait.
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
        // A dirty page would stay.
        self.0.sync_data()?;
        // More than once: who reads a page now is done with it in a moment.
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
        // Closing the file is not enough: a process that is being forked at this moment has it open too, and the lock
        // would last until it executes its program.
        let _closed_anyway = self.0.unlock();
    }
}

//! Making a store, and opening one without harming it.

use std::any::Any;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Builder, Database, DatabaseError, ReadableDatabase, StorageError, TableError, TableHandle};

use super::file::{Backend, StoreFile, View};
use super::{Snapshot, TABLE, TABLE_NAME};
use crate::storage::OpenError;

/// One opened database. There is one after the other on the same file when the disk fails.
pub(super) struct Generation {
    pub(super) database: Database,
    pub(super) view: Arc<View>,
    pub(super) file: Arc<StoreFile>,
}

impl Generation {
    /// The committed state of now, for readers.
    pub(super) fn snapshot(&self) -> Result<Arc<Snapshot>, redb::Error> {
        Ok(Arc::new(self.database.begin_read()?.open_table(TABLE)?))
    }
}

/// Opens the store at `path`; makes it first when there is nothing.
pub(super) fn open(path: &Path, cache_size: usize) -> Result<Generation, OpenError> {
    loop {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => return open_file(path, file, cache_size),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // `None`: another process was faster, and its store is there now.
                if let Some(generation) = create(path, cache_size)? {
                    return Ok(generation);
                }
            }
            Err(source) => return Err(OpenError::Io { path: path.to_owned(), source }),
        }
    }
}

fn open_file(path: &Path, file: File, cache_size: usize) -> Result<Generation, OpenError> {
    let metadata = file.metadata().map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    if !metadata.is_file() {
        return Err(damaged(path, "not a regular file"));
    }
    if metadata.len() == 0 {
        return Err(damaged(path, "the file is empty, which a store never is"));
    }
    let file = StoreFile::new(path, file).map_err(|error| refused(path, error))?;
    verify(Arc::new(file), cache_size)
}

/// Opens a database on `file`, checks it whole, and only then lets it write.
pub(super) fn verify(file: Arc<StoreFile>, cache_size: usize) -> Result<Generation, OpenError> {
    let path = file.path().to_owned();
    let view = View::staged(file.clone());
    // redb returns an error for most damage and asserts on some. A panic in here leaves nothing behind
    // that anybody uses: the database is gone, and its writes stayed in memory.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let database = Builder::new()
            .set_cache_size(cache_size)
            .set_check_integrity_on_open(true)
            .create_with_backend(Backend(view.clone()))
            .map_err(|error| refused(&path, error))?;
        check_table(&database).map_err(|reason| damaged(&path, reason))?;
        Ok(database)
    }));
    let database = opened.unwrap_or_else(|panic| Err(damaged(&path, panic_text(&*panic))))?;
    file.keep_locks();
    view.release().map_err(|source| OpenError::Io { path, source })?;
    Ok(Generation { database, view, file })
}

/// Whether the database is one of ours, of a version that this agent knows.
fn check_table(database: &Database) -> Result<(), String> {
    let read = || -> Result<(), redb::Error> {
        let transaction = database.begin_read()?;
        match transaction.open_table(TABLE) {
            Ok(_) => Ok(()),
            Err(error @ TableError::TableDoesNotExist(_)) => {
                let newer = transaction.list_tables()?.find(|table| table.name().starts_with("peerscope."));
                Err(newer.map_or(error, |table| TableError::TableDoesNotExist(table.name().to_owned())).into())
            }
            Err(error) => Err(error.into()),
        }
    };
    read().map_err(|error| match error {
        redb::Error::TableDoesNotExist(name) if name != TABLE_NAME => {
            format!("it holds {name}, and this version of Peerscope knows {TABLE_NAME}")
        }
        redb::Error::TableDoesNotExist(_) => "it is a database of something else".into(),
        error => error.to_string(),
    })
}

/// Makes a store under a name of its own, and gives it `path` when it is complete: a crash in the middle
/// leaves a file that the next start replaces. `None` when `path` has come into being meanwhile.
fn create(path: &Path, cache_size: usize) -> Result<Option<Generation>, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io)?;
    let unfinished = unfinished_path(path);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&unfinished)
        .map_err(io)?;
    // The lock that redb takes too, on the same open file. Whoever has it is the one that creates.
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Err(OpenError::InUse(path.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => return Err(io(source)),
    }
    // Between the opening and the lock, another process may have finished this very file.
    let still_there = std::fs::metadata(&unfinished).is_ok_and(|named| is_same(&named, &file));
    if !still_there || path.symlink_metadata().is_ok() {
        return Ok(None);
    }
    // What a crash left behind was never a store.
    file.set_len(0).map_err(io)?;
    let file = Arc::new(StoreFile::new(path, file).map_err(|error| refused(path, error))?);
    let view = View::staged(file.clone());
    let database = Builder::new()
        .set_cache_size(cache_size)
        .create_with_backend(Backend(view.clone()))
        .map_err(|error| refused(path, error))?;
    make_table(&database).map_err(|error| io(io::Error::other(error)))?;
    file.keep_locks();
    view.release().map_err(io)?;
    std::fs::rename(&unfinished, path).map_err(io)?;
    // Without this the name may be lost in a power cut, and the data with it.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
    Ok(Some(Generation { database, view, file }))
}

fn make_table(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(TABLE)?;
    transaction.commit()?;
    Ok(())
}

/// `store.redb` becomes `store.redb.new`.
fn unfinished_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn is_same(named: &std::fs::Metadata, file: &File) -> bool {
    file.metadata().is_ok_and(|open| (open.dev(), open.ino()) == (named.dev(), named.ino()))
}

fn damaged(path: &Path, reason: impl Into<String>) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), reason: reason.into() }
}

/// What redb's refusal means for the operator.
fn refused(path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => OpenError::InUse(path.to_owned()),
        DatabaseError::Storage(StorageError::Io(source))
            if !matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            OpenError::Io { path: path.to_owned(), source }
        }
        // redb has one error for every format that it does not know; it names the version.
        error => damaged(path, error.to_string()),
    }
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("an internal check failed").to_owned()
}

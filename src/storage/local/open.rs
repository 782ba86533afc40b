//! Creates a store, or opens one without harming it.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase as _, ReadableTableMetadata as _, StorageError,
    TableDefinition, TableError, TableHandle as _, WriteTransaction,
};

use super::disk::{Disk, beside};
use super::file::{Backend, DiskActivity, OwnedView, StoreFile, View};
use super::{Snapshot, TABLE, TABLE_NAME, log, value};
use crate::panics;
use crate::storage::OpenError;

/// The table of the previous layout: values without checksums, and no log.
pub(super) const TABLE_V1: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("peerscope.v1");

/// Metadata of the store.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("peerscope.meta");
/// A random number that a store and its log share.
const META_STORE: &str = "store";
/// The last segment of the log that redb has completely.
const META_APPLIED: &str = "applied";

/// How many values one transaction moves from the old layout to the new one.
const MOVED_AT_ONCE: usize = 10_000;

/// How a store is opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    /// The memory for cached pages, in bytes.
    pub(super) cache_size: usize,
    /// Whether every page is checked.
    pub(super) check: bool,
}

/// Receives the progress of an opening.
pub(super) trait Progress: Send + Sync {
    /// Where calls that wait for the disk are recorded.
    fn disk(&self) -> &Arc<DiskActivity>;
    /// redb is about to read its file; all of it, if every page is checked.
    fn opening(&self);
    /// `left` values remain to be migrated to the new layout.
    fn carrying(&self, left: u64);
}

/// An open database. After disk failures another one is opened on the same file.
pub(super) struct Generation {
    /// Dropped before the database, which would otherwise write while it is dropped. Only closing may do that.
    pub(super) view: OwnedView,
    pub(super) database: Database,
    pub(super) file: Arc<StoreFile>,
}

/// A store whose log has not been read yet.
pub(super) struct Opened {
    pub(super) generation: Generation,
    /// The random number that identifies the store.
    pub(super) store: u64,
    /// The last segment of the log that redb has completely.
    pub(super) applied: u64,
}

impl Generation {
    /// Allows the database to write, now that it has been checked.
    pub(super) fn release(&self) -> Result<(), OpenError> {
        self.view.release().map_err(|source| OpenError::io(self.file.path(), source))
    }

    /// The current committed state, for readers.
    pub(super) fn snapshot(&self) -> Result<Arc<Snapshot>, redb::Error> {
        Ok(Arc::new(self.database.begin_read()?.open_table(TABLE)?))
    }

    /// Makes `change` in one durable transaction.
    pub(super) fn transact(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        // Commits in two phases and saves the state of the allocator. So an opening finds the newest commit from the
        // header alone, in constant time, and never relies on the page cache to tell which of two commits is complete.
        transaction.set_quick_repair(true);
        self.commit(transaction, change)
    }

    /// Makes a part of a change. The next durable transaction completes it and makes both parts durable.
    pub(super) fn prepare(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::None)?;
        self.commit(transaction, change)
    }

    fn commit(
        &self,
        transaction: WriteTransaction,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), redb::Error> {
        change(&transaction)?;
        transaction.commit()?;
        // The view hides failures from redb, so that its readers can continue.
        match self.view.take_failure() {
            Some(error) => Err(StorageError::Io(error).into()),
            None => Ok(()),
        }
    }
}

/// Records that redb has the log up to the segment `sequence`, in the transaction that makes this true.
pub(super) fn set_applied(transaction: &WriteTransaction, sequence: u64) -> Result<(), redb::Error> {
    transaction.open_table(META)?.insert(META_APPLIED, sequence)?;
    Ok(())
}

/// Opens the store at `path`, and creates it first if it does not exist.
pub(super) fn open(
    disk: &dyn Disk,
    path: &Path,
    options: Options,
    progress: &dyn Progress,
) -> Result<Opened, OpenError> {
    let io = |source| OpenError::io(path, source);
    let activity = progress.disk();
    loop {
        match activity.watch(|| disk.open(path, false)) {
            Ok(file) => {
                if activity.watch(|| file.len()).map_err(io)? == 0 {
                    return Err(damaged(path, "the file is empty"));
                }
                if !activity.watch(|| file.try_lock()).map_err(io)? {
                    return Err(OpenError::InUse(path.to_owned()));
                }
                let file = Arc::new(StoreFile::new(path, file, activity.clone()));
                progress.opening();
                // Syncs may have failed in an earlier process, or in this one's last attempt.
                file.forget().map_err(io)?;
                let (generation, found) = inspect(file, options)?;
                generation.release()?;
                if found == Found::V1 {
                    carry_over(&generation, progress).map_err(|error| failed(path, error))?;
                }
                return opened(path, generation);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if activity.watch(|| log::exists(disk, path)).map_err(io)? {
                    return Err(damaged(
                        path,
                        "the file is missing, but its log exists; to start empty, move the files of the log (the same \
                         name with .log0 to .log7) away as well",
                    ));
                }
                // `None`: another process was faster, and its store exists now.
                if let Some(generation) = create(disk, path, options, progress)? {
                    return opened(path, generation);
                }
            }
            Err(source) => return Err(io(source)),
        }
    }
}

/// Opens a database on `file` and checks it. redb's writes stay in memory until [`Generation::release`].
pub(super) fn inspect(file: Arc<StoreFile>, options: Options) -> Result<(Generation, Found), OpenError> {
    let path = file.path().to_owned();
    let view = View::staged(file.clone());
    // redb returns an error for most damage but panics on some. Nothing outlives a panic in here: the database is gone,
    // and its writes stayed in memory.
    let opened = panics::caught(|| {
        let database = Builder::new()
            .set_cache_size(options.cache_size)
            .set_check_integrity_on_open(options.check)
            .create_with_backend(Backend(view.clone()))
            .map_err(|error| refused(&path, error))?;
        let found = check_table(&database).map_err(|error| match error {
            Unknown::Table(reason) => damaged(&path, reason),
            Unknown::Redb(error) => failed(&path, error),
        })?;
        Ok((database, found))
    });
    let (database, found) = opened.unwrap_or_else(|panic| Err(damaged(&path, panics::text(&*panic))))?;
    Ok((Generation { view: OwnedView(view), database, file }, found))
}

/// The layout of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The current layout.
    Current,
    /// The previous layout, or a half-finished migration from it.
    V1,
}

enum Unknown {
    Table(String),
    Redb(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Unknown {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

/// Determines the layout of the database, if this agent knows it.
fn check_table(database: &Database) -> Result<Found, Unknown> {
    let transaction = database.begin_read()?;
    let names: Vec<String> = transaction.list_tables()?.map(|table| table.name().to_owned()).collect();
    if names.iter().any(|name| name == TABLE_V1.name()) {
        transaction.open_table(TABLE_V1)?;
        return Ok(Found::V1);
    }
    match transaction.open_table(TABLE) {
        Ok(_) => Ok(Found::Current),
        Err(TableError::TableDoesNotExist(_)) => {
            let newer = names.iter().find(|name| name.starts_with("peerscope."));
            Err(Unknown::Table(newer.map_or_else(
                || "it is a redb database of another program".into(),
                |name| format!("it contains {name}, but this version of Peerscope expects {TABLE_NAME}"),
            )))
        }
        Err(error) => Err(error.into()),
    }
}

/// The random number that identifies the store, and the last segment of the log that redb has completely.
pub(super) fn read_meta(generation: &Generation) -> Result<(u64, u64), redb::Error> {
    let meta = generation.database.begin_read()?.open_table(META)?;
    let number = |key| meta.get(key).map(|found| found.map_or(0, |found| found.value()));
    Ok((number(META_STORE)?, number(META_APPLIED)?))
}

fn opened(path: &Path, generation: Generation) -> Result<Opened, OpenError> {
    let (store, applied) = read_meta(&generation).map_err(|error| failed(path, error))?;
    Ok(Opened { generation, store, applied })
}

/// Moves all values to the new layout, [`MOVED_AT_ONCE`] per transaction. After a crash the next opening moves the
/// rest.
fn carry_over(generation: &Generation, progress: &dyn Progress) -> Result<(), redb::Error> {
    loop {
        let mut left = 0;
        generation.transact(|transaction| {
            {
                let mut old = transaction.open_table(TABLE_V1)?;
                let mut new = transaction.open_table(TABLE)?;
                for _ in 0..MOVED_AT_ONCE {
                    let Some((key, value)) = old.pop_first()? else { break };
                    value::insert(&mut new, key.value(), value.value())?;
                }
                left = old.len()?;
            }
            if left == 0 {
                transaction.delete_table(TABLE_V1)?;
                set_store(transaction)?;
            }
            Ok(())
        })?;
        if left == 0 {
            return Ok(());
        }
        progress.carrying(left);
    }
}

fn set_store(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.open_table(META)?.insert(META_STORE, rand::random::<u64>())?;
    Ok(())
}

/// Creates a store under a temporary name, and renames it to `path` when it is complete. A crash in the middle
/// leaves a file that the next start replaces. `None` if `path` has been created meanwhile.
fn create(
    disk: &dyn Disk,
    path: &Path,
    options: Options,
    progress: &dyn Progress,
) -> Result<Option<Generation>, OpenError> {
    let io = |source| OpenError::io(path, source);
    let activity = progress.disk();
    let unfinished = beside(path, "new");
    let file = activity.watch(|| disk.open(&unfinished, true)).map_err(io)?;
    if !activity.watch(|| file.try_lock()).map_err(io)? {
        return Err(OpenError::InUse(path.to_owned()));
    }
    // Another process may have completed this very file before this one took the lock.
    if !activity.watch(|| Ok(file.is_at(&unfinished)? && !disk.exists(path)?)).map_err(io)? {
        return Ok(None);
    }
    // A file that a crash left behind was never a complete store.
    activity.watch(|| file.set_len(0)).map_err(io)?;
    let file = Arc::new(StoreFile::new(path, file, activity.clone()));
    progress.opening();
    let view = View::staged(file.clone());
    let database = Builder::new()
        .set_cache_size(options.cache_size)
        .create_with_backend(Backend(view.clone()))
        .map_err(|error| refused(path, error))?;
    let generation = Generation { view: OwnedView(view), database, file };
    let made = generation.transact(|transaction| {
        transaction.open_table(TABLE)?;
        set_store(transaction)
    });
    made.map_err(|error| failed(path, error))?;
    generation.view.release().map_err(io)?;
    activity.watch(|| disk.rename(&unfinished, path)).map_err(io)?;
    // A power cut could lose the name, and the data with it.
    activity.watch(|| disk.sync_names(path)).map_err(io)?;
    Ok(Some(generation))
}

/// The operator's version of an error of redb after the opening.
pub(super) fn failed(path: &Path, error: redb::Error) -> OpenError {
    match error {
        redb::Error::Io(source) => OpenError::io(path, source),
        error => damaged(path, error.to_string()),
    }
}

fn damaged(path: &Path, reason: impl Into<String>) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), reason: reason.into() }
}

/// The operator's version of redb's refusal to open a file.
fn refused(path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(path.to_owned()),
        DatabaseError::Storage(StorageError::Io(source))
            if !matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            OpenError::io(path, source)
        }
        // redb has one error for all unknown formats, and its text includes the version.
        error => damaged(path, error.to_string().trim_start_matches("I/O error: ")),
    }
}

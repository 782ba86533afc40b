//! Making a store, and opening one without harming it.

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

/// The table of the layout before: values without checksums, and no log beside it.
pub(super) const TABLE_V1: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("peerscope.v1");

/// What the store knows of itself.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("peerscope.meta");
/// A random number that a store and its log share.
const META_STORE: &str = "store";
/// The last segment of the log that is in redb whole.
const META_APPLIED: &str = "applied";

/// How many values move in one transaction from the old layout to the new one.
const MOVED_AT_ONCE: usize = 10_000;

/// How a store is opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    /// The memory for cached pages, in bytes.
    pub(super) cache_size: usize,
    /// Whether every page is checked.
    pub(super) check: bool,
}

/// Hears how far an opening is.
pub(super) trait Progress: Send + Sync {
    /// Where it is noted that the opening waits for the disk.
    fn disk(&self) -> &Arc<DiskActivity>;
    /// redb is about to read its file, the whole of it when it is checked.
    fn opening(&self);
    /// `left` values are to be carried over to the new layout.
    fn carrying(&self, left: u64);
}

/// One opened database. There is one after the other on the same file when the disk fails.
pub(super) struct Generation {
    /// Dropped before the database, which would write as it goes: only a closing is to do that.
    pub(super) view: OwnedView,
    pub(super) database: Database,
    pub(super) file: Arc<StoreFile>,
}

/// A store whose log was not looked at yet.
pub(super) struct Opened {
    pub(super) generation: Generation,
    /// Which store it is.
    pub(super) store: u64,
    /// The segment of its log up to which it has everything.
    pub(super) applied: u64,
}

impl Generation {
    /// Lets it write, now that it was checked.
    pub(super) fn release(&self) -> Result<(), OpenError> {
        self.view.release().map_err(|source| OpenError::io(self.file.path(), source))
    }

    /// The committed state of now, for readers.
    pub(super) fn snapshot(&self) -> Result<Arc<Snapshot>, redb::Error> {
        Ok(Arc::new(self.database.begin_read()?.open_table(TABLE)?))
    }

    /// Does `change` in one durable transaction.
    pub(super) fn transact(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        // In two phases, with the state of the allocator: so an opening takes the newest commit by its header alone, in
        // constant time, and never has to ask the page cache which of two commits is whole.
        transaction.set_quick_repair(true);
        self.commit(transaction, change)
    }

    /// Does a part of a change that the next durable transaction completes, and makes durable with its own.
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
        // The view hides failures from redb, whose readers go on.
        match self.view.take_failure() {
            Some(error) => Err(StorageError::Io(error).into()),
            None => Ok(()),
        }
    }
}

/// Says, in the transaction that makes it true, that redb has the log up to the segment `sequence`.
pub(super) fn set_applied(transaction: &WriteTransaction, sequence: u64) -> Result<(), redb::Error> {
    transaction.open_table(META)?.insert(META_APPLIED, sequence)?;
    Ok(())
}

/// Opens the store at `path`; makes it first when there is nothing.
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
                    return Err(damaged(path, "the file is empty, which a store never is"));
                }
                if !activity.watch(|| file.try_lock()).map_err(io)? {
                    return Err(OpenError::InUse(path.to_owned()));
                }
                let file = Arc::new(StoreFile::new(path, file, activity.clone()));
                progress.opening();
                // Nobody knows what failed for whoever had it before, or for this process when it tried last.
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
                        "the file is missing, but its log is there; to start empty, move the files of the log (the \
                         same name with .log0 to .log7) away, too",
                    ));
                }
                // `None`: another process was faster, and its store is there now.
                if let Some(generation) = create(disk, path, options, progress)? {
                    return opened(path, generation);
                }
            }
            Err(source) => return Err(io(source)),
        }
    }
}

/// Opens a database on `file` and checks it. What redb writes stays in memory, until it is [`Generation::release`]d.
pub(super) fn inspect(file: Arc<StoreFile>, options: Options) -> Result<(Generation, Found), OpenError> {
    let path = file.path().to_owned();
    let view = View::staged(file.clone());
    // redb returns an error for most damage and asserts on some. A panic in here leaves nothing behind
    // that anybody uses: the database is gone, and its writes stayed in memory.
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

/// Which layout a store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Today's.
    Current,
    /// The one before, or half of it carried over.
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

/// Which of ours the database is, if it is one that this agent knows.
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
                || "it is a database of something else".into(),
                |name| format!("it holds {name}, and this version of Peerscope knows {TABLE_NAME}"),
            )))
        }
        Err(error) => Err(error.into()),
    }
}

/// Which store it is, and the segment of its log up to which it has everything.
pub(super) fn read_meta(generation: &Generation) -> Result<(u64, u64), redb::Error> {
    let meta = generation.database.begin_read()?.open_table(META)?;
    let number = |key| meta.get(key).map(|found| found.map_or(0, |found| found.value()));
    Ok((number(META_STORE)?, number(META_APPLIED)?))
}

fn opened(path: &Path, generation: Generation) -> Result<Opened, OpenError> {
    let (store, applied) = read_meta(&generation).map_err(|error| failed(path, error))?;
    Ok(Opened { generation, store, applied })
}

/// Moves all values to the new layout, some at a time, each of them in one transaction: a crash in between leaves the
/// rest for the next opening.
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

/// Makes a store under a name of its own, and gives it `path` when it is complete: a crash in the middle
/// leaves a file that the next start replaces. `None` when `path` has come into being meanwhile.
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
    // Whoever has the lock is the one that creates.
    if !activity.watch(|| file.try_lock()).map_err(io)? {
        return Err(OpenError::InUse(path.to_owned()));
    }
    // Between the opening and the lock, another process may have finished this very file.
    if !activity.watch(|| Ok(file.is_at(&unfinished)? && !disk.exists(path)?)).map_err(io)? {
        return Ok(None);
    }
    // What a crash left behind was never a store.
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
    // Without this the name may be lost in a power cut, and the data with it.
    activity.watch(|| disk.sync_names(path)).map_err(io)?;
    Ok(Some(generation))
}

/// What an error behind the opening means for the operator.
pub(super) fn failed(path: &Path, error: redb::Error) -> OpenError {
    match error {
        redb::Error::Io(source) => OpenError::io(path, source),
        error => damaged(path, error.to_string()),
    }
}

fn damaged(path: &Path, reason: impl Into<String>) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), reason: reason.into() }
}

/// What redb's refusal means for the operator.
fn refused(path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(path.to_owned()),
        DatabaseError::Storage(StorageError::Io(source))
            if !matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            OpenError::io(path, source)
        }
        // redb has one error for every format that it does not know; it names the version.
        error => damaged(path, error.to_string().trim_start_matches("I/O error: ")),
    }
}

//! Reads a whole store that no agent has open, without changing anything.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use redb::{ReadableDatabase as _, ReadableTable as _};

use super::disk::{Disk, ReadOnlyDisk};
use super::file::{DiskActivity, StoreFile};
use super::log::Log;
use super::open::{Found, Options, failed, inspect, read_meta};
use super::{TABLE, value};
use crate::storage::OpenError;

/// How often progress is reported.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// At most this many damaged keys are listed.
const NAMED: usize = 10;

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Checked {
    /// The number of values in redb.
    pub values: u64,
    /// The number of writes in the log, which the next start will replay.
    pub in_log: u64,
    /// The size of the file, in bytes.
    pub bytes: u64,
    /// The number of values that are not what was put.
    pub damaged_values: u64,
    /// The keys of the first damaged values, at most 10.
    pub damaged_keys: Vec<String>,
    /// redb's error, if its pages do not match their checksums.
    pub damaged_pages: Option<String>,
}

impl Checked {
    /// Whether everything is as it was written.
    pub fn is_good(&self) -> bool {
        self.damaged_values == 0 && self.damaged_pages.is_none()
    }
}

/// Reads every value and every page of the store at `path`, and its log, without writing anything. Calls `progress`
/// once a second with the bytes read so far and the total.
///
/// # Errors
///
/// The same as for opening. Damaged values and pages are reported in the result instead.
pub(in crate::storage) fn check(
    path: &Path,
    cache_size: usize,
    progress: &dyn Fn(u64, u64),
) -> Result<Checked, OpenError> {
    let disk: Arc<dyn Disk> = Arc::new(ReadOnlyDisk);
    let file = disk.open(path, false).map_err(|source| OpenError::io(path, source))?;
    if !file.try_lock().map_err(|source| OpenError::io(path, source))? {
        return Err(OpenError::InUse(path.to_owned()));
    }
    let bytes = file.len().map_err(|source| OpenError::io(path, source))?;
    let activity = Arc::<DiskActivity>::default();
    let file = Arc::new(StoreFile::new(path, file, activity.clone()));
    std::thread::scope(|scope| {
        let waiting = std::thread::current();
        let (disk, file) = (&disk, &file);
        let work = scope.spawn(move || {
            let read = read_all(disk, file, cache_size);
            waiting.unpark();
            read
        });
        while !work.is_finished() {
            std::thread::park_timeout(TOLD_EVERY);
            // The file is read twice: once for the values, once for the pages.
            progress(activity.bytes_read().min(2 * bytes), 2 * bytes);
        }
        let read = work.join().unwrap_or_else(|panic| {
            Err(OpenError::Damaged { path: path.to_owned(), reason: crate::panics::text(&*panic) })
        });
        read.map(|checked| Checked { bytes, ..checked })
    })
}

fn read_all(disk: &Arc<dyn Disk>, file: &Arc<StoreFile>, cache_size: usize) -> Result<Checked, OpenError> {
    let path = file.path();
    let mut checked = Checked::default();
    // Check the contents of the disk, not those of the page cache.
    file.forget().map_err(|source| OpenError::io(path, source))?;
    let (generation, found) = inspect(file.clone(), Options { cache_size, check: false })?;
    if found == Found::Current {
        let (store, applied) = read_meta(&generation).map_err(|error| failed(path, error))?;
        checked.in_log = Log::inspect(disk, path, store, applied)?;
        read_values(&generation.database, &mut checked).map_err(|error| failed(path, error))?;
    }
    drop(generation);
    match inspect(file.clone(), Options { cache_size, check: true }) {
        Ok(_) => {}
        Err(OpenError::Damaged { reason, .. }) => checked.damaged_pages = Some(reason),
        Err(error) => return Err(error),
    }
    Ok(checked)
}

fn read_values(database: &redb::Database, checked: &mut Checked) -> Result<(), redb::Error> {
    let table = database.begin_read()?.open_table(TABLE)?;
    for entry in table.iter()? {
        let (key, stored) = entry?;
        checked.values += 1;
        if value::verified(key.value(), stored.value()).is_none() {
            checked.damaged_values += 1;
            if checked.damaged_keys.len() < NAMED {
                checked.damaged_keys.push(key.value().escape_ascii().to_string());
            }
        }
    }
    Ok(())
}

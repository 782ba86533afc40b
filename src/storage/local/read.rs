//! Reads from redb: on the caller's thread if the data is in memory, otherwise on a thread that may wait for the disk.
//! So a slow disk delays only the reads that need it, not other tasks of the runtime.

use std::any::Any;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::file::{ReadStopped, Reading, reading};
use super::state::{StoreState, closed};
use super::{Snapshot, value};
use crate::panics;
use crate::storage::StorageError;

/// How many reads may wait for the disk at once: about as many as a disk benefits from.
const READERS: usize = 16;

/// How many more reads may wait for a place.
const WAITING: usize = 1024;

/// The longest that a read may take, including the wait for a place.
pub(super) const PATIENCE: Duration = Duration::from_secs(8);

/// The places for reads that may wait for the disk.
#[derive(Debug)]
pub(super) struct Readers {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// Why a look-up failed.
#[derive(Debug)]
enum LookUpFailure {
    /// It has to wait for the disk.
    NotInMemory,
    Read(ReadStopped),
    Redb(redb::StorageError),
    /// The value in redb is not the one that was put.
    Damaged(String),
}

impl Readers {
    pub(super) fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(READERS)), waiting: AtomicUsize::new(0) }
    }

    /// Reads the value under `key`.
    pub(super) async fn get(
        &self,
        shared: &Arc<StoreState>,
        snapshot: Arc<Snapshot>,
        key: &Bytes,
    ) -> Result<Option<Bytes>, StorageError> {
        match Self::get_at_once(shared, &snapshot, key) {
            Some(found) => found,
            None => self.wait_for_disk(shared, snapshot, key.clone()).await,
        }
    }

    /// The same if no disk has to be waited for.
    pub(super) fn get_at_once(
        shared: &StoreState,
        snapshot: &Snapshot,
        key: &[u8],
    ) -> Option<Result<Option<Bytes>, StorageError>> {
        match find(Reading::Inline, snapshot, key) {
            Err(LookUpFailure::NotInMemory) => None,
            found => Some(found.map_err(|failure| report(shared, failure))),
        }
    }

    async fn wait_for_disk(
        &self,
        shared: &Arc<StoreState>,
        snapshot: Arc<Snapshot>,
        key: Bytes,
    ) -> Result<Option<Bytes>, StorageError> {
        let _place = Waiting::new(&self.waiting)?;
        let read = async {
            let permit = self.places.clone().acquire_owned().await.map_err(|_| closed())?;
            let shared = shared.clone();
            let read = tokio::task::spawn_blocking(move || {
                // Released only when the read ends, even if its caller is long gone.
                let _permit = permit;
                find(Reading::Waiting, &snapshot, &key).map_err(|failure| report(&shared, failure))
            });
            read.await.unwrap_or_else(|_| Err(closed()))
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap_or(Err(StorageError::Timeout(PATIENCE)))
    }
}

/// Counts one waiting read until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Result<Self, StorageError> {
        let waiting = Self(count);
        match count.fetch_add(1, Ordering::Relaxed) {
            before if before >= READERS + WAITING => Err(StorageError::Busy(READERS + WAITING)),
            _ => Ok(waiting),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn find(who: Reading, snapshot: &Snapshot, key: &[u8]) -> Result<Option<Bytes>, LookUpFailure> {
    let look_up = || match snapshot.get(key).map_err(LookUpFailure::Redb)? {
        None => Ok(None),
        Some(stored) => match value::verified(key, stored.value()) {
            Some(value) => Ok(Some(Bytes::copy_from_slice(value))),
            None => Err(LookUpFailure::Damaged("the value does not match its checksum".into())),
        },
    };
    // redb asserts invariants of its pages. A damaged page must not end the caller's task.
    reading(who, || panics::caught(look_up)).unwrap_or_else(|panic| Err(stopped(panic)))
}

/// Reads one key without a runtime, waiting for the disk if necessary.
#[cfg(test)]
pub(super) fn find_waiting(
    shared: &StoreState,
    snapshot: &Snapshot,
    key: &[u8],
) -> Result<Option<Bytes>, StorageError> {
    find(Reading::Waiting, snapshot, key).map_err(|failure| report(shared, failure))
}

fn stopped(panic: Box<dyn Any + Send>) -> LookUpFailure {
    match panic.downcast::<ReadStopped>() {
        Ok(stopped) if stopped.error.kind() == ErrorKind::WouldBlock => LookUpFailure::NotInMemory,
        Ok(stopped) => LookUpFailure::Read(*stopped),
        Err(panic) => LookUpFailure::Damaged(panics::text(&*panic)),
    }
}

/// The caller's error. A failed read makes the store not ready until the same part can be read again.
fn report(shared: &StoreState, failure: LookUpFailure) -> StorageError {
    let path = shared.path.display();
    match failure {
        LookUpFailure::NotInMemory => StorageError::Busy(READERS),
        LookUpFailure::Read(ReadStopped { error, offset, len }) => {
            let reason = format!("cannot read {path}: {error}");
            shared.cannot_read((offset, len), reason.clone());
            StorageError::Backend(reason)
        }
        LookUpFailure::Redb(redb::StorageError::DatabaseClosed) => closed(),
        LookUpFailure::Redb(redb::StorageError::Corrupted(reason)) | LookUpFailure::Damaged(reason) => {
            let reason = format!("{path} is damaged: {reason}");
            // A caller that keeps reading it must not fill the log.
            if !shared.damage_was_said.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    reason,
                    "A damaged value is not served; stop the agent and run `peerscope check --store` to see how much \
                     is damaged. Further damaged values are only counted (storage_operation_errors_total)"
                );
            }
            StorageError::Damaged(reason)
        }
        LookUpFailure::Redb(error) => StorageError::Backend(format!("cannot read {path}: {error}")),
    }
}

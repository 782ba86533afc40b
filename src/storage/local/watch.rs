//! The watch: one thread that never touches the disk, and reports when the others wait too long for it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::Stage;
use super::file::DiskActivity;
use super::queue::Refuser;
use super::state::{Source, StoreState};
use crate::storage::StorageError;

/// How often it checks.
const TICK: Duration = Duration::from_millis(500);

/// A wait of this length for the disk makes the store not ready. Healthy disks sync within milliseconds, busy ones
/// within a second.
const SLOW: Duration = Duration::from_secs(3);

/// After this long the waiting callers get an error. Peers wait for 15 s (`network.request_timeout`).
pub(super) const GIVE_UP: Duration = Duration::from_secs(8);

/// The progress of an opening, and calls on redb's file that wait for the disk.
#[derive(Debug, Default)]
pub(super) struct Watched {
    activity: Mutex<Activity>,
    disk: Arc<DiskActivity>,
}

#[derive(Debug, Default)]
enum Activity {
    #[default]
    Nothing,
    /// redb is reading the file.
    Reading,
    /// This many values are left to be migrated.
    Carrying(u64),
}

impl Watched {
    pub(super) fn nothing(&self) {
        self.set(Activity::Nothing);
    }

    pub(super) fn disk(&self) -> &Arc<DiskActivity> {
        &self.disk
    }

    pub(super) fn reading(&self) {
        self.set(Activity::Reading);
    }

    pub(super) fn left(&self, left: u64) {
        self.set(Activity::Carrying(left));
    }

    fn set(&self, activity: Activity) {
        *self.activity.lock() = activity;
    }

    fn describe(&self) -> Option<String> {
        match &*self.activity.lock() {
            Activity::Nothing => None,
            Activity::Reading => {
                let read = self.disk.bytes_read() / (1024 * 1024);
                Some(format!("the store is being opened: {read} MiB read"))
            }
            Activity::Carrying(left) => {
                Some(format!("the store is being migrated to the new format: {left} values left"))
            }
        }
    }
}

/// Runs until the store has ended.
pub(super) fn run(shared: &StoreState, watched: &Watched, stage: &watch::Receiver<Stage>) {
    let (mut was_waiting, mut refuses) = (false, false);
    loop {
        std::thread::sleep(TICK);
        // Without a sender, the store's thread is gone.
        if stage.has_changed().is_err() || stage.borrow().is_final() {
            return;
        }
        // The borrow is held until the trouble is set, so that the thread that opens the store clears it only
        // afterwards.
        let now = stage.borrow();
        if matches!(*now, Stage::Starting)
            && let Some(doing) = watched.describe()
        {
            shared.troubles.set(Source::Opening, doing);
        }
        drop(now);
        let is_slow = |waiting: &Duration| *waiting >= SLOW;
        let writer = shared.queue.waiting().filter(is_slow);
        // No caller waits for redb, but the operator wants to know, and writes may soon have to wait.
        let redb = watched.disk.waiting().filter(is_slow);
        match writer.max(redb) {
            Some(waiting) => {
                was_waiting = true;
                let seconds = waiting.as_secs();
                let path = shared.path.display();
                let reason = format!("the disk that holds {path} has not answered for {seconds} s");
                shared.troubles.set(Source::Waiting, reason);
            }
            None if was_waiting => {
                was_waiting = false;
                shared.troubles.clear(Source::Waiting);
            }
            None => {}
        }
        match writer {
            Some(waiting) => {
                refuses = true;
                refuse(shared, waiting);
            }
            None if refuses => {
                refuses = false;
                shared.queue.allow(Refuser::Watch);
            }
            None => {}
        }
    }
}

/// Refuses new writes while the writer waits for the disk, and after [`GIVE_UP`] answers those that are waiting.
fn refuse(shared: &StoreState, waiting: Duration) {
    let path = &shared.path;
    let seconds = waiting.as_secs();
    let refused_path = path.clone();
    let refused = move || StorageError::Hangs { path: refused_path.clone(), seconds, may_happen: false };
    shared.queue.refuse(Refuser::Watch, refused);
    if waiting >= GIVE_UP {
        let hangs = |may_happen| StorageError::Hangs { path: path.clone(), seconds, may_happen };
        shared.queue.give_up(GIVE_UP, || hangs(true), || hangs(false));
    }
}

//! The watch: one thread that never touches the disk, and says when the others wait for it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::Stage;
use super::file::DiskActivity;
use super::queue::Refuser;
use super::state::{Source, StoreState};
use crate::storage::StorageError;

/// How often it looks.
const TICK: Duration = Duration::from_millis(500);

/// A commit that waits this long makes the store not ready. Healthy disks sync within milliseconds, busy ones within a
/// second.
const SLOW: Duration = Duration::from_secs(3);

/// After this long its callers are told that nobody knows. Peers wait for 15 s (`network.request_timeout`).
pub(super) const GIVE_UP: Duration = Duration::from_secs(8);

/// What the opening is at, and whoever waits for redb's disk.
#[derive(Debug, Default)]
pub(super) struct Watched {
    activity: Mutex<Activity>,
    disk: Arc<DiskActivity>,
}

#[derive(Debug, Default)]
enum Activity {
    #[default]
    Nothing,
    /// redb reads the file.
    Reading,
    /// So many values are left to be carried over.
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
                Some(format!("the store is being carried over to the new format: {left} values left"))
            }
        }
    }
}

/// Looks until the store has ended.
pub(super) fn run(shared: &StoreState, watched: &Watched, stage: &watch::Receiver<Stage>) {
    let (mut was_waiting, mut refuses) = (false, false);
    loop {
        std::thread::sleep(TICK);
        // A sender that is gone means that the thread is.
        if stage.has_changed().is_err() || stage.borrow().is_final() {
            return;
        }
        // The borrow lasts until it is said: whoever opens the store clears it after that.
        let now = stage.borrow();
        if matches!(*now, Stage::Starting)
            && let Some(doing) = watched.describe()
        {
            shared.troubles.set(Source::Opening, doing);
        }
        drop(now);
        let is_slow = |waiting: &Duration| *waiting >= SLOW;
        let writer = shared.queue.waiting().filter(is_slow);
        // Nobody waits for redb, but whoever looks wants to know, and the next to write would wait.
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

/// Tells callers that the writer has waited for the disk so long.
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

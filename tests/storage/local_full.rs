//! A disk that is really full, and one that fails: reads still work, no acknowledged write is lost, and writes recover
//! by themselves.
//!
//! The tests run in a child process, on a small tmpfs in its own mount namespace or with a limited file size.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use peerscope::storage::{Storage, StorageError};

use super::local::{CHILD_PATH, child, child_path, open, open_with_cache, problem};

const DEADLINE: Duration = Duration::from_secs(20);

/// Runs `test` in a process that sees a tmpfs of `mebibytes` at `folder`.
fn on_small_disk(test: &str, folder: &Path, mebibytes: u32) -> Output {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command
        .args(["--mount", "sh", "-ec", "mount -t tmpfs -o size=$1m tmpfs \"$2\"; shift 2; exec \"$@\"", "sh"])
        .arg(mebibytes.to_string())
        .arg(folder)
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD_PATH, folder)
        .output()
        .expect("unshare starts")
}

fn assert_told(output: &Output, story: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains(story),
        "{story}:\n{}{said}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// A file that takes space away from the store.
struct Filler {
    path: PathBuf,
    file: File,
}

impl Filler {
    fn new(folder: &Path) -> Self {
        let path = folder.join("filler");
        let file = OpenOptions::new().append(true).create(true).open(&path).unwrap();
        Self { path, file }
    }

    /// Writes until the disk has `left` bytes free or is really full.
    fn fill(&mut self, left: u64) {
        loop {
            let disk = rustix::fs::statvfs(&self.path).unwrap();
            let room = (disk.f_bavail * disk.f_frsize).saturating_sub(left);
            let len = usize::try_from(room.min(1 << 16)).unwrap();
            match self.file.write_all(&vec![0xff; len]) {
                Ok(()) if len == 0 => return,
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn shrink(&self, by: u64) {
        let len = self.file.metadata().unwrap().len();
        self.file.set_len(len.saturating_sub(by)).unwrap();
    }
}

fn key(i: usize) -> Bytes {
    Bytes::from(format!("key-{i}"))
}

fn value(i: usize, len: usize) -> Bytes {
    (0..len).map(|at| ((i * 13 + at) % 251) as u8).collect()
}

async fn assert_values(storage: &Storage, keys: impl Iterator<Item = usize>, len: usize) {
    for i in keys {
        assert!(storage.get(&key(i)).await.unwrap() == Some(value(i, len)), "key {i} is lost or changed");
    }
}

/// Retries the put until it succeeds, at most for [`DEADLINE`].
async fn put_soon(storage: &Storage, key: Bytes, value: Bytes) {
    let deadline = Instant::now() + DEADLINE;
    while let Err(error) = storage.put(key.clone(), value.clone()).await {
        assert!(Instant::now() < deadline, "writes never worked again: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_full_disk_refuses_writes_and_serves_reads() {
    let folder = tempfile::tempdir().unwrap();
    let output = on_small_disk("storage::local_full::child_that_fills_the_disk", folder.path(), 8);
    assert_told(&output, "the disk was full");
}

#[tokio::test]
async fn child_that_fills_the_disk() {
    let Some(folder) = child_path() else { return };
    let path = folder.join("store.redb");
    let opened = open(&path).await;
    let storage = &opened.storage;
    let mut filler = Filler::new(&folder);
    filler.fill(4 << 20);
    let mut written = 0;
    let error = loop {
        match storage.put(key(written), value(written, 4000)).await {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 2000, "8 MB fitted into 4 MiB");
    };
    assert!(matches!(&error, StorageError::DiskFull(at) if *at == path), "{error}");
    assert!(written > 100, "refused after only {written} writes of 4 kB");
    let said = problem(&opened.health).expect("not ready");
    assert!(said.contains("no space left") && said.contains("store.redb"), "{said}");

    // Now fill it to the last byte.
    filler.fill(0);
    for _ in 0..10 {
        assert!(matches!(storage.put(key(written), value(written, 4000)).await, Err(StorageError::DiskFull(_))));
        assert!(matches!(storage.delete(key(0)).await, Err(StorageError::DiskFull(_))));
        assert_values(storage, 0..written, 4000).await;
        assert_eq!(storage.get(&key(written)).await.unwrap(), None, "a refused write is not there");
    }

    // Space becomes free, and the store notices without a request.
    filler.shrink(3 << 20);
    let deadline = Instant::now() + DEADLINE;
    while let Some(problem) = problem(&opened.health) {
        assert!(Instant::now() < deadline, "still not ready: {problem}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    storage.put(key(written), value(written, 4000)).await.unwrap();
    assert!(storage.delete(key(0)).await.unwrap());
    storage.close().await;
    let opened = open(&path).await;
    assert_eq!(opened.storage.get(&key(0)).await.unwrap(), None);
    assert_values(&opened.storage, 1..=written, 4000).await;
    eprintln!("the disk was full");
}

/// An acknowledged write is there; any other is there completely or not at all.
fn assert_whole(found: Option<Bytes>, i: usize, done: bool) {
    assert!(found == Some(value(i, 500)) || (found.is_none() && !done), "write {i}, done: {done}, found: {found:?}");
}

#[test]
fn nothing_is_lost_while_a_neighbour_keeps_filling_and_freeing_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let output = on_small_disk("storage::local_full::child_with_a_restless_neighbour", folder.path(), 48);
    assert_told(&output, "the neighbour has gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_with_a_restless_neighbour() {
    let Some(folder) = child_path() else { return };
    // Several times the disk fills up between the store's check of the free space and the end of the commit. The log
    // output shows how often.
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let path = folder.join("store.redb");
    let opened = open(&path).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (done, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let neighbour = {
        let (stop, folder, done) = (stop.clone(), folder.clone(), done.clone());
        std::thread::spawn(move || {
            let mut filler = Filler::new(&folder);
            while !stop.load(Ordering::Relaxed) {
                filler.fill(0);
                let before = done.load(Ordering::Relaxed);
                filler.shrink(1 << 20);
                // Wait until a write gets through, however slow the disk is.
                let patience = Instant::now() + Duration::from_millis(500);
                while done.load(Ordering::Relaxed) == before && Instant::now() < patience {
                    std::thread::yield_now();
                }
            }
            std::fs::remove_file(&filler.path).unwrap();
        })
    };
    let (begin, enough) = (Instant::now(), Duration::from_secs(5));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let (storage, done, refused) = (opened.storage.clone(), done.clone(), refused.clone());
        writers.spawn(async move {
            // Always new keys, so that the file has to grow.
            let mut outcomes = Vec::new();
            let is_enough = || done.load(Ordering::Relaxed).min(refused.load(Ordering::Relaxed)) > 100;
            while begin.elapsed() < enough || (begin.elapsed() < 12 * enough && !is_enough()) {
                let key = Bytes::from(format!("{writer}/{}", outcomes.len()));
                let is_done = match storage.put(key.clone(), value(outcomes.len(), 500)).await {
                    Ok(()) => true,
                    Err(StorageError::DiskFull(_)) => false,
                    Err(error) => panic!("{error}"),
                };
                assert_whole(storage.get(&key).await.unwrap(), outcomes.len(), is_done);
                if is_done { &done } else { &refused }.fetch_add(1, Ordering::Relaxed);
                outcomes.push(is_done);
                tokio::task::yield_now().await;
            }
            (writer, outcomes)
        });
    }
    let outcomes = writers.join_all().await;
    stop.store(true, Ordering::Relaxed);
    neighbour.join().unwrap();
    let (done, refused) = (done.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    assert!(done > 100 && refused > 100, "{done} done, {refused} refused");

    put_soon(&opened.storage, Bytes::from_static(b"after"), Bytes::from_static(b"all")).await;
    opened.storage.close().await;
    let storage = open(&path).await.storage;
    assert_eq!(storage.get(&Bytes::from_static(b"after")).await.unwrap().as_deref(), Some(&b"all"[..]));
    for (writer, outcomes) in outcomes {
        for (i, done) in outcomes.into_iter().enumerate() {
            let found = storage.get(&Bytes::from(format!("{writer}/{i}"))).await.unwrap();
            assert_whole(found, i, done);
        }
    }
    eprintln!("the neighbour has gone: {done} done, {refused} refused");
}

#[test]
fn a_disk_that_fails_writes_does_not_stop_reads() {
    let folder = tempfile::tempdir().unwrap();
    let direct = child("storage::local_full::child_with_a_limit", folder.path());
    // Beyond the limit the kernel sends a signal. If it is ignored (the child inherits that), the write fails instead.
    let output = Command::new("sh")
        .args(["-ec", "trap '' XFSZ; exec \"$@\"", "sh"])
        .arg(direct.get_program())
        .args(direct.get_args())
        .env(CHILD_PATH, folder.path())
        .output()
        .unwrap();
    assert_told(&output, "the limit was lifted");
}

/// Every write beyond the limit fails with an error that is not "disk full" (EFBIG).
#[tokio::test]
async fn child_with_a_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let Some(folder) = child_path() else { return };
    let path = folder.join("store.redb");
    let opened = open(&path).await;
    let storage = &opened.storage;
    for i in 0..50 {
        storage.put(key(i), value(i, 1000)).await.unwrap();
    }
    let unlimited = getrlimit(Resource::Fsize);
    let mut limited = unlimited;
    limited.current = Some(std::fs::metadata(&path).unwrap().len());
    setrlimit(Resource::Fsize, limited).unwrap();
    let mut written = 50;
    let error = loop {
        match storage.put(key(written), value(written, 1000)).await {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 5000, "the file never had to grow");
    };
    assert!(matches!(&error, StorageError::Uncertain { path: at, .. } if *at == path), "{error}");
    assert!(problem(&opened.health).is_some());
    assert_values(storage, 0..written, 1000).await;
    assert_eq!(storage.get(&key(written)).await.unwrap(), None);
    // Again and again, over several attempts to recover.
    let until = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < until {
        let error = storage.put(key(written), value(written, 1 << 20)).await.unwrap_err();
        assert!(matches!(error, StorageError::Backend(_)), "{error}");
        assert_values(storage, 0..written, 1000).await;
    }
    setrlimit(Resource::Fsize, unlimited).unwrap();
    put_soon(storage, key(written), value(written, 1000)).await;
    // Moving the log to redb is retried every second.
    let deadline = Instant::now() + DEADLINE;
    while let Some(problem) = problem(&opened.health) {
        assert!(Instant::now() < deadline, "still not ready: {problem}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    storage.close().await;
    assert_values(&open(&path).await.storage, 0..=written, 1000).await;
    eprintln!("the limit was lifted");
}

#[tokio::test]
async fn a_failed_read_does_not_stop_later_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    // Without a cache every read goes to the file.
    let opened = open_with_cache(&path, 0).await.unwrap();
    for i in 0..50 {
        opened.storage.put(key(i), value(i, 1000)).await.unwrap();
    }
    // After reopening, the data is no longer in memory.
    opened.storage.close().await;
    let opened = open_with_cache(&path, 0).await.unwrap();
    let storage = &opened.storage;
    let content = std::fs::read(&path).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    assert!(matches!(storage.get(&key(0)).await, Err(StorageError::Backend(said)) if said.contains("store.redb")));
    let deadline = Instant::now() + DEADLINE;
    while problem(&opened.health).is_none() {
        assert!(Instant::now() < deadline, "the failed read was not noticed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    std::fs::write(&path, content).unwrap();
    while let Some(problem) = problem(&opened.health) {
        assert!(Instant::now() < deadline, "still not ready: {problem}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_values(storage, 0..50, 1000).await;
    storage.put(key(50), value(50, 1000)).await.unwrap();
    storage.close().await;
    assert_values(&open(&path).await.storage, 0..=50, 1000).await;
}

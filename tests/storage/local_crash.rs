//! The process is killed again and again, at random times: every acknowledged write is there afterwards.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;

use super::local::{child, child_path, open};

const KILLS: usize = 25;
const WRITERS: usize = 24;
const ROUND: &str = "PEERSCOPE_TEST_ROUND";

/// Each writer of each round has keys of its own, and one that it overwrites.
fn key(round: usize, writer: usize, i: usize) -> Bytes {
    Bytes::from(format!("{round}/{writer}/{i}"))
}

fn overwritten(writer: usize) -> Bytes {
    Bytes::from(format!("overwritten/{writer}"))
}

/// A value in which every part identifies its write.
fn value(round: usize, writer: usize, i: usize) -> Bytes {
    let len = 20 + (round * 131 + writer * 17 + i * 97) % 6000;
    format!("{round}/{writer}/{i};").into_bytes().into_iter().cycle().take(len).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kill_loses_an_acknowledged_write() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let mut rng = rand::rng();
    // How many writes of each writer in each round were acknowledged: always the first ones.
    let mut acknowledged: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    // The values of the overwritten keys after the previous kill.
    let mut before = vec![None; WRITERS];
    for round in 0..KILLS {
        let mut process = child("storage::local_crash::child_that_writes", &path)
            .env(ROUND, round.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(process.stderr.take().unwrap());
        // Every fifth kill comes right at the start, while or just after the store is opened.
        let kill_after = if round % 5 == 0 { rng.random_range(0..3) } else { rng.random_range(3..1500) };
        let mut killed = false;
        let mut lines = 0;
        let mut line = String::new();
        loop {
            if lines == kill_after && !killed {
                // A random delay, independent of the process.
                std::thread::sleep(Duration::from_micros(rng.random_range(0..3000)));
                process.kill().unwrap();
                killed = true;
            }
            line.clear();
            // The output from before the kill is still in the pipe; a truncated line does not count.
            if said.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
                break;
            }
            let Some(ack) = line.trim_end().strip_prefix("ack ") else { panic!("round {round}: {line}") };
            let (writer, i) = ack.split_once(' ').unwrap();
            let (writer, i) = (writer.parse().unwrap(), i.parse::<usize>().unwrap());
            let count = acknowledged.entry((round, writer)).or_default();
            assert_eq!(*count, i, "acknowledgements come in order");
            *count += 1;
            lines += 1;
        }
        assert!(killed, "the process ended by itself in round {round}");
        process.wait().unwrap();

        let storage = open(&path).await.storage;
        for (&(round, writer), &count) in &acknowledged {
            for i in 0..count {
                let found = storage.get(&key(round, writer, i)).await.unwrap();
                assert!(found == Some(value(round, writer, i)), "lost {round}/{writer}/{i}: {found:?}");
            }
        }
        for (writer, before) in before.iter_mut().enumerate() {
            // The one write that was in progress: complete or absent.
            let count = acknowledged.get(&(round, writer)).copied().unwrap_or(0);
            let found = storage.get(&key(round, writer, count)).await.unwrap();
            assert!(found.is_none() || found == Some(value(round, writer, count)), "torn: {found:?}");
            assert_eq!(storage.get(&key(round, writer, count + 1)).await.unwrap(), None, "this was never written");
            // The overwritten key has the value of the last acknowledged write, or of the one in progress.
            let last = if count > 0 { Some(value(round, writer, count - 1)) } else { before.clone() };
            let found = storage.get(&overwritten(writer)).await.unwrap();
            assert!(found == last || found == Some(value(round, writer, count)), "writer {writer}: {found:?}");
            *before = found;
        }
        storage.close().await;
    }
    let total: usize = acknowledged.values().sum();
    assert!(total > 3000, "only {total} writes were acknowledged in {KILLS} rounds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_writes() {
    let (Some(path), Ok(round)) = (child_path(), std::env::var(ROUND)) else { return };
    let round = round.parse().unwrap();
    let storage = open(&path).await.storage;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let storage = storage.clone();
        writers.spawn(async move {
            for i in 0.. {
                let value = value(round, writer, i);
                // Both are in flight together, and one line acknowledges both.
                let (one, other) = futures::join!(
                    storage.put(key(round, writer, i), value.clone()),
                    storage.put(overwritten(writer), value)
                );
                one.and(other).unwrap();
                std::io::stderr().lock().write_all(format!("ack {writer} {i}\n").as_bytes()).unwrap();
            }
        });
    }
    writers.join_next().await;
    panic!("a writer ended");
}

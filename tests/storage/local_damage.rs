//! A damaged or foreign file is refused and left unchanged; an accepted file has all of its data.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use peerscope::storage::{OpenError, Storage};
use rand::{RngExt, SeedableRng};

use super::local::{open, open_checked, try_open};

const KEYS: usize = 300;

fn key(i: usize) -> Bytes {
    Bytes::from(format!("key-{i:04}"))
}

/// Most values share a page with others; some take several pages.
fn value(i: usize) -> Bytes {
    let len = if i.is_multiple_of(50) { 9_000 } else { 40 + i % 60 };
    (0..len).map(|at| ((i * 31 + at * 7) % 251) as u8).collect()
}

/// The bytes of a store after a clean close and after a kill. The last commit of the latter wrote only the key `later`.
async fn images(folder: &Path) -> (Vec<u8>, Vec<u8>) {
    let path = folder.join("original.redb");
    let opened = open(&path).await;
    for i in 0..KEYS {
        opened.storage.put(key(i), value(i)).await.unwrap();
    }
    for i in (0..KEYS).step_by(7) {
        opened.storage.put(key(i), Bytes::from_static(b"overwritten")).await.unwrap();
        opened.storage.put(key(i), value(i)).await.unwrap();
    }
    opened.storage.put(Bytes::from_static(b"last"), Bytes::from_static(b"write")).await.unwrap();
    opened.storage.close().await;
    let clean = std::fs::read(&path).unwrap();
    // Wait until redb has the contents of the log and nothing is being written. The file is then as a kill would leave
    // it.
    let opened = open(&path).await;
    opened.storage.put(Bytes::from_static(b"later"), Bytes::from_static(b"write of the killed image")).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut killed = clean.clone();
    loop {
        assert!(Instant::now() < deadline, "redb never got the last write");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = std::mem::replace(&mut killed, std::fs::read(&path).unwrap());
        if before == killed && killed.windows(25).any(|bytes| bytes == b"write of the killed image") {
            break;
        }
    }
    opened.storage.close().await;
    (clean, killed)
}

async fn assert_all_there(storage: &Storage, what: &str) {
    for i in 0..KEYS {
        assert!(storage.get(&key(i)).await.unwrap() == Some(value(i)), "{what}: key {i} is lost or changed");
    }
}

/// Opens a file with these bytes. `false` if it was refused, after checking that it was left unchanged.
async fn survives(path: &Path, bytes: &[u8], what: &str) -> bool {
    std::fs::write(path, bytes).unwrap();
    match open_checked(path).await {
        Ok(opened) => {
            assert_all_there(&opened.storage, what).await;
            opened.storage.put(key(0), value(0)).await.unwrap();
            opened.storage.close().await;
            let again = open(path).await;
            assert_all_there(&again.storage, what).await;
            again.storage.close().await;
            true
        }
        Err(error) => {
            let OpenError::Damaged { path: at, reason } = &error else { panic!("{what}: {error}") };
            assert_eq!(at, path);
            assert!(!reason.is_empty());
            assert!(std::fs::read(path).unwrap() == bytes, "{what}: a refused opening changed the file ({reason})");
            let names: Vec<_> =
                std::fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert!(!names.iter().any(|name| name.to_string_lossy().ends_with(".new")), "{what}: {names:?}");
            false
        }
    }
}

#[tokio::test]
async fn a_file_that_is_not_a_store_is_refused_and_left_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let (clean, killed) = images(folder.path()).await;
    assert!(survives(&path, &clean, "the clean image").await);
    assert!(survives(&path, &killed, "the killed image").await);

    assert!(!survives(&path, b"", "an empty file").await);
    assert!(!survives(&path, b"#!/bin/sh\necho this is not a store\n", "a script").await);
    assert!(!survives(&path, "plain text, a lot of it\n".repeat(10_000).as_bytes(), "a long text").await);
    assert!(!survives(&path, &vec![0; 300_000], "zeros").await);
    for (image, name) in [(&clean, "clean"), (&killed, "killed")] {
        for len in [1, 8, 9, 64, 319, 320, 4095, 4096, 8192, image.len() / 2, image.len() - 4096, image.len() - 1] {
            assert!(!survives(&path, &image[..len], &format!("{name}, cut to {len} bytes")).await);
        }
        let mut longer = image.clone();
        longer.extend_from_slice(&[0xab; 1000]);
        assert!(!survives(&path, &longer, &format!("{name}, with a tail")).await);
        let mut garbage = image.clone();
        garbage[..320].fill(0x5a);
        assert!(!survives(&path, &garbage, &format!("{name}, garbage for a header")).await);
        let mut pages = image.clone();
        pages[4096..].fill(0x5a);
        assert!(!survives(&path, &pages, &format!("{name}, garbage for pages")).await);
        let mut newer = image.clone();
        // The format versions of the two commit slots.
        (newer[64], newer[192]) = (4, 4);
        assert!(!survives(&path, &newer, &format!("{name}, a newer format")).await);
        let error = try_open(&path).await.err().unwrap().to_string();
        assert!(error.contains("version") && error.contains("found 4"), "{error}");
        (newer[64], newer[192]) = (2, 2);
        assert!(!survives(&path, &newer, &format!("{name}, an older format")).await);
    }
}

#[tokio::test]
async fn a_database_of_another_program_or_version_is_refused_and_left_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    for (table, said) in [("accounts", "of another program"), ("peerscope.v3", "it contains peerscope.v3")] {
        let path = folder.path().join(table);
        let database = redb::Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(redb::TableDefinition::<&str, u64>::new(table)).unwrap().insert("a", 1).unwrap();
        transaction.commit().unwrap();
        drop(database);
        let before = std::fs::read(&path).unwrap();
        let error = try_open(&path).await.err().unwrap();
        assert!(matches!(error, OpenError::Damaged { .. }) && error.to_string().contains(said), "{error}");
        assert!(std::fs::read(&path).unwrap() == before, "{table} was changed");
    }
    // The right name with the wrong types.
    for table in ["peerscope.v1", "peerscope.v2"] {
        let path = folder.path().join("types");
        let database = redb::Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(redb::TableDefinition::<u64, u64>::new(table)).unwrap().insert(1, 1).unwrap();
        transaction.commit().unwrap();
        drop(database);
        let before = std::fs::read(&path).unwrap();
        assert!(matches!(try_open(&path).await.err().unwrap(), OpenError::Damaged { .. }));
        assert!(std::fs::read(&path).unwrap() == before);
        std::fs::remove_file(&path).unwrap();
    }
}

#[tokio::test]
async fn random_damage_is_either_refused_or_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let (clean, killed) = images(folder.path()).await;
    let mut rng = rand::rngs::StdRng::seed_from_u64(0x9ee5);
    let mut refused = [0_usize; 2];
    for round in 0..150 {
        for (which, image) in [&clean, &killed].into_iter().enumerate() {
            let mut bytes = image.clone();
            let page = rng.random_range(0..bytes.len() / 4096) * 4096;
            let what = match round % 5 {
                0 => {
                    let at = rng.random_range(0..320);
                    bytes[at] ^= 1 << rng.random_range(0..8);
                    format!("image {which}, a flipped bit in header byte {at}")
                }
                1 => {
                    let at = rng.random_range(0..320);
                    bytes[at] = rng.random();
                    format!("image {which}, another header byte {at}")
                }
                2 => {
                    let at = rng.random_range(4096..bytes.len());
                    bytes[at] ^= 1 << rng.random_range(0..8);
                    format!("image {which}, a flipped bit in page byte {at}")
                }
                3 => {
                    bytes[page..page + 4096].fill(0);
                    format!("image {which}, zeros at {page}")
                }
                _ => {
                    rng.fill(&mut bytes[page..page + 4096]);
                    format!("image {which}, noise at {page}")
                }
            };
            if !survives(&path, &bytes, &what).await {
                refused[which] += 1;
            }
        }
    }
    assert!(refused.iter().all(|&refused| refused > 20), "hardly any damage was noticed: {refused:?}");
}

/// The operator follows the advice of the error.
#[tokio::test]
async fn a_refused_store_can_be_moved_away_to_start_empty() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let log = folder.path().join("store.redb.log0");
    std::fs::write(&path, vec![7; 100_000]).unwrap();
    let refused = try_open(&path).await.map(drop).unwrap_err();
    assert!(matches!(refused, OpenError::Damaged { .. }) && !log.exists(), "{refused}");
    std::fs::remove_file(&path).unwrap();
    // A killed agent may leave these if it had written nothing yet, or if redb has everything.
    for empty in [Vec::new(), vec![0; 1 << 20]] {
        std::fs::write(&log, empty).unwrap();
        let opened = open(&path).await;
        opened.storage.put(key(1), value(1)).await.unwrap();
        let with_something = std::fs::read(&log).unwrap();
        opened.storage.close().await;
        std::fs::remove_file(&path).unwrap();

        // This log contains acknowledged writes.
        std::fs::write(&log, with_something).unwrap();
        let refused = try_open(&path).await.map(drop).unwrap_err().to_string();
        assert!(refused.contains("its log exists") && refused.contains(".log0 to .log7"), "{refused}");
        std::fs::remove_file(&log).unwrap();
        let opened = open(&path).await;
        assert_eq!(opened.storage.get(&key(1)).await.unwrap(), None);
        opened.storage.close().await;
        std::fs::remove_file(&path).unwrap();
    }
}

//! A store of the previous layout is migrated when it is first opened, whatever interrupts the migration.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt as _;
use redb::{Database, ReadableDatabase as _, TableDefinition, TableHandle as _};

use super::local::{child, child_path, open};

const V1: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("peerscope.v1");
const VALUES: usize = 45_000;

fn key(i: usize) -> Bytes {
    Bytes::from(format!("key-{i}"))
}

fn value(i: usize) -> Bytes {
    Bytes::from(format!("value-{i};").repeat(1 + i % 7))
}

/// A store as the previous revision wrote it: one-phase commits, no checksums.
fn write_v1(path: &Path) -> Database {
    let database = Database::create(path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut table = transaction.open_table(V1).unwrap();
        for i in 0..VALUES {
            table.insert(&*key(i), &*value(i)).unwrap();
        }
    }
    transaction.commit().unwrap();
    database
}

async fn assert_carried(path: &Path) {
    let opened = open(path).await;
    for i in 0..VALUES {
        assert_eq!(opened.storage.get(&key(i)).await.unwrap(), Some(value(i)), "{i}");
    }
    assert!(opened.storage.delete(key(0)).await.unwrap());
    opened.storage.close().await;
    let database = Database::open(path).unwrap();
    let transaction = database.begin_read().unwrap();
    let mut names: Vec<_> = transaction.list_tables().unwrap().map(|table| table.name().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["peerscope.meta", "peerscope.v2"]);
}

#[tokio::test]
async fn a_store_of_the_previous_layout_is_migrated() {
    let folder = tempfile::tempdir().unwrap();
    let (closed, killed) = (folder.path().join("closed.redb"), folder.path().join("killed.redb"));
    let database = write_v1(&closed);
    // The file as a kill would have left it.
    std::fs::copy(&closed, &killed).unwrap();
    drop(database);
    for path in [closed, killed] {
        assert_carried(&path).await;
    }
}

/// The process is killed again and again during the migration.
#[tokio::test]
async fn no_kill_during_the_migration_loses_a_value() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    drop(write_v1(&path));
    let mut rng = rand::rng();
    for _ in 0..8 {
        let mut process = child("storage::local_carry::child_that_carries", &path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // A random time, independent of the process.
        std::thread::sleep(Duration::from_millis(rng.random_range(5..150)));
        process.kill().unwrap();
        process.wait().unwrap();
    }
    assert_carried(&path).await;
}

#[tokio::test]
async fn child_that_carries() {
    let Some(path) = child_path() else { return };
    let _opened = open(&path).await;
}

//! The files of a running agent's store: they are removed or replaced, or may not grow.

use std::path::PathBuf;
use std::time::Duration;

use super::store::{Acknowledged, LARGE, await_problem, await_ready, get, put, value};
use crate::support::agent::TestAgent;

/// How soon an idle agent notices.
const NOTICED: Duration = Duration::from_secs(2);

/// The files of the agent's store: redb's first, then those of the log.
fn files(agent: &TestAgent) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(agent.data_dir()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("store.redb") {
            files.push(path);
        }
    }
    files.sort();
    assert!(files.len() > 1 && files[0].ends_with("store.redb"), "{files:?}");
    files
}

fn with_some_values(agent: &TestAgent) -> Acknowledged {
    let mut kept = Acknowledged::default();
    for i in 0..20 {
        kept.must_put(agent, &format!("key-{i}"), &value(&format!("value {i}"), 1000));
    }
    kept
}

/// Asserts that writes fail and say why. Writes to a file without a name would be lost with the process.
fn assert_missed(agent: &TestAgent, kept: &Acknowledged, what: &str) {
    let why = format!("{what} was removed or replaced while in use");
    await_problem(agent, NOTICED, &why);
    for key in ["key-0", "new"] {
        let reply = put(agent, key, b"refused");
        assert!(reply.status == 500 && reply.text().contains(&why), "{} {}", reply.status, reply.text());
    }
    // The file is still open, so its values can still be read.
    kept.assert_kept(agent);
    assert_eq!(get(agent, "new"), None);
}

#[test]
fn a_store_that_is_moved_away_and_back_works_again() {
    let mut agent = TestAgent::start();
    let mut kept = with_some_values(&agent);
    let away = agent.home().join("away");
    for (file, what) in files(&agent).into_iter().zip(["the file", "its log"]) {
        std::fs::rename(&file, &away).unwrap();
        assert_missed(&agent, &kept, what);
        std::fs::rename(&away, &file).unwrap();
        await_ready(&agent, Duration::from_secs(5));
        kept.must_put(&agent, &format!("after {what}").replace(' ', "-"), b"kept");
        kept.assert_kept(&agent);
    }
    agent.kill();
    agent.restart();
    kept.assert_kept(&agent);
    assert_eq!(get(&agent, "new"), None);
    assert_eq!(agent.stop().code(), Some(0));
}

/// As by a careless cleanup script.
#[test]
fn a_removed_store_accepts_no_more_writes() {
    for all in [false, true] {
        let mut agent = TestAgent::start();
        let kept = with_some_values(&agent);
        let count = if all { usize::MAX } else { 1 };
        for file in files(&agent).into_iter().take(count) {
            std::fs::remove_file(file).unwrap();
        }
        assert_missed(&agent, &kept, "the file");
        assert_eq!(agent.stop().code(), Some(0));
    }
}

/// Another store takes the place of the open one: neither gets writes that were meant for the other.
#[test]
fn a_replaced_store_accepts_no_more_writes() {
    let mut agent = TestAgent::start();
    let kept = with_some_values(&agent);
    let store = &files(&agent)[0];
    let copy = agent.home().join("copy");
    std::fs::copy(store, &copy).unwrap();
    let other = std::fs::read(&copy).unwrap();
    std::fs::rename(&copy, store).unwrap();
    assert_missed(&agent, &kept, "the file");
    assert_eq!(agent.stop().code(), Some(0));
    assert!(std::fs::read(store).unwrap() == other, "the other store was written to");
}

/// The store is truncated by another program. Otherwise acknowledged writes that redb cannot accept would pile up in
/// the log, for a store that can never be opened again.
#[test]
fn a_truncated_store_accepts_no_more_writes() {
    let mut agent = TestAgent::start();
    let _kept = with_some_values(&agent);
    assert_eq!(agent.stop().code(), Some(0));
    agent.restart();
    let store = agent.data_dir().join("store.redb");
    std::fs::File::options().write(true).open(&store).unwrap().set_len(5000).unwrap();
    assert_eq!(put(&agent, "one", b"goes to the log").status, 204);
    await_problem(&agent, Duration::from_secs(10), "store.redb is damaged");
    for _ in 0..3 {
        let reply = put(&agent, "two", b"refused");
        assert!(reply.status == 500 && reply.text().contains("restore a backup"), "{} {}", reply.status, reply.text());
    }
    let log = agent.log().join("\n");
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!(std::fs::metadata(&store).unwrap().len(), 5000, "the remaining bytes are left alone");
    let checked = agent.cli(&["check", "--store"]);
    assert!(checked.code == 1 && !checked.stderr.contains("panicked"), "{checked:?}");
}

/// If only the log is removed, nothing is lost: its writes are in memory, and an orderly stop moves them to redb.
#[test]
fn a_removed_log_loses_no_values() {
    // The agent notices by itself, or through a write.
    for writes in [false, true] {
        let mut agent = TestAgent::start();
        let kept = with_some_values(&agent);
        for file in &files(&agent)[1..] {
            std::fs::remove_file(file).unwrap();
        }
        if writes {
            let reply = put(&agent, "first", b"nobody knows");
            assert!(reply.text().contains("this write may still take effect"), "{} {}", reply.status, reply.text());
        }
        assert_missed(&agent, &kept, "its log");
        assert_eq!(agent.stop().code(), Some(0));
        agent.restart();
        kept.assert_kept(&agent);
        assert_eq!(agent.stop().code(), Some(0));
    }
}

/// The kernel ends a process that writes beyond `ulimit -f`, unless it handles SIGXFSZ. Under a limit for the whole
/// machine, an agent would die at its first large value, again and again.
#[test]
fn a_limit_on_the_size_of_files_fails_writes_but_does_not_end_the_agent() {
    // 2 MiB per file, in the shell's units of 512 bytes: enough for a new store, and for a log with two large values.
    let mut agent = TestAgent::prepare().after("ulimit -f 4096").started();
    let mut kept = with_some_values(&agent);
    let mut attempts = 0;
    let (failed, reply) = loop {
        let key = format!("large-{attempts}");
        let reply = kept.put(&agent, &key, &value(&key, LARGE));
        if reply.status != 204 {
            break (key, reply);
        }
        attempts += 1;
        assert!(attempts < 10, "no file reached its limit");
    };
    assert_eq!(reply.status, 500);
    assert!(reply.text().contains("store.redb: File too large"), "{}", reply.text());
    await_problem(&agent, NOTICED, "File too large");
    for _ in 0..3 {
        assert_eq!(put(&agent, &failed, &value(&failed, LARGE)).status, 500);
        kept.assert_kept(&agent);
        assert_eq!(get(&agent, &failed), None);
    }
    assert_eq!(agent.stop().code(), Some(0));

    // Without a limit, it goes on.
    let mut agent = agent.after("ulimit -f unlimited").started();
    await_ready(&agent, Duration::from_secs(5));
    kept.assert_kept(&agent);
    assert_eq!(get(&agent, &failed), None);
    kept.must_put(&agent, &failed, &value(&failed, LARGE));
    kept.assert_kept(&agent);
    assert_eq!(agent.stop().code(), Some(0));
}

//! `peerscope check --store` checks a whole store that no agent uses, and changes nothing.

use std::fs;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::agent::TestAgent;

/// A pipe in place of the store, which nobody writes to: the check must not wait for it.
#[test]
fn a_pipe_in_place_of_the_store_is_rejected_at_once() {
    let agent = TestAgent::prepare();
    fs::create_dir(agent.data_dir()).unwrap();
    let pipe = agent.data_dir().join("store.redb");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let message = agent.cli(&["check", "--store"]).failed(1);
    assert!(message.contains("it is not a regular file"), "{message}");
}

#[test]
fn a_store_is_checked_only_while_its_agent_is_stopped() {
    let mut agent = TestAgent::prepare();
    let message = agent.cli(&["check", "--store"]).failed(1);
    assert!(message.contains("store.redb") && message.contains("No such file"), "{message}");

    agent = agent.started();
    for i in 0..50 {
        agent.cli(&["put", &format!("key-{i}"), &format!("the value of {i}")]).ok();
    }
    let message = agent.cli(&["check", "--store"]).failed(1);
    assert!(message.contains("is in use by another process"), "{message}");

    // Values that are not in redb yet are in the log, and stay there.
    agent.kill();
    let read_all = || {
        let mut files: Vec<_> = fs::read_dir(agent.data_dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.is_file() && path.to_string_lossy().contains("store.redb"));
        files.sort();
        files.into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect::<Vec<_>>()
    };
    let before = read_all();
    let checked = agent.cli(&["check", "--store", "--json"]).json();
    assert_eq!(checked["values"].as_u64().unwrap() + checked["in_log"].as_u64().unwrap(), 50, "{checked}");
    assert!(read_all() == before, "a check changed something");

    agent.restart();
    agent.stop();
    let said = String::from_utf8(agent.cli(&["check", "--store"]).ok()).unwrap();
    assert!(said.starts_with("50 values in ") && said.ends_with("no damage\n"), "{said}");

    let path = agent.data_dir().join("store.redb");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(15).position(|bytes| bytes == b"the value of 17");
    bytes[at.unwrap()] ^= 1;
    fs::write(&path, bytes).unwrap();
    let done = agent.cli(&["check", "--store"]);
    assert_eq!(done.code, 1, "{done:?}");
    let said = done.text();
    assert!(said.contains("1 damaged values: key-17\n") && said.contains("damaged pages: "), "{said}");
    assert!(done.stderr.contains("the store is damaged"), "{done:?}");

    // The agent serves undamaged values, and reports the damaged one.
    agent.restart();
    agent.cli(&["get", "key-18"]).ok();
    let message = agent.cli(&["get", "key-17"]).failed(1);
    assert!(message.contains("is damaged"), "{message}");
    agent.cli(&["put", "key-17", "another"]).ok();
    assert_eq!(agent.cli(&["get", "key-17"]).ok(), b"another");
    #[cfg(feature = "metrics-prometheus")]
    {
        let page = agent.scrape();
        let sample = "storage_operation_errors_total{operation=\"get\",backend=\"local\",reason=\"damaged\"} 1";
        assert!(page.contains(sample), "{page}");
    }
}

//! A runtime whose threads hang: the threads that do not depend on it notice and report that.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::agent::{TestAgent, eventually, within};
use crate::support::disk::not_run;
use crate::support::metrics::value;

/// Version 1 of the kernel's control groups, because version 2 can only stop whole processes.
const GROUPS: &str = "/sys/fs/cgroup/freezer";

/// How soon it is noticed, with some slack for a busy machine.
const NOTICED: Duration = Duration::from_secs(6);

/// Stops the threads of a runtime until this is dropped.
struct Stopped(PathBuf);

impl Stopped {
    fn runtime_of(agent: &TestAgent) -> Self {
        let group = Path::new(GROUPS).join(format!("peerscope-test-{}", agent.pid()));
        // The second time, it still exists.
        let _exists = std::fs::create_dir(&group);
        let stopped = Self(group);
        for task in std::fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap() {
            let task = task.unwrap();
            // The main thread only waits, and gets the signals.
            let is_first = task.file_name().to_str() == Some(&agent.pid().to_string());
            // A blocking thread may have ended in the meantime.
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            if !is_first && ["agent\n", "peerscope\n"].contains(&name.as_str()) {
                std::fs::write(stopped.0.join("tasks"), task.file_name().as_encoded_bytes()).unwrap();
            }
        }
        stopped.set("FROZEN");
        eventually("they are stopped", || stopped.state() == "FROZEN\n");
        stopped
    }

    fn set(&self, state: &str) {
        std::fs::write(self.0.join("freezer.state"), state).unwrap();
    }

    fn state(&self) -> String {
        std::fs::read_to_string(self.0.join("freezer.state")).unwrap()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.set("THAWED");
        for task in std::fs::read_to_string(self.0.join("tasks")).unwrap_or_default().lines() {
            let _ended = std::fs::write(Path::new(GROUPS).join("tasks"), task);
        }
    }
}

/// Removes the group of a process that has ended.
fn remove_group(pid: u32) {
    let group = Path::new(GROUPS).join(format!("peerscope-test-{pid}"));
    within(NOTICED, "the group is removed", || std::fs::remove_dir(&group).is_ok());
}

#[test]
fn a_runtime_that_hangs_is_reported_as_not_ready() {
    let test = "agent::runtime::a_runtime_that_hangs_is_reported_as_not_ready";
    if std::fs::create_dir(Path::new(GROUPS).join("peerscope-test")).is_err() {
        return not_run(test, &format!("threads cannot be stopped: no control groups (v1) at {GROUPS}"));
    }
    std::fs::remove_dir(Path::new(GROUPS).join("peerscope-test")).unwrap();
    let mut agent = TestAgent::prepare().after("export WATCHDOG_USEC=2000000").started();
    assert_eq!(agent.http("/ready").status, 200);
    // Twice within the watchdog's timeout.
    eventually("the watchdog is fed", || agent.notification() == "WATCHDOG=1");

    let stopped = Stopped::runtime_of(&agent);
    let why = "runtime: not ready: it has not responded for ";
    within(NOTICED, why, || agent.http("/ready").text().contains(why));
    assert_eq!(agent.http("/live").status, 200);
    assert_eq!(value(&agent.scrape(), "agent_component_ready", &[("component", "runtime")]), 0.0);
    agent.await_log("The runtime hangs, so peers and commands get no answer: it has not responded for 3 s");
    while agent.has_notified() {}
    std::thread::sleep(Duration::from_secs(2));
    assert!(!agent.has_notified(), "the watchdog is fed although the runtime hangs");

    drop(stopped);
    within(NOTICED, "it turns again", || agent.http("/ready").status == 200);
    agent.await_log("The runtime responds again");
    eventually("the watchdog is fed again", || agent.notification() == "WATCHDOG=1");
    assert_eq!(agent.log().iter().filter(|line| line.contains("The runtime hangs, so peers and commands")).count(), 1);

    // The runtime cannot handle the first signal, but the second one does not need it.
    let stopped = Stopped::runtime_of(&agent);
    agent.signal(Signal::TERM);
    // Late enough not to count as an echo, even on a busy machine.
    std::thread::sleep(Duration::from_secs(1));
    agent.signal(Signal::TERM);
    agent.await_log("SIGTERM again: exiting at once");
    // The kernel does not end a frozen thread.
    drop(stopped);
    let pid = agent.pid();
    assert_eq!(agent.ended().code(), Some(1));
    remove_group(pid);
}

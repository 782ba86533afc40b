//! A slow disk: only requests that read from it wait.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};

use super::store::{Acknowledged, await_ready, get, value};
use crate::support::agent::{PATIENCE, TestAgent};
use crate::support::disk::{self, Disk};

/// How many reads a second the disk does.
const READS: usize = 10;

/// How many readers wait for it at once, each for one key after another.
const READERS: usize = 16;
const READS_EACH: usize = 3;

const VALUES: usize = 250;
const VALUE_SIZE: usize = 40_000;

/// Version 1 of the kernel's control groups, which some machines offer without further permissions.
const GROUPS: &str = "/sys/fs/cgroup/blkio";

/// A control group whose processes read slowly from one disk.
struct Throttle(PathBuf);

impl Throttle {
    fn new(device: &str) -> Self {
        let group = Path::new(GROUPS).join(format!("peerscope-test-{}", std::process::id()));
        std::fs::create_dir(&group).unwrap();
        let throttle = Self(group);
        let file = throttle.0.join("blkio.throttle.read_iops_device");
        std::fs::write(file, format!("{device} {READS}")).unwrap();
        throttle
    }

    /// The prefix of a command that is to run in it; no extra process remains.
    fn enter(&self) -> Vec<String> {
        let join = "echo $$ >\"$0\"/cgroup.procs && exec \"$@\"";
        ["sh", "-c", join, self.0.to_str().unwrap()].map(str::to_owned).to_vec()
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        let _in_use_after_a_panic = std::fs::remove_dir(&self.0);
    }
}

/// A store that is larger than memory, on a disk that does 10 reads a second, like a network volume that has used up
/// its credit. Reading a value takes seconds, but asking for the agent's status does not.
#[test]
#[allow(clippy::print_stderr, reason = "what the two take is worth knowing")]
fn a_slow_disk_delays_only_requests_that_read_from_it() {
    let test = "agent::slow_disk::a_slow_disk_delays_only_requests_that_read_from_it";
    if !Path::new(GROUPS).join("blkio.throttle.read_iops_device").exists() {
        return disk::not_run(test, &format!("reads cannot be throttled: no control groups (v1) at {GROUPS}"));
    }
    disk::story(test, || {
        let disk = Disk::new();
        let throttle = Throttle::new(&disk.device());
        let config = disk.store_config().replace("local: {", "local: {cache_size: 1MiB, ");
        let mut agent = TestAgent::start_with(&config);
        let mut kept = Acknowledged::default();
        for i in 0..VALUES {
            kept.must_put(&agent, &format!("key-{i}"), &value(&format!("value {i}"), VALUE_SIZE));
        }
        assert_eq!(agent.stop().code(), Some(0));
        agent = agent.behind(throttle.enter()).started();
        // An agent with debug assertions reads the whole store when it opens it, so the page cache has to drop it.
        await_ready(&agent, PATIENCE);
        let store = File::open(disk.path().join("store.redb")).unwrap();
        fadvise(&store, 0, None, Advice::DontNeed).unwrap();
        let (reads, looks) = std::thread::scope(|scope| {
            let agent = &agent;
            let read = move |reader: usize| {
                let mut took = Vec::new();
                for i in 0..READS_EACH {
                    let i = (reader * READS_EACH + i) * 151 % VALUES;
                    let began = Instant::now();
                    assert!(get(agent, &format!("key-{i}")) == Some(value(&format!("value {i}"), VALUE_SIZE)));
                    took.push(began.elapsed());
                }
                took
            };
            let readers: Vec<_> = (0..READERS).map(|reader| scope.spawn(move || read(reader))).collect();
            let mut looks = Vec::new();
            while readers.iter().any(|reader| !reader.is_finished()) {
                let began = Instant::now();
                let status = agent.control("GET", "/v1/status", b"").unwrap();
                assert_eq!(status.status, 200);
                looks.push(began.elapsed());
                std::thread::sleep(Duration::from_millis(20));
            }
            let reads: Vec<_> = readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect();
            (reads, looks)
        });
        let (slowest_read, slowest_look) = (reads.iter().max().unwrap(), looks.iter().max().unwrap());
        eprintln!(
            "slowest of {} reads: {slowest_read:?}, of {} status requests: {slowest_look:?}",
            reads.len(),
            looks.len()
        );
        assert!(*slowest_read > Duration::from_secs(1), "the disk is not slow: {reads:?}");
        assert!(looks.len() > 20);
        assert!(*slowest_look < Duration::from_millis(500), "{slowest_look:?} among {looks:?}");
        assert_eq!(agent.stop().code(), Some(0));
    });
}

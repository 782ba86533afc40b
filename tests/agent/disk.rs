//! An agent whose disk hangs or fails: it reports that, goes on where it can, and loses nothing.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::store::{
    Acknowledged, LARGE, STOP, await_main_thread_gone, await_problem, await_ready, get, problem, put, value,
};
use crate::support::agent::{TestAgent, eventually};
use crate::support::disk::{self, Disk};

/// How long a disk keeps failing after the first failed write: several retries of the agent.
const STILL_FAILING: Duration = Duration::from_millis(1500);

/// A disk stops answering in the middle of a write, without an error, as a network disk or a failing controller may do.
/// The agent notices, reports for how long, tells callers what they can rely on, and recovers by itself.
#[test]
fn a_disk_that_hangs_delays_nobody_for_long() {
    disk::story("agent::disk::a_disk_that_hangs_delays_nobody_for_long", || {
        let disk = Disk::new();
        let mut agent = TestAgent::start_with(&disk.store_config());
        let mut kept = Acknowledged::default();
        kept.must_put(&agent, "before", b"one");

        let frozen = disk.freeze();
        std::thread::scope(|scope| {
            let pending = scope.spawn(|| {
                let began = Instant::now();
                (put(&agent, "pending", b"perhaps"), began.elapsed())
            });
            await_problem(&agent, Duration::from_secs(5), "has not answered for");
            // The seconds are counted.
            eventually("a growing number of seconds", || {
                let problem = problem(&agent).unwrap();
                let seconds = problem.rsplit(" for ").next().unwrap().strip_suffix(" s").unwrap();
                seconds.parse::<u64>().unwrap() >= 5
            });
            let began = Instant::now();
            let later = put(&agent, "later", b"no");
            let waited = began.elapsed();
            assert_eq!(later.status, 504, "{}", later.text());
            assert!(later.text().contains("this write did not take effect"), "{}", later.text());
            assert!(waited < Duration::from_secs(1), "refused after {waited:?}");
            assert!(!pending.is_finished());
            kept.assert_kept(&agent);

            let (reply, waited) = pending.join().unwrap();
            assert!(reply.text().contains("this write may still take effect"), "{} {}", reply.status, reply.text());
            assert!(waited < Duration::from_secs(12), "answered after {waited:?}");
        });
        kept.assert_kept(&agent);
        assert_eq!(get(&agent, "later"), None);

        drop(frozen);
        await_ready(&agent, Duration::from_secs(5));
        assert!(get(&agent, "pending").is_none_or(|found| found == b"perhaps"));
        assert_eq!(get(&agent, "later"), None);
        kept.must_put(&agent, "after", b"two");
        kept.assert_kept(&agent);

        assert_eq!(agent.stop().code(), Some(0));
        agent.restart();
        kept.assert_kept(&agent);

        // It hangs again, and this time the agent is stopped.
        let frozen = disk.freeze();
        std::thread::scope(|scope| {
            let in_flight = scope.spawn(|| agent.control("PUT", "/v1/keys/in-flight", b"perhaps"));
            await_problem(&agent, Duration::from_secs(5), "has not answered for");
            let began = Instant::now();
            agent.signal(Signal::TERM);
            agent.await_log("Stopped after ");
            assert!(began.elapsed() < STOP, "{:?}", began.elapsed());
            await_main_thread_gone(&agent);
            let reply = in_flight.join().unwrap().unwrap();
            assert!(reply.text().contains("this write may still take effect"), "{} {}", reply.status, reply.text());
        });
        drop(frozen);
        assert_eq!(agent.ended().code(), Some(0));
        agent.restart();
        kept.assert_kept(&agent);
        assert!(get(&agent, "in-flight").is_none_or(|found| found == b"perhaps"));
        assert_eq!(agent.stop().code(), Some(0));
    });
}

/// A sync fails, once. Linux then marks the pages clean, lets them be read, and lets the next sync succeed, although
/// the data never reached the disk. A store that trusts the next sync loses values that it acknowledged after it, or
/// that were read.
#[test]
fn a_failed_sync_loses_nothing_that_was_acknowledged() {
    disk::story("agent::disk::a_failed_sync_loses_nothing_that_was_acknowledged", || failed_sync(false));
}

/// So does a store that is restarted and trusts the page cache.
#[test]
fn a_failed_sync_and_a_crash_lose_nothing_that_was_acknowledged() {
    disk::story("agent::disk::a_failed_sync_and_a_crash_lose_nothing_that_was_acknowledged", || failed_sync(true));
}

fn failed_sync(crash: bool) {
    let disk = Disk::new();
    let mut agent = TestAgent::prepare();
    disk.hold_data_of(&agent);
    agent.restart();
    let mut kept = Acknowledged::default();
    for i in 0..3 {
        kept.must_put(&agent, &format!("base-{i}"), &value(&format!("base {i}"), 3000));
    }
    disk.let_free_blocks_fail();
    // The log has some room allocated in advance, whose blocks are good.
    let mut attempts = 0;
    let (failed, reply) = loop {
        let key = format!("large-{attempts}");
        let reply = kept.put(&agent, &key, &value(&key, LARGE));
        if reply.status != 204 {
            break (key, reply);
        }
        attempts += 1;
        assert!(attempts < 20, "no write reached a failing block");
    };
    assert!(reply.text().contains("this write may still take effect"), "{} {}", reply.status, reply.text());
    kept.assert_kept(&agent);
    if crash {
        agent.kill();
        agent.restart();
    }
    // The value is in the page cache and the next sync succeeds. But while the disk fails, it can still be lost.
    let until = Instant::now() + STILL_FAILING;
    while Instant::now() < until {
        // After a restart, there is nothing that the new process failed to write.
        assert!(crash || problem(&agent).is_some(), "ready on a failing disk");
        let reply = agent.control("GET", &format!("/v1/keys/{failed}"), b"").unwrap();
        assert_ne!(reply.status, 200, "{failed} can be read before it is durable");
        std::thread::sleep(Duration::from_millis(20));
    }
    disk.heal();
    await_ready(&agent, Duration::from_secs(10));
    kept.assert_kept(&agent);
    let seen = get(&agent, &failed);
    assert!(seen.as_ref().is_none_or(|seen| *seen == value(&failed, LARGE)));

    for i in 0..8 {
        kept.must_put(&agent, &format!("small-{i}"), &value(&format!("small {i}"), 100));
    }
    kept.must_put(&agent, "base-1", b"overwritten");
    kept.must_put(&agent, "large-after", &value("after", LARGE));
    kept.assert_kept(&agent);
    agent.kill();

    let disk = Disk::after_power_cut(disk);
    disk.hold_data_of(&agent);
    agent.restart();
    kept.assert_kept(&agent);
    if seen.is_some() {
        assert!(get(&agent, &failed) == seen, "{failed} was read before the power cut, and is lost");
    }
    assert_eq!(agent.stop().code(), Some(0));
}

/// The log has allocated room, but the database needs new blocks, which cannot be written. Once they can, ext4 accepts
/// the same pages again and syncs them successfully, but after a power cut there are zeros instead, unless the pages
/// were dropped from the page cache in between.
#[test]
fn a_database_whose_new_blocks_fail_loses_nothing_that_was_acknowledged() {
    disk::story("agent::disk::a_database_whose_new_blocks_fail_loses_nothing_that_was_acknowledged", || {
        let disk = Disk::new();
        let mut agent = TestAgent::prepare();
        disk.hold_data_of(&agent);
        agent.restart();
        let mut kept = Acknowledged::default();
        kept.must_put(&agent, "base", &value("base", 3000));
        disk.let_free_blocks_fail();
        for i in 0..250 {
            let key = format!("key-{i}");
            kept.put(&agent, &key, &value(&key, 3000));
        }
        await_problem(&agent, Duration::from_secs(10), "no space left on the disk");
        std::thread::sleep(STILL_FAILING);
        kept.assert_kept(&agent);
        disk.heal();
        agent.await_log("The store was reopened");
        await_ready(&agent, Duration::from_secs(10));
        kept.assert_kept(&agent);
        kept.must_put(&agent, "after", b"one more");
        agent.kill();

        let disk = Disk::after_power_cut(disk);
        disk.hold_data_of(&agent);
        agent.restart();
        await_ready(&agent, Duration::from_secs(10));
        kept.assert_kept(&agent);
        assert_eq!(agent.stop().code(), Some(0));
    });
}

/// The machine comes up before the disk of the store does. The agent is live and reports what it waits for, instead of
/// being a unit that systemd is still starting.
#[test]
fn an_agent_that_starts_on_a_hanging_disk_reports_it() {
    disk::story("agent::disk::an_agent_that_starts_on_a_hanging_disk_reports_it", || {
        let disk = Disk::new();
        let mut agent = TestAgent::start_with(&disk.store_config());
        let mut kept = Acknowledged::default();
        kept.must_put(&agent, "before", b"one");
        assert_eq!(agent.stop().code(), Some(0));

        // Opening the store writes, so it waits for the disk.
        let frozen = disk.freeze();
        let began = Instant::now();
        agent.spawn();
        agent.await_ready();
        await_problem(&agent, Duration::from_secs(1), "the store is being opened");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        for (method, body) in [("GET", &b""[..]), ("PUT", b"two"), ("DELETE", b"")] {
            let reply = agent.control(method, "/v1/keys/before", body).unwrap();
            let text = reply.text();
            assert!(reply.status == 503 && text.contains("the agent is starting"), "{method}: {} {text}", reply.status);
        }

        drop(frozen);
        await_ready(&agent, Duration::from_secs(5));
        kept.assert_kept(&agent);
        kept.must_put(&agent, "after", b"two");
        assert_eq!(agent.stop().code(), Some(0));

        // This time the agent is stopped while it waits.
        let frozen = disk.freeze();
        agent.spawn();
        agent.await_ready();
        await_problem(&agent, Duration::from_secs(1), "the store is being opened");
        let began = Instant::now();
        agent.signal(Signal::TERM);
        agent.await_log("Stopped after ");
        await_main_thread_gone(&agent);
        assert!(began.elapsed() < STOP, "{:?}", began.elapsed());
        drop(frozen);
        assert_eq!(agent.ended().code(), Some(0));
        agent.restart();
        kept.assert_kept(&agent);
        assert_eq!(agent.stop().code(), Some(0));
    });
}

/// All of the agent's files are on the hanging disk, including its control socket, which the stop removes.
#[test]
fn an_agent_with_all_its_files_on_a_hanging_disk_stops_in_time() {
    disk::story("agent::disk::an_agent_with_all_its_files_on_a_hanging_disk_stops_in_time", || {
        let disk = Disk::new();
        let mut agent = TestAgent::prepare();
        disk.hold_data_of(&agent);
        agent.restart();
        let mut kept = Acknowledged::default();
        kept.must_put(&agent, "before", b"one");

        let frozen = disk.freeze();
        let began = Instant::now();
        agent.signal(Signal::TERM);
        agent.await_log("Stopped after ");
        await_main_thread_gone(&agent);
        assert!(began.elapsed() < STOP, "{:?}", began.elapsed());
        drop(frozen);
        assert_eq!(agent.ended().code(), Some(0));
        agent.restart();
        kept.assert_kept(&agent);
        assert_eq!(agent.stop().code(), Some(0));
    });
}

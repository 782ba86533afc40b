//! An agent whose disk hangs, fails or loses files: it says so, goes on with what it can, and loses nothing.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::store::{
    Acknowledged, LARGE, STOP, await_main_thread_gone, await_problem, await_ready, get, problem, put, value,
};
use crate::support::agent::{TestAgent, eventually};
use crate::support::disk::{self, Disk};

/// How long a disk fails on after the first write that did: several attempts of the agent to write it again.
const STILL_FAILING: Duration = Duration::from_millis(1500);

/// A disk stops answering in the middle of a write, as a network disk or a dying controller does: no error, nothing.
/// The agent notices, says since when, tells the callers what they can rely on, and goes on by itself afterwards.
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
            assert!(later.text().contains("this write was not done"), "{}", later.text());
            assert!(waited < Duration::from_secs(1), "refused after {waited:?}");
            assert!(!pending.is_finished());
            kept.assert_kept(&agent);

            let (reply, waited) = pending.join().unwrap();
            assert!(reply.text().contains("this write may still happen"), "{} {}", reply.status, reply.text());
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

        // It hangs again, and this time somebody stops the agent.
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
            assert!(reply.text().contains("this write may still happen"), "{} {}", reply.status, reply.text());
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
/// the disk never got them. Whoever believes the next sync loses what was acknowledged after it, or what was read.
#[test]
fn a_failed_sync_loses_nothing_that_was_acknowledged() {
    disk::story("agent::disk::a_failed_sync_loses_nothing_that_was_acknowledged", || failed_sync(false));
}

/// And whoever is started anew and believes the page cache does, too.
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
    // The log has some room in stock, whose blocks are good ones.
    let mut attempts = 0;
    let (failed, reply) = loop {
        let key = format!("large-{attempts}");
        let reply = kept.put(&agent, &key, &value(&key, LARGE));
        if reply.status != 204 {
            break (key, reply);
        }
        attempts += 1;
        assert!(attempts < 20, "no write ever met a block that fails");
    };
    assert!(reply.text().contains("this write may still happen"), "{} {}", reply.status, reply.text());
    kept.assert_kept(&agent);
    if crash {
        agent.kill();
        agent.restart();
    }
    // The page cache has it and the next sync succeeds. But as long as the disk fails, it can still be lost.
    let until = Instant::now() + STILL_FAILING;
    while Instant::now() < until {
        // A process that was started since has nothing that it could not write.
        assert!(crash || problem(&agent).is_some(), "ready on a disk that fails");
        let reply = agent.control("GET", &format!("/v1/keys/{failed}"), b"").unwrap();
        assert_ne!(reply.status, 200, "{failed} is shown before it is durable");
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

/// The log has room in stock, the database needs new blocks, and these cannot be written. When they can, ext4 takes the
/// same pages again, syncs them with success, and has zeros in their place after a power cut: unless it was made to
/// forget them.
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
        agent.await_log("The store was opened anew");
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

/// The machine comes up before the disk of the store does. Whoever looks finds an agent that lives and says what it
/// waits for, and not a unit that systemd is still starting.
#[test]
fn a_start_on_a_disk_that_hangs_is_a_start_in_the_light() {
    disk::story("agent::disk::a_start_on_a_disk_that_hangs_is_a_start_in_the_light", || {
        let disk = Disk::new();
        let mut agent = TestAgent::start_with(&disk.store_config());
        let mut kept = Acknowledged::default();
        kept.must_put(&agent, "before", b"one");
        assert_eq!(agent.stop().code(), Some(0));

        // An opening writes, so that it waits for the disk.
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

        // And this time somebody gives up waiting.
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

/// All of the agent's files are on the disk that hangs, its control socket too, whose name goes away with the stop.
#[test]
fn an_agent_whose_every_file_is_on_a_disk_that_hangs_stops_in_time() {
    disk::story("agent::disk::an_agent_whose_every_file_is_on_a_disk_that_hangs_stops_in_time", || {
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

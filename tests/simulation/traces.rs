//! The failures that were found, as stories of their own: a seed means nothing once the generator changes.

use super::disk::Faults;
use super::story::Story;

/// So many disks on which the same story happens, with other luck in what a failed sync or a power cut leaves behind.
const DISKS: u64 = 60;

/// The story that this simulation was made for. A put fails because its sync does; the kernel calls the pages clean and
/// keeps them. The disk is well again, `get` returns the value of the failed put from the page cache, later puts are
/// acknowledged. After a power cut every key was gone, those from long before too.
#[test]
fn what_a_failed_sync_left_in_the_cache_is_not_built_on() {
    for seed in 0..DISKS {
        // The first of redb's two syncs fails, or only the second one.
        for (restarts, sync_error) in [(false, 1.0), (true, 1.0), (false, 0.5), (true, 0.5)] {
            let mut story = Story::new(seed);
            story.open();
            story.write();
            assert!(story.flush());
            story.write();
            story.fail(Faults { sync_error, ..Faults::default() });
            let _fails = story.flush();
            story.write();
            story.heal();
            if restarts {
                story.restart();
            }
            story.read_all();
            for _ in 0..8 {
                story.retry();
                story.write();
                let _may_fail = story.flush();
            }
            story.read_all();
            story.cut_power();
            story.check_all();
        }
    }
}

/// A put fails because its sync does, and later ones succeed in another part of the log. After a restart `get` returns the
/// value of the failed put, which an old part of the log has in the page cache alone, and a power cut takes it away.
#[test]
fn a_failed_put_that_was_seen_stays() {
    for seed in 0..4 * DISKS {
        let mut story = Story::new(seed);
        story.open();
        story.write();
        story.fail(Faults { sync_error: 1.0, ..Faults::default() });
        story.write();
        story.heal();
        story.retry();
        story.write();
        story.restart();
        story.read_all();
        story.cut_power();
        story.check_all();
    }
}

/// The first frame of a new file of the log fails. Its blocks are stuck: what was written to them again was synced with
/// success, acknowledged, and zeros after a power cut.
#[test]
fn what_could_not_be_written_once_is_not_written_to_the_same_blocks() {
    for seed in 0..DISKS {
        for restarts in [false, true] {
            let mut story = Story::new(seed);
            story.open();
            story.fail(Faults { sync_error: 1.0, ..Faults::default() });
            story.write();
            story.heal();
            if restarts {
                story.restart();
            }
            story.read_all();
            story.retry();
            story.write();
            story.read_all();
            story.cut_power();
            story.check_all();
        }
    }
}

/// A write of the transaction fails, or its sync; what it had written before is evicted from the cache. The database is
/// opened anew, and its predecessor closed: that one read pages of which the disk had never heard, and panicked.
#[test]
fn a_failed_database_ends_without_a_look_at_its_pages() {
    for seed in 0..DISKS {
        let mut story = Story::new(seed);
        story.open();
        for _ in 0..4 {
            story.write();
            assert!(story.flush());
            story.write();
            story.fail(Faults { sync_error: 1.0, short_write: 0.3, ..Faults::default() });
            let _fails = story.flush();
            story.evict();
            story.heal();
            assert!(story.flush());
        }
        story.cut_power();
        story.check_all();
    }
}

/// The process is killed between making the name of a file and its sync. The next one finds the file, because the kernel
/// has its name; a put was acknowledged in it, and the power cut took file and put away.
#[test]
fn a_name_that_is_there_may_still_have_to_be_synced() {
    for stop_after in 30..64 {
        for seed in 0..16 {
            let mut story = Story::new(seed);
            story.stop_after(stop_after);
            story.open();
            story.write();
            story.restart();
            story.write();
            story.cut_power();
            story.check_all();
        }
    }
}

/// The power fails at every single call of an opening, a put, a transaction and a closing.
#[test]
fn the_power_may_fail_at_any_call() {
    for stop_after in 0..120 {
        let mut story = Story::new(stop_after);
        story.open();
        story.write();
        assert!(story.flush());
        story.write();
        story.stop_after(stop_after);
        story.restart();
        story.write();
        let _fails = story.flush();
        story.close();
        story.cut_power();
        story.check_all();
        story.write();
        story.cut_power();
        story.check_all();
    }
}

/// An agent that wrote nothing leaves no log; but redb writes when it closes. That failed, the next agent wrote to the same
/// blocks, and was told that all went well.
#[test]
fn a_closing_that_failed_leaves_nothing_to_build_on() {
    for seed in 0..DISKS {
        for stop_after in (0..12).map(Some).chain([None; 4]) {
            let mut story = Story::new(seed);
            story.open();
            for _ in 0..seed % 4 {
                story.write();
                assert!(story.flush());
            }
            story.close();
            story.open();
            match stop_after {
                Some(calls) => story.stop_after(calls),
                None => story.fail(Faults { sync_error: 1.0, ..Faults::default() }),
            }
            story.close();
            story.heal_kernel();
            story.open();
            story.goes_on(1);
        }
    }
}

/// The disk fails while a store of the format before is carried over, or just after it was opened, and the same agent
/// tries again: what redb wrote in vain, or wrote as it was given up, is in the page cache. The version before may have left
/// such pages, too.
#[test]
fn an_opening_that_failed_leaves_nothing_to_build_on() {
    for seed in (0..DISKS).chain([2478, 2645, 3228, 4100, 4512, 5020]) {
        for (sync_error, names_error) in [(0.0, 0.0), (1.0, 0.0), (0.5, 0.0), (0.3, 0.0), (0.0, 1.0), (0.3, 0.5)] {
            let mut story = Story::new(seed);
            story.make_v1();
            story.fail(Faults { sync_error, names_error, ..Faults::default() });
            for _ in 0..3 {
                story.try_open_again();
            }
            story.heal();
            story.try_open_again();
            story.check_all();
            story.goes_on(6);
        }
    }
}

/// A nearly full disk: what fits is taken, also beside what does not.
#[test]
fn a_large_write_that_does_not_fit_is_refused_alone() {
    let mut story = Story::new(1);
    story.open();
    story.write();
    story.leave_room(2 << 20);
    let (small, large) = (Some(100), Some(1_500_000));
    assert_eq!(story.write_together(&[small, large, small]), 2);
    assert_eq!(story.write_together(&[large]), 0);
    assert_eq!(story.write_together(&[small]), 1);
    story.cut_power();
    story.check_all();
    story.leave_room(0);
    assert_eq!(story.write_together(&[small]), 0);
    story.retry();
    assert_eq!(story.write_together(&[small]), 0);
    story.heal();
    story.retry();
    assert_eq!(story.write_together(&[small]), 1);
}

/// redb makes room in its cache when somebody reads, and writes for that what a transaction of before left there. It
/// failed, nobody heard, and the next transaction failed in its place, on a disk that was well again.
#[test]
fn what_failed_while_somebody_read_does_not_fail_the_next_transaction() {
    for seed in 0..DISKS {
        let mut story = Story::new(seed);
        story.make_v1();
        story.open();
        story.fail(Faults { write_error: 1.0, ..Faults::default() });
        story.read_all();
        story.heal();
        story.write();
        assert!(story.flush());
        story.cut_power();
        story.check_all();
    }
}

/// What the log took on the disk is given back when redb has it: also what a process that was killed had left, and what
/// could not be written. Otherwise a disk that was full stays so.
#[test]
fn the_log_gives_its_room_back() {
    let large = [Some(1_500_000); 3];
    let mut story = Story::new(1);
    story.open();
    assert_eq!(story.write_together(&large), 3);
    story.restart();
    assert!(story.log_bytes() > 4_000_000);
    assert!(story.flush());
    story.retry();
    assert_eq!(story.log_bytes(), 0, "nothing of it was written by this process");

    story.fail(Faults { sync_error: 1.0, ..Faults::default() });
    assert_eq!(story.write_together(&large), 0);
    story.heal();
    story.retry();
    assert!(story.flush());
    story.retry();
    assert!(story.log_bytes() <= 1 << 20, "{}", story.log_bytes());

    // As after any start: nothing was written yet, and there is little room.
    story.close();
    story.open();
    story.leave_room(600_000);
    assert_eq!(story.write_together(&[Some(1_500_000)]), 0);
    assert_eq!(story.log_bytes(), 0, "it was refused before anything was tried");
}

/// A put failed for one reason, and now waits for another one.
#[test]
fn the_reason_is_that_of_now() {
    let mut story = Story::new(1);
    story.open();
    story.fail(Faults { sync_error: 1.0, ..Faults::default() });
    assert_eq!(story.write_together(&[Some(100)]), 0);
    story.heal();
    story.leave_room(0);
    story.retry();
    assert!(story.log_trouble().is_some_and(|reason| reason.contains("no space left")), "{:?}", story.log_trouble());
    story.heal();
    story.retry();
    assert_eq!(story.log_trouble(), None);
    story.check_all();
}

/// The log is removed while nothing is in it that redb does not have.
#[test]
fn an_empty_log_that_is_removed_is_no_trouble() {
    let mut story = Story::new(1);
    story.open();
    story.leave_room(0);
    assert_eq!(story.write_together(&[Some(100)]), 0);
    story.heal();
    story.retry();
    story.remove_log();
    story.retry();
    assert_eq!(story.write_together(&[Some(100)]), 1);
    story.cut_power();
    story.check_all();
}

/// One bit of the log, of redb or of both changes on the disk. What is served is what was put, or nothing is.
#[test]
fn damage_is_never_served() {
    let (mut refused, mut unread) = (0, 0);
    for seed in 0..400 {
        let mut story = Story::new(seed);
        story.open();
        for _ in 0..6 {
            story.write();
        }
        assert!(story.flush());
        story.write();
        story.write_in_vain();
        match story.damage() {
            None => refused += 1,
            Some(count) => unread += count,
        }
    }
    assert!(refused > 0 && unread > 0, "{refused} openings were refused, {unread} values were not served");
}

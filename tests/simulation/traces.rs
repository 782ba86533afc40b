//! Failures that were found, each as an explicit story, because a seed loses its meaning when the generator changes.

use super::disk::Faults;
use super::story::Story;

/// The number of disks on which each story is repeated. They differ in what a failed sync or a power cut leaves behind.
const DISKS: u64 = 60;

/// The failure that this simulation was written for. A put fails because its sync does, and the kernel keeps the pages
/// and marks them clean. The disk then works again, `get` returns the value of the failed put from the page cache, and
/// later puts are acknowledged. After a power cut every key used to be gone, even old ones.
#[test]
fn nothing_is_built_on_pages_that_a_failed_sync_left_in_the_cache() {
    for seed in 0..DISKS {
        // The first of redb's two syncs fails, or, with some seeds, only the second.
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

/// A put fails because its sync does, and later ones succeed in another segment of the log. After a restart `get` used
/// to return the value of the failed put from the old segment, where it was only in the page cache, and a power cut
/// lost it.
#[test]
fn a_failed_put_that_was_read_stays() {
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

/// The first frame of a new file of the log fails, and its blocks are stuck: data written to them again used to be
/// synced successfully and acknowledged, but was zeros after a power cut.
#[test]
fn a_frame_that_failed_is_not_written_to_the_same_blocks_again() {
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

/// A write of the transaction fails, or its sync, and its earlier writes are evicted from the cache. The database is
/// reopened and its predecessor closed, which used to read pages that had never reached the disk, and panicked.
#[test]
fn a_failed_database_is_closed_without_reading_its_pages() {
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

/// The process is killed between creating a file and syncing its name. The next process finds the file, because the
/// kernel has its name. A put to it used to be acknowledged, and a power cut lost both the file and the put.
#[test]
fn a_name_that_is_visible_may_still_have_to_be_synced() {
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

/// The power fails at each call of an opening, a put, a transaction and a close in turn.
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

/// An agent without writes leaves no log, but redb writes when it is closed. When that failed, the next agent used to
/// write to the same blocks without an error.
#[test]
fn nothing_is_built_on_a_failed_close() {
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

/// The disk fails while a store of the previous layout is migrated, or just after it was opened, and the same agent
/// tries again. The page cache then contains failed writes of redb, including those that it made while closing. The
/// previous version may have left such pages too.
#[test]
fn nothing_is_built_on_a_failed_opening() {
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

/// On a nearly full disk, writes that fit are accepted even in one batch with those that do not.
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

/// A read makes redb evict from its cache, which writes pages that an earlier transaction left there. If that write
/// failed, the next transaction used to fail instead, on a disk that had recovered.
#[test]
fn a_write_that_failed_during_a_read_does_not_fail_the_next_transaction() {
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

/// The log frees its disk space once redb has its contents, also after a kill or failed writes. Otherwise a full disk
/// would stay full.
#[test]
fn the_log_frees_its_disk_space() {
    let large = [Some(1_500_000); 3];
    let mut story = Story::new(1);
    story.open();
    assert_eq!(story.write_together(&large), 3);
    story.restart();
    assert!(story.log_bytes() > 4_000_000);
    assert!(story.flush());
    story.retry();
    assert_eq!(story.log_bytes(), 0, "this process wrote none of it");

    story.fail(Faults { sync_error: 1.0, ..Faults::default() });
    assert_eq!(story.write_together(&large), 0);
    story.heal();
    story.retry();
    assert!(story.flush());
    story.retry();
    assert!(story.log_bytes() <= 1 << 20, "{}", story.log_bytes());

    // As after any start: nothing has been written yet, and there is little room.
    story.close();
    story.open();
    story.leave_room(600_000);
    assert_eq!(story.write_together(&[Some(1_500_000)]), 0);
    assert_eq!(story.log_bytes(), 0, "it was refused before anything was tried");
}

/// Writes failed for one reason and are now refused for another.
#[test]
fn the_reported_reason_is_the_current_one() {
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

/// The log is removed while redb has everything in it.
#[test]
fn removing_an_empty_log_does_no_harm() {
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

/// One bit of the store or its log changes on the disk. A value is served as it was put, or not at all.
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

//! Histories of what clients of a register saw, and whether one register can explain them.
//!
//! Each value is written only once, so that a read shows which write it saw. Then linearizability can be decided in one
//! pass (Gibbons and Korach, "Testing Shared Memories", SIAM Journal on Computing 26, 1997). A write and the reads of
//! its value are a *cluster*. If the first end in a cluster comes before the last begin, the register held its value
//! for certain between the two; such times of two clusters must not overlap. Any other cluster happened at some time
//! between its last begin and its first end, which must not lie completely within such a time of another cluster.

use std::collections::HashMap;
use std::fmt::Write as _;

/// One operation, with its times in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) key: u64,
    pub(crate) begin: u64,
    /// By when it was done; `u64::MAX` if unknown.
    pub(crate) end: u64,
    pub(crate) kind: Kind,
    pub(crate) value: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    /// A write that may never have been done.
    FailedWrite,
}

/// A write and the reads of its value: when the register held it.
#[derive(Debug, Clone, Copy)]
struct Cluster {
    value: u64,
    write_begins: u64,
    first_end: u64,
    last_begin: u64,
    is_read: bool,
    is_unknown: bool,
}

/// Begins and ends of the writes that one agent has acknowledged, ordered by their ends.
#[derive(Default)]
pub(crate) struct Acknowledged(Vec<(u64, u64)>);

impl Acknowledged {
    pub(crate) fn push(&mut self, begin: u64, end: u64) {
        let place = self.0.partition_point(|(_, other)| *other <= end);
        self.0.insert(place, (begin, end));
    }

    /// The time after which a write that failed at `failed` can no longer happen: when a write that began later was
    /// acknowledged.
    pub(crate) fn settles(&self, failed: u64) -> u64 {
        let after = self.0.partition_point(|(_, end)| *end <= failed);
        self.0[after..].iter().find(|(begin, _)| *begin > failed).map_or(u64::MAX, |(_, end)| *end)
    }
}

/// For how long a history is recorded.
pub(crate) fn seconds() -> u64 {
    std::env::var("HISTORY_SECONDS").map_or(20, |seconds| seconds.parse().unwrap())
}

/// Prints the size of the history, and asserts that it is large enough and that one register per key can explain it.
#[track_caller]
#[allow(clippy::print_stdout, reason = "a long run should show how much it tried")]
pub(crate) fn check(seen: &[Operation]) {
    let unknown = seen.iter().filter(|operation| operation.kind == Kind::FailedWrite).count();
    println!("{} operations in {} s, {unknown} of unknown outcome", seen.len(), seconds());
    assert!(seen.len() > 500 && unknown > 0, "{} operations, {unknown} of them unknown", seen.len());
    if let Err(why) = judge(seen) {
        panic!("{why}");
    }
}

/// Whether the operations on each key are linearizable; if not, why.
pub(crate) fn judge(history: &[Operation]) -> Result<(), String> {
    let mut keys: HashMap<u64, Vec<&Operation>> = HashMap::new();
    for operation in history {
        keys.entry(operation.key).or_default().push(operation);
    }
    keys.into_iter().try_for_each(|(key, operations)| {
        judge_key(&operations).map_err(|why| format!("key {key}: {why}\n{}", write(operations.into_iter().cloned())))
    })
}

fn judge_key(operations: &[&Operation]) -> Result<(), String> {
    let mut clusters: HashMap<u64, Cluster> = HashMap::new();
    for write in operations.iter().filter(|operation| operation.kind != Kind::Read) {
        let cluster = Cluster {
            value: write.value,
            write_begins: write.begin,
            first_end: write.end,
            last_begin: write.begin,
            is_read: false,
            is_unknown: write.kind == Kind::FailedWrite,
        };
        assert!(clusters.insert(write.value, cluster).is_none(), "{} is written twice", write.value);
    }
    for read in operations.iter().filter(|operation| operation.kind == Kind::Read) {
        let Some(cluster) = clusters.get_mut(&read.value) else {
            return Err(format!("{} was never written", read.value));
        };
        if read.end < cluster.write_begins {
            return Err(format!("{} was read before it was written", read.value));
        }
        cluster.first_end = cluster.first_end.min(read.end);
        cluster.last_begin = cluster.last_begin.max(read.begin);
        cluster.is_read = true;
    }
    // A write of unknown outcome that was never read may not have happened.
    let (held, brief): (Vec<_>, Vec<_>) = clusters
        .into_values()
        .filter(|cluster| cluster.is_read || !cluster.is_unknown)
        .partition(|cluster| cluster.first_end < cluster.last_begin);
    let mut held = held;
    held.sort_by_key(|cluster| cluster.first_end);
    for pair in held.windows(2) {
        if pair[1].first_end < pair[0].last_begin {
            return Err(format!("{} and {} were both held at the same time: {pair:?}", pair[0].value, pair[1].value));
        }
    }
    for cluster in brief {
        let before = held.partition_point(|held| held.first_end < cluster.last_begin);
        if let Some(held) = before.checked_sub(1).map(|index| held[index])
            && cluster.first_end < held.last_begin
        {
            return Err(format!("{} was written while {} was held: {cluster:?}, {held:?}", cluster.value, held.value));
        }
    }
    Ok(())
}

/// One line per operation: key, begin, end (`-` if unknown), kind (`w`, `r`, or `f` for a failed write) and value.
pub(crate) fn write(history: impl IntoIterator<Item = Operation>) -> String {
    let mut out = String::new();
    for Operation { key, begin, end, kind, value } in history {
        let end = if end == u64::MAX { "-".into() } else { end.to_string() };
        let kind = match kind {
            Kind::Read => 'r',
            Kind::Write => 'w',
            Kind::FailedWrite => 'f',
        };
        let _fits = writeln!(out, "{key} {begin} {end} {kind} {value}");
    }
    out
}

pub(crate) fn read(text: &str) -> Vec<Operation> {
    let operation = |line: &str| {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap();
        let number = |word: &str| if word == "-" { u64::MAX } else { word.parse().unwrap() };
        let (key, begin, end) = (number(word()), number(word()), number(word()));
        let kind = match word() {
            "r" => Kind::Read,
            "w" => Kind::Write,
            _ => Kind::FailedWrite,
        };
        Operation { key, begin, end, kind, value: number(word()) }
    };
    text.lines().map(operation).collect()
}

mod tests {
    use super::{Acknowledged, judge, read, write};

    #[test]
    fn a_failed_write_is_settled_by_a_later_one_that_is_acknowledged() {
        let mut acknowledged = Acknowledged::default();
        for (begin, end) in [(2, 3), (1, 9), (7, 20), (6, 8)] {
            acknowledged.push(begin, end);
        }
        for (failed, settled) in [(0, 3), (1, 3), (2, 8), (5, 8), (6, 20), (7, u64::MAX)] {
            assert_eq!(acknowledged.settles(failed), settled, "{failed}");
        }
    }

    #[test]
    fn histories_that_one_register_can_explain_are_accepted() {
        for history in [
            "",
            "0 1 2 w 1\n0 3 4 r 1\n0 5 6 w 2\n0 7 8 r 2\n",
            // During a write, a read sees the old value or the new one.
            "0 1 2 w 1\n0 3 9 w 2\n0 4 5 r 1\n0 6 7 r 2\n",
            // Two concurrent writes, in either order.
            "0 1 9 w 1\n0 1 9 w 2\n0 10 11 r 1\n",
            // A write of unknown outcome that was not done, or was done late.
            "0 1 2 w 1\n0 3 - f 2\n0 4 5 r 1\n0 6 7 r 1\n",
            "0 1 2 w 1\n0 3 - f 2\n0 4 5 r 1\n0 6 7 r 2\n0 8 9 r 2\n",
            // A failed write that was done before a later one, and never read.
            "0 1 2 w 1\n0 3 7 f 2\n0 6 7 w 3\n0 8 9 r 3\n",
            "0 1 2 w 1\n1 1 2 w 9\n0 3 4 r 1\n1 3 4 r 9\n",
        ] {
            let operations = read(history);
            assert_eq!(judge(&operations), Ok(()), "{history}");
            assert_eq!(write(operations), history);
        }
    }

    #[test]
    fn histories_that_no_register_can_explain_are_rejected() {
        for (why, history) in [
            (
                "a failed write took effect too late",
                "0 1 2 w 1\n0 3 7 f 2\n0 4 5 r 1\n0 6 7 w 3\n0 8 9 r 3\n0 10 11 r 2\n",
            ),
            ("a late value came and went", "0 1 2 w 1\n0 3 - f 2\n0 6 7 w 3\n0 8 9 r 3\n0 10 11 r 2\n0 12 13 r 3\n"),
            ("a retry overwrote another writer", "0 1 20 w 1\n0 2 3 r 1\n0 4 5 w 2\n0 6 7 r 2\n0 8 9 r 1\n"),
            ("an acknowledged write is lost", "0 1 2 w 1\n0 3 4 w 2\n0 5 6 r 1\n"),
            ("a value was read, then the old one again", "0 1 2 w 1\n0 3 9 w 2\n0 4 5 r 2\n0 6 7 r 1\n"),
            ("a value that was never written", "0 1 2 w 1\n0 3 4 r 7\n"),
            ("a value read before it was written", "0 1 2 r 1\n0 3 4 w 1\n"),
        ] {
            assert!(judge(&read(history)).is_err(), "{why}");
        }
    }
}

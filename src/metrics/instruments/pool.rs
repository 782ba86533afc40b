//! The numbers that are given to threads, and taken back.

use std::collections::BTreeSet;

use super::sync::Mutex;

/// Numbers from 0 on, each held by at most one holder at a time.
///
/// The lock is also what hands a number's cells over: everything that the last holder did before it gave
/// the number back happened before everything that the next holder does after it was given it.
#[derive(Debug)]
pub(super) struct Pool(Mutex<Numbers>);

#[derive(Debug)]
struct Numbers {
    /// Given back, and to be given out again, the lowest first: rows stay few.
    free: BTreeSet<usize>,
    /// The lowest number that nobody ever had.
    next: usize,
}

impl Pool {
    #[cfg(not(loom))]
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Numbers { free: BTreeSet::new(), next: 0 }))
    }

    // Loom's lock cannot be made in a constant.
    #[cfg(loom)]
    pub(super) fn new() -> Self {
        Self(Mutex::new(Numbers { free: BTreeSet::new(), next: 0 }))
    }

    /// The lowest number below `capacity` that nobody holds; `None` when all are held.
    pub(super) fn take(&self, capacity: usize) -> Option<usize> {
        let mut numbers = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(number) = numbers.free.pop_first() {
            return Some(number);
        }
        let number = numbers.next;
        (number < capacity).then(|| {
            numbers.next += 1;
            number
        })
    }

    /// Takes `number` back.
    pub(super) fn give_back(&self, number: usize) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).free.insert(number);
    }
}

// Loom's locks work in its models only.
#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_number_is_given_and_no_more_than_there_are() {
        let pool = Pool::new();
        assert_eq!([pool.take(3), pool.take(3), pool.take(3), pool.take(3)], [Some(0), Some(1), Some(2), None]);
        pool.give_back(2);
        pool.give_back(0);
        assert_eq!([pool.take(3), pool.take(3), pool.take(3)], [Some(0), Some(2), None]);
    }
}

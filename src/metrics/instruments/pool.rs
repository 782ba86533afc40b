//! The numbers that threads get and return.

use std::collections::BTreeSet;

use super::sync::Mutex;

/// Numbers from 0 on, each with at most one holder at a time.
///
/// The lock also hands over the cells of a number: everything that the last holder did before it returned
/// the number happens before everything that the next holder does after it gets the number.
#[derive(Debug)]
pub(super) struct Pool(Mutex<Numbers>);

#[derive(Debug)]
struct Numbers {
    /// Returned numbers. The lowest is handed out first, which keeps rows few.
    free: BTreeSet<usize>,
    /// The lowest number that was never handed out.
    next: usize,
}

impl Pool {
    #[cfg(not(loom))]
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Numbers { free: BTreeSet::new(), next: 0 }))
    }

    // Loom's lock cannot be created in a constant.
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

// Loom's locks work only in its models.
#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_number_is_handed_out_until_none_is_left() {
        let pool = Pool::new();
        assert_eq!([pool.take(3), pool.take(3), pool.take(3), pool.take(3)], [Some(0), Some(1), Some(2), None]);
        pool.give_back(2);
        pool.give_back(0);
        assert_eq!([pool.take(3), pool.take(3), pool.take(3)], [Some(0), Some(2), None]);
    }
}

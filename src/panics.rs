//! Panics that a caller expects: redb asserts its assumptions about its pages, so a damaged file shows as a panic.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` and returns its panic, if any, as an error. The panic hook need not report it: the caller does, in its
/// own words.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    let before = EXPECTED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    EXPECTED.set(before);
    outcome
}

/// Whether this thread runs inside [`caught`], so that a panic on it is expected.
pub(crate) fn is_expected() -> bool {
    EXPECTED.get()
}

/// The message of a panic.
pub(crate) fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("an internal check failed").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_expected_only_inside_caught() {
        assert!(!is_expected());
        let caught = caught(|| {
            assert!(is_expected());
            let inner = super::caught(|| panic!("on purpose")).unwrap_err();
            assert!(is_expected());
            text(&*inner)
        });
        assert_eq!(caught.unwrap(), "on purpose");
        assert!(!is_expected());
    }
}

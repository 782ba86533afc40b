//! Panics that somebody waits for: redb asserts what it believes of its pages, and a damaged file shows in that way.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Does `work`, and answers with what it panicked, if it does. No hook need say it: the caller does, in its own words.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    let before = EXPECTED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    EXPECTED.set(before);
    outcome
}

/// Whether the panic of this thread is one that somebody waits for.
pub(crate) fn is_expected() -> bool {
    EXPECTED.get()
}

/// What a panic said.
pub(crate) fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("an internal check failed").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_expected_only_where_somebody_waits_for_it() {
        assert!(!is_expected());
        let caught = caught(|| {
            assert!(is_expected());
            let inner = super::caught(|| panic!("as it was told to")).unwrap_err();
            assert!(is_expected());
            text(&*inner)
        });
        assert_eq!(caught.unwrap(), "as it was told to");
        assert!(!is_expected());
    }
}

//! Closed label sets: every combination of labels has an index into an array.

use std::fmt::Debug;

use crate::metrics::labels::Label;

/// Names and values of the labels of one series.
type Labels = Vec<(&'static str, &'static str)>;

/// No label (`()`), one [`Label`], or a tuple of two or three.
pub trait LabelSet: Copy + Debug + Send + Sync + 'static {
    /// How many combinations there are.
    const COUNT: usize;

    /// The position of this combination, below [`LabelSet::COUNT`].
    fn index(&self) -> usize;
    /// Names and values of the combination at `index`.
    fn labels(index: usize) -> Vec<(&'static str, &'static str)>;
}

impl LabelSet for () {
    const COUNT: usize = 1;

    #[inline]
    fn index(&self) -> usize {
        0
    }

    fn labels(_: usize) -> Labels {
        Vec::new()
    }
}

impl<A: Label> LabelSet for A {
    const COUNT: usize = A::ALL.len();

    #[inline]
    fn index(&self) -> usize {
        Label::index(*self)
    }

    fn labels(index: usize) -> Labels {
        A::ALL.get(index).map(|a| (A::NAME, a.as_str())).into_iter().collect()
    }
}

impl<A: Label, B: Label> LabelSet for (A, B) {
    const COUNT: usize = A::ALL.len() * B::ALL.len();

    #[inline]
    fn index(&self) -> usize {
        Label::index(self.0) * B::ALL.len() + Label::index(self.1)
    }

    fn labels(index: usize) -> Labels {
        [A::labels(index / B::ALL.len()), B::labels(index % B::ALL.len())].concat()
    }
}

impl<A: Label, B: Label, C: Label> LabelSet for (A, B, C) {
    const COUNT: usize = A::ALL.len() * <(B, C)>::COUNT;

    #[inline]
    fn index(&self) -> usize {
        Label::index(self.0) * <(B, C)>::COUNT + LabelSet::index(&(self.1, self.2))
    }

    fn labels(index: usize) -> Labels {
        [A::labels(index / <(B, C)>::COUNT), <(B, C)>::labels(index % <(B, C)>::COUNT)].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::labels::{Backend, Operation, StorageErrorReason};

    #[test]
    fn every_combination_has_its_own_index_and_its_labels() {
        let mut seen = Vec::new();
        for &operation in Operation::ALL {
            for &backend in Backend::ALL {
                for &reason in StorageErrorReason::ALL {
                    let set = (operation, backend, reason);
                    let index = LabelSet::index(&set);
                    let expected = vec![
                        ("operation", operation.as_str()),
                        ("backend", backend.as_str()),
                        ("reason", reason.as_str()),
                    ];
                    assert_eq!(<(Operation, Backend, StorageErrorReason)>::labels(index), expected);
                    seen.push(index);
                }
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..<(Operation, Backend, StorageErrorReason)>::COUNT).collect::<Vec<_>>());
    }
}

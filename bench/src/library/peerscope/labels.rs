//! The labels of the generated families, as closed sets of values.

use peerscope::metrics::labels::Label;

use crate::shape::{OUTCOME, OUTCOMES, SHARD, SHARDS};

macro_rules! label {
    ($name:ident = $label:ident of $values:ident: $($at:literal)+) => {
        #[derive(Debug, Clone, Copy)]
        pub(super) struct $name(u8);

        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self($at)),+];

            #[inline]
            fn index(self) -> usize {
                self.0.into()
            }

            fn as_str(self) -> &'static str {
                $values.get(self.index()).copied().unwrap_or_default()
            }

            fn meaning(self) -> &'static str {
                "one of ten"
            }
        }
    };
}

label!(Shard = SHARD of SHARDS: 0 1 2 3 4 5 6 7 8 9);
label!(Outcome = OUTCOME of OUTCOMES: 0 1 2 3 4 5 6 7 8 9);

/// Every value of a label.
pub(super) fn every<L: Label>() -> impl Iterator<Item = L> {
    L::ALL.iter().copied()
}

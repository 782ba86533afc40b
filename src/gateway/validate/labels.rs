//! What the labels of a sample have in common in all formats.

use super::invalid::{Excerpt, Problem};

/// A label of the sample that is looked at, as positions in the bytes that it stands in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Label {
    /// Where its name starts.
    pub(super) start: usize,
    /// Where its name ends.
    pub(super) end: usize,
    /// Where its value starts, behind the quote.
    pub(super) value: usize,
    /// Where the label behind it starts; `usize::MAX` when none can.
    pub(super) next: usize,
}

impl Label {
    fn name<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(self.start..self.end).unwrap_or_default()
    }
}

/// How many labels are held against all others. With more, sorting costs less, and a line of nothing but labels is
/// not to cost the square of its length.
const FEW: usize = 16;

/// Refuses a name that comes twice. The first `known` of the labels are known to differ.
pub(super) fn distinct(bytes: &[u8], labels: &mut [Label], known: usize) -> Result<(), Problem> {
    if labels.len().saturating_sub(known) > FEW {
        return distinct_of_many(bytes, labels);
    }
    for (position, label) in labels.iter().enumerate().skip(known) {
        let name = label.name(bytes);
        if labels.iter().take(position).any(|other| other.name(bytes) == name) {
            return Err(Problem::DuplicateLabel(Excerpt::new(name)));
        }
    }
    Ok(())
}

/// Sorts them by name, and then by their place again.
fn distinct_of_many(bytes: &[u8], labels: &mut [Label]) -> Result<(), Problem> {
    labels.sort_unstable_by(|a, b| a.name(bytes).cmp(b.name(bytes)).then(a.start.cmp(&b.start)));
    // Of several the one that is seen first by who reads on, as where there are few.
    let twice = labels.windows(2).filter_map(|pair| match pair {
        [a, b] if a.name(bytes) == b.name(bytes) => Some(*b),
        _ => None,
    });
    let twice = twice.min_by_key(|label| label.start);
    labels.sort_unstable_by_key(|label| label.start);
    match twice {
        Some(label) => Err(Problem::DuplicateLabel(Excerpt::new(label.name(bytes)))),
        None => Ok(()),
    }
}

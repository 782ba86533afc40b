//! The sizes of pages in `encode` and `endpoint`.

use crate::Result;
use crate::library::peerscope;
use crate::shape::Shape;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// An agent's own families.
    Agent,
    /// This number of counters, and one histogram for every 20 of them.
    Generated(usize),
}

impl Size {
    pub(crate) const ALL: [Self; 3] = [Self::Agent, Self::Generated(1_000), Self::Generated(10_000)];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Generated(1_000) => "1,000 series",
            Self::Generated(_) => "10,000 series",
        }
    }

    pub(crate) fn named(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|size| size.name() == name).ok_or_else(|| format!("`{name}` is not a size").into())
    }

    /// The content of every contender's registry. An agent's families are those of its own page.
    pub(crate) fn shape(self) -> Result<Shape> {
        match self {
            Self::Agent => Shape::of_page(&peerscope::agent_page()?),
            Self::Generated(counters) => Ok(Shape::generated(counters)),
        }
    }
}

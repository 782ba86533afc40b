//! `agent_component_ready`, read from the board of [`Health`] when a scrape asks for it.

use super::Health;
use super::catalogue::COMPONENT_READY;
use super::exposition::{Metadata, Number, Page, Series};
use super::labels::{Component, Label};
use super::registry::{Expose, metadata};

/// Shows what `/ready` says.
#[derive(Debug)]
pub(super) struct ReadinessFamily {
    health: Health,
    family: Metadata,
}

impl ReadinessFamily {
    pub(super) fn new(health: Health) -> Self {
        Self { health, family: metadata(&COMPONENT_READY) }
    }
}

impl Expose for ReadinessFamily {
    fn families(&self) -> Vec<&Metadata> {
        vec![&self.family]
    }

    fn expose(&self, page: &mut Page<'_>) {
        let Some(mut out) = page.family(&self.family) else { return };
        for state in self.health.snapshot() {
            let series = Series::new(&[(Component::NAME, state.component.as_str())]);
            out.number(&series, Number::Unsigned(state.problem.is_none().into()));
        }
    }
}

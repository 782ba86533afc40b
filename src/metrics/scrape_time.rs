//! Families whose values belong to others, and are read when a page is made.

use super::catalogue::{COMPONENT_READY, LOG_LINES_DROPPED};
use super::exposition::{Metadata, Number, PageWriter, Series};
use super::labels::{Component, Label};
use super::process::ProcessFamilies;
use super::registry::{Expose, Registry, metadata};
use super::{Health, MissingLines};

/// Adds `process_*`, `agent_component_ready` as `health` has it, and `log_lines_dropped_total`. Once per registry.
pub fn register_scrape_time(registry: &Registry, health: &Health, missing: &MissingLines) {
    registry.add_or_log(ProcessFamilies::new());
    registry.add_or_log(ReadinessFamily::new(health.clone()));
    registry.add_or_log(LogFamily { missing: missing.clone(), family: metadata(&LOG_LINES_DROPPED) });
}

/// Shows what `/ready` says.
#[derive(Debug)]
struct ReadinessFamily {
    health: Health,
    family: Metadata,
}

impl ReadinessFamily {
    fn new(health: Health) -> Self {
        Self { health, family: metadata(&COMPONENT_READY) }
    }
}

impl Expose for ReadinessFamily {
    fn families(&self) -> Vec<&Metadata> {
        vec![&self.family]
    }

    fn expose(&self, page: &mut PageWriter<'_>) {
        let Some(mut out) = page.family(&self.family) else { return };
        for state in self.health.snapshot() {
            let series = Series::new(&[(Component::NAME, state.component.as_str())]);
            out.number(&series, Number::Unsigned(state.problem.is_none().into()));
        }
    }
}

/// Shows what the log has lost.
#[derive(Debug)]
struct LogFamily {
    missing: MissingLines,
    family: Metadata,
}

impl Expose for LogFamily {
    fn families(&self) -> Vec<&Metadata> {
        vec![&self.family]
    }

    fn expose(&self, page: &mut PageWriter<'_>) {
        let Some(mut out) = page.family(&self.family) else { return };
        out.number(&Series::new(&[]), Number::Unsigned(self.missing.get()));
    }
}

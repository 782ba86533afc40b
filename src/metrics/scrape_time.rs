//! Families whose values belong to other parts of the program and are read when a page is made.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::catalogue::{COMPONENT_READY, EXPOSITION_FAILED, LOG_LINES_DROPPED};
use super::exposition::{Metadata, Number, PageWriter, Series};
use super::labels::{Component, Label};
use super::process::ProcessFamilies;
use super::registry::{Expose, Registry, metadata};
use super::{Health, MissingLines};

/// Adds `process_*`, `agent_component_ready` (from `health`), `exposition_failed_registries` and `log_lines_dropped_total`
/// (from `missing`). To be called once per registry.
pub fn register_scrape_time(registry: &Registry, health: &Health, missing: &MissingLines) {
    registry.add_or_log(ProcessFamilies::new());
    registry.add_or_log(ReadinessFamily::new(health.clone()));
    registry.add_or_log(SharedNumber { value: registry.failed_foreign(), family: metadata(&EXPOSITION_FAILED) });
    registry.add_or_log(SharedNumber { value: missing.shared(), family: metadata(&LOG_LINES_DROPPED) });
}

/// Shows what `/ready` reports.
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

/// Shows a number that another part of the program counts.
#[derive(Debug)]
struct SharedNumber {
    value: Arc<AtomicU64>,
    family: Metadata,
}

impl Expose for SharedNumber {
    fn families(&self) -> Vec<&Metadata> {
        vec![&self.family]
    }

    fn expose(&self, page: &mut PageWriter<'_>) {
        let Some(mut out) = page.family(&self.family) else { return };
        out.number(&Series::new(&[]), Number::Unsigned(self.value.load(Ordering::Relaxed)));
    }
}

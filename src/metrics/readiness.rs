//! `agent_component_ready`, read from the board of [`Health`] when a scrape asks for it.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

use super::Health;
use super::catalogue::COMPONENT_READY;
use super::labels::{Component, Label};
use super::scrape_time;

/// Shows what `/ready` says.
#[derive(Debug)]
pub(super) struct ReadinessCollector(pub(super) Health);

impl Collector for ReadinessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let states = self.0.snapshot();
        if states.is_empty() {
            return Ok(());
        }
        let mut family = scrape_time::family(&mut encoder, &COMPONENT_READY)?;
        for state in states {
            let labels = [(Component::NAME, state.component.as_str())];
            ConstGauge::new(i64::from(state.problem.is_none())).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

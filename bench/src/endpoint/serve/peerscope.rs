//! Ours: the agent's own endpoint, with its limits, deadlines and metrics.

use std::sync::Arc;

use peerscope::metrics::{EndpointOptions, Health, MetricsConfig, MetricsServer};

use super::Serving;
use crate::Result;
use crate::library::peerscope::{Peerscope, agent_info};
use crate::size::Size;

pub(super) fn start(size: Size) -> Result<Serving> {
    let mut peerscope = Peerscope::new()?;
    let collector = match size {
        Size::Agent => peerscope.add_agent(),
        Size::Generated(_) => {
            peerscope.fill(&size.shape()?)?;
            // Keeps the endpoint's own metrics out of the generated registry.
            Peerscope::new()?.add_agent()
        }
    };
    let recorder = peerscope.together()?;
    let config = MetricsConfig { port: 0, ..MetricsConfig::default() };
    let registry = Arc::new(peerscope.registry);
    let options = EndpointOptions::default();
    let server = MetricsServer::start(&config, &agent_info(), registry, collector, Health::default(), options);
    let address = server.local_addr().ok_or("the endpoint does not listen")?;
    Ok(Serving::new(address, recorder, server))
}

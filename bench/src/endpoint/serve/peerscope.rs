//! Ours: the agent's own endpoint, with its limits, deadlines and metrics.

use std::path::Path;
use std::sync::Arc;

use peerscope::config::load_web_config;
use peerscope::metrics::{EndpointOptions, Health, MetricsConfig, MetricsServer, Registry, WebAccess, WebConfigSource};

use super::{Access, Serving, tls};
use crate::Result;
use crate::library::peerscope::{Peerscope, agent_info};
use crate::size::Size;

pub(super) fn start(size: Size, access: Access) -> Result<Serving> {
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
    let folder = tempfile::tempdir()?;
    let mut options = EndpointOptions::default();
    if access != Access::default() {
        tls::write_web_config(folder.path(), access)?;
        let read = |path: &Path| load_web_config(path).map_err(|error| error.to_string());
        let source = WebConfigSource { path: folder.path().join("web.yml"), read };
        // In a registry of its own: the page has as many series as without.
        options.web = Some(WebAccess::open(source, &Registry::default())?);
    }
    let server = MetricsServer::start(&config, &agent_info(), registry, collector, Health::default(), options);
    let address = server.local_addr().ok_or("the endpoint does not listen")?;
    // The files are looked at for each connection.
    Ok(Serving::new(address, recorder, (server, folder)))
}

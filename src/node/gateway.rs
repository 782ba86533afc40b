//! How the gateway is put together. In a build without metrics there is none, and all of this is empty.

use libp2p::PeerId;

use super::handler::Scraped;
use crate::config::Config;
#[cfg(feature = "metrics-prometheus")]
use crate::gateway::{self, Fleet, Pages, Scraper};
use crate::metrics::Registry;
use crate::network::Network;

#[cfg(feature = "metrics-prometheus")]
mod built_in {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use super::*;
    use crate::metrics::{GatewayMetrics, GuestPages};

    /// What there is of a gateway before there is a network.
    pub(crate) struct GatewayParts(Option<(Arc<Fleet>, GatewayMetrics)>);

    /// The gateway, when this agent is one.
    #[derive(Debug)]
    pub(crate) struct Gateway {
        fleet: Option<Arc<Fleet>>,
        pub(crate) scraper: Option<Scraper>,
        address: SocketAddr,
    }

    impl GatewayParts {
        pub(crate) fn new(config: &Config, local: PeerId, registry: &mut Registry) -> Self {
            Self(config.gateway.enabled.then(|| {
                let metrics = GatewayMetrics::new(registry);
                let fleet = Fleet::open(&config.gateway, local, metrics.clone(), &config.node.data_dir);
                (Arc::new(fleet), metrics)
            }))
        }

        pub(crate) fn scraped(&self, config: &Config) -> Scraped {
            Scraped { fleet: self.0.as_ref().map(|(fleet, _)| Arc::clone(fleet)), ..Scraped::new(config) }
        }

        pub(crate) fn build(self, config: &Config, network: &Network) -> Gateway {
            let address = SocketAddr::new(config.metrics.address, config.metrics.port);
            let Some((fleet, metrics)) = self.0 else { return Gateway { fleet: None, scraper: None, address } };
            let scraper = Scraper::new(&config.gateway, network.clone(), Arc::clone(&fleet), metrics);
            Gateway { fleet: Some(fleet), scraper: Some(scraper), address }
        }
    }

    impl Gateway {
        pub(crate) fn pages(&self) -> Option<Arc<dyn GuestPages>> {
            let scraper = self.scraper.clone()?;
            Some(Arc::new(Pages::new(scraper, self.address.to_string())))
        }

        /// Keeps what the next run is to know; called when the peers are gone.
        pub(crate) async fn save(&self) {
            if let Some(fleet) = self.fleet.clone() {
                // A panic in it was logged by the panic hook.
                let _ended = tokio::task::spawn_blocking(move || fleet.save()).await;
            }
        }

        /// Has time pass for it.
        pub(crate) fn clock(&self) -> Option<impl Future<Output = ()> + Send + 'static> {
            self.fleet.as_ref().map(|fleet| gateway::keep(Arc::clone(fleet)))
        }
    }
}

#[cfg(not(feature = "metrics-prometheus"))]
mod built_in {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::GuestPages;

    pub(crate) struct GatewayParts;

    #[derive(Debug)]
    pub(crate) struct Gateway;

    #[allow(clippy::unused_self, reason = "the API is the other one's")]
    impl GatewayParts {
        pub(crate) fn new(_: &Config, _: PeerId, _: &mut Registry) -> Self {
            Self
        }

        pub(crate) fn scraped(&self, config: &Config) -> Scraped {
            Scraped::new(config)
        }

        pub(crate) fn build(self, _: &Config, _: &Network) -> Gateway {
            Gateway
        }
    }

    #[allow(clippy::unused_self, reason = "the API is the other one's")]
    impl Gateway {
        pub(crate) fn pages(&self) -> Option<Arc<dyn GuestPages>> {
            None
        }

        #[allow(clippy::unused_async, reason = "the API is the other one's")]
        pub(crate) async fn save(&self) {}

        pub(crate) fn clock(&self) -> Option<std::future::Pending<()>> {
            None
        }
    }
}

pub(super) use built_in::{Gateway, GatewayParts};

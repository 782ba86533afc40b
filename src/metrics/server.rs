//! The HTTP server of the endpoint: the metrics page, `/live`, `/ready` and a small page with links.
//!
//! It has its own thread and runtime, so that it answers even while the agent's runtime is blocked on a
//! disk: that is when people look at it. Nothing that goes wrong here takes the agent down.

mod body;
mod connection;
mod framing;
mod listen;
mod names;
mod pages;
mod passwords;
mod places;
mod routes;
mod tls;
mod web;

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{oneshot, watch};

use self::names::Names;
use self::routes::Routes;
pub use self::web::{WebAccess, check_web_config};
use super::labels::Component;
use super::{
    AgentInfo, EndpointOptions, Exposer, ExternalUrl, Health, MetricsCollector, MetricsConfig, Registry, Seldom,
    UrlReader,
};

/// The limits of the endpoint. Tests shorten the times; everything else uses the defaults.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many metrics pages are made at once; further scrapes get a 503.
    pub scrapes: usize,
    /// How many connections may be open, in addition to those for clients that wait for a guest's pages: a response
    /// that is being made keeps its connection, and many of them must not lock out clients that want the agent's own
    /// pages. A further one takes the place of the one that has waited longest for
    /// its client.
    pub connections: usize,
    /// How long the head of a request may take, from its first byte or from the start of the connection.
    pub head: Duration,
    /// How long a response may take to be made; after that the client gets a 503. With `head` before it
    /// and `answer` after it, this bounds a whole request.
    pub making: Duration,
    /// How long a client may take to fetch a response.
    pub answer: Duration,
    /// How long a connection may be idle between two requests. Longer than any sensible scrape interval,
    /// so that Prometheus keeps its connection.
    pub idle: Duration,
    /// How long to wait before trying to listen again.
    pub retry: Duration,
    /// How long a shutdown waits for responses in progress.
    pub shutdown: Duration,
    /// Makes the thread of the endpoint panic, once.
    #[cfg(test)]
    pub(crate) panics: Option<&'static std::sync::atomic::AtomicBool>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            scrapes: 4,
            connections: 64,
            head: Duration::from_secs(10),
            making: Duration::from_secs(20),
            answer: Duration::from_secs(30),
            idle: Duration::from_secs(5 * 60),
            retry: Duration::from_secs(1),
            shutdown: Duration::from_secs(5),
            #[cfg(test)]
            panics: None,
        }
    }
}

/// The running endpoint. Dropping it stops it without waiting; [`MetricsServer::shutdown`] waits.
#[derive(Debug)]
pub struct MetricsServer {
    url: UrlReader,
    handle: EndpointHandle,
    limits: Limits,
    // Dropped or set to true: stop.
    stop: watch::Sender<bool>,
    // Completes, with an error, when the thread has ended.
    ended: oneshot::Receiver<()>,
}

impl MetricsServer {
    /// Tries to listen once and starts serving. Never fails: if the endpoint cannot listen, `health` says why,
    /// the log says why and what to change, and the server keeps trying.
    pub fn start(
        config: &MetricsConfig,
        agent: &AgentInfo,
        registry: Arc<Registry>,
        collector: MetricsCollector,
        health: Health,
        options: EndpointOptions,
    ) -> Self {
        Self::start_with_limits(config, agent, registry, collector, health, options, Limits::default())
    }

    /// [`MetricsServer::start`] with limits other than the defaults.
    #[doc(hidden)]
    pub fn start_with_limits(
        config: &MetricsConfig,
        agent: &AgentInfo,
        registry: Arc<Registry>,
        collector: MetricsCollector,
        health: Health,
        options: EndpointOptions,
        limits: Limits,
    ) -> Self {
        let EndpointOptions { guest, web, external_url } = options;
        let address = Arc::new(OnceLock::new());
        let tls = web.as_ref().map_or_else(Arc::default, WebAccess::tls_reader);
        let problem = web.as_ref().map_or_else(Arc::default, WebAccess::problem_reader);
        let (stop, stopped) = watch::channel(false);
        let (running, ended) = oneshot::channel();
        let links = guest.as_ref().map(|guest| guest.links()).unwrap_or_default();
        let handle = EndpointHandle {
            changing: Arc::new(ArcSwap::from_pointee(Changing::new(config, agent, &links, external_url))),
            links: links.clone(),
        };
        let routes = Routes {
            path: config.path.clone(),
            not_found: pages::not_found(&config.path, &links),
            changing: Arc::clone(&handle.changing),
            exposer: Exposer::new(registry, collector.clone(), limits.scrapes),
            guest,
            collector,
            health: health.clone(),
            web,
            spoke_tls: Seldom::default(),
            limits,
        };
        let url = UrlReader { address, tls, problem, path: config.path.clone() };
        let listener = listen::Listener::new(config, health.clone(), url.clone(), limits);
        if let Err(error) = spawn(listener, routes, stopped, running, limits) {
            tracing::warn!("the metrics endpoint cannot start: {error}; the agent runs without it");
            health.not_ready(Component::Metrics, format!("its thread cannot start: {error}"));
        }
        Self { url, handle, limits, stop, ended }
    }

    /// The address on which it listens; `None` until it does.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.url.address.get().copied()
    }

    /// The URL of the metrics page; `None` until it listens.
    pub fn url(&self) -> Option<String> {
        self.url.url()
    }

    /// A handle for changes while it runs.
    pub fn handle(&self) -> EndpointHandle {
        self.handle.clone()
    }

    /// A handle through which others can read the URL.
    pub fn url_reader(&self) -> UrlReader {
        self.url.clone()
    }

    /// Stops listening, lets responses in progress finish (for at most 5 s), and ends the thread.
    pub async fn shutdown(self) {
        // Fails if the thread could not start; then there is nothing to stop.
        let _ = self.stop.send(true);
        // The server has its own bound; this one matters only if the thread itself hangs.
        let _ = tokio::time::timeout(self.limits.shutdown + Duration::from_secs(1), self.ended).await;
    }
}

/// Changes an endpoint while it runs.
#[derive(Debug, Clone)]
pub struct EndpointHandle {
    changing: Arc<ArcSwap<Changing>>,
    /// The links to a guest's pages.
    links: Vec<(&'static str, &'static str)>,
}

impl EndpointHandle {
    /// Takes over the names, `open_probes` and the agent's name, from the next request on. Everything else stays as it
    /// was at the start.
    pub fn configure(&self, config: &MetricsConfig, agent: &AgentInfo, external_url: Option<ExternalUrl>) {
        self.changing.store(Arc::new(Changing::new(config, agent, &self.links, external_url)));
    }
}

/// What can change while the endpoint runs.
#[derive(Debug)]
struct Changing {
    /// The page at `/`.
    index: String,
    names: Names,
    /// Whether `/live` and `/ready` need no password.
    open_probes: bool,
}

impl Changing {
    fn new(
        config: &MetricsConfig,
        agent: &AgentInfo,
        links: &[(&'static str, &'static str)],
        external_url: Option<ExternalUrl>,
    ) -> Self {
        Self {
            index: pages::index(&config.path, agent, links),
            names: Names { external: external_url, others: config.host_names.clone() },
            open_probes: config.open_probes,
        }
    }
}

fn spawn(
    listener: listen::Listener,
    routes: Routes,
    stopped: watch::Receiver<bool>,
    running: oneshot::Sender<()>,
    limits: Limits,
) -> std::io::Result<()> {
    // Metrics pages are made on blocking threads, as many as may be made at once: a collector that hangs must
    // not block `/live` and `/ready`.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(limits.scrapes)
        .thread_name("metrics-scrape")
        .build()?;
    let mut listener = listener;
    // Here and not on the thread, so that the caller knows the address at once.
    let mut first = listener.try_listen();
    let routes = Arc::new(routes);
    std::thread::Builder::new().name("metrics-http".into()).spawn(move || {
        // Restarted after a panic: otherwise the agent could no longer be observed.
        loop {
            let serve = listener.serve(first, Arc::clone(&routes), stopped.clone());
            if catch_unwind(AssertUnwindSafe(|| runtime.block_on(serve))).is_ok() {
                break;
            }
            listener.failed();
            std::thread::sleep(limits.retry);
            first = listener.try_listen();
        }
        runtime.shutdown_background();
        drop((listener, routes, running));
    })?;
    Ok(())
}

/// Completes when the server is asked to stop or has been dropped.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|&stop| stop).await;
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;
    use crate::metrics::catalogue::Kind;
    use crate::metrics::exposition::{Metadata, PageWriter};
    use crate::metrics::registry::Expose;

    fn answer(address: SocketAddr) -> std::io::Result<String> {
        get(address, "/live")
    }

    fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    /// A family of the agent's own that panics three times.
    #[derive(Debug)]
    struct Broken(Metadata, AtomicUsize);

    impl Expose for Broken {
        fn families(&self) -> Vec<&Metadata> {
            vec![&self.0]
        }

        fn expose(&self, _: &mut PageWriter<'_>) {
            assert!(self.1.fetch_add(1, Ordering::Relaxed) >= 3, "on purpose");
        }
    }

    #[test]
    fn a_panic_of_a_family_costs_its_page_only_and_is_counted() {
        let agent = AgentInfo { peer_id: "a".into(), name: "a".into() };
        let registry = Arc::new(Registry::default());
        let collector = MetricsCollector::new(&registry, &agent);
        let config = MetricsConfig { port: 0, ..MetricsConfig::default() };
        // One page at a time: a panic must give its permit back.
        let limits = Limits { scrapes: 1, ..Limits::default() };
        let shared = Arc::clone(&registry);
        let health = Health::default();
        let server = MetricsServer::start_with_limits(
            &config,
            &agent,
            shared,
            collector,
            health,
            EndpointOptions::default(),
            limits,
        );
        let address = server.local_addr().unwrap();
        registry.add_or_log(Broken(Metadata::new(Kind::Gauge, "broken", None, "Broken."), AtomicUsize::new(0)));
        for _ in 0..3 {
            let answer = get(address, "/metrics").unwrap();
            assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains("log"), "{answer}");
        }
        assert!(get(address, "/live").unwrap().starts_with("HTTP/1.1 200 "));
        let page = get(address, "/metrics").unwrap();
        assert!(page.contains("\nhttp_requests_total{handler=\"metrics\",code=\"500\"} 3\n"), "{page}");
    }

    #[test]
    fn a_panic_of_the_thread_is_reported_and_the_thread_restarted() {
        static PANICS: AtomicBool = AtomicBool::new(false);
        let agent = AgentInfo { peer_id: "a".into(), name: "a".into() };
        let registry = Registry::default();
        let collector = MetricsCollector::new(&registry, &agent);
        let health = Health::default();
        let config = MetricsConfig { port: 0, ..MetricsConfig::default() };
        let limits = Limits { retry: Duration::from_millis(200), panics: Some(&PANICS), ..Limits::default() };
        let server = MetricsServer::start_with_limits(
            &config,
            &agent,
            Arc::new(registry),
            collector,
            health.clone(),
            EndpointOptions::default(),
            limits,
        );
        let address = server.local_addr().unwrap();
        assert!(answer(address).unwrap().starts_with("HTTP/1.1 200 "));
        PANICS.store(true, Ordering::Relaxed);
        // This connection makes the thread panic; how it ends does not matter.
        let _cut_off = answer(address);
        let began = std::time::Instant::now();
        while health.is_ready() {
            assert!(began.elapsed() < Duration::from_secs(10), "the panic is not reported");
        }
        assert_eq!(health.snapshot()[0].problem.as_deref(), Some("its thread panicked and is being restarted"));
        while !answer(address).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ")) {
            assert!(began.elapsed() < Duration::from_secs(10), "the thread is not restarted");
        }
        assert!(health.is_ready());
    }
}

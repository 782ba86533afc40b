//! The HTTP server of the endpoint: the metrics page, `/live`, `/ready` and a small page with links.
//!
//! It runs on a thread and a runtime of its own, so that it answers even when the agent's runtime hangs
//! on a disk: that is when somebody looks. Whatever goes wrong here never takes the agent down.

mod body;
mod connection;
mod framing;
mod listen;
mod pages;
mod places;
mod routes;

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use self::routes::Routes;
use super::labels::Component;
use super::{AgentInfo, Exposer, GuestPages, Health, MetricsCollector, MetricsConfig, Registry, UrlReader};

/// The bounds of the endpoint. Tests shorten the times; nobody else needs other than the defaults.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Expositions that are made at once; further scrapes get 503.
    pub scrapes: usize,
    /// Open connections; a further one takes the place of the one whose client has been waited for the
    /// longest.
    pub connections: usize,
    /// The longest that a request's head may take from its first byte, or from the connection's start.
    pub head: Duration,
    /// The longest that an answer may take to be made; then the client gets a 503. With `head` before it
    /// and `answer` after it, it bounds a whole request.
    pub making: Duration,
    /// The longest that a client may take to fetch an answer.
    pub answer: Duration,
    /// The longest that a connection may lie idle between two requests. Longer than any sensible scrape
    /// interval, so that Prometheus keeps its connection.
    pub idle: Duration,
    /// How long to wait before trying again to listen.
    pub retry: Duration,
    /// How long a shutdown waits for answers under way.
    pub shutdown: Duration,
    /// Has the thread of the endpoint panic, once.
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
    limits: Limits,
    // Dropped or set to true: stop.
    stop: watch::Sender<bool>,
    // Completes, with an error, when the thread has ended.
    ended: oneshot::Receiver<()>,
}

impl MetricsServer {
    /// Tries to listen, once, and starts to serve. Never fails: when the address cannot be listened on,
    /// the log and `health` say why and what to change, and the server keeps trying until it can.
    pub fn start(
        config: &MetricsConfig,
        agent: &AgentInfo,
        registry: Arc<Registry>,
        collector: MetricsCollector,
        health: Health,
        guest: Option<Arc<dyn GuestPages>>,
    ) -> Self {
        // Beside those who wait for a guest's pages there is as much room as without: an answer that is being made
        // keeps its connection, and whoever looks at the agent itself must not be shut out by many that are.
        let beside = guest.as_ref().map_or(0, |guest| guest.clients());
        let limits = Limits { connections: Limits::default().connections + beside, ..Limits::default() };
        Self::start_with_limits(config, agent, registry, collector, health, guest, limits)
    }

    /// [`MetricsServer::start`] with other bounds than the default ones.
    #[doc(hidden)]
    pub fn start_with_limits(
        config: &MetricsConfig,
        agent: &AgentInfo,
        registry: Arc<Registry>,
        collector: MetricsCollector,
        health: Health,
        guest: Option<Arc<dyn GuestPages>>,
        limits: Limits,
    ) -> Self {
        let address = Arc::new(OnceLock::new());
        let (stop, stopped) = watch::channel(false);
        let (running, ended) = oneshot::channel();
        let links = guest.as_ref().map(|guest| guest.links()).unwrap_or_default();
        let routes = Routes {
            path: config.path.clone(),
            index: pages::index(&config.path, agent, &links),
            not_found: pages::not_found(&config.path, &links),
            exposer: Exposer::new(registry, collector.clone(), limits.scrapes),
            guest,
            collector,
            health: health.clone(),
            limits,
        };
        let listener = listen::Listener::new(config, health.clone(), Arc::clone(&address), limits);
        if let Err(error) = spawn(listener, routes, stopped, running, limits) {
            tracing::warn!("the metrics endpoint cannot start: {error}; the agent runs without it");
            health.not_ready(Component::Metrics, format!("its thread cannot start: {error}"));
        }
        Self { url: UrlReader { address, path: config.path.clone() }, limits, stop, ended }
    }

    /// Where it listens; `None` until it could.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.url.address.get().copied()
    }

    /// The URL of the metrics page; `None` until it listens.
    pub fn url(&self) -> Option<String> {
        self.url.url()
    }

    /// What goes on telling the URL to others.
    pub fn url_reader(&self) -> UrlReader {
        self.url.clone()
    }

    /// Stops listening, lets the answers under way finish (5 s at most), and ends the thread.
    pub async fn shutdown(self) {
        // Nobody receives when the thread could not start: then there is nothing to stop.
        let _ = self.stop.send(true);
        // The server bounds itself; this bound only matters when an exposition hangs and the thread with it.
        let _ = tokio::time::timeout(self.limits.shutdown + Duration::from_secs(1), self.ended).await;
    }
}

fn spawn(
    listener: listen::Listener,
    routes: Routes,
    stopped: watch::Receiver<bool>,
    running: oneshot::Sender<()>,
    limits: Limits,
) -> std::io::Result<()> {
    // Expositions are made on blocking threads, as many as may be made at once: a collector that hangs must
    // not take `/live` and `/ready` with it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(limits.scrapes)
        .thread_name("metrics-scrape")
        .build()?;
    let mut listener = listener;
    // Here and not on the thread, so that the caller knows the address when it is known.
    let mut first = listener.try_listen();
    let routes = Arc::new(routes);
    std::thread::Builder::new().name("metrics-http".into()).spawn(move || {
        // Started again when it panics: nobody could look at the agent any more.
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

/// Completes when the server is told to stop, or nobody holds it any more.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|&stop| stop).await;
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn answer(address: SocketAddr) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET /live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn a_thread_that_panics_is_said_and_started_again() {
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
            None,
            limits,
        );
        let address = server.local_addr().unwrap();
        assert!(answer(address).unwrap().starts_with("HTTP/1.1 200 "));
        PANICS.store(true, Ordering::Relaxed);
        // It is accepted, or refused, by a thread that has other things to do.
        let _cut_off = answer(address);
        let began = std::time::Instant::now();
        while health.is_ready() {
            assert!(began.elapsed() < Duration::from_secs(10), "nobody says so");
        }
        assert_eq!(health.snapshot()[0].problem.as_deref(), Some("its thread has failed, and is started again"));
        while !answer(address).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ")) {
            assert!(began.elapsed() < Duration::from_secs(10), "it does not come back");
        }
        assert!(health.is_ready());
    }
}

//! Listens, keeps trying if that fails, and hands out connections.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
#[cfg(test)]
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use super::places::Places;
use super::routes::Routes;
use super::{Limits, connection, stopped};
use crate::metrics::labels::Component;
use crate::metrics::{Health, MetricsConfig};

/// How many connections the kernel queues until we accept them. When the queue is full, it drops connection
/// attempts, which are repeated only after a second. `std`'s 128 can be exceeded by a burst.
const BACKLOG: i32 = 1024;

/// The pause after a failed accept, unless closing idle connections has freed descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long further failed accepts are not logged, so that clients cannot fill the log.
const ACCEPT_SILENCE: Duration = Duration::from_secs(60);

/// Where the endpoint is to listen, and where its state is reported.
pub(super) struct Listener {
    wanted: SocketAddr,
    path: String,
    health: Health,
    address: Arc<OnceLock<SocketAddr>>,
    limits: Limits,
    /// The last logged reason why it does not listen.
    problem: Option<String>,
}

impl Listener {
    pub(super) fn new(
        config: &MetricsConfig,
        health: Health,
        address: Arc<OnceLock<SocketAddr>>,
        limits: Limits,
    ) -> Self {
        let wanted = SocketAddr::new(config.address, config.port);
        Self { wanted, path: config.path.clone(), health, address, limits, problem: None }
    }

    /// Tries to listen, once. Changes are logged and reported to `health`.
    pub(super) fn try_listen(&mut self) -> Option<StdListener> {
        match bind(self.wanted) {
            Ok((listener, address)) => {
                self.health.ready(Component::Metrics);
                // Set only once: a listener after a panic has the same address.
                let _ = self.address.set(address);
                if self.problem.take().is_some() {
                    tracing::info!("Metrics at http://{address}{} (the address is available now)", self.path);
                }
                Some(listener)
            }
            Err(error) => {
                let problem = reason(self.wanted, &error);
                if self.problem.as_ref() != Some(&problem) {
                    tracing::warn!(
                        "no metrics endpoint yet: {problem}; {}. Retrying every {:?}",
                        advice(&error),
                        self.limits.retry
                    );
                    self.health.not_ready(Component::Metrics, problem.clone());
                    self.problem = Some(problem);
                }
                None
            }
        }
    }

    /// Notes that serving has panicked. The next listener uses the same address.
    pub(super) fn failed(&mut self) {
        self.wanted = self.address.get().copied().unwrap_or(self.wanted);
        self.health.not_ready(Component::Metrics, "its thread panicked and is being restarted");
    }

    /// Serves until `stop` is set.
    pub(super) async fn serve(
        &mut self,
        first: Option<StdListener>,
        routes: Arc<Routes>,
        mut stop: watch::Receiver<bool>,
    ) {
        let Some(listener) = self.listen(first, &mut stop).await else { return };
        let mut places = Places::new(self.limits.connections);
        let mut said = None;
        loop {
            tokio::select! {
                () = stopped(&mut stop) => break,
                () = places.ended(), if !places.is_empty() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        #[cfg(test)]
                        assert!(!self.limits.panics.is_some_and(|panics| panics.swap(false, Ordering::Relaxed)));
                        let (routes, stop) = (Arc::clone(&routes), stop.clone());
                        places.admit(|place| connection::serve(stream, routes, place, stop)).await;
                    }
                    Err(error) => not_accepted(&error, &mut places, &mut said).await,
                },
            }
        }
        drop(listener);
        let drained = async {
            while !places.is_empty() {
                places.ended().await;
            }
        };
        let _ = tokio::time::timeout(self.limits.shutdown, drained).await;
    }

    /// Waits for a listener; `None` if the server stops first or cannot use the socket.
    async fn listen(&mut self, first: Option<StdListener>, stop: &mut watch::Receiver<bool>) -> Option<TcpListener> {
        let mut listener = first;
        loop {
            match listener.map(TcpListener::from_std) {
                Some(Ok(listener)) => return Some(listener),
                Some(Err(error)) => {
                    tracing::error!("the metrics endpoint cannot use its socket: {error}; the agent runs without it");
                    self.health.not_ready(Component::Metrics, format!("cannot use its socket: {error}"));
                    return None;
                }
                None => {}
            }
            tokio::select! {
                () = stopped(stop) => return None,
                () = tokio::time::sleep(self.limits.retry) => {}
            }
            listener = self.try_listen();
        }
    }
}

/// Recovers from a failed accept. `said` is when one was last logged.
async fn not_accepted(error: &io::Error, places: &mut Places, said: &mut Option<Instant>) {
    // The client left before it was accepted.
    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        return;
    }
    if said.is_none_or(|said| said.elapsed() >= ACCEPT_SILENCE) {
        tracing::warn!("the metrics endpoint cannot accept connections: {error}");
        *said = Some(Instant::now());
    }
    // Out of descriptors: idle connections are closed. Half of them and not just one, since the agent and the
    // next scrape need some too.
    let out_of_descriptors = matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE));
    if !(out_of_descriptors && places.close_half().await) {
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Like `StdListener::bind`, but with a longer queue.
fn bind(address: SocketAddr) -> io::Result<(StdListener, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // A restarted agent must not wait for the connections of its predecessor.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = StdListener::from(socket);
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn reason(wanted: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("{wanted} is already in use by another program"),
        io::ErrorKind::AddrNotAvailable => format!("this machine does not have the address {}", wanted.ip()),
        io::ErrorKind::PermissionDenied => format!("no permission to listen on port {}", wanted.port()),
        _ => format!("cannot listen on {wanted}: {error}"),
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop that program or set `metrics.port` to a free port",
        io::ErrorKind::AddrNotAvailable => "set `metrics.address` to an address of this machine",
        io::ErrorKind::PermissionDenied => "set `metrics.port` to 1024 or above",
        _ => "check `metrics.address` and `metrics.port`",
    }
}

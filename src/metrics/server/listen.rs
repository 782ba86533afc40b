//! Listens, keeps trying when it cannot, and hands out connections.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::routes::Routes;
use super::{Limits, connection};
use crate::metrics::labels::Component;
use crate::metrics::{Health, MetricsConfig};

/// The pause after a failed accept: out of descriptors, mostly, which only time can heal.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the endpoint shall listen, and whom to tell how that goes.
pub(super) struct Listener {
    wanted: SocketAddr,
    path: String,
    health: Health,
    address: Arc<OnceLock<SocketAddr>>,
    limits: Limits,
    /// What the log said last about why it does not listen.
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

    /// Tries once to listen, and says in the log and on the board of health what changed.
    pub(super) fn try_listen(&mut self) -> Option<StdListener> {
        match bind(self.wanted) {
            Ok((listener, address)) => {
                self.health.ready(Component::Metrics);
                // Set once: a listener that works is kept until the end.
                let _ = self.address.set(address);
                if self.problem.take().is_some() {
                    tracing::info!("Metrics at http://{address}{} (the address is free now)", self.path);
                }
                Some(listener)
            }
            Err(error) => {
                let problem = reason(self.wanted, &error);
                if self.problem.as_ref() != Some(&problem) {
                    tracing::warn!(
                        "no metrics endpoint yet: {problem}; {}. Trying again every {:?}",
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

    /// Serves until `stop` says so.
    pub(super) async fn serve(
        mut self,
        first: Option<StdListener>,
        routes: Arc<Routes>,
        mut stop: watch::Receiver<bool>,
    ) {
        let Some(listener) = self.listen(first, &mut stop).await else { return };
        let mut connections = JoinSet::new();
        let mut failing = false;
        loop {
            tokio::select! {
                () = stopped(&mut stop) => break,
                Some(ended) = connections.join_next(), if !connections.is_empty() => log_defect(ended),
                accepted = listener.accept() => match accepted {
                    // Closing at once tells the client; leaving it in the kernel's queue would let its
                    // probe hang until somebody else goes.
                    Ok((stream, _)) if connections.len() >= self.limits.connections => drop(stream),
                    Ok((stream, _)) => {
                        failing = false;
                        connections.spawn(connection::serve(stream, Arc::clone(&routes), stop.clone()));
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!("the metrics endpoint cannot accept connections: {error}");
                        }
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        let drained = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(self.limits.shutdown, drained).await;
    }

    /// The listener, as soon as there is one; `None` when it is time to stop.
    async fn listen(&mut self, first: Option<StdListener>, stop: &mut watch::Receiver<bool>) -> Option<TcpListener> {
        let mut listener = first;
        loop {
            match listener.map(TcpListener::from_std) {
                Some(Ok(listener)) => return Some(listener),
                Some(Err(error)) => {
                    tracing::error!("the metrics endpoint cannot watch its socket: {error}");
                    self.health.not_ready(Component::Metrics, format!("cannot watch its socket: {error}"));
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

/// Completes when the server is told to stop, or nobody holds it any more.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|&stop| stop).await;
}

fn bind(address: SocketAddr) -> io::Result<(StdListener, SocketAddr)> {
    let listener = StdListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn reason(wanted: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("{wanted} is already in use by another program"),
        io::ErrorKind::AddrNotAvailable => format!("this machine does not have the address {}", wanted.ip()),
        io::ErrorKind::PermissionDenied => format!("port {} needs more privileges", wanted.port()),
        _ => format!("cannot listen on {wanted}: {error}"),
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop that program or set `metrics.port` to a free port",
        io::ErrorKind::AddrNotAvailable => "set `metrics.address` to one that it has",
        io::ErrorKind::PermissionDenied => "set `metrics.port` to 1024 or above",
        _ => "check `metrics.address` and `metrics.port`",
    }
}

fn log_defect(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!("a connection of the metrics endpoint ended in a defect: {error}");
    }
}

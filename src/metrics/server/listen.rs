//! Listens, keeps trying if that fails, and hands out connections.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::places::Places;
use super::routes::{Origin, Routes};
use super::{Limits, connection, stopped};
use crate::metrics::labels::Component;
use crate::metrics::{Health, MetricsConfig, Seldom, UrlReader};

/// How many connections the kernel queues until we accept them. When the queue is full, it drops connection
/// attempts, which are repeated only after a second. `std`'s 128 can be exceeded by a burst.
const BACKLOG: i32 = 1024;

/// The pause after a failed accept, unless closing idle connections has freed descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the endpoint is to listen, and where its state is reported.
pub(super) struct Listener {
    sockets: Vec<Wanted>,
    health: Health,
    url: UrlReader,
    limits: Limits,
}

/// An address to listen on.
struct Wanted {
    address: SocketAddr,
    listens: bool,
    /// The last logged reason why it does not listen.
    problem: Option<String>,
}

/// Listeners with the index of their address.
type Listening<T> = Vec<(usize, T)>;

impl Listener {
    pub(super) fn new(config: &MetricsConfig, health: Health, url: UrlReader, limits: Limits) -> Self {
        let wanted = |ip: &IpAddr| Wanted { address: (*ip, config.port).into(), listens: false, problem: None };
        Self { sockets: config.address.iter().map(wanted).collect(), health, url, limits }
    }

    /// Tries to listen, once, where it does not yet. Changes are logged and reported to `health`.
    pub(super) fn try_listen(&mut self) -> Listening<StdListener> {
        let mut listening = Vec::new();
        for index in 0..self.sockets.len() {
            listening.extend(self.try_one(index).map(|listener| (index, listener)));
        }
        match self.sockets.iter().find_map(|socket| socket.problem.as_ref()) {
            Some(problem) => self.health.not_ready(Component::Metrics, problem.clone()),
            None => self.health.ready(Component::Metrics),
        }
        listening
    }

    fn try_one(&mut self, index: usize) -> Option<StdListener> {
        let others: Vec<SocketAddr> = self.sockets.iter().map(|socket| socket.address).collect();
        let socket = self.sockets.get_mut(index).filter(|socket| !socket.listens)?;
        // Port 0: the system has chosen one for the first address, and the others use the same.
        if let (0, Some(first)) = (socket.address.port(), self.url.address.get()) {
            socket.address.set_port(first.port());
        }
        let mut bound = bind(socket.address, &others);
        if bound.as_ref().is_err_and(lacks_ipv6) && socket.address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            if others.iter().any(SocketAddr::is_ipv4) {
                tracing::warn!("this host has no IPv6: the metrics endpoint does not listen on ::");
                socket.listens = true;
                return None;
            }
            tracing::warn!("this host has no IPv6: the metrics endpoint listens on 0.0.0.0 instead of ::");
            socket.address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), socket.address.port());
            bound = bind(socket.address, &others);
        }
        match bound {
            Ok((listener, address)) => {
                // Set only once: a listener after a panic has the same address.
                let _ = self.url.address.set(address);
                socket.address = address;
                socket.listens = true;
                if socket.problem.take().is_some() {
                    let url = self.url.at(address);
                    tracing::info!("Metrics at {url} (the address is available now)");
                }
                Some(listener)
            }
            Err(error) => {
                let problem = reason(socket.address, &error);
                if socket.problem.as_ref() != Some(&problem) {
                    tracing::warn!(
                        "no metrics endpoint yet: {problem}; {}. Retrying every {:?}",
                        advice(&error),
                        self.limits.retry
                    );
                    socket.problem = Some(problem);
                }
                None
            }
        }
    }

    /// Notes that serving has panicked. The next listeners use the same addresses.
    pub(super) fn failed(&mut self) {
        self.sockets.iter_mut().for_each(|socket| socket.listens = false);
        self.health.not_ready(Component::Metrics, "its thread panicked and is being restarted");
    }

    /// Serves until `stop` is set.
    pub(super) async fn serve(
        &mut self,
        first: Listening<StdListener>,
        routes: Arc<Routes>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut listeners = self.usable(first);
        let mut retry = Instant::now() + self.limits.retry;
        let mut places = Places::new();
        let said = Seldom::default();
        loop {
            tokio::select! {
                () = stopped(&mut stop) => break,
                () = places.ended(), if !places.is_empty() => {}
                () = tokio::time::sleep_until(retry), if self.sockets.iter().any(|socket| !socket.listens) => {
                    let new = self.try_listen();
                    listeners.extend(self.usable(new));
                    retry = Instant::now() + self.limits.retry;
                }
                (index, accepted) = accept(&listeners), if !listeners.is_empty() => match accepted {
                    Ok((stream, client)) => {
                        #[cfg(test)]
                        assert!(!self.limits.panics.is_some_and(|panics| panics.swap(false, Ordering::Relaxed)));
                        let on_loopback =
                            self.sockets.get(index).is_some_and(|socket| socket.address.ip().to_canonical().is_loopback());
                        let local = stream.local_addr().unwrap_or(client);
                        let origin = Origin { client, local, on_loopback };
                        let limit = self.limits.connections + routes.guests_clients();
                        let (routes, stop) = (Arc::clone(&routes), stop.clone());
                        places.admit(limit, |place| connection::serve(stream, origin, routes, place, stop)).await;
                        // A flood on one address must not keep the others waiting.
                        listeners.rotate_left(1);
                    }
                    Err(error) => not_accepted(&error, &mut places, &said).await,
                },
            }
        }
        drop(listeners);
        let drained = async {
            while !places.is_empty() {
                places.ended().await;
            }
        };
        let _ = tokio::time::timeout(self.limits.shutdown, drained).await;
    }

    /// The listeners for this thread's runtime. One that it cannot use is not tried again.
    fn usable(&self, listening: Listening<StdListener>) -> Listening<TcpListener> {
        let convert = |(index, listener)| match TcpListener::from_std(listener) {
            Ok(listener) => Some((index, listener)),
            Err(error) => {
                tracing::error!("the metrics endpoint cannot use its socket: {error}; the agent runs without it");
                self.health.not_ready(Component::Metrics, format!("cannot use its socket: {error}"));
                None
            }
        };
        listening.into_iter().filter_map(convert).collect()
    }
}

/// Waits for a connection to any of the listeners, with the index of its address.
async fn accept(listeners: &[(usize, TcpListener)]) -> (usize, io::Result<(TcpStream, SocketAddr)>) {
    let accepts = listeners.iter().map(|(index, listener)| Box::pin(async move { (*index, listener.accept().await) }));
    futures::future::select_all(accepts).await.0
}

/// Recovers from a failed accept.
async fn not_accepted(error: &io::Error, places: &mut Places, said: &Seldom) {
    // The client left before it was accepted.
    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        return;
    }
    said.at_most_once_a_minute(|| tracing::warn!("the metrics endpoint cannot accept connections: {error}"));
    // Out of descriptors: idle connections are closed. Half of them and not just one, since the agent and the
    // next scrape need some too.
    let out_of_descriptors = matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE));
    if !(out_of_descriptors && places.close_half().await) {
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Like `StdListener::bind`, but with a longer queue. `::` includes IPv4 whatever the system's default, unless one of
/// `others` is an IPv4 address.
fn bind(address: SocketAddr, others: &[SocketAddr]) -> io::Result<(StdListener, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(others.iter().any(SocketAddr::is_ipv4))?;
    }
    // A restarted agent must not wait for the connections of its predecessor.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = StdListener::from(socket);
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Whether the error means that the system has no IPv6.
fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
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

//! Dials addresses with names: resolves them with the system's resolver at every dial, and races what it finds.
//!
//! libp2p's own DNS transport reads `/etc/resolv.conf` once, refuses to start without a name server, and tries the
//! addresses of a name one after the other within the time of a single dial. Here a laptop that roams, an agent that
//! starts before its network, and a name whose first address is dead are all ordinary.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use futures::{FutureExt as _, TryFutureExt as _};
use libp2p::core::Transport;
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, dns};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::contact::{self, innermost};
use super::filter::{DialFilter, ip_of};
use crate::metrics::labels::Contact;

/// How long after one address the next one is tried, unless the first has failed by then (RFC 8305, 5: "Connection
/// Attempt Delay").
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// How long one address of a name may take.
const ATTEMPT: Duration = Duration::from_secs(5);

/// How long a lookup may take. The system's resolver goes on for longer if no name server answers.
const LOOKUP: Duration = Duration::from_secs(5);

/// How many lookups may run at once: each holds a thread until the system's resolver gives up.
const MAX_LOOKUPS: usize = 16;

/// How many addresses of one name are tried.
const MAX_ADDRESSES: usize = 8;

/// Why a dial failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum NamesError<E> {
    /// The system's resolver found nothing, or nothing of the wanted family.
    #[error("the name {name} was not found: {reason}")]
    NotFound {
        /// The name.
        name: String,
        /// What the resolver says.
        reason: String,
    },
    /// Every address failed.
    #[error("{}", texts(.0))]
    All(Vec<Failure>),
    /// The transport below refuses the address.
    #[error("{0} is not an address that can be dialed")]
    Unsupported(Multiaddr),
    /// An address without a name failed.
    #[error(transparent)]
    Below(E),
    /// A `/dnsaddr` could not be resolved or dialed.
    #[error("{0}")]
    Dnsaddr(String),
}

/// [`NamesError`] as the source of an error: the wrappers of the transports above show the sources of what they wrap,
/// and not that itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Wrapped<E: std::error::Error + 'static>(#[source] NamesError<E>);

fn below<E: std::error::Error + 'static>(error: E) -> Wrapped<E> {
    Wrapped(NamesError::Below(error))
}

/// Why one address of a name failed.
#[derive(Debug)]
pub(super) struct Failure {
    address: Multiaddr,
    pub(super) reason: Contact,
    text: String,
}

fn texts(failures: &[Failure]) -> String {
    let texts = failures.iter().map(|Failure { address, text, .. }| format!("{address}: {text}"));
    texts.collect::<Vec<_>>().join("; ")
}

/// A transport that resolves names.
pub(super) struct Names<T> {
    inner: Shared<T>,
    filter: Arc<DialFilter>,
    lookups: Arc<Semaphore>,
}

impl<T> Names<T> {
    /// Addresses that the filter does not name are dialed only as far as it allows, after they were resolved.
    pub(super) fn new(inner: T, filter: Arc<DialFilter>) -> Self {
        let inner = Shared { inner: Arc::new(Mutex::new(inner)), filter: None };
        Self { inner, filter, lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)) }
    }
}

impl<T> Transport for Names<T>
where
    T: Transport + Unpin + Send + 'static,
    T::Output: Send,
    T::Error: Send + Sync + 'static,
    T::Dial: Send + 'static,
    T::ListenerUpgrade: Send,
{
    type Output = T::Output;
    type Error = Wrapped<T::Error>;
    type ListenerUpgrade = futures::future::MapErr<T::ListenerUpgrade, fn(T::Error) -> Self::Error>;
    type Dial = BoxFuture<'static, Result<T::Output, Self::Error>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.inner.listen_on(id, address).map_err(|error| error.map(below))
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        let filter = (!self.filter.is_named(&address)).then(|| Arc::clone(&self.filter));
        let mut inner = Shared { inner: Arc::clone(&self.inner.inner), filter };
        let mut parts = address.iter();
        let (name, family) = match parts.next() {
            Some(Protocol::Dns(name)) => (name.into_owned(), Family::Any),
            Some(Protocol::Dns4(name)) => (name.into_owned(), Family::V4),
            Some(Protocol::Dns6(name)) => (name.into_owned(), Family::V6),
            Some(Protocol::Dnsaddr(_)) => {
                return Ok(dial_dnsaddr(inner, address, opts).map_err(Wrapped).boxed());
            }
            _ => {
                let dial = inner.dial(address, opts).map_err(|error| error.map(below))?;
                return Ok(dial.map_err(below).boxed());
            }
        };
        let rest: Vec<Protocol<'static>> = parts.map(Protocol::acquire).collect();
        let lookups = Arc::clone(&self.lookups);
        Ok(async move {
            let found = lookup(&lookups, &name, family).await;
            let found = found.map_err(|reason| Wrapped(NamesError::NotFound { name, reason }))?;
            let addresses = found.into_iter().map(|ip| {
                let first = std::iter::once(Protocol::from(ip));
                first.chain(rest.iter().cloned()).collect::<Multiaddr>()
            });
            race(inner, addresses.collect(), opts).await.map_err(Wrapped)
        }
        .boxed())
    }

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut self.get_mut().inner).poll(cx).map(|event| {
            let of_upgrade: fn(T::Error) -> Self::Error = below;
            event.map_upgrade(|upgrade| upgrade.map_err(of_upgrade)).map_err(below)
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Any,
    V4,
    V6,
}

/// The addresses of a name, in the order in which to try them.
async fn lookup(lookups: &Arc<Semaphore>, name: &str, family: Family) -> Result<Vec<IpAddr>, String> {
    let late = |_| format!("no answer within {LOOKUP:?}");
    let host = name.to_owned();
    let found = async {
        let Ok(permit) = Arc::clone(lookups).acquire_owned().await else { return Err("shutting down".to_owned()) };
        let system = tokio::task::spawn_blocking(move || {
            // Held until the system's resolver returns, whoever still waits for it.
            let _permit = permit;
            (host.as_str(), 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect::<Vec<_>>())
        });
        match system.await {
            Ok(found) => found.map_err(|error: io::Error| reason(&error)),
            Err(_) => Err("the lookup panicked".to_owned()),
        }
    };
    let found = tokio::time::timeout(LOOKUP, found).await.map_err(late)??;
    let ordered = ordered(found, family);
    if ordered.is_empty() {
        let what = if family == Family::V6 { "IPv6" } else { "IPv4" };
        return Err(format!("it has no {what} address"));
    }
    Ok(ordered)
}

/// glibc's words, without those that say nothing.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.strip_prefix("failed to lookup address information: ").map_or(text.clone(), str::to_owned)
}

/// Those of the family, each once, IPv6 and IPv4 in turns beginning with what the system prefers (RFC 8305, 4).
fn ordered(found: Vec<IpAddr>, family: Family) -> Vec<IpAddr> {
    let mut seen = HashSet::new();
    let wanted = |ip: &IpAddr| match family {
        Family::Any => true,
        Family::V4 => ip.is_ipv4(),
        Family::V6 => ip.is_ipv6(),
    };
    let found: Vec<IpAddr> = found.into_iter().filter(wanted).filter(|ip| seen.insert(*ip)).collect();
    let first_is_v6 = found.first().is_some_and(IpAddr::is_ipv6);
    let (first, second): (Vec<IpAddr>, Vec<IpAddr>) = found.into_iter().partition(|ip| ip.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut ordered = Vec::new();
    loop {
        let (one, other) = (first.next(), second.next());
        if one.is_none() && other.is_none() {
            ordered.truncate(MAX_ADDRESSES);
            return ordered;
        }
        ordered.extend(one.into_iter().chain(other));
    }
}

/// Dials the addresses, each a little after the one before, and returns the first that is established. The others are
/// dropped.
async fn race<T>(
    mut inner: Shared<T>,
    addresses: Vec<Multiaddr>,
    opts: DialOpts,
) -> Result<T::Output, NamesError<T::Error>>
where
    T: Transport + Unpin,
    T::Error: 'static,
{
    let mut left = addresses.into_iter();
    let mut running = FuturesUnordered::new();
    let mut failures = Vec::new();
    loop {
        if let Some(address) = left.next() {
            match inner.dial(address.clone(), opts) {
                Ok(dial) => running.push(async move {
                    let failed = |reason, text| Err(Failure { address, reason, text });
                    match tokio::time::timeout(ATTEMPT, dial).await {
                        Ok(Ok(output)) => Ok(output),
                        Ok(Err(error)) => failed(contact::reason_of(&error), innermost(&error)),
                        Err(_) => failed(Contact::TimedOut, format!("not established within {ATTEMPT:?}")),
                    }
                }),
                Err(TransportError::MultiaddrNotSupported(address)) => {
                    failures.push(Failure { address, reason: Contact::Other, text: "is not dialed".into() });
                    continue;
                }
                Err(TransportError::Other(error)) => {
                    let reason = contact::reason_of(&error);
                    failures.push(Failure { address, reason, text: innermost(&error) });
                    continue;
                }
            }
        }
        let next = async {
            match left.len() {
                0 => std::future::pending().await,
                _ => tokio::time::sleep(ATTEMPT_DELAY).await,
            }
        };
        tokio::select! {
            result = running.next() => match result {
                Some(Ok(output)) => return Ok(output),
                Some(Err(failure)) => failures.push(failure),
                None => return Err(NamesError::All(failures)),
            },
            () = next => {}
        }
    }
}

/// Resolves a `/dnsaddr` with libp2p's transport, which is made anew with the resolver's present configuration.
async fn dial_dnsaddr<T>(
    inner: Shared<T>,
    address: Multiaddr,
    opts: DialOpts,
) -> Result<T::Output, NamesError<T::Error>>
where
    T: Transport + Unpin + Send + 'static,
    T::Output: Send,
    T::Error: Send + Sync + 'static,
    T::Dial: Send + 'static,
    T::ListenerUpgrade: Send,
{
    let failed = |error: &dyn std::error::Error| NamesError::Dnsaddr(innermost(error));
    let made = tokio::task::spawn_blocking(move || dns::tokio::Transport::system(inner)).await;
    let mut dns = made.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    match dns.dial(address, opts) {
        Ok(dial) => dial.await.map_err(|error| failed(&error)),
        Err(TransportError::MultiaddrNotSupported(address)) => Err(NamesError::Unsupported(address)),
        Err(TransportError::Other(error)) => Err(failed(&error)),
    }
}

/// The transport below, which several dials use at once.
struct Shared<T> {
    inner: Arc<Mutex<T>>,
    /// What may be dialed; `None` for everything.
    filter: Option<Arc<DialFilter>>,
}

impl<T: Transport + Unpin> Transport for Shared<T> {
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = T::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.inner.lock().listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.lock().remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        let refuses = |filter: &Arc<DialFilter>| ip_of(&address).is_some_and(|ip| !filter.allows(ip));
        if self.filter.as_ref().is_some_and(refuses) {
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        self.inner.lock().dial(address, opts)
    }

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut *self.inner.lock()).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn both_families_take_turns_and_each_address_is_tried_once() {
        let found = || ips(&["2001:db8::1", "2001:db8::2", "192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3"]);
        let all = ips(&["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "192.0.2.3"]);
        assert_eq!(ordered(found(), Family::Any), all);
        assert_eq!(ordered(found(), Family::V4), ips(&["192.0.2.1", "192.0.2.2", "192.0.2.3"]));
        assert_eq!(ordered(found(), Family::V6), ips(&["2001:db8::1", "2001:db8::2"]));
        // The system prefers IPv4, as where there is no route for IPv6.
        assert_eq!(ordered(ips(&["192.0.2.1", "2001:db8::1"]), Family::Any), ips(&["192.0.2.1", "2001:db8::1"]));
        let many: Vec<IpAddr> = (0..50u8).map(|last| IpAddr::from([192, 0, 2, last])).collect();
        assert_eq!(ordered(many, Family::Any).len(), MAX_ADDRESSES);
    }
}

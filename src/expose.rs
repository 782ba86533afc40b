//! Other exporters on this machine, fetched for peers that cannot reach them.
//!
//! A peer only ever sends a name. The URL behind it is in this agent's configuration and stays there: no error shows
//! a URL, a host or a port to the peer. The exporter is not trusted either: its time and the size of its answer are
//! bounded. Its page is not parsed here; Prometheus does that.

mod answer;
mod config;
mod error;
mod url;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::header::{ACCEPT, ACCEPT_ENCODING, CONNECTION, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

#[cfg(any(test, fuzzing))]
pub use self::answer::fuzz as fuzz_exporter;
pub use self::config::{Exposed, ExposedName};
pub use self::error::{FetchCause, FetchError};
pub use self::url::ExposedUrl;
use self::url::Host;
use crate::metrics::{MAX_ACCEPT, Page};

/// The most exporters that one agent exposes.
pub const MAX_EXPOSED: usize = 16;

/// The longest head of an exporter's answer, in bytes, and the most that is read ahead of its body.
const MAX_HEAD: usize = 64 << 10;

/// How many addresses of a host name are tried.
const MAX_ADDRESSES: usize = 8;

/// The header in which Prometheus sends an exporter its timeout, in seconds.
const SCRAPE_TIMEOUT: HeaderName = HeaderName::from_static("x-prometheus-scrape-timeout-seconds");

/// What the scraper asks for.
#[derive(Debug, Clone, Copy)]
pub struct FetchOptions<'a> {
    /// Its `Accept` header, passed on unchanged. If it is empty, none is sent.
    pub accept: &'a str,
    /// Whether it accepts gzip.
    pub gzip: bool,
    /// How long everything may take, from the first packet to the last byte.
    pub timeout: Duration,
}

/// Fetches the page of one exporter over a connection of its own, which is closed when the future completes or is
/// dropped. The page's `Content-Type` is at most 256 bytes of visible ASCII and spaces. The page is compressed only if
/// `options` accepts gzip.
///
/// # Errors
///
/// If the exporter cannot be reached, is too slow, sends more than `max_body` bytes, or answers with anything but a
/// complete `200 OK`.
pub async fn fetch(target: &Exposed, options: FetchOptions<'_>, max_body: usize) -> Result<Page, FetchError> {
    let fetched = timeout(options.timeout, attempt(target, options, max_body)).await;
    fetched.unwrap_or(Err(FetchCause::Deadline(options.timeout))).map_err(|cause| FetchError::new(target, cause))
}

async fn attempt(target: &Exposed, options: FetchOptions<'_>, max_body: usize) -> Result<Page, FetchCause> {
    let started = Instant::now();
    // Checked before anything is sent, so that the exporter is not blamed for a scraper's mistake.
    let accept = accept(options.accept)?;
    let stream = connect(&addresses(target).await?, options.timeout).await?;
    // The limit of the buffer alone would let through a longer head that happens to arrive at once.
    let mut client = Builder::new();
    let client = client.max_buf_size(MAX_HEAD).max_header_size(MAX_HEAD);
    let (sender, connection) = client.handshake(TokioIo::new(stream)).await.map_err(FetchCause::of)?;
    let left = options.timeout.saturating_sub(started.elapsed());
    let request = request(&target.url, accept, options.gzip, left);
    let mut exchange = pin!(exchange(sender, request, options.gzip, max_body));
    // Both run in this future, so that nothing is left behind when it is dropped.
    tokio::select! {
        fetched = &mut exchange => fetched,
        // The exchange still has what the connection read, or why it failed.
        _ = connection => exchange.await,
    }
}

async fn exchange(
    mut sender: SendRequest<Empty<Bytes>>,
    request: Request<Empty<Bytes>>,
    gzip_wanted: bool,
    max_body: usize,
) -> Result<Page, FetchCause> {
    let (head, body) = sender.send_request(request).await.map_err(FetchCause::of)?.into_parts();
    let (content_type, gzip) = answer::head(&head, gzip_wanted)?;
    Ok(Page { content_type, gzip, body: answer::body(body, max_body).await? })
}

fn accept(text: &str) -> Result<Option<HeaderValue>, FetchCause> {
    if text.is_empty() {
        return Ok(None);
    }
    let value = Some(text).filter(|text| text.len() <= MAX_ACCEPT).and_then(|text| HeaderValue::from_str(text).ok());
    value.map(Some).ok_or(FetchCause::Accept)
}

fn request(url: &ExposedUrl, accept: Option<HeaderValue>, gzip: bool, left: Duration) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = Uri::from(url.target().clone());
    let headers = request.headers_mut();
    headers.insert(HOST, url.authority().clone());
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("peerscope/", env!("CARGO_PKG_VERSION"))));
    headers.extend(accept.map(|accept| (ACCEPT, accept)));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(if gzip { "gzip" } else { "identity" }));
    // Digits and a point are always valid. Without the header an exporter uses its own limit.
    headers.extend(HeaderValue::try_from(format!("{:.3}", left.as_secs_f64())).map(|left| (SCRAPE_TIMEOUT, left)).ok());
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    request
}

/// The addresses to connect to. Without `remote` they are on this machine, whatever a resolver or the check of the
/// configuration says: `localhost` is never looked up (RFC 6761, section 6.3), and any other name is rejected.
async fn addresses(target: &Exposed) -> Result<Vec<SocketAddr>, FetchCause> {
    if !target.remote && !target.url.is_local() {
        return Err(FetchCause::NotLocal);
    }
    let port = target.url.port();
    Ok(match target.url.host() {
        Host::Ip(ip) => vec![(*ip, port).into()],
        Host::Localhost => vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()],
        // The resolver's thread cannot be stopped: if it hangs, it outlives this fetch until its own timeout.
        Host::Name(name) => {
            let found = tokio::net::lookup_host((name.as_str(), port)).await.map_err(FetchCause::Unresolved)?;
            found.take(MAX_ADDRESSES).collect()
        }
    })
}

/// The first connection that succeeds. Each address gets a share of the time, so that one that drops packets leaves
/// time for the next (IPv4 after IPv6) and for the answer.
async fn connect(addresses: &[SocketAddr], time: Duration) -> Result<TcpStream, FetchCause> {
    let share = time / u32::try_from(addresses.len() + 1).unwrap_or(u32::MAX);
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failed = error,
            Err(_) => failed = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(FetchCause::Unreachable(failed))
}

#[cfg(test)]
mod tests;

//! The gateway's pages on the metrics endpoint.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use libp2p::PeerId;

use super::discovery::{self, Place};
use super::fleet::shown;
use super::{ScrapeFailure, Scraper};
use crate::metrics::accept::{accepts_gzip, gzip, joined};
use crate::metrics::labels::{HttpCode, ScrapeOutcome};
use crate::metrics::{ExternalUrl, GuestAnswer, GuestBody, GuestPages, Page};
use crate::network::ScrapeRequest;
use crate::network::protocol::scrape::MAX_ACCEPT;

/// The header in which Prometheus sends its timeout, in seconds.
const TIMEOUT_HEADER: HeaderName = HeaderName::from_static("x-prometheus-scrape-timeout-seconds");

/// The timeout of a scraper that sends none: Prometheus's own default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(120);
/// The most that is subtracted from the scraper's timeout, so that it still learns why there is no page.
const MARGIN: Duration = Duration::from_millis(500);

/// The gateway's pages.
#[derive(Debug)]
pub struct Pages {
    scraper: Scraper,
    /// The address of the endpoint, for clients without a usable `Host`.
    fallback: String,
    external_url: ArcSwapOption<ExternalUrl>,
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Route<'a> {
    Discovery,
    Peer(&'a str, Option<&'a str>),
}

fn route(path: &str) -> Option<Route<'_>> {
    if path == "/sd" {
        return Some(Route::Discovery);
    }
    let (peer, rest) = path.strip_prefix("/peers/")?.split_once('/')?;
    match rest.strip_prefix("exposed/") {
        Some(rest) => {
            let name = rest.strip_suffix("/metrics")?;
            (!name.contains('/')).then_some(Route::Peer(peer, Some(name)))
        }
        None => (rest == "metrics").then_some(Route::Peer(peer, None)),
    }
}

impl GuestPages for Pages {
    fn has(&self, path: &str) -> bool {
        route(path).is_some()
    }

    fn answer<'a>(&'a self, path: &'a str, headers: &'a HeaderMap) -> BoxFuture<'a, GuestAnswer> {
        async move {
            match route(path) {
                Some(Route::Discovery) => self.discovery(headers),
                Some(Route::Peer(peer, exposed)) => self.peer(peer, exposed, headers).await,
                None => refusal(HttpCode::NotFound, "page not found".into()),
            }
        }
        .boxed()
    }

    fn clients(&self) -> usize {
        self.scraper.clients()
    }

    fn links(&self) -> Vec<(&'static str, &'static str)> {
        vec![("/sd", "Targets: the peers of this gateway, for Prometheus")]
    }
}

impl Pages {
    /// The pages of one gateway, whose endpoint is configured to listen at `address`.
    pub fn new(scraper: Scraper, address: String, external_url: Option<ExternalUrl>) -> Self {
        Self { scraper, fallback: address, external_url: ArcSwapOption::from_pointee(external_url) }
    }

    /// Takes over another external URL.
    pub fn configure(&self, external_url: Option<ExternalUrl>) {
        self.external_url.store(external_url.map(Arc::new));
    }

    fn discovery(&self, headers: &HeaderMap) -> GuestAnswer {
        let external = self.external_url.load_full().map(|url| (url.address(), url.scheme(), url.prefix.clone()));
        let place = match &external {
            Some((address, scheme, prefix)) => Place { address, scheme: Some(scheme), prefix },
            None => {
                // Where Prometheus reached this page is where it can reach the others.
                let host =
                    headers.get(header::HOST).and_then(|host| host.to_str().ok()).filter(|host| is_address(host));
                Place { address: host.unwrap_or(&self.fallback), scheme: None, prefix: "" }
            }
        };
        match self.scraper.fleet().targets() {
            Ok(members) => {
                let mut list = vec![
                    (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
                    (header::VARY, HeaderValue::from_static("Accept-Encoding, Host")),
                ];
                let mut body = discovery::targets(&members, place);
                if accepts_gzip(&joined(headers, &header::ACCEPT_ENCODING))
                    && let Ok(compressed) = gzip(&body)
                {
                    body = compressed;
                    list.push((header::CONTENT_ENCODING, HeaderValue::from_static("gzip")));
                }
                GuestAnswer { code: HttpCode::Ok, reason: None, headers: list, body: GuestBody::Whole(body) }
            }
            Err(left) => {
                let text = format!(
                    "the gateway has just started and waits another {} for its peers to connect (gateway.settle)",
                    shown(left + Duration::from_secs(1))
                );
                refusal(HttpCode::ServiceUnavailable, text)
            }
        }
    }

    async fn peer(&self, peer: &str, exposed: Option<&str>, headers: &HeaderMap) -> GuestAnswer {
        let Ok(peer) = peer.parse::<PeerId>() else {
            return refusal(HttpCode::NotFound, format!("`{}` is not a PeerId", peer.escape_default()));
        };
        let request = ScrapeRequest {
            exposed: exposed.map(str::to_owned),
            accept: accept(headers),
            gzip: accepts_gzip(&joined(headers, &header::ACCEPT_ENCODING)),
            timeout: time(headers),
        };
        match self.scraper.scrape(peer, request).await {
            Ok(scraped) => page(scraped),
            Err(ScrapeFailure { outcome, text }) => of_a_peer(refusal(code(outcome), text)),
        }
    }
}

fn page(page: Page<GuestBody>) -> GuestAnswer {
    let mut headers = vec![(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"))];
    headers.extend(page.headers());
    of_a_peer(GuestAnswer { code: HttpCode::Ok, reason: None, headers, body: page.body })
}

/// A peer's page may claim to be HTML, and shares its origin with the operator's own pages. These headers make a
/// browser that is sent there run nothing, load nothing and send no referrer.
fn of_a_peer(mut answer: GuestAnswer) -> GuestAnswer {
    answer.headers.extend([
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ]);
    answer
}

/// One sentence, in the body for people and in the status line for Prometheus.
fn refusal(code: HttpCode, text: String) -> GuestAnswer {
    GuestAnswer {
        code,
        headers: vec![(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))],
        body: GuestBody::Whole(format!("{text}\n").into()),
        reason: Some(text),
    }
}

fn code(outcome: ScrapeOutcome) -> HttpCode {
    match outcome {
        ScrapeOutcome::Ok => HttpCode::Ok,
        ScrapeOutcome::NotFound => HttpCode::NotFound,
        ScrapeOutcome::Refused => HttpCode::Forbidden,
        ScrapeOutcome::Busy => HttpCode::ServiceUnavailable,
        ScrapeOutcome::Timeout => HttpCode::GatewayTimeout,
        ScrapeOutcome::Disconnected
        | ScrapeOutcome::Lost
        | ScrapeOutcome::Invalid
        | ScrapeOutcome::TooLarge
        | ScrapeOutcome::Failed
        | ScrapeOutcome::Cancelled => HttpCode::BadGateway,
    }
}

/// The client's `Accept`. One that is longer than a peer accepts is left out, and the peer answers in its default
/// format.
fn accept(headers: &HeaderMap) -> String {
    let accept = joined(headers, &header::ACCEPT);
    if accept.len() > MAX_ACCEPT { String::new() } else { accept }
}

/// How long to wait for a page: the scraper's timeout, less a margin in which it still gets the reason for a failure.
fn time(headers: &HeaderMap) -> Duration {
    let said = headers.get(TIMEOUT_HEADER).and_then(|value| value.to_str().ok()?.trim().parse::<f64>().ok());
    let said = said.filter(|seconds| *seconds > 0.0).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let said = said.unwrap_or(DEFAULT_TIMEOUT).min(LONGEST_TIMEOUT);
    said - MARGIN.min(said / 10)
}

/// Whether a `Host` is valid as a target: Prometheus rejects one with a slash.
fn is_address(host: &str) -> bool {
    !host.is_empty() && host.len() <= 255 && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:[]%".contains(&b))
}

#[cfg(test)]
mod tests;

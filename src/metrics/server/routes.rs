//! Who asks for what, and what they get.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::Semaphore;

use super::{Limits, pages};
use crate::metrics::exposition::{self, Format, Wanted};
use crate::metrics::labels::{HttpCode, HttpHandler};
use crate::metrics::{Health, MetricsCollector, Registry, Timer, all_ready};

/// Everything that the pages show.
pub(super) struct Routes {
    pub(super) path: String,
    pub(super) index: String,
    pub(super) registry: Arc<Registry>,
    pub(super) collector: MetricsCollector,
    pub(super) health: Health,
    /// One permit for each exposition that may be made at once. It is held while the text is made, not
    /// while it is fetched: slow readers must not keep Prometheus out.
    pub(super) scrapes: Arc<Semaphore>,
    pub(super) limits: Limits,
}

/// A status, a body, and the headers that belong to it.
struct Answer {
    code: HttpCode,
    body: Bytes,
    headers: Vec<(HeaderName, &'static str)>,
}

impl Answer {
    fn new(code: HttpCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { code, body: body.into(), headers: vec![(header::CONTENT_TYPE, content_type)] }
    }

    fn text(code: HttpCode, body: impl Into<Bytes>) -> Self {
        Self::new(code, pages::TEXT, body)
    }

    fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }
}

impl Routes {
    /// Answers one request. A HEAD is answered like a GET; hyper leaves out the body.
    pub(super) async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let handler = self.handler(request.uri().path());
        let in_flight = self.collector.http_started(handler);
        let answer = match (handler, request.method()) {
            (HttpHandler::Other, _) => Answer::text(HttpCode::NotFound, pages::not_found(&self.path)),
            (_, &Method::GET | &Method::HEAD) => self.page(handler, request).await,
            _ => Answer::text(HttpCode::MethodNotAllowed, "Only GET and HEAD are answered here.\n")
                .with(header::ALLOW, "GET, HEAD"),
        };
        drop(in_flight);
        self.collector.http_answered(handler, answer.code);
        response(answer)
    }

    fn handler(&self, path: &str) -> HttpHandler {
        match path {
            path if path == self.path => HttpHandler::Metrics,
            "/live" => HttpHandler::Live,
            "/ready" => HttpHandler::Ready,
            "/" => HttpHandler::Index,
            _ => HttpHandler::Other,
        }
    }

    async fn page(&self, handler: HttpHandler, request: &Request<Incoming>) -> Answer {
        let headers = request.headers();
        match handler {
            HttpHandler::Metrics => self.scrape(request).await.with(header::VARY, "Accept, Accept-Encoding"),
            HttpHandler::Live => Answer::text(HttpCode::Ok, "live\n"),
            HttpHandler::Ready => self.ready(headers).with(header::VARY, "Accept"),
            HttpHandler::Index | HttpHandler::Other => Answer::new(HttpCode::Ok, pages::HTML, self.index.clone())
                .with(header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
        }
    }

    fn ready(&self, headers: &HeaderMap) -> Answer {
        let states = self.health.snapshot();
        // Of one reading: a 200 must not list a problem.
        let ready = all_ready(&states);
        let code = if ready { HttpCode::Ok } else { HttpCode::ServiceUnavailable };
        if exposition::prefers_json(&joined(headers, &header::ACCEPT)) {
            Answer::new(code, "application/json", pages::ready_json(ready, &states))
        } else {
            Answer::text(code, pages::ready_text(ready, &states))
        }
    }

    async fn scrape(&self, request: &Request<Incoming>) -> Answer {
        let Ok(permit) = Arc::clone(&self.scrapes).try_acquire_owned() else {
            let limit = self.limits.scrapes;
            let body = format!("Limit of concurrent requests reached ({limit}), try again later.\n");
            return Answer::text(HttpCode::ServiceUnavailable, body);
        };
        let headers = request.headers();
        let format = exposition::negotiate(&joined(headers, &header::ACCEPT));
        let wanted = Wanted::from_query(request.uri().query());
        let gzip = exposition::accepts_gzip(&joined(headers, &header::ACCEPT_ENCODING));
        let (registry, collector) = (Arc::clone(&self.registry), self.collector.clone());
        let made = tokio::task::spawn_blocking(move || {
            let timer = Timer::start();
            let body = make(&registry, format, &wanted, gzip);
            collector.scraped(timer);
            drop(permit);
            body
        });
        let limit = self.limits.making;
        match tokio::time::timeout(limit, made).await {
            Ok(Ok(Ok((body, true)))) => {
                Answer::new(HttpCode::Ok, format.content_type(), body).with(header::CONTENT_ENCODING, "gzip")
            }
            Ok(Ok(Ok((body, false)))) => Answer::new(HttpCode::Ok, format.content_type(), body),
            Ok(Ok(Err(error))) => failed(&error),
            // It panicked; the panic itself is in the log.
            Ok(Err(error)) => failed(&error),
            // A collector that hangs must not keep its client for ever. It keeps its permit.
            Err(_) => {
                tracing::warn!("a scrape had no answer after {limit:?}: some collector hangs");
                let body = format!("The answer was not made within {limit:?}; some part of the agent hangs.\n");
                Answer::text(HttpCode::ServiceUnavailable, body)
            }
        }
    }
}

/// The body, and whether it is compressed.
fn make(
    registry: &Registry,
    format: Format,
    wanted: &Wanted,
    gzip: bool,
) -> Result<(Bytes, bool), Box<dyn std::error::Error + Send + Sync>> {
    let body = exposition::render(registry, format, wanted)?;
    let gzip = gzip && body.len() >= exposition::GZIP_FROM;
    Ok((if gzip { exposition::gzip(&body)? } else { body }, gzip))
}

fn failed(error: &dyn std::fmt::Display) -> Answer {
    tracing::error!("a scrape could not be answered: {error}");
    Answer::text(HttpCode::InternalServerError, "The metrics could not be collected; the agent's log says why.\n")
}

/// All values of a header as one list. What is not ASCII is passed over.
fn joined(headers: &HeaderMap, name: &HeaderName) -> String {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join(",")
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = status(answer.code);
    let headers = response.headers_mut();
    // A cached exposition, or a cached "ready", is a lie.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    for (name, value) in answer.headers {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn status(code: HttpCode) -> StatusCode {
    match code {
        HttpCode::Ok => StatusCode::OK,
        HttpCode::NotFound => StatusCode::NOT_FOUND,
        HttpCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        HttpCode::InternalServerError => StatusCode::INTERNAL_SERVER_ERROR,
        HttpCode::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

//! Routes requests to pages.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::body::Body;
use super::{Limits, pages};
use crate::metrics::labels::{HttpCode, HttpHandler};
use crate::metrics::{
    ExposeError, Exposer, GuestAnswer, GuestBody, GuestPages, Health, MetricsCollector, Page, all_ready,
};
use crate::metrics::{accept, exposition};

/// Everything that the pages show.
pub(super) struct Routes {
    pub(super) path: String,
    pub(super) index: String,
    pub(super) exposer: Exposer,
    pub(super) guest: Option<Arc<dyn GuestPages>>,
    /// The response for a path without a page.
    pub(super) not_found: String,
    pub(super) collector: MetricsCollector,
    pub(super) health: Health,
    pub(super) limits: Limits,
}

/// A status, a body, and the headers that belong to it.
struct EndpointAnswer {
    code: HttpCode,
    body: GuestBody,
    reason: Option<String>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl EndpointAnswer {
    fn new(code: HttpCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self::page(code, Page { content_type: Some(content_type.into()), gzip: false, body: body.into() })
    }

    fn page(code: HttpCode, page: Page) -> Self {
        Self { code, headers: page.headers().collect(), body: GuestBody::Whole(page.body), reason: None }
    }

    fn text(code: HttpCode, body: impl Into<Bytes>) -> Self {
        Self::new(code, pages::TEXT, body)
    }

    fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }
}

impl From<GuestAnswer> for EndpointAnswer {
    fn from(answer: GuestAnswer) -> Self {
        let GuestAnswer { code, reason, headers, body } = answer;
        Self { code, body, reason, headers }
    }
}

impl Routes {
    /// Answers one request. HEAD is answered like GET; hyper leaves out the body.
    pub(super) async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let handler = self.handler(request.uri().path());
        let in_flight = self.collector.http_started(handler);
        let answer = match (handler, request.method()) {
            (HttpHandler::Other, _) => EndpointAnswer::text(HttpCode::NotFound, self.not_found.clone()),
            (_, &Method::GET | &Method::HEAD) => self.page(handler, request).await,
            _ => EndpointAnswer::text(HttpCode::MethodNotAllowed, "Only GET and HEAD are allowed here.\n")
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
            path if self.guest.as_ref().is_some_and(|guest| guest.has(path)) => HttpHandler::Gateway,
            _ => HttpHandler::Other,
        }
    }

    async fn page(&self, handler: HttpHandler, request: &Request<Incoming>) -> EndpointAnswer {
        let headers = request.headers();
        match handler {
            HttpHandler::Metrics => self.scrape(request).await.with(header::VARY, "Accept, Accept-Encoding"),
            HttpHandler::Live => EndpointAnswer::text(HttpCode::Ok, "live\n"),
            HttpHandler::Ready => self.ready(headers).with(header::VARY, "Accept"),
            HttpHandler::Gateway => match &self.guest {
                Some(guest) => guest.answer(request.uri().path(), headers).await.into(),
                None => EndpointAnswer::text(HttpCode::NotFound, self.not_found.clone()),
            },
            HttpHandler::Index | HttpHandler::Other => {
                EndpointAnswer::new(HttpCode::Ok, pages::HTML, self.index.clone())
                    .with(header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'")
            }
        }
    }

    fn ready(&self, headers: &HeaderMap) -> EndpointAnswer {
        let states = self.health.snapshot();
        // From the same snapshot: a 200 must not list a problem.
        let ready = all_ready(&states);
        let code = if ready { HttpCode::Ok } else { HttpCode::ServiceUnavailable };
        if exposition::prefers_json(&accept::joined(headers, &header::ACCEPT)) {
            EndpointAnswer::new(code, "application/json", pages::ready_json(ready, &states))
        } else {
            EndpointAnswer::text(code, pages::ready_text(ready, &states))
        }
    }

    async fn scrape(&self, request: &Request<Incoming>) -> EndpointAnswer {
        let headers = request.headers();
        let gzip = accept::accepts_gzip(&accept::joined(headers, &header::ACCEPT_ENCODING));
        let accept = accept::joined(headers, &header::ACCEPT);
        match self.exposer.expose(&accept, request.uri().query(), gzip, self.limits.making).await {
            Ok(page) => EndpointAnswer::page(HttpCode::Ok, page),
            Err(error) => {
                if let ExposeError::Late(limit) = error {
                    tracing::warn!("a scrape was not answered within {limit:?}: a collector is hanging");
                }
                let code = match error {
                    ExposeError::Busy(_) | ExposeError::Late(_) => HttpCode::ServiceUnavailable,
                    ExposeError::NotBuiltIn | ExposeError::Failed => HttpCode::InternalServerError,
                };
                EndpointAnswer::text(code, format!("{error}\n"))
            }
        }
    }
}

fn response(answer: EndpointAnswer) -> Response<Body> {
    let mut response = Response::new(Body::new(answer.body));
    *response.status_mut() = status(answer.code);
    let headers = response.headers_mut();
    // A cached metrics page, or a cached "ready", would be out of date.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    for (name, value) in answer.headers {
        headers.insert(name, value);
    }
    if let Some(reason) = answer.reason.as_deref().and_then(reason_phrase) {
        response.extensions_mut().insert(reason);
    }
    response
}

/// `text` as a reason phrase, with only visible ASCII and spaces kept (RFC 9112, 4).
fn reason_phrase(text: &str) -> Option<ReasonPhrase> {
    let text: Vec<u8> = text.bytes().filter(|byte| matches!(byte, b' '..=b'~')).collect();
    ReasonPhrase::try_from(text).ok()
}

fn status(code: HttpCode) -> StatusCode {
    match code {
        HttpCode::Ok => StatusCode::OK,
        HttpCode::Forbidden => StatusCode::FORBIDDEN,
        HttpCode::NotFound => StatusCode::NOT_FOUND,
        HttpCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        HttpCode::InternalServerError => StatusCode::INTERNAL_SERVER_ERROR,
        HttpCode::BadGateway => StatusCode::BAD_GATEWAY,
        HttpCode::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        HttpCode::GatewayTimeout => StatusCode::GATEWAY_TIMEOUT,
    }
}

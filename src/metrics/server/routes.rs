//! Routes requests to pages.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::body::Body;
use super::passwords::Verdict;
use super::web::WebState;
use super::{Changing, Limits, WebAccess, pages};
use crate::metrics::labels::{HttpCode, HttpHandler};
use crate::metrics::{
    ExposeError, Exposer, GuestAnswer, GuestBody, GuestPages, Health, MetricsCollector, Page, Seldom, all_ready,
};
use crate::metrics::{accept, exposition};

/// Everything that the pages show.
pub(super) struct Routes {
    pub(super) path: String,
    pub(super) exposer: Exposer,
    pub(super) guest: Option<Arc<dyn GuestPages>>,
    /// The response for a path without a page.
    pub(super) not_found: String,
    pub(super) collector: MetricsCollector,
    pub(super) health: Health,
    pub(super) changing: Arc<ArcSwap<Changing>>,
    pub(super) web: Option<WebAccess>,
    /// A client spoke TLS although the endpoint does not.
    pub(super) spoke_tls: Seldom,
    pub(super) limits: Limits,
}

/// Where a request is from, and where it arrived.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    pub(super) client: SocketAddr,
    pub(super) local: SocketAddr,
    /// Whether other machines cannot reach this listener.
    pub(super) on_loopback: bool,
}

/// `OPTIONS`, with which HAProxy checks servers unless told otherwise. The answer says nothing about the agent.
fn is_probe(request: &Request<Incoming>) -> bool {
    request.method() == Method::OPTIONS && matches!(request.uri().path(), "/" | "*")
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

    /// With a sentence for the status line, where Prometheus shows it.
    fn because(mut self, reason: String) -> Self {
        self.reason = Some(reason);
        self
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
    /// Whether the client may see what it asks for. An error is the response that says why not.
    pub(super) async fn admit(
        &self,
        request: &Request<Incoming>,
        origin: &Origin,
        state: Option<&WebState>,
    ) -> Result<(), Response<Body>> {
        let handler = self.handler(self.path(request));
        if let Err(error) =
            self.changing.load().names.check(request.uri(), request.headers(), origin.local, origin.on_loopback)
        {
            let text = error.to_string();
            let refusal = EndpointAnswer::text(HttpCode::Misdirected, text.clone() + "\n").because(text);
            self.collector.http_answered(handler, refusal.code);
            return Err(response(refusal, state));
        }
        let (Some(web), Some(state)) = (&self.web, state) else { return Ok(()) };
        let open = self.changing.load().open_probes
            && (matches!(handler, HttpHandler::Live | HttpHandler::Ready) || is_probe(request));
        if open || state.users.is_empty() {
            return Ok(());
        }
        let refusal = match web
            .passwords
            .check(&state.users, origin.client.ip(), request.headers().get(header::AUTHORIZATION))
            .await
        {
            Verdict::Right => return Ok(()),
            Verdict::Wrong => {
                EndpointAnswer::text(HttpCode::Unauthorized, "A valid user and password are needed here.\n")
                    .with(header::WWW_AUTHENTICATE, "Basic realm=\"metrics\", charset=\"UTF-8\"")
            }
            Verdict::Busy => {
                EndpointAnswer::text(HttpCode::ServiceUnavailable, "Too many passwords are waiting to be checked.\n")
            }
        };
        self.collector.http_answered(handler, refusal.code);
        Err(response(refusal, Some(state)))
    }

    /// Answers one request. HEAD is answered like GET; hyper leaves out the body.
    pub(super) async fn answer(&self, request: &Request<Incoming>, state: Option<&WebState>) -> Response<Body> {
        let handler = self.handler(self.path(request));
        let in_flight = self.collector.http_started(handler);
        let answer = match (handler, request.method()) {
            _ if is_probe(request) => EndpointAnswer::text(HttpCode::Ok, "").with(header::ALLOW, "GET, HEAD, OPTIONS"),
            (HttpHandler::Other, _) => EndpointAnswer::text(HttpCode::NotFound, self.not_found.clone()),
            (_, &Method::GET | &Method::HEAD) => self.page(handler, request).await,
            _ => EndpointAnswer::text(HttpCode::MethodNotAllowed, "Only GET and HEAD are allowed here.\n")
                .with(header::ALLOW, "GET, HEAD"),
        };
        drop(in_flight);
        self.collector.http_answered(handler, answer.code);
        response(answer, state)
    }

    /// The path of a page. Some proxies remove the prefix of `gateway.external_url`, others do not.
    fn path<'a>(&self, request: &'a Request<Incoming>) -> &'a str {
        let path = request.uri().path();
        match self.handler(path) {
            HttpHandler::Other => self.changing.load().names.without_prefix(path).unwrap_or(path),
            _ => path,
        }
    }

    /// How many clients may wait for the guest's pages.
    pub(super) fn guests_clients(&self) -> usize {
        self.guest.as_ref().map_or(0, |guest| guest.clients())
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
                Some(guest) => guest.answer(self.path(request), headers).await.into(),
                None => EndpointAnswer::text(HttpCode::NotFound, self.not_found.clone()),
            },
            HttpHandler::Index | HttpHandler::Other => {
                EndpointAnswer::new(HttpCode::Ok, pages::HTML, self.changing.load().index.clone())
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

fn response(answer: EndpointAnswer, state: Option<&WebState>) -> Response<Body> {
    let mut response = Response::new(Body::new(answer.body));
    *response.status_mut() = status(answer.code);
    let headers = response.headers_mut();
    // A cached metrics page, or a cached "ready", would be out of date.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    for (name, value) in answer.headers {
        headers.insert(name, value);
    }
    for (name, value) in state.map_or(&[][..], |state| &state.headers) {
        headers.entry(name).or_insert_with(|| value.clone());
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
        HttpCode::Unauthorized => StatusCode::UNAUTHORIZED,
        HttpCode::Forbidden => StatusCode::FORBIDDEN,
        HttpCode::NotFound => StatusCode::NOT_FOUND,
        HttpCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        HttpCode::Misdirected => StatusCode::MISDIRECTED_REQUEST,
        HttpCode::InternalServerError => StatusCode::INTERNAL_SERVER_ERROR,
        HttpCode::BadGateway => StatusCode::BAD_GATEWAY,
        HttpCode::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        HttpCode::GatewayTimeout => StatusCode::GATEWAY_TIMEOUT,
    }
}

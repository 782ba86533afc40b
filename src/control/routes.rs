//! The requests of the control API and their answers.

mod gateway;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use libp2p::PeerId;
use percent_encoding::percent_decode_str;

use super::{Api, ComponentStatus, ContactReport, Deleted, ErrorResponse, Peer, ReloadError, Status};
use crate::metrics::{BUILT_IN, all_ready};
use crate::network::RequestError;
use crate::network::protocol::{self, ErrorCode};
use crate::storage::{self, StorageError};

type ApiResponse = Response<Full<Bytes>>;

/// How long a client may take to send a value.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest configuration, in bytes: as large as a file can be.
const MAX_CONFIG: usize = 1 << 20;

/// How long making a metrics page may take, as at the endpoint.
const MAKING: Duration = Duration::from_secs(20);

/// How long the network's event loop may take to answer.
const TURN: Duration = Duration::from_secs(3);

/// A failure, with the status and code that report it.
struct ApiError {
    status: StatusCode,
    code: &'static str,
    error: String,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, error: impl Into<String>) -> Self {
        Self { status, code, error: error.into() }
    }

    fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", error)
    }
}

impl Api {
    pub(super) async fn answer(&self, request: Request<Incoming>) -> ApiResponse {
        self.route(request).await.unwrap_or_else(|problem| {
            json(problem.status, &ErrorResponse { code: problem.code.into(), error: problem.error })
        })
    }

    async fn route(&self, request: Request<Incoming>) -> Result<ApiResponse, ApiError> {
        let path = request.uri().path().to_owned();
        match (request.method(), path.as_str()) {
            (&Method::GET, "/v1/status") => Ok(json(StatusCode::OK, &self.status().await)),
            (&Method::GET, "/v1/peers") => match tokio::time::timeout(TURN, self.peers()).await {
                Ok(peers) => Ok(json(StatusCode::OK, &peers)),
                Err(_) => {
                    let error = "the network does not answer; see `peerscope status`";
                    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", error))
                }
            },
            (&Method::GET, "/v1/metrics") => self.metrics(&request).await,
            (&Method::GET | &Method::PUT | &Method::DELETE, path) if path.starts_with("/v1/keys/") => {
                let key = path.strip_prefix("/v1/keys/").unwrap_or_default();
                let key = Bytes::from(percent_decode_str(key).collect::<Vec<u8>>());
                let peer = peer(request.uri().query())?;
                self.key(key, peer, request).await
            }
            (&Method::POST, "/v1/reload") => self.reload(request).await,
            (_, "/v1/reload") => Ok(method_not_allowed("POST")),
            (_, "/v1/status" | "/v1/peers" | "/v1/metrics") => Ok(method_not_allowed("GET")),
            (_, path) if path.starts_with("/v1/keys/") => Ok(method_not_allowed("GET, PUT, DELETE")),
            _ => Err(ApiError::new(StatusCode::NOT_FOUND, "bad_request", format!("{path} not found"))),
        }
    }

    /// A body is a configuration that takes the place of the agent's file.
    async fn reload(&self, request: Request<Incoming>) -> Result<ApiResponse, ApiError> {
        let body = limited(request, MAX_CONFIG, "the configuration", "").await?;
        let text = match String::from_utf8(body.into()) {
            Ok(text) => Some(text).filter(|text| !text.is_empty()),
            Err(_) => return Err(ApiError::bad_request("the configuration is not valid UTF-8")),
        };
        match self.reloader.reload(text).await {
            Ok(reloaded) => Ok(json(StatusCode::OK, &reloaded)),
            Err(error) => {
                let (status, code) = match error {
                    ReloadError::NoSource => (StatusCode::NOT_IMPLEMENTED, "no_source"),
                    ReloadError::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "config"),
                    ReloadError::DiskHangs(_) | ReloadError::NetworkHangs => {
                        (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
                    }
                };
                Err(ApiError::new(status, code, error.to_string()))
            }
        }
    }

    async fn status(&self) -> Status {
        let peer_id = self.peer_id.to_string();
        let states = self.health.snapshot();
        let ready = all_ready(&states);
        let components = states.into_iter().map(|state| ComponentStatus {
            component: state.component.to_string(),
            ready: state.problem.is_none(),
            problem: state.problem,
        });
        Status {
            peer_id: peer_id.clone(),
            name: self.reloader.name(),
            config: self.reloader.state(),
            contacts: tokio::time::timeout(TURN, self.contacts()).await.unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").into(),
            revision: env!("BUILD_REVISION").into(),
            uptime_seconds: self.started.elapsed().as_secs(),
            listen: self.network.listen_addresses().iter().map(|address| format!("{address}/p2p/{peer_id}")).collect(),
            store: self.storage.describe(),
            metrics: self.metrics_url.url(),
            web_config_problem: self.metrics_url.problem(),
            // 0 if the network hangs, which `components` reports.
            peers_connected: tokio::time::timeout(TURN, self.network.peers()).await.map_or(0, |peers| peers.len()),
            ready,
            components: components.collect(),
        }
    }

    async fn peers(&self) -> Vec<Peer> {
        let connected = self.network.peers().await.into_iter().map(|info| Peer {
            peer_id: info.peer.to_string(),
            address: Some(info.address.to_string()),
            direction: Some(info.direction),
            connections: info.connections,
            connected_seconds: info.connected_at.elapsed().as_secs(),
            agent: info.agent,
            link: info.link,
            gateway: None,
            contact: None,
        });
        let mut peers: Vec<Peer> = connected.collect();
        for contact in self.contacts().await {
            match peers.iter_mut().find(|peer| peer.peer_id == contact.peer_id) {
                Some(peer) => peer.contact = Some(contact),
                None => peers.push(Peer {
                    peer_id: contact.peer_id.clone(),
                    address: None,
                    direction: None,
                    connections: 0,
                    connected_seconds: 0,
                    agent: None,
                    link: false,
                    gateway: None,
                    contact: Some(contact),
                }),
            }
        }
        gateway::with_members(peers, self.gateway.as_ref())
    }

    /// In the order of the PeerIds.
    async fn contacts(&self) -> Vec<ContactReport> {
        let mut contacts: Vec<ContactReport> = self.network.contacts().await.into_iter().map(Into::into).collect();
        contacts.sort_by(|a, b| a.peer_id.cmp(&b.peer_id));
        contacts
    }

    async fn key(&self, key: Bytes, peer: Option<PeerId>, request: Request<Incoming>) -> Result<ApiResponse, ApiError> {
        let found = |value: Option<Bytes>| match value {
            Some(value) => Ok(bytes(value)),
            None => Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", "key not found")),
        };
        let method = request.method().clone();
        let value = if method == Method::PUT { self.body(request).await? } else { Bytes::new() };
        match peer {
            None if method == Method::GET => found(self.storage.get(&key).await?),
            None if method == Method::PUT => {
                self.storage.put(key, value).await?;
                Ok(no_content())
            }
            None => Ok(json(StatusCode::OK, &Deleted { deleted: self.storage.delete(key).await? })),
            Some(peer) => {
                let request = match method {
                    Method::GET => protocol::Request::Get { key },
                    Method::PUT => protocol::Request::Put { key, value },
                    _ => protocol::Request::Delete { key },
                };
                let expected = request.message_type();
                match self.network.request(peer, request).await? {
                    protocol::Response::Value(value) => found(value),
                    protocol::Response::Stored => Ok(no_content()),
                    protocol::Response::Deleted(deleted) => Ok(json(StatusCode::OK, &Deleted { deleted })),
                    _ => {
                        let text = format!("the peer's answer does not match the {expected} request");
                        Err(ApiError::new(StatusCode::BAD_GATEWAY, "peer", text))
                    }
                }
            }
        }
    }

    async fn body(&self, request: Request<Incoming>) -> Result<Bytes, ApiError> {
        limited(request, self.storage.max_value_size(), "the value", " that storage.max_value_size allows").await
    }

    async fn metrics(&self, request: &Request<Incoming>) -> Result<ApiResponse, ApiError> {
        use crate::metrics::ExposeError as E;
        if !BUILT_IN {
            let error = "this agent was built without metrics (cargo feature metrics-prometheus)";
            return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "no_metrics", error));
        }
        let accept = request.headers().get(hyper::header::ACCEPT).and_then(|accept| accept.to_str().ok());
        let accept = accept.unwrap_or_default();
        if let Some(query) = gateway::PageQuery::from_query(request.uri().query())? {
            return gateway::metrics(self.gateway.as_ref(), query, accept).await;
        }
        let page = self.exposer.expose(accept, request.uri().query(), false, MAKING).await.map_err(|error| {
            let (status, code) = match error {
                E::Busy(_) => (StatusCode::TOO_MANY_REQUESTS, "busy"),
                E::Late(_) => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
                E::Failed | E::NotBuiltIn => (StatusCode::INTERNAL_SERVER_ERROR, "metrics"),
            };
            ApiError::new(status, code, error.to_string())
        })?;
        let content_type = page.content_type_header();
        Ok(page_response(page.body, content_type))
    }
}

/// Reads a body of at most `limit` bytes. `what` it is, and what `allowed` the limit, is for the error.
async fn limited(request: Request<Incoming>, limit: usize, what: &str, allowed: &str) -> Result<Bytes, ApiError> {
    let mut body = request.into_body();
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(&mut body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let _ = tokio::time::timeout(BODY_TIMEOUT, discard(&mut body)).await;
            let error = format!("{what} is larger than the {limit} bytes{allowed}");
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", error))
        }
        Ok(Err(error)) => Err(ApiError::bad_request(format!("cannot read {what}: {error}"))),
        Err(_) => Err(ApiError::bad_request(format!("{what} did not arrive within {BODY_TIMEOUT:?}"))),
    }
}

/// Reads the rest of a rejected value, up to the size of the largest one that any agent accepts. If the connection were
/// closed while the client is still sending, it would be reset before the client sees the answer.
async fn discard(body: &mut Incoming) {
    let mut left = storage::LARGEST_VALUE;
    while left > 0
        && let Some(Ok(frame)) = body.frame().await
    {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
    }
}

/// The `peer` in a query string.
fn peer(query: Option<&str>) -> Result<Option<PeerId>, ApiError> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(None) };
    let Some(text) = query.strip_prefix("peer=") else {
        return Err(ApiError::bad_request(format!("`?{query}` is not a valid query; use ?peer=PEER_ID")));
    };
    let peer = text.parse().map_err(|_| ApiError::bad_request(format!("`{text}` is not a PeerId")))?;
    Ok(Some(peer))
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        use StorageError as E;
        let (status, code) = match &error {
            E::KeyEmpty => (StatusCode::BAD_REQUEST, "bad_request"),
            E::KeyTooLarge { .. } | E::ValueTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            E::Busy(_) => (StatusCode::TOO_MANY_REQUESTS, "busy"),
            E::DiskFull(_) => (StatusCode::INSUFFICIENT_STORAGE, "disk_full"),
            E::Starting(_) | E::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            E::Hangs { .. } | E::Timeout(_) => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
            E::Damaged(_) => (StatusCode::INTERNAL_SERVER_ERROR, "damaged"),
            E::Uncertain { .. } | E::Backend(_) => (StatusCode::INTERNAL_SERVER_ERROR, "storage"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        use RequestError as E;
        let (status, code) = match &error {
            E::Unreachable { .. } | E::Unsupported(_) => (StatusCode::BAD_GATEWAY, "unreachable"),
            E::Busy => (StatusCode::TOO_MANY_REQUESTS, "busy"),
            E::Timeout(_) => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
            E::LinkLost => (StatusCode::BAD_GATEWAY, "link_lost"),
            E::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            E::Unexpected => (StatusCode::BAD_GATEWAY, "peer"),
            E::Remote(error) => match error.code {
                ErrorCode::Refused => (StatusCode::FORBIDDEN, "refused"),
                ErrorCode::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
                ErrorCode::Busy => (StatusCode::TOO_MANY_REQUESTS, "busy"),
                ErrorCode::Timeout => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
                ErrorCode::Malformed => (StatusCode::BAD_REQUEST, "bad_request"),
                ErrorCode::Unspecified
                | ErrorCode::Unsupported
                | ErrorCode::Storage
                | ErrorCode::ShuttingDown
                | ErrorCode::Failed => (StatusCode::BAD_GATEWAY, "peer"),
            },
        };
        Self::new(status, code, error.to_string())
    }
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> ApiResponse {
    // The types of this module always serialise. If one did not, an empty object would still be valid JSON.
    let body = serde_json::to_vec(value).unwrap_or_else(|_| b"{}".to_vec());
    let mut answer = with_type(body.into(), HeaderValue::from_static("application/json"));
    *answer.status_mut() = status;
    answer
}

fn bytes(value: Bytes) -> ApiResponse {
    with_type(value, HeaderValue::from_static("application/octet-stream"))
}

/// A metrics page. Nothing asks for gzip here.
fn page_response(body: Bytes, content_type: Option<HeaderValue>) -> ApiResponse {
    with_type(body, content_type.unwrap_or_else(|| HeaderValue::from_static("text/plain")))
}

fn with_type(body: Bytes, content_type: HeaderValue) -> ApiResponse {
    let mut answer = Response::new(Full::new(body));
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer
}

fn no_content() -> ApiResponse {
    let mut answer = Response::new(Full::new(Bytes::new()));
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

fn method_not_allowed(allowed: &'static str) -> ApiResponse {
    let failure = ErrorResponse { code: "bad_request".into(), error: format!("method not allowed; use {allowed}") };
    let mut answer = json(StatusCode::METHOD_NOT_ALLOWED, &failure);
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

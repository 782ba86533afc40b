//! `prometheus-client`'s encoder behind hyper, as in its own example; gzip with the agent's crate and level.

use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::{Serving, names};
use crate::Result;
use crate::library::prometheus_client::PrometheusClient;
use crate::library::{Format, Page};
use crate::shape::Shape;

pub(super) fn start(shape: &Shape) -> Result<Serving> {
    let mut registry = PrometheusClient::default();
    registry.fill(shape);
    let recorder = registry.handles();
    let runtime = Runtime::new()?;
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    runtime.spawn(accept(listener, Arc::new(registry)));
    Ok(Serving::new(address, recorder, runtime))
}

async fn accept(listener: TcpListener, registry: Arc<PrometheusClient>) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let registry = Arc::clone(&registry);
        let service = service_fn(move |request: Request<Incoming>| {
            std::future::ready(Ok::<_, Infallible>(answer(&registry, request.headers())))
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

fn answer(registry: &PrometheusClient, headers: &HeaderMap) -> Response<Full<Bytes>> {
    page(registry, headers).unwrap_or_else(|error| {
        let mut response = Response::new(Full::from(error.to_string()));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

fn page(registry: &PrometheusClient, headers: &HeaderMap) -> Result<Response<Full<Bytes>>> {
    let (format, content_type) = if names(headers.get(ACCEPT), "application/vnd.google.protobuf") {
        (
            Format::Protobuf,
            "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
        )
    } else {
        (Format::OpenMetrics, "application/openmetrics-text; version=1.0.0; charset=utf-8")
    };
    let mut page = registry.encode(format)?;
    let gzip = names(headers.get(ACCEPT_ENCODING), "gzip");
    if gzip {
        let mut encoder = GzEncoder::new(Vec::with_capacity(page.len() / 8), Compression::fast());
        encoder.write_all(&page)?;
        page = encoder.finish()?.into();
    }
    let mut response = Response::new(Full::new(page));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if gzip {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}

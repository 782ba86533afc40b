//! `prometheus` behind an axum handler, compressed by tower-http's layer, as in most services.

use std::sync::Arc;

use axum::Router;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;

use super::{Serving, names};
use crate::Result;
use crate::library::prometheus::Prometheus;
use crate::library::{Format, Page};
use crate::shape::Shape;

pub(super) fn start(shape: &Shape) -> Result<Serving> {
    let registry = Prometheus::default();
    registry.fill(shape)?;
    let recorder = registry.handles()?;
    let registry = Arc::new(registry);
    // The agent's level, so that the comparison is of servers, not of levels. The layer's default is 6.
    let layer = CompressionLayer::new().quality(CompressionLevel::Fastest);
    let page = move |headers: HeaderMap| std::future::ready(page(&registry, &headers));
    let router = Router::new().route("/metrics", get(page)).layer(layer);
    let runtime = Runtime::new()?;
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    let listener = listener.tap_io(|stream| _ = stream.set_nodelay(true));
    runtime.spawn(async move { axum::serve(listener, router).await });
    Ok(Serving::new(address, recorder, runtime))
}

/// The page, made in the handler as is usual.
fn page(registry: &Prometheus, headers: &HeaderMap) -> Response {
    let (format, content_type) = if names(headers.get(ACCEPT), "application/vnd.google.protobuf") {
        (Format::Protobuf, prometheus::PROTOBUF_FORMAT)
    } else {
        (Format::Text, prometheus::TEXT_FORMAT)
    };
    match registry.encode(format) {
        Ok(page) => ([(CONTENT_TYPE, content_type)], page).into_response(),
        Err(error) => (axum::http::StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

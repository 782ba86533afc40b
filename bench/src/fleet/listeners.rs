//! The setup without a gateway, where every target can be reached: a plain HTTP endpoint for each, all in one process.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::page::{self, page};
use super::raise_descriptors;
use crate::Result;
use crate::process::announce_and_wait;

/// Serves `count` endpoints and prints their ports.
pub(super) fn serve(count: &str) -> Result<()> {
    raise_descriptors()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let page = Bytes::from(page());
    let mut ports = Vec::new();
    for _ in 0..count.parse()? {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        ports.push(listener.local_addr()?.port().to_string());
        runtime.spawn(accept(listener, page.clone()));
    }
    announce_and_wait(&ports.join(" "))
}

async fn accept(listener: TcpListener, page: Bytes) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let page = page.clone();
        let service = service_fn(move |_: Request<hyper::body::Incoming>| {
            let mut response = Response::new(Full::new(page.clone()));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(page::CONTENT_TYPE));
            std::future::ready(Ok::<_, Infallible>(response))
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

//! `metrics-exporter-prometheus`'s own listener: text, never compressed.

use std::net::TcpListener;

use tokio::runtime::Runtime;

use super::Serving;
use crate::Result;
use crate::library::metrics;
use crate::shape::Shape;

pub(super) fn start(shape: &Shape) -> Result<Serving> {
    // It does not report the port that it got, so choose one. Another process could take it first.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let runtime = Runtime::new()?;
    let listening = metrics::builder(shape)?.with_http_listener(address);
    let (recorder, exporter) = {
        // Creating the listener needs a runtime.
        let _entered = runtime.enter();
        listening.build()?
    };
    metrics::fill(&recorder, shape);
    let handles = metrics::Handles::new(&recorder);
    runtime.spawn(exporter);
    Ok(Serving::new(address, handles, runtime))
}

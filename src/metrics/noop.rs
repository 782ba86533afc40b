//! The same API as `collector.rs` for builds without the cargo feature `metrics-prometheus`:
//! zero-sized, and every call compiles to nothing.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::labels::{
    Backend, ConnectionRefusal, Contact, FailedMessage, FailureReason, HttpCode, HttpHandler, MessageType, Operation,
    PeerState, ScrapeOutcome, SendFailure, StorageErrorReason,
};
use super::{
    AgentInfo, EndpointOptions, ExposeError, ExternalUrl, Health, MetricsConfig, MissingLines, NativeHistograms, Page,
    UrlReader, WebConfig, WebConfigError, WebConfigSource,
};

/// Takes the place of the registry.
#[derive(Debug, Default)]
pub struct Registry {
    _private: (),
}

impl Registry {
    /// An empty registry.
    pub fn new(_: NativeHistograms) -> Self {
        Self::default()
    }
}

/// Records nothing.
#[derive(Debug, Clone)]
pub struct MetricsCollector;

/// Reads no clock.
#[derive(Debug, Clone, Copy)]
pub struct Timer;

impl Timer {
    /// Does nothing.
    #[inline(always)]
    #[must_use]
    pub fn start() -> Self {
        Self
    }
}

/// Counts nothing.
#[derive(Debug)]
pub struct UnderWay<'a>(PhantomData<&'a ()>);

// So that code can end it early with `drop` in both builds.
impl Drop for UnderWay<'_> {
    #[inline(always)]
    fn drop(&mut self) {}
}

#[allow(clippy::unused_self, missing_docs, reason = "the API of collector.rs, documented there")]
impl MetricsCollector {
    pub fn new(_: &Registry, _: &AgentInfo) -> Self {
        Self
    }
    pub fn set_agent(&self, _: &AgentInfo) {}
    pub fn config_read(&self, _: u64) {}
    pub fn config_rejected(&self) {}
    pub fn connection_refused(&self, _: ConnectionRefusal) {}
    pub fn set_bootstrap_peers(&self, _: Contact, _: usize) {}
    #[inline(always)]
    pub fn set_peers_connected(&self, _: usize) {}
    #[inline(always)]
    pub fn message_handled(&self, _: MessageType, _: Timer) {}
    #[inline(always)]
    pub fn message_failed(&self, _: FailedMessage, _: FailureReason) {}
    #[inline(always)]
    pub fn message_sent(&self, _: MessageType, _: Timer) {}
    #[inline(always)]
    pub fn send_failed(&self, _: MessageType, _: SendFailure) {}
    #[inline(always)]
    pub fn storage_started(&self, _: Backend) -> UnderWay<'_> {
        UnderWay(PhantomData)
    }
    #[inline(always)]
    pub fn storage_completed(&self, _: Operation, _: Backend, _: Timer, _: Result<(), StorageErrorReason>) {}
    #[inline(always)]
    pub fn local_commit(&self, _: usize) {}
    #[inline(always)]
    pub fn redis_reconnected(&self) {}
    #[inline(always)]
    pub fn redis_retried(&self) {}
    #[inline(always)]
    pub fn http_started(&self, _: HttpHandler) -> UnderWay<'_> {
        UnderWay(PhantomData)
    }
    #[inline(always)]
    pub fn http_answered(&self, _: HttpHandler, _: HttpCode) {}
    #[inline(always)]
    pub fn scraped(&self, _: Timer) {}
}

/// Records nothing: there is no gateway without an endpoint.
#[derive(Debug, Clone)]
pub struct GatewayMetrics;

#[allow(clippy::unused_self, missing_docs, reason = "the API of gateway.rs, documented there")]
impl GatewayMetrics {
    pub fn new(_: &Registry) -> Self {
        Self
    }
    pub fn scraped(&self, _: ScrapeOutcome, _: Timer) {}
    pub fn passed_on(&self, _: usize) {}
    pub fn set_peers(&self, _: PeerState, _: usize) {}
}

/// Shows nothing.
pub fn register_scrape_time(_: &Registry, _: &Health, _: &MissingLines) {}

/// Makes no pages.
#[derive(Debug, Clone)]
pub struct Exposer;

#[allow(clippy::unused_self, clippy::unused_async, missing_docs, reason = "the API of exposer.rs, documented there")]
impl Exposer {
    pub fn new(_: Arc<Registry>, _: MetricsCollector, _: usize) -> Self {
        Self
    }
    pub async fn expose(&self, _: &str, _: Option<&str>, _: bool, _: Duration) -> Result<Page, ExposeError> {
        Err(ExposeError::NotBuiltIn)
    }
}

/// Checks nothing: there is nothing to protect.
#[allow(clippy::missing_errors_doc, missing_docs, reason = "the API of server/web.rs, documented there")]
pub fn check_web_config(_: WebConfig) -> Result<(), String> {
    Ok(())
}

/// Reads nothing: there is nothing to protect.
#[derive(Debug)]
pub struct WebAccess;

#[allow(clippy::unused_self, missing_docs, reason = "the API of server/web.rs, documented there")]
impl WebAccess {
    pub fn open(_: WebConfigSource, _: &Registry) -> Result<Self, WebConfigError> {
        Ok(Self)
    }
    pub fn has_users(&self) -> bool {
        false
    }
    pub fn checks_certificates(&self) -> bool {
        false
    }
}

/// Changes nothing.
#[derive(Debug, Clone)]
pub struct EndpointHandle;

#[allow(clippy::unused_self, missing_docs, reason = "the API of server.rs, documented there")]
impl EndpointHandle {
    pub fn configure(&self, _: &MetricsConfig, _: &AgentInfo, _: Option<ExternalUrl>) {}
}

/// Serves nothing: this build rejects a configuration with `metrics.enabled: true`.
#[derive(Debug)]
pub struct MetricsServer;

#[allow(clippy::unused_self, clippy::unused_async, missing_docs, reason = "the API of server.rs, documented there")]
impl MetricsServer {
    pub fn start(
        _: &MetricsConfig,
        _: &AgentInfo,
        _: Arc<Registry>,
        _: MetricsCollector,
        _: Health,
        _: EndpointOptions,
    ) -> Self {
        tracing::warn!("this build has no metrics endpoint: it was built without the cargo feature metrics-prometheus");
        Self
    }
    pub fn url(&self) -> Option<String> {
        None
    }
    pub fn handle(&self) -> EndpointHandle {
        EndpointHandle
    }
    pub fn url_reader(&self) -> UrlReader {
        UrlReader::default()
    }
    pub async fn shutdown(self) {}
}

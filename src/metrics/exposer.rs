//! Makes expositions, a few at once, each on a thread for it: a collector that hangs must not take with it who
//! waits for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::accept;
use super::exposition::{self, FamilyFilter, Format};
use super::{ExposeError, MetricsCollector, Page, Registry, Timer};

/// Makes the expositions of one registry. Cloning shares the bound on how many are made at once.
#[derive(Debug, Clone)]
pub struct Exposer {
    registry: Arc<Registry>,
    collector: MetricsCollector,
    /// One permit for each exposition that may be made at once. It is held while the text is made, not
    /// while it is fetched: slow readers must not keep others out.
    permits: Arc<Semaphore>,
    limit: usize,
}

impl Exposer {
    /// Makes at most `limit` at once.
    pub fn new(registry: Arc<Registry>, collector: MetricsCollector, limit: usize) -> Self {
        Self { registry, collector, permits: Arc::new(Semaphore::new(limit)), limit }
    }

    /// The page for a client with this `Accept`, with the families that the query of its URL asks for
    /// ([`FamilyFilter::from_query`]); `gzip` says whether it takes that. A short page is not compressed. It is waited for
    /// no longer than `patience`.
    ///
    /// # Errors
    ///
    /// See [`ExposeError`].
    pub async fn expose(
        &self,
        accept: &str,
        query: Option<&str>,
        gzip: bool,
        patience: Duration,
    ) -> Result<Page, ExposeError> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| ExposeError::Busy(self.limit))?;
        let (format, filter) = (exposition::negotiate(accept), FamilyFilter::from_query(query));
        let (registry, collector) = (Arc::clone(&self.registry), self.collector.clone());
        let made = tokio::task::spawn_blocking(move || {
            let timer = Timer::start();
            let page = make(&registry, format, &filter, gzip);
            collector.scraped(timer);
            drop(permit);
            page
        });
        match tokio::time::timeout(patience, made).await {
            Ok(Ok(Ok(page))) => Ok(page),
            Ok(Ok(Err(error))) => Err(failed(&*error)),
            // It panicked; the panic itself is in the log.
            Ok(Err(error)) => Err(failed(&error)),
            Err(_) => Err(ExposeError::Late(patience)),
        }
    }
}

fn make(
    registry: &Registry,
    format: Format,
    filter: &FamilyFilter,
    gzip: bool,
) -> Result<Page, Box<dyn std::error::Error + Send + Sync>> {
    let body = exposition::render(registry, format, filter);
    let gzip = gzip && body.len() >= accept::GZIP_FROM;
    let body = if gzip { accept::gzip(&body)? } else { body };
    Ok(Page { content_type: Some(format.content_type().into()), gzip, body })
}

fn failed(error: &dyn std::fmt::Display) -> ExposeError {
    tracing::error!("a scrape could not be answered: {error}");
    ExposeError::Failed
}

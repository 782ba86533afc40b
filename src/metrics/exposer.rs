//! Makes metrics pages, a few at once, each on a blocking thread: a collector that hangs must not block the runtime
//! of the caller.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::exposition::{self, FamilyFilter};
use super::{ExposeError, MetricsCollector, Page, Registry, Timer};

/// Makes the metrics pages of one registry. Clones share the limit on how many are made at once.
#[derive(Debug, Clone)]
pub struct Exposer {
    registry: Arc<Registry>,
    collector: MetricsCollector,
    /// One permit for each page that may be made at once. It is held while the page is made, not while it
    /// is fetched: slow readers must not keep others out.
    permits: Arc<Semaphore>,
    limit: usize,
}

impl Exposer {
    /// Makes at most `limit` pages at once.
    pub fn new(registry: Arc<Registry>, collector: MetricsCollector, limit: usize) -> Self {
        Self { registry, collector, permits: Arc::new(Semaphore::new(limit)), limit }
    }

    /// The page for a client with this `Accept`, with the families that the query of its URL selects
    /// ([`FamilyFilter::from_query`]). `gzip` says whether the client accepts gzip; a short page is not compressed.
    /// Waits no longer than `patience`.
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
            let body = registry.render(format, &filter);
            let page = Page { content_type: Some(format.content_type().into()), gzip: false, body };
            let page = if gzip { page.compressed() } else { page };
            collector.scraped(timer);
            drop(permit);
            page
        });
        match tokio::time::timeout(patience, made).await {
            Ok(Ok(page)) => Ok(page),
            Ok(Err(panic)) => {
                tracing::error!("the metrics page could not be made: {panic}");
                Err(ExposeError::Failed)
            }
            Err(_) => Err(ExposeError::Late(patience)),
        }
    }
}

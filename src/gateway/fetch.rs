//! Reads a peer's page: the beginning, which decides whether it is passed on, and the rest as it arrives.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures::{FutureExt as _, Stream};
use tokio::time::Sleep;

use super::failure::ScrapeFailure;
use super::under_way::UnderWay;
use crate::metrics::labels::ScrapeOutcome;
use crate::metrics::{Broken, Page};
use crate::network::{PageBody, ScrapeError};

/// The largest page, in bytes, that is read completely before it is passed on: in one write, and with a failure still
/// reported as a status.
const SMALL: usize = 64 << 10;
/// How much of a larger page is held at a time, in bytes.
const CHUNK: usize = 16 << 10;

/// The bytes of a page, or the stream that they come from.
#[derive(Debug)]
pub(super) enum Body {
    Whole(Bytes),
    Coming(PageBody),
}

/// Checks what a peer announces, and reads all of a small page.
pub(super) async fn begin(
    incoming: Page<PageBody>,
    wants_gzip: bool,
    max_body: usize,
    deadline: Instant,
) -> Result<Page<Body>, ScrapeFailure> {
    let Page { content_type, gzip, body } = incoming;
    let len = body.left();
    if gzip && !wants_gzip {
        return Err(ScrapeFailure::new(
            ScrapeOutcome::Invalid,
            "the page is compressed, but the scraper does not accept gzip",
        ));
    }
    if len > max_body as u64 {
        let text = format!("the page is {len} bytes long; gateway.max_body_size allows {max_body} bytes");
        return Err(ScrapeFailure::new(ScrapeOutcome::TooLarge, text));
    }
    // It is passed on as a header.
    let content_type = content_type.filter(|text| text.bytes().all(|byte| matches!(byte, b' '..=b'~')));
    let body = match usize::try_from(len) {
        Ok(len) if len <= SMALL => Body::Whole(whole(body, len, deadline).await?),
        _ => Body::Coming(body),
    };
    Ok(Page { content_type, gzip, body })
}

async fn whole(mut body: PageBody, len: usize, deadline: Instant) -> Result<Bytes, ScrapeFailure> {
    let mut page = vec![0; len];
    let mut read = 0;
    let reading = async {
        while let Some(room) = page.get_mut(read..).filter(|room| !room.is_empty()) {
            read += body.read(room).await.map_err(lost)?;
        }
        Ok(())
    };
    match tokio::time::timeout_at(deadline.into(), reading).await {
        Ok(result) => result.map(|()| page.into()),
        Err(_) => Err(incomplete(read as u64)),
    }
}

fn incomplete(got: u64) -> ScrapeFailure {
    let text = format!("the page was not complete in time; {got} bytes had arrived");
    ScrapeFailure::new(ScrapeOutcome::Timeout, text)
}

/// Streams a large page no faster than the scraper reads it. Ends with an error if the page is not complete in time.
pub(super) struct Coming {
    body: PageBody,
    len: u64,
    has_failed: bool,
    deadline: Pin<Box<Sleep>>,
    /// The buffer for the next bytes.
    chunk: Vec<u8>,
    /// When the current wait for the peer began, if there is one.
    waiting_since: Option<Instant>,
    under_way: UnderWay,
}

impl Coming {
    pub(super) fn new(body: PageBody, under_way: UnderWay) -> Self {
        Self {
            len: body.left(),
            body,
            has_failed: false,
            chunk: Vec::new(),
            deadline: Box::pin(tokio::time::sleep_until(under_way.deadline.into())),
            waiting_since: None,
            under_way,
        }
    }

    /// Ends and counts the wait for the peer, if there is one.
    fn waited(&mut self) {
        if let Some(since) = self.waiting_since.take() {
            self.under_way.waited(since.elapsed());
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, ScrapeFailure>> {
        self.chunk.resize(CHUNK.min(usize::try_from(self.body.left()).unwrap_or(CHUNK)), 0);
        match self.body.poll_read(cx, &mut self.chunk) {
            Poll::Ready(read) => {
                self.waited();
                let mut chunk = std::mem::take(&mut self.chunk);
                chunk.truncate(read.map_err(lost)?);
                Poll::Ready(Ok(chunk.into()))
            }
            Poll::Pending => {
                self.waiting_since.get_or_insert_with(Instant::now);
                futures::ready!(self.deadline.poll_unpin(cx));
                self.waited();
                Poll::Ready(Err(incomplete(self.len - self.body.left())))
            }
        }
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.waited();
    }
}

impl Stream for Coming {
    type Item = Result<Bytes, Broken>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.has_failed || this.body.left() == 0 {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(match futures::ready!(this.poll_read(cx)) {
            Ok(bytes) => {
                if this.body.left() == 0 {
                    this.under_way.complete(this.len);
                }
                Ok(bytes)
            }
            Err(failure) => {
                this.has_failed = true;
                this.under_way.failed(&failure);
                Err(Broken(failure.text))
            }
        }))
    }
}

/// What a failure of the network means for a scrape.
pub(super) fn lost(error: ScrapeError) -> ScrapeFailure {
    use crate::network::protocol::ErrorCode;
    let outcome = match &error {
        ScrapeError::NotConnected => ScrapeOutcome::Disconnected,
        ScrapeError::Lost(_) => ScrapeOutcome::Lost,
        ScrapeError::Busy => ScrapeOutcome::Busy,
        ScrapeError::Timeout => ScrapeOutcome::Timeout,
        ScrapeError::Unsupported | ScrapeError::Malformed(_) => ScrapeOutcome::Invalid,
        ScrapeError::Remote(remote) => match remote.code {
            ErrorCode::Refused => ScrapeOutcome::Refused,
            ErrorCode::Timeout => ScrapeOutcome::Timeout,
            // An exporter's page that is over the peer's limit, not over this gateway's.
            ErrorCode::TooLarge => ScrapeOutcome::TooLarge,
            _ => ScrapeOutcome::Failed,
        },
    };
    let text = match &error {
        ScrapeError::Remote(remote) => format!("the peer reports: {remote}"),
        error => error.to_string(),
    };
    ScrapeFailure::new(outcome, text)
}

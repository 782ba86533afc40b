//! The beginning of a peer's page, where it is decided whether it is passed on; and the rest, as it comes.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures::{FutureExt as _, Stream};
use tokio::time::Sleep;

use super::scrape::{Failure, UnderWay};
use crate::metrics::Broken;
use crate::metrics::labels::ScrapeOutcome;
use crate::network::{IncomingPage, PageBody, ScrapeError};

/// A page of up to so many bytes is passed on as a whole: one answer, one write, and a failure has a status.
const SMALL: usize = 64 << 10;
/// How much of a larger one is held at a time.
const CHUNK: usize = 16 << 10;

/// A page whose bytes are there, or follow.
#[derive(Debug)]
pub(super) struct Page {
    /// `None` when the peer says none, or what cannot stand in a header.
    pub(super) content_type: Option<String>,
    pub(super) gzip: bool,
    pub(super) len: u64,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    Whole(Bytes),
    Coming(PageBody),
}

/// Looks at what a peer announces, and reads all of a small page.
pub(super) async fn begin(
    incoming: IncomingPage,
    wants_gzip: bool,
    max_body: usize,
    deadline: Instant,
) -> Result<Page, Failure> {
    let IncomingPage { content_type, gzip, len, body } = incoming;
    if gzip && !wants_gzip {
        return Err(Failure::new(ScrapeOutcome::Invalid, "the page is compressed, and the scraper does not take gzip"));
    }
    if len > max_body as u64 {
        let text = format!("the page has {len} bytes; gateway.max_body_size allows {max_body} bytes");
        return Err(Failure::new(ScrapeOutcome::TooLarge, text));
    }
    let can_stand = !content_type.is_empty() && content_type.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    let content_type = can_stand.then_some(content_type);
    let body = match usize::try_from(len) {
        Ok(len) if len <= SMALL => Body::Whole(whole(body, len, deadline).await?),
        _ => Body::Coming(body),
    };
    Ok(Page { content_type, gzip, len, body })
}

async fn whole(mut body: PageBody, len: usize, deadline: Instant) -> Result<Bytes, Failure> {
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

fn incomplete(got: u64) -> Failure {
    let text = format!("the page was not complete in time; {got} bytes of it had come");
    Failure::new(ScrapeOutcome::Timeout, text)
}

/// The bytes of a large page: what the scraper has not taken yet stays with the peer. Ends with an error when not all of
/// them come in time.
pub(super) struct Coming {
    body: PageBody,
    left: u64,
    got: u64,
    deadline: Pin<Box<Sleep>>,
    /// Room for what comes next.
    chunk: Vec<u8>,
    /// Since when the peer is waited for.
    waiting_since: Option<Instant>,
    under_way: UnderWay,
}

impl Coming {
    pub(super) fn new(body: PageBody, len: u64, under_way: UnderWay) -> Self {
        Self {
            body,
            left: len,
            got: 0,
            chunk: Vec::new(),
            deadline: Box::pin(tokio::time::sleep_until(under_way.deadline.into())),
            waiting_since: None,
            under_way,
        }
    }

    /// The peer was waited for until now, if it was.
    fn waited(&mut self) {
        if let Some(since) = self.waiting_since.take() {
            self.under_way.waited(since.elapsed());
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Failure>> {
        self.chunk.resize(CHUNK.min(usize::try_from(self.left).unwrap_or(CHUNK)), 0);
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
                Poll::Ready(Err(incomplete(self.got)))
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
        if this.left == 0 {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(match futures::ready!(this.poll_read(cx)) {
            Ok(bytes) => {
                this.left -= bytes.len() as u64;
                this.got += bytes.len() as u64;
                if this.left == 0 {
                    this.under_way.complete(this.got);
                }
                Ok(bytes)
            }
            Err(failure) => {
                this.left = 0;
                this.under_way.failed(&failure);
                Err(Broken(failure.text))
            }
        }))
    }
}

/// What a failure of the network means for a scrape.
pub(super) fn lost(error: ScrapeError) -> Failure {
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
            // An exporter's page, that is: over the limit of the peer, and not of this gateway.
            ErrorCode::TooLarge => ScrapeOutcome::TooLarge,
            _ => ScrapeOutcome::Failed,
        },
    };
    let text = match &error {
        ScrapeError::Remote(remote) => format!("the peer says: {remote}"),
        error => error.to_string(),
    };
    Failure::new(outcome, text)
}

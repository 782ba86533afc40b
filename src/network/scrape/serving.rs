//! The answering side of a scrape.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::io::{AsyncReadExt as _, AsyncWriteExt as _};
use futures::{AsyncRead, AsyncWrite, FutureExt as _};
use libp2p::{PeerId, Stream};
use tokio::time::{Instant, timeout, timeout_at};

use super::asking::read_head;
use super::{Context, ScrapeAnswer, ScrapeError, ScrapeRequest};
use crate::metrics::Page;
use crate::metrics::labels::{FailedMessage, FailureReason, MessageType};
use crate::network::Receipt;
use crate::network::protocol::scrape::{Ask, Head, HeadBody, MAX_ACCEPT, MAX_CONTENT_TYPE, PageHead};
use crate::network::protocol::{self, ErrorCode, RemoteError};

/// How long a peer may take to send an [`Ask`].
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a peer may keep a substream open between scrapes: longer than any sensible scrape interval.
const KEPT: Duration = Duration::from_secs(5 * 60);

/// The longest that this agent works on one scrape, however long the peer waits.
const LONGEST: Duration = Duration::from_secs(120);

/// How much longer than the peer this side waits. The peer's clock decides: when its time is up, it closes the
/// substream. If this side closed it first, the peer would take that for a lost connection.
const AFTER: Duration = Duration::from_secs(1);

/// Answers the scrapes that `peer` makes on this substream. If it has too many in progress (`busy`), answers only the
/// first one, with a refusal.
pub(super) fn serve(mut stream: Stream, peer: PeerId, context: Context, busy: bool) -> BoxFuture<'static, ()> {
    async move {
        let mut patience = ASK_TIMEOUT;
        loop {
            match next(&mut stream, patience, peer, &context, busy).await {
                Ok(true) if !busy => patience = KEPT,
                Ok(_) => break,
                Err(error) => return tracing::debug!(%peer, %error, "a scrape was not answered"),
            }
        }
        let _peer_gone = stream.close().await;
    }
    .boxed()
}

/// Answers the next scrape; returns `false` if there is none.
async fn next<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    patience: Duration,
    peer: PeerId,
    Context { requests, metrics }: &Context,
    busy: bool,
) -> Result<bool, ScrapeError> {
    let mut first = [0];
    match timeout(patience, stream.read(&mut first)).await {
        Ok(Ok(1..)) => {}
        // The peer is gone, or asks for nothing more.
        Ok(Ok(0) | Err(_)) | Err(_) => return Ok(false),
    }
    let mut rest = first.as_slice().chain(&mut *stream);
    let asked = timeout(ASK_TIMEOUT, read_head(&mut rest)).await.map_err(|_| ScrapeError::Timeout)?;
    let ask: Ask = asked.inspect_err(|error| {
        if matches!(error, ScrapeError::Malformed(_)) {
            metrics.message_failed(FailedMessage::Scrape, FailureReason::Malformed);
        }
    })?;
    // For refusals; what reaches the handler is measured by the handler's own receipt.
    let receipt = || Receipt::begin(metrics.clone(), MessageType::Scrape);
    let time = Duration::from_millis(ask.timeout_ms).min(LONGEST);
    let deadline = Instant::now() + time + AFTER;
    let work = async {
        if busy {
            let error = RemoteError::new(ErrorCode::Busy, "too many of your scrapes are in progress");
            return write(stream, Err(error), receipt()).await;
        }
        let request = match request(ask, time) {
            Ok(request) => request,
            Err(error) => return write(stream, Err(error), receipt()).await,
        };
        let made = requests.scrape(peer, request);
        let mut nothing = [0];
        let ScrapeAnswer { result, receipt } = tokio::select! {
            biased;
            answer = made => answer,
            // The peer must not send anything now: if it does, or closes the substream, it is no longer waiting. The
            // receipt is dropped with the work, and counts it as cancelled.
            _ = stream.read(&mut nothing) => return Err(ScrapeError::Lost("the peer gave up".into())),
        };
        write(stream, result, receipt).await
    };
    timeout_at(deadline, work).await.map_err(|_| ScrapeError::Timeout)??;
    Ok(true)
}

fn request(ask: Ask, timeout: Duration) -> Result<ScrapeRequest, RemoteError> {
    let Ask { accept, gzip, exposed, .. } = ask;
    // It becomes a header of the request to an exporter.
    if accept.len() > MAX_ACCEPT || !accept.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err(RemoteError::new(ErrorCode::Malformed, "the Accept header is too long or not ASCII"));
    }
    let exposed = (!exposed.is_empty()).then_some(exposed);
    Ok(ScrapeRequest { exposed, accept, gzip, timeout })
}

async fn write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    result: Result<Page, RemoteError>,
    receipt: Receipt,
) -> Result<(), ScrapeError> {
    let outcome = match &result {
        Ok(_) => Ok(()),
        Err(error) => Err(error.code),
    };
    let (head, body) = match result {
        Ok(page) => {
            let content_type = page.content_type.filter(|text| text.len() <= MAX_CONTENT_TYPE).unwrap_or_default();
            let head = PageHead { content_type: content_type.into(), gzip: page.gzip, len: page.body.len() as u64 };
            (HeadBody::Page(head), page.body)
        }
        Err(error) => (HeadBody::Error(error.into()), bytes::Bytes::new()),
    };
    let mut out = Vec::new();
    protocol::encode(&Head { body: Some(head) }, &mut out);
    receipt.complete(outcome);
    let lost = |error: std::io::Error| ScrapeError::Lost(error.to_string());
    stream.write_all(&out).await.map_err(lost)?;
    stream.write_all(&body).await.map_err(lost)?;
    stream.flush().await.map_err(lost)
}

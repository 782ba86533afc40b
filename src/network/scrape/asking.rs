//! The asking side of a scrape.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::AsyncRead;
use futures::io::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::Stream;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;

use super::{NoStream, Open, Opened, ScrapeError, ScrapeRequest};
use crate::metrics::Page;
use crate::network::protocol::scrape::{Ask, Head, HeadBody, MAX_CONTENT_TYPE, MAX_HEAD, PageHead};
use crate::network::protocol::{self, RemoteError};

/// The body of a peer's page, as it arrives. Dropping it early tells the peer that nobody is waiting for the rest.
pub struct PageBody {
    /// `None` once all of it has arrived.
    lent: Option<(Stream, oneshot::Sender<Stream>)>,
    left: u64,
}

impl std::fmt::Debug for PageBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageBody").field("left", &self.left).finish_non_exhaustive()
    }
}

impl PageBody {
    fn new(stream: Stream, back: oneshot::Sender<Stream>, left: u64) -> Self {
        let mut body = Self { lent: Some((stream, back)), left };
        body.give_back();
        body
    }

    /// Gives the substream back for the next scrape if the page is complete.
    fn give_back(&mut self) {
        if self.left == 0
            && let Some((stream, back)) = self.lent.take()
        {
            let _one_is_enough = back.send(stream); // another one has been lent since
        }
    }

    /// How many bytes of it have not been read yet; at first, as many as the peer announced.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Reads some of what is left into `buffer`, which must not be empty; returns 0 once all of it has been read.
    ///
    /// # Errors
    ///
    /// When the page ends before it is complete.
    pub async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ScrapeError> {
        std::future::poll_fn(|cx| self.poll_read(cx, buffer)).await
    }

    /// Like [`PageBody::read`], for use in a poll function.
    ///
    /// # Errors
    ///
    /// When the page ends before it is complete.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<usize, ScrapeError>> {
        let Some((stream, _)) = &mut self.lent else { return Poll::Ready(Ok(0)) };
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = Pin::new(stream).poll_read(cx, buffer.get_mut(..room).unwrap_or_default());
        let n = futures::ready!(read).map_err(|error| lost(&error))?;
        if n == 0 {
            return Poll::Ready(Err(ScrapeError::Lost(format!("{} bytes of the page are missing", self.left))));
        }
        self.left -= n as u64;
        self.give_back();
        Poll::Ready(Ok(n))
    }
}

/// Asks for a page over one connection.
pub(crate) async fn ask(opens: &mpsc::Sender<Open>, request: &ScrapeRequest) -> Result<Page<PageBody>, ScrapeError> {
    let mut out = Vec::new();
    protocol::encode(
        &Ask {
            timeout_ms: u64::try_from(request.timeout.as_millis()).unwrap_or(u64::MAX),
            accept: request.accept.clone(),
            gzip: request.gzip,
            exposed: request.exposed.clone().unwrap_or_default(),
        },
        &mut out,
    );
    let opened = open(opens, false).await?;
    let kept = opened.kept;
    match exchange(opened, &out).await {
        // The peer closed the kept substream just as it was taken. That is not a failure.
        Err(ScrapeError::Lost(_)) if kept => exchange(open(opens, true).await?, &out).await,
        result => result,
    }
}

async fn open(opens: &mpsc::Sender<Open>, fresh: bool) -> Result<Opened, ScrapeError> {
    let (caller, opened) = oneshot::channel();
    opens.try_send(Open { caller, fresh }).map_err(|error| match error {
        TrySendError::Full(_) => ScrapeError::Busy,
        TrySendError::Closed(_) => ScrapeError::Lost("it was just closed".into()),
    })?;
    match opened.await {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(NoStream::Unsupported)) => Err(ScrapeError::Unsupported),
        Ok(Err(NoStream::Failed(reason))) => Err(ScrapeError::Lost(reason)),
        Err(_) => Err(ScrapeError::Lost("it was just closed".into())),
    }
}

async fn exchange(opened: Opened, ask: &[u8]) -> Result<Page<PageBody>, ScrapeError> {
    let Opened { mut stream, back, .. } = opened;
    stream.write_all(ask).await.map_err(|error| lost(&error))?;
    stream.flush().await.map_err(|error| lost(&error))?;
    let head: Head = read_head(&mut stream).await?;
    match head.body {
        Some(HeadBody::Page(PageHead { content_type, gzip, len })) => {
            let can_be_kept = (1..=MAX_CONTENT_TYPE).contains(&content_type.len());
            let content_type = can_be_kept.then(|| content_type.into());
            Ok(Page { content_type, gzip, body: PageBody::new(stream, back, len) })
        }
        Some(HeadBody::Error(error)) => Err(ScrapeError::Remote(RemoteError::from(error))),
        None => Err(ScrapeError::Malformed("it is of a type that this agent does not know".into())),
    }
}

/// Reads one message with its length, and not a byte more: what follows is not a message.
pub(super) async fn read_head<M: prost::Message + Default>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<M, ScrapeError> {
    let mut len = 0usize;
    let mut shift = 0;
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.map_err(|error| lost(&error))?;
        let [byte] = byte;
        len |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
        shift += 7;
        if shift > 14 {
            return Err(ScrapeError::Malformed("the length prefix of its head is too long".into()));
        }
    }
    if len > MAX_HEAD {
        return Err(ScrapeError::Malformed(format!("its head has {len} bytes; at most {MAX_HEAD} are allowed")));
    }
    let mut message = vec![0; len];
    stream.read_exact(&mut message).await.map_err(|error| lost(&error))?;
    M::decode(message.as_slice()).map_err(|error| ScrapeError::Malformed(error.to_string()))
}

fn lost(error: &io::Error) -> ScrapeError {
    ScrapeError::Lost(match error.kind() {
        io::ErrorKind::UnexpectedEof => "the peer closed it".into(),
        _ => error.to_string(),
    })
}

//! Reads a peer's page, never more of it than the limits allow, and checks it on the way.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use flate2::write::GzDecoder;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::scrape::Failure;
use super::validate::{BodyFormat, Invalid, Validator};
use crate::metrics::labels::ScrapeOutcome;
use crate::network::{IncomingPage, ScrapeError};

/// What every page may hold without asking. Only what goes beyond shares [`MAX_LARGE_KIB`], so that whoever sends
/// large pages takes nothing from those who send small ones.
const SMALL: usize = 256 << 10;
/// What all pages together may hold beyond [`SMALL`] each, in KiB.
const MAX_LARGE_KIB: usize = 256 << 10;
/// How much more room a page is given at a time.
const STEP: usize = 1 << 20;
/// The most that is read at once.
const READ: usize = 64 << 10;
/// How much of a compressed page is unpacked at once: gzip makes at most 1032 times as much of it.
const UNPACK: usize = 1 << 10;
/// After so many bytes checked, others get their turn.
const TURN: usize = 256 << 10;

/// A page that can be passed on.
#[derive(Debug, Clone)]
pub(super) struct Page {
    pub(super) content_type: String,
    pub(super) gzip: bool,
    pub(super) body: Bytes,
}

/// What large pages share.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<Semaphore>);

impl Budget {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_LARGE_KIB)))
    }
}

/// Reads all of a page. `got` tells how far it has come.
pub(super) async fn page(
    mut incoming: IncomingPage,
    wants_gzip: bool,
    max_body: usize,
    budget: &Budget,
    got: &AtomicU64,
) -> Result<Page, Failure> {
    let format = BodyFormat::from_content_type(&incoming.content_type)
        .filter(|_| incoming.content_type.bytes().all(|byte| matches!(byte, b' '..=b'~')))
        .ok_or_else(|| {
            let text = format!("`{}` is no content type of metrics", incoming.content_type.escape_default());
            Failure::new(ScrapeOutcome::Invalid, text)
        })?;
    if incoming.gzip && !wants_gzip {
        return Err(Failure::new(ScrapeOutcome::Invalid, "the page is compressed, and nobody asked for that"));
    }
    let announced = usize::try_from(incoming.len).unwrap_or(usize::MAX);
    if announced > max_body {
        return Err(too_large(&format!("the page has {announced} bytes"), max_body));
    }
    let mut check = Check::new(format, incoming.gzip, max_body);
    let mut body = Vec::with_capacity(announced.min(SMALL) + 1);
    let mut permits: Option<OwnedSemaphorePermit> = None;
    loop {
        let begin = body.len();
        if begin + READ > SMALL {
            reserve(&mut permits, begin + READ.min(announced - begin), budget)?;
        }
        // Not by doubling: what is taken is what the budget was asked for, give or take a step.
        if body.capacity() < begin + READ.min(announced - begin).max(1) {
            body.reserve_exact((announced - begin).clamp(1, STEP));
        }
        body.resize(begin + READ.min(announced - begin).max(1), 0);
        let room = body.get_mut(begin..).unwrap_or_default();
        let n = incoming.body.read(room).await.map_err(lost)?;
        body.truncate(begin + n);
        if n == 0 {
            break;
        }
        got.store(body.len() as u64, Ordering::Relaxed);
        check.feed(body.get(begin..).unwrap_or_default()).await?;
    }
    check.finish()?;
    let body = Bytes::from_owner(Held { body, _permits: permits });
    Ok(Page { content_type: incoming.content_type, gzip: incoming.gzip, body })
}

/// Bytes that give back their part of the budget when nobody reads them any more.
struct Held {
    body: Vec<u8>,
    _permits: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// Takes from the budget what a page of `len` bytes needs, or gives up at once: pages that wait for each other while
/// each holds a part would wait for ever.
fn reserve(permits: &mut Option<OwnedSemaphorePermit>, len: usize, budget: &Budget) -> Result<(), Failure> {
    let needed = len.saturating_sub(SMALL).div_ceil(1 << 10);
    let held = permits.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
    let Ok(more @ 1..) = u32::try_from(needed.saturating_sub(held)) else { return Ok(()) };
    let more = Arc::clone(&budget.0).try_acquire_many_owned(more).map_err(|_| {
        Failure::new(ScrapeOutcome::Busy, "too many large pages are under way at this gateway; try again later")
    })?;
    match permits {
        Some(held) => held.merge(more),
        None => *permits = Some(more),
    }
    Ok(())
}

/// Checks a page as it comes, unpacked where it is compressed.
struct Check {
    input: Input,
    /// Bytes taken in and bytes checked since others had their turn.
    since_turn: usize,
}

enum Input {
    Plain(Box<Sink>),
    Gzip(Box<GzDecoder<Sink>>),
}

impl Check {
    fn new(format: BodyFormat, gzip: bool, max_body: usize) -> Self {
        let sink = Sink { validator: Validator::new(format), len: 0, max_body };
        let input = if gzip { Input::Gzip(Box::new(GzDecoder::new(sink))) } else { Input::Plain(Box::new(sink)) };
        Self { input, since_turn: 0 }
    }

    async fn feed(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let piece = if matches!(self.input, Input::Gzip(_)) { UNPACK } else { READ };
        for piece in bytes.chunks(piece) {
            self.since_turn += match &mut self.input {
                Input::Plain(sink) => sink.write_all(piece).map(|()| piece.len()),
                Input::Gzip(decoder) => {
                    let before = decoder.get_ref().len;
                    decoder.write_all(piece).map(|()| piece.len() + decoder.get_ref().len - before)
                }
            }
            .map_err(failure)?;
            if self.since_turn >= TURN {
                self.since_turn = 0;
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<(), Failure> {
        let sink = match self.input {
            Input::Plain(sink) => *sink,
            Input::Gzip(decoder) => decoder.finish().map_err(failure)?,
        };
        sink.validator.finish().map_err(|invalid| invalid_page(&invalid))
    }
}

/// Where unpacked bytes go: they are checked and counted, not kept.
struct Sink {
    validator: Validator,
    len: usize,
    max_body: usize,
}

/// What is wrong with a page, inside the error that `Write` and flate2 want.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{0}")]
    Invalid(Invalid),
    #[error("the unpacked page is too large")]
    TooLarge(usize),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.len += bytes.len();
        if self.len > self.max_body {
            return Err(io::Error::other(Problem::TooLarge(self.max_body)));
        }
        self.validator.feed(bytes).map_err(|invalid| io::Error::other(Problem::Invalid(invalid)))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn failure(error: io::Error) -> Failure {
    match error.downcast::<Problem>() {
        Ok(Problem::Invalid(invalid)) => invalid_page(&invalid),
        Ok(Problem::TooLarge(max)) => too_large("the unpacked page has more", max),
        Err(error) => Failure::new(ScrapeOutcome::Invalid, format!("the page is no whole gzip: {error}")),
    }
}

fn invalid_page(invalid: &Invalid) -> Failure {
    Failure::new(ScrapeOutcome::Invalid, format!("the page is not valid: {invalid}"))
}

fn too_large(what: &str, max: usize) -> Failure {
    Failure::new(ScrapeOutcome::TooLarge, format!("{what}; gateway.max_body_size allows {max} bytes"))
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

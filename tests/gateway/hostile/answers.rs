//! What hostile peers answer to a scrape, and the expected results.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _};
use libp2p::core::muxing::SubstreamBox;
use peerscope::network::protocol::scrape::{Head, HeadBody};
use peerscope::network::protocol::{self, ErrorBody, ErrorCode};

use super::super::scene::{TEXT, accepting, head, read_ask};
use crate::support::raw_peer::Offer;

/// The gateway's `max_body_size` in these tests.
pub(super) const CAP: usize = 1 << 20;

pub(super) type Serve = Arc<dyn Fn(Offer) -> BoxFuture<'static, ()> + Send + Sync>;

/// One kind of attack, and its expected result.
pub(super) struct Case {
    pub(super) what: &'static str,
    pub(super) serve: Serve,
    pub(super) status: u16,
    pub(super) outcome: &'static str,
    /// The error contains one of these.
    pub(super) sentences: &'static [&'static str],
}

impl Case {
    fn new<F>(
        what: &'static str,
        (status, outcome): (u16, &'static str),
        sentences: &'static [&'static str],
        serve: impl Fn(SubstreamBox) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self { what, serve: Arc::new(accepting(serve)), status, outcome, sentences }
    }

    /// A peer that sends these bytes and closes the substream.
    fn bytes(
        what: &'static str,
        expected: (u16, &'static str),
        sentences: &'static [&'static str],
        bytes: Vec<u8>,
    ) -> Self {
        let bytes = Arc::new(bytes);
        Self::new(what, expected, sentences, move |stream| send(stream, Arc::clone(&bytes)))
    }
}

const OK: (u16, &str) = (200, "ok");
const INVALID: (u16, &str) = (502, "invalid");
const FAILED: (u16, &str) = (502, "failed");
const LOST: (u16, &str) = (502, "lost");
const TOO_LARGE: (u16, &str) = (502, "too_large");
const TIMEOUT: (u16, &str) = (504, "timeout");

/// Reads the request, sends these bytes and closes the substream.
async fn send(mut stream: SubstreamBox, bytes: Arc<Vec<u8>>) {
    read_ask(&mut stream).await;
    // A gateway that has read enough may be gone.
    let _ = stream.write_all(&bytes).await;
    let _ = stream.close().await;
    wait(stream).await;
}

/// Waits until the gateway has ended the substream, so that its answer is not about a dropped substream.
async fn wait(mut stream: SubstreamBox) {
    while stream.read(&mut [0; 64]).await.is_ok_and(|n| n > 0) {}
}

/// A head, followed by the body that it announces.
pub(super) fn whole(content_type: &str, gzip: bool, body: &[u8]) -> Vec<u8> {
    [head(content_type, gzip, body.len()), body.to_vec()].concat()
}

fn error(code: i32, message: &str) -> Vec<u8> {
    let body = HeadBody::Error(ErrorBody { code, message: message.into() });
    let mut bytes = Vec::new();
    protocol::encode(&Head { body: Some(body) }, &mut bytes);
    bytes
}

pub(super) const PAGE: &[u8] = b"# TYPE a gauge\na 1\n";

/// Accepts no substream.
pub(super) fn mute() -> Serve {
    Arc::new(|offer| {
        async move {
            let _never_agreed_to = offer;
            std::future::pending().await
        }
        .boxed()
    })
}

/// Answers correctly.
pub(super) fn good() -> Serve {
    let page = Arc::new(whole(TEXT, false, PAGE));
    Arc::new(accepting(move |stream| send(stream, Arc::clone(&page))))
}

/// All kinds of wrong answers.
pub(super) fn cases() -> Vec<Case> {
    [bodies(), heads(), silences()].into_iter().flatten().collect()
}

fn bodies() -> Vec<Case> {
    let over = "the page is 1048577 bytes long; gateway.max_body_size allows 1048576 bytes";
    let over: &'static [&'static str] = Box::leak(Box::new([over]));
    vec![
        Case::bytes("announces more than the cap", TOO_LARGE, over, head(TEXT, false, CAP + 1)),
        Case::bytes(
            "continues after its end",
            OK,
            &[],
            [head(TEXT, false, PAGE.len()), PAGE.to_vec(), b"b 1\n".to_vec()].concat(),
        ),
        Case::bytes(
            "ends too early",
            LOST,
            &["the connection was lost before the answer was complete: 100 bytes of the page are missing"],
            [head(TEXT, false, PAGE.len() + 100), PAGE.to_vec()].concat(),
        ),
        Case::bytes("announces the largest length", TOO_LARGE, &["the page is 18446744073709551615 bytes long"], {
            head(TEXT, false, usize::MAX)
        }),
    ]
}

fn heads() -> Vec<Case> {
    let evil = format!("no\r\nX-Evil: 1\r\n\r\n\u{1b}[2J{}", "x".repeat(1900));
    let no_such_kind = vec![2, 0x7a, 0]; // field 15
    vec![
        Case::bytes("an endless length", INVALID, &["the length prefix of its head is too long"], vec![0x80; 64]),
        Case::bytes("a long head", INVALID, &["its head has 2049 bytes; at most 2048 are allowed"], {
            [vec![0x81, 0x10], vec![0; 2049]].concat()
        }),
        Case::bytes("an invalid head", INVALID, &["the answer is malformed: "], [&[9][..], &[0xff; 9]].concat()),
        Case::bytes("a head of another kind", INVALID, &["it is of a type that this agent does not know"], {
            no_such_kind
        }),
        Case::bytes("a long content type", OK, &[], whole(&"t".repeat(257), false, PAGE)),
        Case::bytes("a content type that continues as a header", OK, &[], {
            whole("text/plain\r\nX-Evil: 1", false, PAGE)
        }),
        Case::bytes("no content type", OK, &[], whole("", false, PAGE)),
        Case::bytes("an error that continues as headers", FAILED, &["the peer reports: no  X-Evil: 1     [2Jxxx"], {
            error(0, &evil)
        }),
        Case::bytes("a long error", INVALID, &["bytes; at most 2048 are allowed"], error(0, &"x".repeat(10_000))),
        Case::bytes("an error with an unknown code", FAILED, &["the peer reports: what?"], error(4711, "what?")),
        Case::bytes("a false timeout", TIMEOUT, &["the peer reports: it took too long"], {
            error(ErrorCode::Timeout.into(), "it took too long")
        }),
        Case::bytes("nothing", LOST, &["the connection was lost before the answer was complete"], Vec::new()),
    ]
}

fn silences() -> Vec<Case> {
    let late = &["bytes had arrived", "the peer did not answer in time"];
    vec![
        Case {
            what: "never accepts a substream",
            serve: mute(),
            status: TIMEOUT.0,
            outcome: TIMEOUT.1,
            sentences: late,
        },
        Case::new("never answers", TIMEOUT, late, wait),
        Case::new("drips", TIMEOUT, &["bytes had arrived"], |mut stream| async move {
            read_ask(&mut stream).await;
            let _ = stream.write_all(&head(TEXT, false, 1000)).await;
            // Ends with the substream.
            while stream.write_all(b"#").await.is_ok() && stream.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }),
        Case::new("drips a head", TIMEOUT, late, |mut stream| async move {
            read_ask(&mut stream).await;
            let _ = stream.write_all(&[200, 1]).await;
            while stream.write_all(&[0]).await.is_ok() && stream.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }),
        Case::new("resets at once", LOST, &["the connection was lost before the answer was complete"], {
            |stream| async { drop(stream) }
        }),
    ]
}

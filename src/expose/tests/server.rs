//! A hand-written exporter, which sends exactly the bytes that a test gives it.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;

/// A listener on a free port.
pub(super) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Answers one request with these bytes and closes the connection. Returns the head of the request.
pub(super) async fn answering(answer: impl Into<Vec<u8>>) -> (SocketAddr, JoinHandle<String>) {
    let (listener, address) = listener().await;
    let answer = answer.into();
    let served = tokio::spawn(async move {
        let (head, mut stream) = asked(&listener).await;
        // A client that has read enough may be gone by now.
        let _ = stream.write_all(&answer).await;
        let _ = stream.shutdown().await;
        head
    });
    (address, served)
}

/// The next connection, and the head of the request on it.
pub(super) async fn asked(listener: &TcpListener) -> (String, TcpStream) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    (String::from_utf8(head).unwrap(), stream)
}

/// Waits until the client has closed the connection.
pub(super) async fn closed(mut stream: TcpStream) {
    let mut rest = Vec::new();
    // A reset also closes it.
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
}

pub(super) fn exposed(address: SocketAddr) -> Exposed {
    let url = format!("http://{address}/metrics?secret=1").parse().unwrap();
    Exposed { name: "node".parse().unwrap(), url, remote: false }
}

pub(super) const OPTIONS: FetchOptions<'static> =
    FetchOptions { accept: "text/plain;version=0.0.4;q=0.5,*/*;q=0.1", gzip: true, timeout: Duration::from_secs(20) };

pub(super) const MAX_BODY: usize = 1000;

/// The result of a fetch from an exporter that sends this answer.
pub(super) async fn fetched(answer: impl Into<Vec<u8>>) -> Result<Page, FetchError> {
    let (address, served) = answering(answer).await;
    let fetched = fetch(&exposed(address), OPTIONS, MAX_BODY).await;
    served.await.unwrap();
    fetched
}

/// The error for this answer, without its prefix. Checks that it reveals nothing.
pub(super) async fn refused(answer: impl Into<Vec<u8>>) -> String {
    told(fetched(answer).await)
}

#[track_caller]
pub(super) fn told(fetched: Result<Page, FetchError>) -> String {
    let error = fetched.unwrap_err();
    let told = error.to_string();
    for secret in ["127", "localhost", "http:", "metrics", "secret"] {
        assert!(!told.contains(secret), "{told}");
    }
    assert!(error.detail().starts_with(&format!("{told} (http://")), "{}", error.detail());
    assert!(!error.detail().contains("secret"), "{}", error.detail());
    told.strip_prefix("the exporter `node` ").unwrap_or_else(|| panic!("{told}")).to_owned()
}

/// An answer with this head (after the status line) and body.
pub(super) fn ok(head: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\n{head}\r\n").as_bytes(), body].concat()
}

//! Fetches from real sockets. The exporter at the other end sends exactly the bytes that a test gives it.

mod bounds;
mod server;
mod urls;

use tokio::io::AsyncWriteExt as _;

use self::server::{MAX_BODY, OPTIONS, answering, asked, closed, exposed, fetched, listener, ok, refused, told};
use super::*;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

fn page(gzip: bool, body: &'static [u8]) -> Page {
    Page { content_type: Some(TEXT.into()), gzip, body: body.into() }
}

#[tokio::test]
async fn pages_arrive_as_they_were_sent() {
    let typed = format!("Content-Type: {TEXT}\r\n");
    let plain = fetched(ok(&format!("{typed}Content-Length: 4\r\n"), b"up 1")).await.unwrap();
    assert_eq!(plain, page(false, b"up 1"));
    // Compressed bytes are not checked; that is left to the scraper.
    for coding in ["gzip", "GZIP", "x-gzip"] {
        let head = format!("{typed}Content-Encoding: {coding}\r\nContent-Length: 3\r\n");
        assert_eq!(fetched(ok(&head, b"\x1f\x8b\x08")).await.unwrap(), page(true, b"\x1f\x8b\x08"));
    }
    let chunked = format!("{typed}Content-Encoding: identity\r\nTransfer-Encoding: chunked\r\n");
    let body = b"3\r\nup \r\n1;x=y\r\n1\r\n0\r\nTrailer: x\r\n\r\n";
    assert_eq!(fetched(ok(&chunked, body)).await.unwrap(), page(false, b"up 1"));
    // HTTP/1.0: the end of the connection ends the body.
    assert_eq!(fetched(ok(&typed, b"up 1")).await.unwrap(), page(false, b"up 1"));
    assert_eq!(fetched(format!("HTTP/1.0 200 OK\r\n{typed}\r\nup 1")).await.unwrap(), page(false, b"up 1"));
    let interim = [b"HTTP/1.1 103 Early Hints\r\n\r\n".as_slice(), &ok(&format!("{typed}Content-Length: 0\r\n"), b"")];
    assert_eq!(fetched(interim.concat()).await.unwrap(), page(false, b""));
}

#[tokio::test]
async fn the_exporter_gets_the_scrapers_headers() {
    let answer = || ok(&format!("Content-Type: {TEXT}\r\nContent-Length: 0\r\n"), b"");
    let (address, served) = answering(answer()).await;
    fetch(&exposed(address), OPTIONS, MAX_BODY).await.unwrap();
    let head = served.await.unwrap();
    let (before, rest) = head.split_once("x-prometheus-scrape-timeout-seconds: ").unwrap();
    let (seconds, after) = rest.split_once("\r\n").unwrap();
    assert_eq!(
        format!("{before}{after}"),
        format!(
            "GET /metrics?secret=1 HTTP/1.1\r\nhost: {address}\r\nuser-agent: peerscope/{}\r\n\
             accept: text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\naccept-encoding: gzip\r\nconnection: close\r\n\r\n",
            env!("CARGO_PKG_VERSION")
        )
    );
    let seconds: f64 = seconds.parse().unwrap();
    assert!((1.0..=20.0).contains(&seconds), "{seconds}");

    let (address, served) = answering(answer()).await;
    fetch(&exposed(address), FetchOptions { accept: "", gzip: false, ..OPTIONS }, MAX_BODY).await.unwrap();
    let head = served.await.unwrap();
    assert!(head.contains("\r\naccept-encoding: identity\r\n") && !head.contains("\r\naccept: "), "{head}");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let (elsewhere, address) = listener().await;
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let answer = format!("HTTP/1.1 {status}\r\nLocation: http://{address}/\r\nContent-Length: 0\r\n\r\n");
        let expected = format!("answered with a redirect ({status}), which is not followed");
        assert_eq!(refused(answer).await, expected);
    }
    // The first connection there is ours: nothing has followed the redirects.
    let ours = TcpStream::connect(address).await.unwrap();
    assert_eq!(elsewhere.accept().await.unwrap().1, ours.local_addr().unwrap());
}

#[tokio::test]
async fn only_a_200_is_a_page() {
    let answer = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Type: {TEXT}\r\nContent-Length: 0\r\n\r\n");
    for status in ["500 Internal Server Error", "404 Not Found", "401 Unauthorized", "204 No Content"] {
        assert_eq!(refused(answer(status)).await, format!("answered with {status}"));
    }
    // The exporter's own text after the number is not repeated.
    assert_eq!(refused(answer("503 see http://10.0.0.1/")).await, "answered with 503 Service Unavailable");
}

#[tokio::test]
async fn a_content_type_is_passed_on_only_if_it_is_valid_in_a_header() {
    let answer = |value: &[u8]| {
        [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Type: ".as_slice(), value, b"\r\n\r\n"].concat()
    };
    assert_eq!(fetched(ok("Content-Length: 4\r\n", b"up 1")).await.unwrap().content_type, None);
    for value in [b" ".as_slice(), b"text/pl\xe4in", b"text/plain\tx", &[b'x'; 257], b"a/b\r\nContent-Type: c/d"] {
        assert_eq!(fetched(answer(value)).await.unwrap().content_type, None);
    }
    for value in ["text/html", "what?", &"x".repeat(256)] {
        assert_eq!(fetched(answer(value.as_bytes())).await.unwrap().content_type.as_deref(), Some(value));
    }
}

#[tokio::test]
async fn an_encoding_that_was_not_asked_for_is_refused() {
    let encoding = "answered with an encoding that was not requested";
    for head in [
        "Content-Encoding: br\r\nContent-Length: 0\r\n",
        "Content-Encoding: gzip, gzip\r\nContent-Length: 0\r\n",
        "Content-Encoding: gzip\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
    ] {
        let answer = ok(&format!("Content-Type: {TEXT}\r\n{head}"), b"0\r\n\r\n");
        assert_eq!(refused(answer).await, encoding, "{head}");
    }
    let gzip = ok(&format!("Content-Type: {TEXT}\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n"), b"");
    let (address, _) = answering(gzip).await;
    assert_eq!(told(fetch(&exposed(address), FetchOptions { gzip: false, ..OPTIONS }, MAX_BODY).await), encoding);
}

#[tokio::test]
async fn an_incomplete_answer_is_an_error() {
    let closed = "closed the connection before its answer was complete";
    let typed = format!("Content-Type: {TEXT}\r\n");
    for answer in [
        Vec::new(),
        b"HTTP/1.1 200 OK\r\nContent-Ty".to_vec(),
        ok(&format!("{typed}Content-Length: 5\r\n"), b"up 1"),
        ok(&format!("{typed}Content-Length: 5\r\n"), b""),
        ok(&format!("{typed}Transfer-Encoding: chunked\r\n"), b"4\r\nup 1\r\n"),
        ok(&format!("{typed}Transfer-Encoding: chunked\r\n"), b"4\r\nup"),
        ok(&format!("{typed}Transfer-Encoding: chunked\r\n"), b""),
    ] {
        let shown = String::from_utf8_lossy(&answer).into_owned();
        assert_eq!(refused(answer).await, closed, "{shown}");
    }
    let garbage = "did not answer with valid HTTP/1.1";
    for answer in [
        b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(),
        b"\0\x01\x02\xff garbage\r\n\r\n".to_vec(),
        b"HTTP/2.0 200 OK\r\n\r\n".to_vec(),
        ok("Content-Length: x\r\n", b""),
        ok("Content-Length: 1\r\nContent-Length: 2\r\n", b"up"),
        ok(&format!("{typed}Transfer-Encoding: chunked\r\n"), b"up 1\r\n"),
        ok(&format!("{typed}Transfer-Encoding: chunked\r\n"), b"fffffffffffffffff\r\n"),
    ] {
        let shown = String::from_utf8_lossy(&answer).into_owned();
        assert_eq!(refused(answer).await, garbage, "{shown}");
    }
}

#[tokio::test]
async fn an_exporter_that_is_down_is_distinguished_from_one_on_another_machine() {
    let (listener, address) = listener().await;
    drop(listener);
    let error = fetch(&exposed(address), OPTIONS, MAX_BODY).await.unwrap_err();
    assert_eq!(error.to_string(), "the exporter `node` cannot be reached: connection refused");
    assert_eq!(error.detail(), format!("{error} (http://{address}/metrics: Connection refused (os error 111))"));

    let mut target = exposed(address);
    for url in ["http://10.0.0.1/m", "http://host.invalid/m", "http://[::ffff:127.0.0.1]/m", "http://0.0.0.0/m"] {
        target.url = url.parse().unwrap();
        let error = told(fetch(&target, OPTIONS, MAX_BODY).await);
        assert_eq!(error, "is not on this machine, and its entry does not set `remote: true`");
    }
}

/// `localhost` never depends on a resolver, and an exporter that listens on IPv4 only is found.
#[tokio::test]
async fn localhost_is_this_machine() {
    let (address, served) = answering(ok(&format!("Content-Type: {TEXT}\r\nContent-Length: 0\r\n"), b"")).await;
    let mut target = exposed(address);
    target.url = format!("http://localhost:{}/metrics", address.port()).parse().unwrap();
    fetch(&target, OPTIONS, MAX_BODY).await.unwrap();
    assert!(served.await.unwrap().contains(&format!("\r\nhost: localhost:{}\r\n", address.port())));
    assert_eq!(
        addresses(&target).await.unwrap(),
        [(Ipv4Addr::LOCALHOST, address.port()).into(), (Ipv6Addr::LOCALHOST, address.port()).into()]
    );
}

#[tokio::test]
async fn an_exporter_on_another_machine_is_fetched_if_its_entry_allows_it() {
    let mut target = exposed(([10, 0, 0, 1], 9100).into());
    target.remote = true;
    assert_eq!(addresses(&target).await.unwrap(), [([10, 0, 0, 1], 9100).into()]);
    let unknown = FetchError::new(&target, FetchCause::Unresolved(io::Error::other("no such host")));
    assert_eq!(unknown.to_string(), "the exporter `node` cannot be reached: no address found for its host name");
    assert_eq!(unknown.detail(), format!("{unknown} (http://10.0.0.1:9100/metrics: no such host)"));
}

/// An address that refuses the connection and one that drops every packet leave time for the next one.
#[tokio::test]
async fn every_address_gets_a_share_of_the_time() {
    let (gone, refusing) = listener().await;
    drop(gone);
    // With a backlog of 0, Linux drops the packets of further connections while one waits to be accepted.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    full.listen(0).unwrap();
    let swallowing = full.local_addr().unwrap().as_socket().unwrap();
    let _waits = TcpStream::connect(swallowing).await.unwrap();

    let (_answers, good) = listener().await;
    let time = Duration::from_millis(800);
    let connected = timeout(time, connect(&[refusing, swallowing, good], time)).await.expect("time was left");
    assert_eq!(connected.unwrap().peer_addr().unwrap(), good);
    let options = FetchOptions { timeout: Duration::from_millis(200), ..OPTIONS };
    assert_eq!(told(fetch(&exposed(swallowing), options, MAX_BODY).await), "cannot be reached: timed out");
}

#[tokio::test]
async fn a_fetch_that_is_dropped_closes_its_connection() {
    let (listener, address) = listener().await;
    let fetching = tokio::spawn(async move { fetch(&exposed(address), OPTIONS, MAX_BODY).await });
    let (_, mut stream) = asked(&listener).await;
    stream.write_all(&ok(&format!("Content-Type: {TEXT}\r\nContent-Length: 9\r\n"), b"up 1")).await.unwrap();
    fetching.abort();
    closed(stream).await;
}

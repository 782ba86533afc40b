//! Requests that are invalid, or that two parsers could read in two ways: each is rejected or is the last one
//! of its connection, and nothing that follows it is ever treated as a request.

use peerscope::metrics::Limits;

use super::fixture::{Client, Endpoint, PATIENCE};
use crate::support::metrics::value;

/// The request that must not be answered. No test here requests this page in any other way.
const SMUGGLED: &str = "GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// No deadline passes here: a connection is closed only because of what was sent.
fn endpoint() -> Endpoint {
    Endpoint::with(Limits { head: 2 * PATIENCE, idle: 2 * PATIENCE, ..Limits::default() }, |_| ())
}

/// The status of each response to these bytes, until the server closes the connection.
fn statuses(endpoint: &Endpoint, bytes: &[u8]) -> Vec<u16> {
    let mut client = endpoint.connect();
    // It may be rejected, and the connection closed, before everything is sent.
    let _ = client.send(bytes);
    statuses_of(&client.closed())
}

fn statuses_of(answers: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answers);
    let lines = text.split("HTTP/1.").skip(1);
    lines.map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect()
}

/// No smuggled request was answered, and the endpoint still works.
#[track_caller]
fn nothing_was_smuggled(endpoint: &Endpoint) {
    let text = endpoint.scrape();
    for code in ["200", "503"] {
        assert_eq!(value(&text, "http_requests_total", &[("handler", "ready"), ("code", code)]), 0.0);
    }
}

#[test]
fn an_invalid_request_is_rejected_and_the_connection_closed() {
    let endpoint = endpoint();
    let get = |rest: &str| format!("GET /live HTTP/1.1\r\nHost: localhost\r\n{rest}");
    let requests = [
        // Ambiguous: where the body ends.
        get("Content-Length: 4\r\nContent-Length: 40\r\n\r\n0\r\n\r\n"),
        get("Content-Length: 4, 40\r\n\r\n"),
        get("Content-Length: +4\r\n\r\n"),
        get("Content-Length: -1\r\n\r\n"),
        get("Content-Length: 0x4\r\n\r\n"),
        get("Content-Length: \r\n\r\n"),
        get("Content-Length: 99999999999999999999\r\n\r\n"),
        get("Transfer-Encoding: identity\r\n\r\n"),
        get("Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        get("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        get("Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n\r\n0\r\n\r\n"),
        get("Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n"),
        "GET /live HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
        // Ambiguous: what a header is.
        get("X: a\r\n folded: b\r\n\r\n"),
        get("X: a\r\n\tfolded: b\r\n\r\n"),
        get("Content-Length : 4\r\n\r\n"),
        get("Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"),
        get(" X: a\r\n\r\n"),
        get("no colon\r\n\r\n"),
        get(": no name\r\n\r\n"),
        get("X: a\rY: b\r\n\r\n"),
        get("X: a\r\r\n\r\n"),
        get("X: a\0b\r\n\r\n"),
        get("X\0: a\r\n\r\n"),
        "GET /live\0 HTTP/1.1\r\n\r\n".into(),
        "GET /live HTTP/1.1\rHost: localhost\r\r".into(),
        // Not HTTP, or a version that is not supported.
        "\0\0\0\0\r\n\r\n".into(),
        "GET /live\r\n\r\n".into(),
        "GET /live HTTP/0.9\r\n\r\n".into(),
        "GET /live HTTP/1.2\r\n\r\n".into(),
        "GET /live HTTP/2.0\r\n\r\n".into(),
        "GET  /live HTTP/1.1\r\n\r\n".into(),
        "GET /live and more HTTP/1.1\r\n\r\n".into(),
        "GET\t/live\tHTTP/1.1\r\n\r\n".into(),
        "\x16\x03\x01 this is no HTTP\r\n\r\n".into(),
    ];
    for request in requests {
        let statuses = statuses(&endpoint, (request.clone() + SMUGGLED).as_bytes());
        assert_eq!(statuses, [400], "{request:?}");
    }
    // hyper recognizes this one, and that the client would understand no response.
    assert!(statuses(&endpoint, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").is_empty());
    nothing_was_smuggled(&endpoint);
}

/// The start of what OpenSSL sends to a TLS server.
#[test]
fn a_tls_client_hello_is_rejected() {
    let endpoint = endpoint();
    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.extend([0x5a; 506]);
    assert_eq!(statuses(&endpoint, &hello), [400]);
    nothing_was_smuggled(&endpoint);
}

#[test]
fn the_response_to_an_ambiguous_request_is_the_last_one() {
    let endpoint = endpoint();
    let length = SMUGGLED.len();
    let requests = [
        // A body that is a request.
        (200, format!("GET /live HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n")),
        (405, format!("POST /live HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n")),
        (404, format!("PUT /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n")),
        (200, "GET /live HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n0".into()),
        (
            200,
            format!(
                "GET /live HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
            ),
        ),
        // Both ways to state where it ends, in both orders: the request ends at the last chunk, or in it.
        (200, "GET /live HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        (200, "GET /live HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n".into()),
        // Chunks, valid and invalid.
        (200, "GET /live HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        (200, "GET /live HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n".into()),
        (200, "GET /live HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n".into()),
        (200, "GET /live HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n\r\n".into()),
        (200, "GET /live HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0;a\nb\r\n\r\n".into()),
        (200, "GET /live HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n".into()),
        (200, "GET /live HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".into()),
        // Lines that end without a carriage return, which ends a request for some parsers.
        (200, "GET /live HTTP/1.1\nHost: localhost\n\n".into()),
        (200, "GET /live HTTP/1.1\r\nHost: localhost\n\r\n".into()),
        (200, "GET /live HTTP/1.1\r\nHost: localhost\r\n\n".into()),
        (200, "\nGET /live HTTP/1.1\r\nHost: localhost\r\n\r\n".into()),
        // The client itself announces that this is the last request.
        (200, "GET /live HTTP/1.1\r\nConnection: close\r\n\r\n".into()),
        (200, "GET /live HTTP/1.0\r\n\r\n".into()),
    ];
    for (status, request) in requests {
        let statuses = statuses(&endpoint, (request.clone() + SMUGGLED).as_bytes());
        assert_eq!(statuses, [status], "{request:?}");
    }
    nothing_was_smuggled(&endpoint);
}

#[test]
fn the_size_of_a_head_is_limited() {
    let endpoint = endpoint();
    let with_headers = |count: usize| {
        let headers: String = (0..count).map(|number| format!("X-{number}: x\r\n")).collect();
        format!("GET /live HTTP/1.1\r\nConnection: close\r\n{headers}\r\n")
    };
    assert_eq!(statuses(&endpoint, with_headers(63).as_bytes()), [200]);
    assert_eq!(statuses(&endpoint, with_headers(64).as_bytes()), [431]);
    let with_length = |length: usize| format!("GET /live?{} HTTP/1.1\r\nConnection: close\r\n\r\n", "x".repeat(length));
    assert_eq!(statuses(&endpoint, with_length(15_000).as_bytes()), [200]);
    // More than is read: the connection is closed with bytes unread, which may lose the response.
    for head in [with_length(16 * 1024), with_length(1024 * 1024), with_headers(100_000), "\r\n".repeat(100_000)] {
        let statuses = statuses(&endpoint, head.as_bytes());
        assert!(matches!(statuses[..], [] | [431]), "{statuses:?}");
    }
    nothing_was_smuggled(&endpoint);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let endpoint = endpoint();
    let mut client = endpoint.connect();
    let pages = ["/live", "/nowhere", "/metrics", "/"];
    let request = |page: &&str| format!("GET {page} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let row: String = pages.iter().map(request).collect();
    client.send(row.repeat(25).as_bytes()).unwrap();
    for _ in 0..25 {
        for status in [200, 404, 200, 200] {
            assert_eq!(client.reply(false).unwrap().status, status);
        }
    }
    let text = client.get("/metrics", &[]).text();
    assert_eq!(value(&text, "http_requests_total", &[("handler", "live"), ("code", "200")]), 25.0);
}

/// Valid requests with some bytes replaced, and random bytes. The same ones in each run.
#[test]
fn random_bytes_affect_only_their_own_connection() {
    let endpoint = endpoint();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    // xorshift64*, which is random enough here.
    let mut random = move |below: usize| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        usize::try_from(state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % below
    };
    let good =
        b"GET /live HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nAccept: */*\r\nConnection: close\r\n\r\n";
    for round in 0..600 {
        let mut bytes = good.to_vec();
        if round % 2 == 0 {
            bytes = (0..random(2000)).map(|_| random(256).to_le_bytes()[0]).collect();
        } else {
            for _ in 0..=random(4) {
                let at = random(bytes.len());
                bytes[at] = random(256).to_le_bytes()[0];
            }
        }
        let mut client = Client::connect(endpoint.addr());
        let _ = client.send(&bytes);
        client.finish();
        let statuses = statuses_of(&client.closed());
        assert!(statuses.len() <= 1, "{statuses:?} to {:?}", String::from_utf8_lossy(&bytes));
    }
    nothing_was_smuggled(&endpoint);
}

//! How much an exporter may send, and how long it may take.

use super::*;

const TOO_LARGE: &str = "answered with more than the 1000 bytes that are allowed";

const SHORT: FetchOptions<'static> = FetchOptions { timeout: Duration::from_millis(200), ..OPTIONS };

fn typed(head: &str, body: &[u8]) -> Vec<u8> {
    ok(&format!("Content-Type: text/plain\r\n{head}"), body)
}

#[tokio::test]
async fn the_body_may_be_as_large_as_allowed_and_no_larger() {
    let exact = typed("Content-Length: 1000\r\n", &[b'x'; 1000]);
    assert_eq!(fetched(exact).await.unwrap().body.len(), 1000);
    let chunk = [b"3e8\r\n".as_slice(), &[b'x'; 1000], b"\r\n"].concat();
    let chunked = |tail: &[u8]| typed("Transfer-Encoding: chunked\r\n", &[&chunk, tail].concat());
    assert_eq!(fetched(chunked(b"0\r\n\r\n")).await.unwrap().body.len(), 1000);
    assert_eq!(refused(chunked(b"1\r\nx\r\n0\r\n\r\n")).await, TOO_LARGE);
    assert_eq!(refused(typed("", &[b'x'; 1001])).await, TOO_LARGE);
}

/// The announced length is enough: the body is not waited for.
#[tokio::test]
async fn a_length_that_is_too_large_is_refused_at_once() {
    for length in ["1001", "18446744073709551613"] {
        let (listener, address) = listener().await;
        let target = exposed(address);
        let fetching = tokio::spawn(async move { fetch(&target, OPTIONS, MAX_BODY).await });
        let (_, mut stream) = asked(&listener).await;
        stream.write_all(&typed(&format!("Content-Length: {length}\r\n"), b"")).await.unwrap();
        closed(stream).await;
        assert_eq!(told(fetching.await.unwrap()), TOO_LARGE);
    }
}

/// A body without an end: read until it is too large, however small its pieces.
#[tokio::test]
async fn a_drip_that_never_ends_is_cut_off() {
    let (listener, address) = listener().await;
    let target = exposed(address);
    let fetching = tokio::spawn(async move { fetch(&target, OPTIONS, MAX_BODY).await });
    let (_, mut stream) = asked(&listener).await;
    stream.write_all(&typed("Transfer-Encoding: chunked\r\n", b"")).await.unwrap();
    while stream.write_all(b"1\r\nx\r\n").await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert_eq!(told(fetching.await.unwrap()), TOO_LARGE);
}

#[tokio::test]
async fn the_size_of_the_head_is_limited() {
    let long = format!("X: {}\r\n", "x".repeat(MAX_HEAD));
    assert_eq!(refused(typed(&long, b"")).await, "answered with headers that are too large");
    assert_eq!(refused(typed(&"X: x\r\n".repeat(101), b"")).await, "answered with headers that are too large");
    assert!(fetched(typed(&format!("X: {}\r\n", "x".repeat(MAX_HEAD / 2)), b"")).await.is_ok());
}

/// One deadline for everything, whatever the exporter is slow at.
#[tokio::test]
async fn the_deadline_holds_in_every_phase() {
    let late = "did not send a complete answer within 200ms";
    for beginning in [Vec::new(), b"HTTP/1.1 200".to_vec(), typed("Content-Length: 9\r\n", b""), typed("", b"up")] {
        let (listener, address) = listener().await;
        let silent = async {
            let (_, mut stream) = asked(&listener).await;
            stream.write_all(&beginning).await.unwrap();
            closed(stream).await;
        };
        let target = exposed(address);
        let (fetched, ()) = tokio::join!(fetch(&target, SHORT, MAX_BODY), silent);
        assert_eq!(told(fetched), late);
    }
    // An exporter that keeps sending a little gets no more time than a silent one.
    let (listener, address) = listener().await;
    let drip = async {
        let (_, mut stream) = asked(&listener).await;
        stream.write_all(&typed("", b"")).await.unwrap();
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let target = exposed(address);
    let (fetched, ()) = tokio::join!(fetch(&target, SHORT, MAX_BODY), drip);
    assert_eq!(told(fetched), late);
}

#[tokio::test]
async fn an_invalid_accept_header_is_never_sent() {
    let (listener, address) = listener().await;
    let long = "x".repeat(MAX_ACCEPT + 1);
    for accept in ["a\r\nX-Evil: 1", "a\0", long.as_str()] {
        let fetched = fetch(&exposed(address), FetchOptions { accept, ..OPTIONS }, MAX_BODY).await;
        assert_eq!(told(fetched), "was not asked: the scrape's Accept header is too long or not valid");
    }
    let ours = TcpStream::connect(address).await.unwrap();
    assert_eq!(listener.accept().await.unwrap().1, ours.local_addr().unwrap());
}

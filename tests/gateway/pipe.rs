//! Pages are passed on as they arrive, and slowness at either end affects only the scrapes concerned.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::core::muxing::SubstreamBox;
use peerscope::metrics::Page;
use peerscope::network::protocol::Introduction;

use super::fixture::{await_targets, gateway, outcomes, peer, scrape};
use super::hostile::memory;
use super::scene::{Scene, TEXT, head, named, page, read_ask};
use crate::support::agent::{PATIENCE, connect, eventually};
use crate::support::http::{self, Reply};

const TIME: &str = "X-Prometheus-Scrape-Timeout-Seconds";

pub(crate) fn fetch(gateway: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Reply {
    let stream = connect(gateway).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let host = [("Host", "localhost")];
    http::get(stream, path, &[&host, headers].concat()).unwrap()
}

/// An exporter that does not compress costs the link no more than one that does, and the list is compressed, too.
#[test]
fn an_uncompressed_page_crosses_the_link_compressed() {
    let page = "# HELP a_rather_long_name Something.\n".repeat(1000);
    let (gateway, exporter) = (gateway(""), super::fixture::exporter("", page.clone()));
    let edge = peer(&gateway, "edge", &format!("expose: [{{name: plain, url: \"{exporter}\", remote: true}}]\n"));
    await_targets(&gateway, 2);
    let path = format!("/peers/{}/exposed/plain/metrics", edge.peer_id());
    let packed = fetch(gateway.metrics_socket(), &path, &[("Accept-Encoding", "gzip")]);
    assert_eq!((packed.status, packed.header("content-encoding")), (200, Some("gzip")));
    assert_eq!(unpacked(&packed.body), page);
    let crossed = super::fixture::value(&gateway, "gateway_scrape_body_bytes_sum", &[]);
    assert!(crossed * 10.0 < page.len() as f64, "{crossed}");
    let plain = fetch(gateway.metrics_socket(), &path, &[("Accept-Encoding", "identity")]);
    assert_eq!((plain.header("content-encoding"), plain.text()), (None, page));

    let list = fetch(gateway.metrics_socket(), "/sd", &[("Accept-Encoding", "gzip")]);
    assert_eq!(list.header("content-encoding"), Some("gzip"));
    assert_eq!(unpacked(&list.body), gateway.http("/sd").text());
}

pub(crate) fn unpacked(body: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(body).read_to_string(&mut text).unwrap();
    text
}

/// A page that is cut short looks cut, even to HTTP/1.0, where a body of unknown length ends with the connection.
#[test]
fn a_large_page_that_ends_too_early_looks_truncated_to_every_reader() {
    let scene = Scene::set("");
    let sent = 150_000;
    let cut = scene.hostile(named("cut"), move |mut stream| async move {
        read_ask(&mut stream).await;
        stream.write_all(&[head(TEXT, false, 200_000), vec![b'#'; sent]].concat()).await.unwrap();
        stream.close().await.unwrap();
        let _ = stream.read(&mut [0]).await;
    });
    await_targets(&scene.gateway, 1);
    for version in ["1.1", "1.0"] {
        let mut stream = connect(scene.gateway.metrics_socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET /peers/{}/metrics HTTP/{version}\r\nHost: localhost\r\n\r\n", cut.id).unwrap();
        let mut answer = Vec::new();
        // A reset may end it, too.
        let _reset = stream.read_to_end(&mut answer);
        let text = String::from_utf8(answer).unwrap().to_lowercase();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("200 ok") && head.contains("content-length: 200000"), "{head}");
        assert!(!head.contains("chunked"), "{head}");
        assert!(body.len() <= sent, "{}", body.len());
    }
    eventually("both are counted as lost", || outcomes(&scene.gateway, "lost") == 2.0);
    let shown = String::from_utf8(scene.gateway.cli(&["peers"]).ok()).unwrap();
    assert!(shown.contains("50000 bytes of the page are missing"), "{shown}");
}

/// This page takes longer than a client may take to read a complete answer.
#[test]
fn a_slow_page_arrives_complete_despite_a_flood_of_connections() {
    let scene = Scene::set("  max_scrapes: 4\n");
    let (slow, chunks) = (100_000, 10);
    let peer = scene.hostile(named("slow"), move |mut stream| async move {
        read_ask(&mut stream).await;
        stream.write_all(&head(TEXT, false, slow)).await.unwrap();
        for _ in 0..chunks {
            stream.write_all(&vec![b'#'; slow / chunks]).await.unwrap();
            stream.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let _ = stream.read(&mut [0]).await;
    });
    await_targets(&scene.gateway, 1);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // More connections than there are places, again and again.
            while !done.load(Ordering::Relaxed) {
                let _held: Vec<_> = (0..200).map(|_| TcpStream::connect(scene.gateway.metrics_socket())).collect();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let reply = scrape(&scene.gateway, &peer.id, &[(TIME, "30")]);
        done.store(true, Ordering::Relaxed);
        assert_eq!((reply.status, reply.body.len()), (200, slow));
    });
    assert_eq!(outcomes(&scene.gateway, "ok"), 1.0);
}

/// How many scrapes of strangers have begun.
static BEGUN: AtomicUsize = AtomicUsize::new(0);

/// Reads the request, sends the beginning of a page, and then nothing more.
async fn stall(mut stream: SubstreamBox) {
    read_ask(&mut stream).await;
    BEGUN.fetch_add(1, Ordering::Relaxed);
    let beginning = [head("application/vnd.google.protobuf", true, 1 << 20), vec![0x1f; 4096]].concat();
    let _ = stream.write_all(&beginning).await;
    let _ = stream.flush().await;
    let _ = stream.read(&mut [0]).await;
}

/// Asks for a page and reads until the connection ends. Returns the status line.
fn ask_and_read(scene: &Scene, id: &str, time: &str) -> String {
    let mut stream = connect(scene.gateway.metrics_socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let headers = format!("Host: localhost\r\nAccept-Encoding: gzip\r\nConnection: close\r\n{TIME}: {time}");
    write!(stream, "GET /peers/{id}/metrics HTTP/1.1\r\n{headers}\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _cut = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

/// It once counted as prompt, because its beginning was, and took the places of prompt pages.
#[test]
fn a_page_that_stalls_after_its_beginning_counts_as_slow() {
    let scene = Scene::set("  max_scrapes: 2\n");
    let begun = Arc::<AtomicUsize>::default();
    let [first, second] = ["first", "second"].map(|name| {
        let begun = Arc::clone(&begun);
        scene.hostile(named(name), move |stream| {
            begun.fetch_add(1, Ordering::SeqCst);
            stall(stream)
        })
    });
    await_targets(&scene.gateway, 2);
    for peer in [&first, &second] {
        assert!(ask_and_read(&scene, &peer.id, "2").contains(" 200 "), "its beginning arrives");
    }
    assert_eq!(outcomes(&scene.gateway, "timeout"), 2.0);
    std::thread::scope(|scope| {
        scope.spawn(|| ask_and_read(&scene, &first.id, "10"));
        eventually("the first one is asked for again", || begun.load(Ordering::SeqCst) == 3);
        // There are two places, and slow pages may use one of them.
        let status = ask_and_read(&scene, &second.id, "2");
        assert!(status.contains(" 503 "), "{status}");
    });
}

/// Each of the fifteen strangers is seventeen targets. The 4 KiB of each target once decompressed to 4 MiB, which were
/// kept as long as the scraper waited.
#[test]
fn strangers_with_many_exporters_make_the_gateway_hold_little() {
    let scene = Scene::set("");
    let exposed: Vec<String> = (0..16).map(|n| format!("e{n}")).collect();
    let strangers: Vec<_> = (0..15)
        .map(|n| {
            scene.hostile(Introduction { name: format!("s{n}"), exposed: exposed.clone(), withdrawn: false }, stall)
        })
        .collect();
    let good = scene.light("good", |_| std::future::ready(Ok(page("good", 30_000))));
    await_targets(&scene.gateway, 15 * 17 + 1);
    assert_eq!(scrape(&scene.gateway, &good.id, &[]).status, 200);
    let before = memory(scene.gateway.pid(), "VmRSS");
    std::thread::scope(|scope| {
        for stranger in &strangers {
            for name in &exposed {
                let path = format!("/peers/{}/exposed/{name}/metrics", stranger.id);
                let socket = scene.gateway.metrics_socket();
                scope.spawn(move || {
                    let mut stream = connect(socket).unwrap();
                    write!(
                        stream,
                        "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n{TIME}: 5\r\n\r\n"
                    )
                    .unwrap();
                    let _cut = stream.read_to_end(&mut Vec::new());
                });
            }
        }
        // They have not been asked for yet, and share half of the places.
        eventually("they are under way", || BEGUN.load(Ordering::Relaxed) >= 90);
        for _ in 0..20 {
            let reply = scrape(&scene.gateway, &good.id, &[(TIME, "5")]);
            assert_eq!(reply.status, 200, "{}", reply.reason);
        }
    });
    let more = memory(scene.gateway.pid(), "VmHWM").saturating_sub(before);
    println!("{} KiB more", more >> 10);
    assert!(more < 64 << 20, "{} MiB more", more >> 20);
}

#[test]
fn scrapers_that_do_not_read_affect_only_their_own_scrapes() {
    ask_for_too_much(0);
}

#[test]
fn scrapers_that_read_slowly_affect_only_their_own_scrapes() {
    ask_for_too_much(8 << 10);
}

/// Six scrapers ask each of a hundred peers for a page of 15 MiB, which are more scrapes than there are places. They
/// read `pace` bytes of each every tenth of a second.
#[allow(clippy::print_stdout, reason = "what it takes is worth knowing")]
fn ask_for_too_much(pace: u64) {
    const LEN: usize = 15 << 20;
    let scene = Scene::set("");
    let large: Page = page("large", LEN);
    let peers: Vec<_> = (0..100)
        .map(|n| {
            let large = large.clone();
            scene.light(&format!("p{n}"), move |_| std::future::ready(Ok(large.clone())))
        })
        .collect();
    await_targets(&scene.gateway, peers.len());
    let before = memory(scene.gateway.pid(), "VmRSS");
    let held: Vec<TcpStream> = (0..6)
        .flat_map(|_| &peers)
        .map(|peer| {
            let mut stream = connect(scene.gateway.metrics_socket()).unwrap();
            write!(stream, "GET /peers/{}/metrics HTTP/1.1\r\nHost: localhost\r\n{TIME}: 4\r\n\r\n", peer.id).unwrap();
            stream
        })
        .collect();
    let (reading, over_with) = mpsc::channel::<()>();
    let reader = std::thread::spawn(move || {
        // Until the test has ended or failed.
        while over_with.recv_timeout(Duration::from_millis(100)) == Err(mpsc::RecvTimeoutError::Timeout) {
            for stream in held.iter().filter(|_| pace > 0) {
                stream.set_nonblocking(true).unwrap();
                // Having nothing to read, or a closed connection, is fine.
                let _read = std::io::copy(&mut stream.take(pace), &mut std::io::sink());
            }
        }
    });
    let begun = || peers.iter().map(|peer| peer.seen.begun()).sum::<usize>();
    eventually("some have begun", || begun() > 30);
    // The links of the same peers still work.
    for peer in &peers {
        let request = peerscope::network::protocol::Request::Ping { payload: "p".into() };
        scene.runtime.block_on(peer.network.request(scene.gateway_id, request)).unwrap();
    }
    let over = ["cancelled", "timeout", "busy"];
    eventually("their time is up", || {
        over.map(|outcome| outcomes(&scene.gateway, outcome)).iter().sum::<f64>() == 600.0
    });
    drop(reading);
    reader.join().unwrap();
    let more = memory(scene.gateway.pid(), "VmHWM").saturating_sub(before);
    println!("{} of 600 have begun; {} KiB more", begun(), more >> 10);
    assert!(more < 64 << 20, "{} MiB more", more >> 20);
    let reply = scrape(&scene.gateway, &peers[0].id, &[(TIME, "30")]);
    assert!(reply.status == 200 && reply.body == large.body, "{}", reply.reason);
}

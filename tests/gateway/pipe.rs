//! Pages go through as they come: what Prometheus takes beside the exporter, it takes through the gateway; and who is slow,
//! at either end, costs his own scrapes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::core::muxing::SubstreamBox;
use peerscope::network::ScrapePage;
use peerscope::network::protocol::Introduction;

use super::fixture::{await_targets, gateway, outcomes, peer, scrape};
use super::hostile::memory;
use super::observer::{JOB, hurried, printed};
use super::scene::{Scene, TEXT, head, named, page, read_ask};
use crate::support::agent::{PATIENCE, connect, eventually, free_port, own_address};
use crate::support::http::{self, Reply};
use crate::support::scraper::{Labels, Program, Scraper};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TIME: &str = "X-Prometheus-Scrape-Timeout-Seconds";

/// A page of an exporter.
struct Odd {
    name: &'static str,
    /// Empty for none.
    content_type: &'static str,
    body: &'static str,
    /// How many samples Prometheus 3 takes of it, beside the exporter and through the gateway. Of names that are
    /// Prometheus's own it takes none.
    samples: usize,
}

/// Pages as exporters make them, that a strict reader of the formats would refuse.
const ODD: [Odd; 15] = [
    odd("repeated", TEXT, "# TYPE a gauge\n# TYPE a gauge\na 1\n# HELP a A\n# HELP a A\na{x=\"1\"} 2\n", 2),
    odd("interleaved", TEXT, "# TYPE a counter\na{x=\"1\"} 1\n# TYPE b counter\nb 1\na{x=\"2\"} 2\n", 3),
    odd("untyped", TEXT, "a 1\nb 2\n", 2),
    odd("nameless", TEXT, "# HELP\na 1\n", 1),
    odd("unended", TEXT, "a 1\nb 2", 2),
    odd("latin", "text/plain; version=0.0.4; charset=iso-8859-1", "a 1\n", 1),
    odd("untold", "", "a 1\n", 1),
    odd("lying", "application/json", "a 1\n", 1),
    odd("federated", TEXT, "up{instance=\"x\"} 7\nscrape_duration_seconds{instance=\"x\"} 1\na 1\n", 1),
    odd("timed", TEXT, "a 1 1700000000000\n", 1),
    odd("exemplary", OPENMETRICS, "# TYPE a counter\na_total 1 # {trace=\"x\"} 1\n# EOF\n", 1),
    odd(
        "partly",
        TEXT,
        "# TYPE a_bucket gauge\na_bucket 1\n# TYPE b histogram\nb_bucket{le=\"+Inf\"} 1\nb_sum 1\nb_count 1\n",
        4,
    ),
    odd("utf8", "text/plain; version=1.0.0; escaping=allow-utf-8", "{\"a.b\",\"c.d\"=\"1\"} 1\n", 1),
    // Refused, here as there.
    odd("crlf", TEXT, "# TYPE a gauge\r\na 1\r\nb 2\r\n", 0),
    odd("endless", OPENMETRICS, "# TYPE a gauge\na 1\n", 0),
];

const fn odd(name: &'static str, content_type: &'static str, body: &'static str, samples: usize) -> Odd {
    Odd { name, content_type, body, samples }
}

/// An exporter whose paths are the odd pages. It ends with the test's process.
fn exporter() -> SocketAddr {
    let listener = TcpListener::bind((own_address(), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let request = lines.next().unwrap().unwrap();
                while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                let path = request.split(' ').nth(1).unwrap().trim_start_matches('/');
                let page = ODD.iter().find(|page| page.name == path).unwrap();
                let mut head =
                    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n", page.body.len());
                if !page.content_type.is_empty() {
                    head += &format!("Content-Type: {}\r\n", page.content_type);
                }
                // Whoever asked may be gone.
                let _ = write!(stream, "{head}\r\n{}", page.body);
            });
        }
    });
    address
}

fn fetch(gateway: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Reply {
    let stream = connect(gateway).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let host = [("Host", "test")];
    http::get(stream, path, &[&host, headers].concat()).unwrap()
}

/// The samples of a page, by name and by those labels that the page gave.
fn samples(prometheus: &Scraper, selector: &str) -> BTreeMap<Labels, f64> {
    let seen = prometheus.query(&format!("{{{selector}}}")).into_iter().filter(|(labels, _)| {
        // What Prometheus writes itself has no label that a page gives.
        let name = labels["__name__"].as_str();
        !(name == "up" || name.starts_with("scrape_")) || labels.contains_key("exported_instance")
    });
    let strip = |mut labels: Labels| {
        for target in ["instance", "job", "peer_name", "exposed"] {
            labels.remove(target);
        }
        labels
    };
    seen.map(|(labels, value)| (strip(labels), value)).collect()
}

#[test]
fn what_prometheus_takes_beside_the_exporter_it_takes_through_the_gateway() {
    let exporter = exporter();
    let exposed = ODD.map(|page| format!("{{name: {0}, url: \"http://{exporter}/{0}\", remote: true}}", page.name));
    let gateway = gateway("");
    let edge = peer(&gateway, "edge", &format!("expose: [{}]\n", exposed.join(", ")));
    let id = edge.peer_id();
    await_targets(&gateway, 1 + ODD.len());
    for page in &ODD {
        let path = format!("/peers/{id}/exposed/{}/metrics", page.name);
        let reply = fetch(gateway.metrics_socket(), &path, &[("Accept-Encoding", "identity")]);
        assert_eq!((reply.status, reply.body.as_slice()), (200, page.body.as_bytes()), "{}", page.name);
        assert_eq!(reply.header("content-type").unwrap_or_default(), page.content_type, "{}", page.name);
        assert_eq!(reply.header("content-length"), Some(page.body.len().to_string().as_str()));
        // Whatever it says, no browser runs it.
        assert_eq!(reply.header("content-security-policy"), Some("sandbox; default-src 'none'"));
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
    }

    // The same Prometheus, with the same rules, beside the exporter and through the gateway.
    let through = hurried(&printed(&gateway), "")
        .replace("honor_labels: false", "fallback_scrape_protocol: PrometheusText0.0.4\n    honor_labels: false");
    let rules = through.split_once("    metric_relabel_configs:\n").expect("there are rules").1;
    let rules: String =
        rules.lines().take_while(|line| !line.starts_with("    http_sd")).map(|l| format!("{l}\n")).collect();
    let beside: String = ODD
        .iter()
        .map(|page| {
            format!(
                "  - job_name: beside-{0}\n    scrape_interval: 1s\n    scrape_timeout: 900ms\n    honor_timestamps: false\n    \
                 fallback_scrape_protocol: PrometheusText0.0.4\n    metrics_path: /{0}\n    static_configs: \
                 [{{targets: [\"{exporter}\"]}}]\n    metric_relabel_configs:\n{rules}",
                page.name
            )
        })
        .collect();
    let prometheus = Scraper::start_with(Program::Prometheus3, &(through + &beside));
    for page in &ODD {
        let through = format!("job=\"{JOB}\", exposed=\"{}\"", page.name);
        let beside = format!("job=\"beside-{}\"", page.name);
        let scraped = |selector: &str| prometheus.query(&format!("up{{{selector}}}"));
        eventually(page.name, || scraped(&through).len() == 1 && scraped(&beside).len() == 1);
        if page.samples > 0 {
            eventually(page.name, || {
                !samples(&prometheus, &through).is_empty() && !samples(&prometheus, &beside).is_empty()
            });
        }
        let (through, beside) = (samples(&prometheus, &through), samples(&prometheus, &beside));
        assert_eq!(through, beside, "{}", page.name);
        assert_eq!(through.len(), page.samples, "{}: {through:?}", page.name);
    }
}

/// An exporter of Debian's; ended when this is dropped.
struct Real(Child);

impl Drop for Real {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

impl Real {
    /// Runs the program that the variable names, on an address of this test's own.
    fn start(variable: &str, more: &[&str]) -> (Self, SocketAddr) {
        let ip = own_address();
        let address = SocketAddr::from((ip, free_port(ip)));
        let program = std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set; run tests/tools.sh"));
        let mut command = Command::new(program);
        command.arg(format!("--web.listen-address={address}")).args(more).stdout(Stdio::null()).stderr(Stdio::null());
        let real = Self(command.spawn().unwrap());
        eventually(variable, || TcpStream::connect(address).is_ok());
        (real, address)
    }
}

/// The series of a page in the classic text, without their values.
fn series(page: &str) -> BTreeSet<&str> {
    let samples = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    samples.map(|line| line.rsplit_once(' ').unwrap().0).collect()
}

/// Whose pages nobody made for this test. The second one is asked for a probe.
#[test]
fn real_exporters_give_through_the_gateway_what_they_give_beside_it() {
    let (_node, node) = Real::start("TEST_NODE_EXPORTER", &[]);
    let folder = tempfile::tempdir().unwrap();
    let modules = folder.path().join("blackbox.yml");
    std::fs::write(&modules, "modules: {tcp: {prober: tcp, timeout: 2s}}\n").unwrap();
    let config = format!("--config.file={}", modules.display());
    let (_blackbox, blackbox) = Real::start("TEST_BLACKBOX_EXPORTER", &[&config]);
    let probe = format!("/probe?module=tcp&target={node}");
    let exposed = format!(
        "expose: [{{name: node, url: \"http://{node}/metrics\", remote: true}}, {{name: probe, url: \
         \"http://{blackbox}{probe}\", remote: true}}]\n"
    );
    let gateway = gateway("");
    let edge = peer(&gateway, "edge", &exposed);
    let id = edge.peer_id();
    await_targets(&gateway, 3);
    for (name, address, path) in [("node", node, "/metrics"), ("probe", blackbox, probe.as_str())] {
        let through = format!("/peers/{id}/exposed/{name}/metrics");
        // What a machine has may change between the two.
        eventually(name, || {
            let pages = [fetch(address, path, &[]), fetch(gateway.metrics_socket(), &through, &[])];
            assert_eq!([pages[0].status, pages[1].status], [200, 200]);
            assert_eq!(pages[0].header("content-type"), pages[1].header("content-type"));
            let texts = pages.map(|page| page.text());
            series(&texts[0]) == series(&texts[1]) && series(&texts[0]).len() > 5
        });
        let packed = fetch(gateway.metrics_socket(), &through, &[("Accept-Encoding", "gzip")]);
        assert_eq!(packed.header("content-encoding"), Some("gzip"), "{name}");
        assert!(series(&unpacked(&packed.body)).len() > 5, "{name}");
    }
}

/// Who does not compress costs the link no more for that, and the list is small, too.
#[test]
fn what_came_plain_crosses_the_link_compressed() {
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

fn unpacked(body: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(body).read_to_string(&mut text).unwrap();
    text
}

/// A page that is cut short looks cut, to HTTP/1.0 too, where a body of unknown length ends with the connection.
#[test]
fn a_large_page_that_ends_too_early_looks_cut_to_every_reader() {
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
        write!(stream, "GET /peers/{}/metrics HTTP/{version}\r\nHost: a\r\n\r\n", cut.id).unwrap();
        let mut answer = Vec::new();
        // A reset is as good an end as any.
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

/// A page that takes longer than a client may take to fetch an answer that is there.
#[test]
fn a_page_that_comes_slowly_comes_whole_through_a_flood_of_connections() {
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
            // More than there are places, again and again.
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

/// How many of the scrapes of strangers have begun.
static BEGUN: AtomicUsize = AtomicUsize::new(0);

/// Takes what is asked, answers with the beginning of a page, and then nothing.
async fn stall(mut stream: SubstreamBox) {
    read_ask(&mut stream).await;
    BEGUN.fetch_add(1, Ordering::Relaxed);
    let beginning = [head("application/vnd.google.protobuf", true, 1 << 20), vec![0x1f; 4096]].concat();
    let _ = stream.write_all(&beginning).await;
    let _ = stream.flush().await;
    let _ = stream.read(&mut [0]).await;
}

/// Asks for a page, and reads until the connection ends; the status line.
fn ask_and_read(scene: &Scene, id: &str, time: &str) -> String {
    let mut stream = connect(scene.gateway.metrics_socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let headers = format!("Host: a\r\nAccept-Encoding: gzip\r\nConnection: close\r\n{TIME}: {time}");
    write!(stream, "GET /peers/{id}/metrics HTTP/1.1\r\n{headers}\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _cut = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

/// It counted as prompt, since its beginning was, and took the places of those that are.
#[test]
fn a_page_that_stalls_behind_its_beginning_is_a_slow_one() {
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
        assert!(ask_and_read(&scene, &peer.id, "2").contains(" 200 "), "its beginning comes");
    }
    assert_eq!(outcomes(&scene.gateway, "timeout"), 2.0);
    std::thread::scope(|scope| {
        scope.spawn(|| ask_and_read(&scene, &first.id, "10"));
        eventually("the first one is asked again", || begun.load(Ordering::SeqCst) == 3);
        // There are two places, and slow ones have one of them.
        let status = ask_and_read(&scene, &second.id, "2");
        assert!(status.contains(" 503 "), "{status}");
    });
}

/// Each of fifteen strangers is seventeen targets. 4 KiB of each once unpacked to 4 MiB that were kept as long as the
/// scraper waited.
#[test]
fn strangers_with_many_exporters_make_the_gateway_hold_little() {
    let scene = Scene::set("");
    let exposed: Vec<String> = (0..16).map(|n| format!("e{n}")).collect();
    let strangers: Vec<_> = (0..15)
        .map(|n| scene.hostile(Introduction { name: format!("s{n}"), exposed: exposed.clone() }, stall))
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
                    write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n{TIME}: 5\r\n\r\n")
                        .unwrap();
                    let _cut = stream.read_to_end(&mut Vec::new());
                });
            }
        }
        // They have not been asked yet, and share half of the places.
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

/// Scrapers that ask and do not read, each for a page of megabytes: as many as there are places, and more.
#[test]
fn scrapers_that_do_not_read_cost_their_own_scrapes() {
    const LEN: usize = 15 << 20;
    let scene = Scene::set("");
    let large: ScrapePage = page("large", LEN);
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
            write!(stream, "GET /peers/{}/metrics HTTP/1.1\r\nHost: a\r\n{TIME}: 4\r\n\r\n", peer.id).unwrap();
            stream
        })
        .collect();
    let begun = || peers.iter().map(|peer| peer.seen.begun()).sum::<usize>();
    eventually("some have begun", || begun() > 30);
    // The links of the same peers go on.
    for peer in &peers {
        let request = peerscope::network::protocol::Request::Ping { payload: "p".into() };
        scene.runtime.block_on(peer.network.request(scene.gateway_id, request)).unwrap();
    }
    let over = ["cancelled", "timeout", "busy"];
    eventually("their time is up", || {
        over.map(|outcome| outcomes(&scene.gateway, outcome)).iter().sum::<f64>() == 600.0
    });
    drop(held);
    let more = memory(scene.gateway.pid(), "VmHWM").saturating_sub(before);
    println!("{} of 600 have begun; {} KiB more", begun(), more >> 10);
    assert!(more < 64 << 20, "{} MiB more", more >> 20);
    let reply = scrape(&scene.gateway, &peers[0].id, &[(TIME, "30")]);
    assert!(reply.status == 200 && reply.body == large.body, "{}", reply.reason);
}

//! A scraper gets the same samples from the same bytes through the gateway as directly from an exporter.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use super::fixture::{await_targets, gateway, peer};
use super::observer::{JOB, hurried, printed};
use super::pipe::{fetch, unpacked};
use super::scene::TEXT;
use crate::support::agent::{TestAgent, eventually, free_port, own_address};
use crate::support::scraper::{Labels, Program, Scraper};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A page of an exporter.
struct Odd {
    name: &'static str,
    /// Empty for none.
    content_type: &'static str,
    body: &'static str,
    /// How many samples Prometheus 3 keeps of it, directly from the exporter and through the gateway. Names that
    /// Prometheus itself writes are dropped.
    samples: usize,
}

/// Pages such as real exporters serve, which a strict parser would reject.
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
    // Rejected both directly and through the gateway.
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
                // The client may be gone.
                let _ = write!(stream, "{head}\r\n{}", page.body);
            });
        }
    });
    address
}

/// The samples of a page, by name and by the labels that the page itself has.
fn samples(scraper: &Scraper, selector: &str) -> BTreeMap<Labels, f64> {
    let mut seen = scraper.query(&format!("{{{selector}}}"));
    if scraper.program.keeps_native() {
        // A native histogram is represented by its count.
        for (mut labels, value) in scraper.query(&format!("histogram_count({{{selector}}})")) {
            labels.insert("__name__".to_owned(), "histogram_count".to_owned());
            seen.push((labels, value));
        }
    }
    let seen = seen.into_iter().filter(|(labels, _)| {
        // Samples that Prometheus itself writes have no label from a page.
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
fn prometheus_gets_the_same_samples_directly_and_through_the_gateway() {
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
        // Whatever the page contains, no browser runs it.
        assert_eq!(reply.header("content-security-policy"), Some("sandbox; default-src 'none'"));
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
    }

    // The same scraper, with the same rules, directly and through the gateway.
    let programs = Program::ALL.map(|program| (program, ""));
    // Classic histograms become native ones with custom buckets.
    let converting = (Program::Prometheus3, "convert_classic_histograms_to_nhcb: true");
    for (program, option) in programs.into_iter().chain([converting]) {
        let scraper = Scraper::start_with(program, &both_ways(program, option, &gateway, exporter));
        for page in &ODD {
            let through = format!("job=\"{JOB}\", exposed=\"{}\"", page.name);
            let beside = format!("job=\"beside-{}\"", page.name);
            let what = format!("{program:?} {option} {}", page.name);
            eventually(&what, || whole(&scraper, &through) && whole(&scraper, &beside));
            let (through, beside) = (samples(&scraper, &through), samples(&scraper, &beside));
            assert_eq!(through, beside, "{what}");
            if program == Program::Prometheus3 {
                let converted = !option.is_empty() && page.name == "partly";
                assert_eq!(through.len(), page.samples + usize::from(converted), "{what}: {through:?}");
            }
        }
    }
}

/// A configuration that scrapes the odd pages through the gateway, with the job that it prints, and directly, with the
/// same rules.
fn both_ways(program: Program, option: &str, gateway: &TestAgent, exporter: SocketAddr) -> String {
    let mut options = String::new();
    if program == Program::Prometheus3 {
        options = format!("    fallback_scrape_protocol: PrometheusText0.0.4\n    {option}\n");
    }
    let through = hurried(program, &printed(gateway), "")
        .replace("    honor_labels: false", &format!("{options}    honor_labels: false"));
    let options = format!("{options}    {}\n", program.job().replace(", ", "\n    "));
    let rules = through.split_once("    metric_relabel_configs:\n").expect("there are rules").1;
    let rules: String =
        rules.lines().take_while(|line| !line.starts_with("    http_sd")).map(|l| format!("{l}\n")).collect();
    let beside = ODD.iter().map(|page| {
        format!(
            "  - job_name: beside-{0}\n    scrape_interval: 1s\n    scrape_timeout: 900ms\n    honor_timestamps: \
             false\n{options}    metrics_path: /{0}\n    static_configs: [{{targets: [\"{exporter}\"]}}]\n    \
             metric_relabel_configs:\n{rules}",
            page.name
        )
    });
    through + &beside.collect::<String>()
}

/// Whether the target was scraped and its samples can be queried.
fn whole(scraper: &Scraper, selector: &str) -> bool {
    let own = |name: &str| scraper.query(&format!("{name}{{{selector}, exported_instance=\"\"}}"));
    let taken = own("up").pop().zip(own("scrape_samples_post_metric_relabeling").pop());
    // Of a rejected page, the samples before the offending line are counted.
    taken.is_some_and(|(up, taken)| samples(scraper, selector).len() as f64 == up.1 * taken.1)
}

/// An exporter from a Debian package; killed when this is dropped.
pub(super) struct Real(Child);

impl Drop for Real {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

impl Real {
    /// Runs the program that the variable names, and waits until it listens at the address.
    pub(super) fn start(variable: &str, address: SocketAddr, arguments: &[&str]) -> Self {
        let program = std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set; run tests/tools.sh"));
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let real = Self(command.spawn().unwrap());
        eventually(variable, || TcpStream::connect(address).is_ok());
        real
    }
}

/// An address of the test's own.
pub(super) fn free_address() -> SocketAddr {
    let ip = own_address();
    SocketAddr::from((ip, free_port(ip)))
}

/// The series of a page in the classic text, without their values.
fn series(page: &str) -> BTreeSet<&str> {
    let samples = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    samples.map(|line| line.rsplit_once(' ').unwrap().0).collect()
}

/// Their pages were not made for this test. blackbox is asked for a probe.
#[test]
fn real_exporters_serve_the_same_series_directly_and_through_the_gateway() {
    let folder = tempfile::tempdir().unwrap();
    let configured = |name: &str, text: String| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let [node, blackbox, haproxy, dnsdist, dns] = std::array::from_fn(|_| free_address());
    let modules = configured("blackbox.yml", "modules: {tcp: {prober: tcp, timeout: 2s}}\n".to_owned());
    let proxy = configured(
        "haproxy.cfg",
        format!(
            "defaults\n  mode http\n  timeout client 10s\n  timeout connect 10s\n  timeout server 10s\nfrontend f\n  bind \
             {haproxy}\n  http-request use-service prometheus-exporter if {{ path /metrics }}\n"
        ),
    );
    let balancer = configured(
        "dnsdist.lua",
        format!(
            "setLocal('{dns}')\nnewServer('{dns}')\nwebserver('{dnsdist}')\nsetWebserverConfig({{acl='127.0.0.0/8', \
             statsRequireAuthentication=false}})\n"
        ),
    );
    let listen = |address: SocketAddr| format!("--web.listen-address={address}");
    let _running = [
        Real::start("TEST_NODE_EXPORTER", node, &[&listen(node)]),
        Real::start("TEST_BLACKBOX_EXPORTER", blackbox, &[&listen(blackbox), &format!("--config.file={modules}")]),
        Real::start("TEST_HAPROXY", haproxy, &["-db", "-f", &proxy]),
        Real::start("TEST_DNSDIST", dnsdist, &["--supervised", "-C", &balancer]),
    ];
    let probe = format!("/probe?module=tcp&target={node}");
    let exporters = [
        ("node", node, "/metrics"),
        ("probe", blackbox, probe.as_str()),
        ("haproxy", haproxy, "/metrics"),
        ("dnsdist", dnsdist, "/metrics"),
    ];
    let exposed = exporters
        .map(|(name, address, path)| format!("{{name: {name}, url: \"http://{address}{path}\", remote: true}}"));
    let exposed = format!("expose: [{}]\n", exposed.join(", "));
    let gateway = gateway("");
    let edge = peer(&gateway, "edge", &exposed);
    let id = edge.peer_id();
    await_targets(&gateway, 1 + exporters.len());
    for (name, address, path) in exporters {
        let through = format!("/peers/{id}/exposed/{name}/metrics");
        // The state of the machine may change between the two scrapes.
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

//! What other parsers accept: promtool the classic text, and the strict parser of Python's prometheus-client
//! OpenMetrics. `tests/tools.sh` installs both.

use std::io::Write;
use std::process::{Command, Stdio};

use libp2p::swarm::SwarmEvent;
use libp2p_metrics::{Metrics, Recorder};
use peerscope::metrics::labels::{Backend, Component, MessageType, Operation, StorageErrorReason};
use peerscope::metrics::{Limits, Timer};
use prometheus_client::metrics::exemplar::{CounterWithExemplar, HistogramWithExemplars};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::fixture::Endpoint;

type Labels = Vec<(&'static str, &'static str)>;

/// libp2p's own families, and families with anything that could mislead a parser.
fn everything(registry: &mut Registry) {
    let metrics = Metrics::new(registry);
    let listener_id = libp2p::core::transport::ListenerId::next();
    let event = SwarmEvent::<()>::NewListenAddr { listener_id, address: "/ip4/127.0.0.1/tcp/4001".parse().unwrap() };
    metrics.record(&event);
    let connection_id = libp2p::swarm::ConnectionId::new_unchecked(1);
    metrics.record(&SwarmEvent::<()>::Dialing { peer_id: Some(libp2p::PeerId::random()), connection_id });

    let hostile = Family::<Labels, Gauge>::default();
    for (position, value) in
        ["", "\"", "\\", "a\nb", " # {a=\"b\"} 1", "}", "\u{fc}\u{2028}", "# EOF"].into_iter().enumerate()
    {
        hostile.get_or_create(&vec![("text", value)]).set(i64::try_from(position).unwrap());
    }
    registry.register("hostile", "A \\ \"help\"\nin two lines", hostile);
    let traced = CounterWithExemplar::<Labels>::default();
    traced.inc_by(2, Some(vec![("trace", "a # b")]), None);
    registry.register("traced", "With an exemplar", traced);
    let histogram = HistogramWithExemplars::<Labels>::new([0.1, 1.0].into_iter());
    histogram.observe(0.5, Some(vec![("trace", "c")]), None);
    registry.register("traced_sizes", "With exemplars", histogram);
}

fn endpoint() -> Endpoint {
    let endpoint = Endpoint::with(Limits::default(), everything);
    let collector = &endpoint.collector;
    collector.message_handled(MessageType::Put, Timer::start());
    collector.storage_completed(Operation::Put, Backend::Redis, Timer::start(), Err(StorageErrorReason::Timeout));
    collector.local_commit(17);
    endpoint.health.ready(Component::Storage);
    let _ = endpoint.scrape();
    endpoint
}

/// Runs `command` on `input`. Its output is an error if it does not exit with 0.
fn run(mut command: Command, input: &[u8]) -> Result<String, String> {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{command:?} does not start ({error}); run tests/tools.sh"));
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(text) } else { Err(text) }
}

/// The output of `promtool check metrics` of two releases. A complaint of its linter is an error too.
pub(super) fn promtool(input: &[u8]) -> Result<String, String> {
    let programs = [("TEST_PROMTOOL", "promtool"), ("TEST_PROMTOOL_3", "promtool-3")];
    let said = programs.map(|(variable, name)| {
        let mut command = Command::new(std::env::var_os(variable).unwrap_or_else(|| name.into()));
        command.args(["check", "metrics"]);
        run(command, input)
    });
    said.into_iter().collect()
}

/// What the strict parser reads from OpenMetrics: the lines that [`PARSER`] prints.
pub(super) fn parse_openmetrics(input: &[u8]) -> Result<String, String> {
    let mut command = Command::new("python3");
    command.args(["-c", PARSER]).env("PYTHONIOENCODING", "utf-8");
    if let Some(path) = std::env::var_os("TEST_PYTHONPATH") {
        command.env("PYTHONPATH", path);
    }
    run(command, input)
}

#[test]
fn promtool_accepts_the_classic_text() {
    let endpoint = endpoint();
    let text = endpoint.scrape();
    for family in ["libp2p_swarm_new_listen_addr_total", "hostile", "traced_sizes", "process_cpu_usage"] {
        assert!(text.contains(&format!("# TYPE {family} ")), "{family} in {text}");
    }
    promtool(text.as_bytes()).unwrap_or_else(|complaint| panic!("{complaint}\n{text}"));
    // promtool does complain when it should: OpenMetrics is not the classic text.
    let openmetrics = endpoint.connect().get("/metrics", &[("Accept", "application/openmetrics-text;version=1.0.0")]);
    promtool(&openmetrics.body).unwrap_err();
}

/// Reads every family and sample, and prints a digest that the test can compare.
const PARSER: &str = r#"
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
count = 0
for family in text_string_to_metric_families(sys.stdin.buffer.read().decode("utf-8")):
    for sample in family.samples:
        count += 1
        if family.name == "hostile":
            print(repr((sample.labels["text"], sample.value)))
    if family.name == "hostile":
        print("help", ascii(family.documentation))
print("samples", count)
"#;

#[test]
fn the_strict_python_parser_accepts_openmetrics() {
    let endpoint = endpoint();
    let reply = endpoint.connect().get("/metrics", &[("Accept", "application/openmetrics-text;version=1.0.0")]);
    let understood = parse_openmetrics(&reply.body).unwrap_or_else(|complaint| panic!("{complaint}\n{}", reply.text()));
    for line in ["('\"', 1)", "(' # {a=\"b\"} 1', 4)", "('a\\nb', 3)", "help 'A \\\\ \"help\"\\nin two lines.'"] {
        assert!(understood.lines().any(|found| found == line), "{line} in {understood}");
    }
    let samples = reply.text().lines().filter(|line| !line.starts_with('#')).count();
    assert!(understood.ends_with(&format!("samples {samples}\n")), "{samples} {understood}");
}

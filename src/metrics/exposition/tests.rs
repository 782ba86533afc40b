//! The formats, checked by a strict parser, and the negotiation, with the headers of real clients.

mod others;
mod own;
mod theirs;

use std::collections::BTreeMap;

use prometheus_client::metrics::exemplar::{CounterWithExemplar, HistogramWithExemplars};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry as Others, Unit};
use proptest::prelude::*;

use super::*;
use crate::metrics::Registry;
use crate::metrics::accept::accepts_gzip;

fn text(registry: &Registry, format: Format) -> String {
    String::from_utf8(registry.render(format, &FamilyFilter::all()).to_vec()).unwrap()
}

#[test]
fn the_classic_text_differs_from_openmetrics_where_it_must() {
    let registry = Registry::default();
    let mut others = Others::default();
    let requests = CounterWithExemplar::<Vec<(String, String)>, u64>::default();
    requests.inc_by(3, Some(vec![("trace".into(), "a } # { b".into())]), None);
    others.register("requests", "Requests", requests);
    let cpu = prometheus_client::metrics::counter::Counter::<f64, std::sync::atomic::AtomicU64>::default();
    cpu.inc_by(1.5);
    others.register_with_unit("cpu", "CPU time", Unit::Seconds, cpu);
    others.register("build", "Build", Info::new(vec![("version", "1 # {x=\"y\"} 2")]));
    let temperature = Family::<Vec<(&str, &str)>, Gauge>::default();
    temperature.get_or_create(&vec![("room", "a\"b\\c\nd }")]).set(-4);
    others.register("temperature", "First \"line\"\nsecond \\ line", temperature);
    let latency = HistogramWithExemplars::<Vec<(&str, &str)>>::new([0.5].into_iter());
    latency.observe(0.25, Some(vec![("trace", "z")]), None);
    others.register_with_unit("latency", "Latency", Unit::Seconds, latency);
    registry.add_foreign("others", others);

    assert_eq!(
        text(&registry, Format::Text),
        r#"# HELP requests_total Requests.
# TYPE requests_total counter
requests_total 3
# HELP cpu_seconds_total CPU time.
# TYPE cpu_seconds_total counter
cpu_seconds_total 1.5
# HELP build_info Build.
# TYPE build_info gauge
build_info{version="1 # {x=\"y\"} 2"} 1
# HELP temperature First "line"\nsecond \\ line.
# TYPE temperature gauge
temperature{room="a\"b\\c\nd }"} -4
# HELP latency_seconds Latency.
# TYPE latency_seconds histogram
latency_seconds_sum 0.25
latency_seconds_count 1
latency_seconds_bucket{le="0.5"} 1
latency_seconds_bucket{le="+Inf"} 1
"#
    );
    let openmetrics = text(&registry, Format::OpenMetrics);
    assert!(openmetrics.contains("requests_total 3 # {trace=\"a } # { b\"} 3.0\n"), "{openmetrics}");
    assert!(openmetrics.contains("# HELP temperature First \\\"line\\\"\\nsecond \\\\ line.\n"), "{openmetrics}");
    assert!(openmetrics.contains("# UNIT cpu_seconds seconds\n"), "{openmetrics}");
    assert!(openmetrics.ends_with("\n# EOF\n"), "{openmetrics}");
}

#[test]
fn an_empty_registry_makes_an_empty_page() {
    assert_eq!(text(&Registry::default(), Format::Text), "");
    assert_eq!(text(&Registry::default(), Format::OpenMetrics), "# EOF\n");
}

#[test]
fn real_clients_get_the_format_that_they_prefer() {
    let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    let prometheus_3_native = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
    let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let firefox = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8";
    for (accept, format) in [
        ("", Format::Text),
        ("*/*", Format::Text),
        (prometheus_3, Format::OpenMetrics),
        (prometheus_3_native, Format::Protobuf),
        (prometheus_2, Format::OpenMetrics),
        ("text/plain;version=0.0.4;q=1,*/*;q=0.1", Format::Text),
        (firefox, Format::Text),
        (
            "application/vnd.google.protobuf; proto=\"io.prometheus.client.MetricFamily\"; encoding=\"delimited\"",
            Format::Protobuf,
        ),
        // A message or an encoding that we do not support.
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text", Format::Text),
        ("application/vnd.google.protobuf;encoding=delimited", Format::Text),
        ("application/vnd.google.protobuf", Format::Text),
        ("application/openmetrics-text", Format::OpenMetricsDraft),
        ("application/openmetrics-text; version=0.0.1", Format::OpenMetricsDraft),
        ("application/openmetrics-text; version=\"1.0.0\"; charset=utf-8", Format::OpenMetrics),
        ("APPLICATION/OPENMETRICS-TEXT; VERSION=1.0.0", Format::OpenMetrics),
        ("application/openmetrics-text; version=2.0.0", Format::Text),
        ("text/plain;q=0.5, application/openmetrics-text;version=1.0.0;q=0.6", Format::OpenMetrics),
        // Equal: the client's order decides.
        ("text/plain, application/openmetrics-text;version=1.0.0", Format::Text),
        ("application/openmetrics-text;version=1.0.0, text/plain", Format::OpenMetrics),
        ("application/openmetrics-text;version=1.0.0;q=0", Format::Text),
        ("application/openmetrics-text;version=1.0.0;q=0.0, text/plain;q=0.1", Format::Text),
        ("text/plain;q=0, application/openmetrics-text;version=1.0.0;q=0.001", Format::OpenMetrics),
        ("text/plain;version=1.0.0, application/openmetrics-text;version=1.0.0;q=0.1", Format::OpenMetrics),
        // Malformed headers.
        (",,;;q==,application/openmetrics-text;version=1.0.0;q=nonsense", Format::OpenMetrics),
        ("\"unclosed, application/openmetrics-text;version=1.0.0", Format::Text),
        ("x;y=\"a,b;q=1\", application/openmetrics-text;version=1.0.0;q=1e-9", Format::Text),
        ("text/plain;q=0.2;version=0.0.4, application/openmetrics-text;q=7;version=1.0.0", Format::OpenMetrics),
    ] {
        assert_eq!(negotiate(accept), format, "{accept}");
    }
}

#[test]
fn gzip_is_used_unless_the_client_prefers_plain_bytes() {
    for (accept_encoding, gzip) in [
        ("", false),
        ("gzip", true),
        ("GZIP", true),
        ("x-gzip", true),
        ("gzip, deflate, br", true),
        ("deflate, br", false),
        ("identity", false),
        ("gzip;q=0", false),
        ("gzip;q=0.0001", false),
        ("gzip;q=0.5", true),
        ("gzip;q=0.5, identity", false),
        ("identity;q=0.5, gzip;q=0.5", true),
        ("*", true),
        ("*;q=0", false),
        ("*;q=0, gzip", true),
        ("*, gzip;q=0", false),
        ("identity;q=0, *", true),
        (";;,,q=1", false),
    ] {
        assert_eq!(accepts_gzip(accept_encoding), gzip, "{accept_encoding}");
    }
}

#[test]
fn json_is_only_for_clients_that_name_it() {
    for (accept, json) in [
        ("", false),
        ("*/*", false),
        ("application/json", true),
        ("application/json, */*;q=0.5", true),
        ("application/*", true),
        ("text/plain, application/json;q=0.9", false),
        ("application/json;q=0", false),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", false),
    ] {
        assert_eq!(prefers_json(accept), json, "{accept}");
    }
}

/// A series as a scraper understands it: the sample's name and its labels.
type Series = (String, BTreeMap<String, String>);

/// What a strict parser reads from the classic text.
#[derive(Debug, Default, PartialEq)]
struct Understood {
    /// By name: kind and help.
    families: BTreeMap<String, (String, String)>,
    samples: BTreeMap<Series, f64>,
}

/// Parses the classic format as documented, and panics on anything else.
fn understand(text: &str) -> Understood {
    let mut understood = Understood::default();
    let mut family = (String::new(), String::new());
    let mut lines = text.split_terminator('\n');
    assert!(text.is_empty() || text.ends_with('\n'));
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            let kind = lines.next().unwrap().strip_prefix("# TYPE ").unwrap().strip_prefix(name).unwrap().trim_start();
            assert!(["counter", "gauge", "histogram", "untyped"].contains(&kind), "{kind}");
            family = (name.to_owned(), kind.to_owned());
            let known = understood.families.insert(name.to_owned(), (kind.to_owned(), unescape(help)));
            assert!(known.is_none(), "two families with the same name");
            continue;
        }
        assert!(!line.starts_with('#'), "{line}");
        let (name, labels, value) = sample(line);
        let suffix = name.strip_prefix(&family.0).expect("a sample follows its family's metadata");
        match family.1.as_str() {
            "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{line}"),
            _ => assert_eq!(suffix, "", "{line}"),
        }
        assert!(understood.samples.insert((name, labels), value).is_none(), "two samples of the same series: {line}");
    }
    understood
}

fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let name_end = line.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap();
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(mut inside) = rest.strip_prefix('{') {
        while !inside.starts_with('}') {
            let (label, after) = inside.split_once("=\"").unwrap();
            assert!(label.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{line}");
            let mut escaped = false;
            let end = after.find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            let (value, after) = after.split_at(end.unwrap());
            assert!(labels.insert(label.to_owned(), unescape(value)).is_none(), "{line}");
            inside = after[1..].strip_prefix(',').unwrap_or(&after[1..]);
        }
        rest = &inside[1..];
    }
    // Nothing may follow the value.
    (name.to_owned(), labels, rest.strip_prefix(' ').unwrap().parse().unwrap())
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\\' => match chars.next().unwrap() {
                'n' => '\n',
                escaped => {
                    assert!(matches!(escaped, '\\' | '"'), "{text}");
                    escaped
                }
            },
            c => c,
        });
    }
    out
}

/// Text with anything that could mislead a parser.
fn hostile() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just(" # {".to_owned()),
        Just("\\\"".to_owned()),
        Just("\\".to_owned()),
        Just("\"} 1 # {a=\"b\"} 1".to_owned()),
        Just("\n".to_owned()),
        Just("\n# EOF\n".to_owned()),
        Just("\n# TYPE other gauge\n".to_owned()),
        Just("\n# HELP x y".to_owned()),
        Just("}".to_owned()),
        Just("{".to_owned()),
        Just("\r".to_owned()),
        Just("\u{2028}".to_owned()),
        "\\PC{0,6}",
    ];
    proptest::collection::vec(part, 0..5).prop_map(|parts| parts.concat())
}

#[derive(Debug, Clone)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

#[derive(Debug, Clone)]
struct Spec {
    kind: Kind,
    help: String,
    /// One row per series.
    values: Vec<(String, u32)>,
    exemplar: Option<String>,
}

fn spec() -> impl Strategy<Value = Spec> {
    let kind = prop_oneof![Just(Kind::Counter), Just(Kind::Gauge), Just(Kind::Histogram), Just(Kind::Info)];
    let rows = proptest::collection::btree_map(hostile(), any::<u32>(), 1..4);
    (kind, hostile(), rows, proptest::option::of(hostile())).prop_map(|(kind, help, rows, exemplar)| Spec {
        kind,
        help,
        values: rows.into_iter().collect(),
        exemplar,
    })
}

type Labels = Vec<(&'static str, String)>;

/// Registers `spec` and adds to `expected` what a parser has to read.
fn register(others: &mut Others, expected: &mut Understood, name: &str, spec: &Spec) {
    let exemplar = || spec.exemplar.clone().map(|value| vec![("trace", value)]);
    let mut sample = |suffix: &str, labels: &[(&str, &str)], value: f64| {
        let labels = labels.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        expected.samples.insert((format!("{name}{suffix}"), labels), value);
    };
    let (suffix, kind) = match spec.kind {
        Kind::Counter => {
            let family = Family::<Labels, CounterWithExemplar<Labels, u64>>::default();
            for (label, value) in &spec.values {
                family.get_or_create(&vec![("label", label.clone())]).inc_by(u64::from(*value), exemplar(), None);
                sample("_total", &[("label", label)], f64::from(*value));
            }
            others.register(name, spec.help.clone(), family);
            ("_total", "counter")
        }
        Kind::Gauge => {
            let family = Family::<Labels, Gauge>::default();
            for (label, value) in &spec.values {
                family.get_or_create(&vec![("label", label.clone())]).set(i64::from(*value));
                sample("", &[("label", label)], f64::from(*value));
            }
            others.register(name, spec.help.clone(), family);
            ("", "gauge")
        }
        Kind::Histogram => {
            let family = Family::<Labels, HistogramWithExemplars<Labels>>::new_with_constructor(|| {
                HistogramWithExemplars::new([10.0].into_iter())
            });
            for (label, value) in &spec.values {
                let value = f64::from(*value);
                family.get_or_create(&vec![("label", label.clone())]).observe(value, exemplar(), None);
                sample("_sum", &[("label", label)], value);
                sample("_count", &[("label", label)], 1.0);
                sample("_bucket", &[("label", label), ("le", "10.0")], if value <= 10.0 { 1.0 } else { 0.0 });
                sample("_bucket", &[("label", label), ("le", "+Inf")], 1.0);
            }
            others.register(name, spec.help.clone(), family);
            ("", "histogram")
        }
        Kind::Info => {
            let label = &spec.values[0].0;
            others.register(name, spec.help.clone(), Info::new(vec![("label", label.clone())]));
            sample("_info", &[("label", label)], 1.0);
            ("_info", "gauge")
        }
    };
    expected.families.insert(format!("{name}{suffix}"), (kind.to_owned(), format!("{}.", spec.help)));
}

proptest! {
    #[test]
    fn a_strict_parser_accepts_the_page_of_any_registry(specs in proptest::collection::vec(spec(), 0..5)) {
        let (registry, mut others) = (Registry::default(), Others::default());
        let mut expected = Understood::default();
        for (position, spec) in specs.iter().enumerate() {
            register(&mut others, &mut expected, &format!("family_{position}"), spec);
        }
        registry.add_foreign("others", others);
        let text = text(&registry, Format::Text);
        prop_assert_eq!(understand(&text), expected, "{}", text);
    }

    #[test]
    fn no_header_breaks_the_negotiation(header in any::<String>(), hostile in hostile()) {
        for header in [header, hostile] {
            let _ = (negotiate(&header), accepts_gzip(&header), prefers_json(&header));
        }
    }
}

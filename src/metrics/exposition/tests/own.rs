//! Our own families, in every format, against other encoders and parsers.

use std::sync::Arc;

use prometheus_client::registry::Metric;
use prost::Message as _;

use super::*;
use crate::metrics::catalogue as c;
use crate::metrics::instruments::{
    self, Buckets, Counter, DURATION_BOUNDS, Events, Histogram, InFlight, NativeHistograms, ZERO_THRESHOLD,
};
use crate::metrics::labels::{Backend, Component, HttpHandler, Label, MessageType};
use crate::metrics::registry::RegisterError;

fn durations() -> Arc<Buckets> {
    Arc::new(Buckets::durations(&DURATION_BOUNDS, NativeHistograms::default()).unwrap())
}

const TEST_COUNTER: c::Descriptor =
    c::Descriptor { name: "test_redis_total", kind: c::Kind::Counter, labels: &["type", "backend"], help: "A counter" };

/// Every kind of instrument, with values in it.
struct Instruments {
    counter: Counter<(MessageType, Backend)>,
    gauge: instruments::Gauge<()>,
    in_flight: InFlight<HttpHandler>,
    events: Events<MessageType>,
    histogram: Histogram<Component>,
}

impl Instruments {
    fn new() -> Self {
        let (events, histogram) = (Events::new(&durations()), Histogram::new(&durations()));
        for nanos in [0, 1, 10_000, 10_001, 1_500_000, 1_500_000, 5_000_000_000, 123_456_789_012] {
            events.record(MessageType::Put, nanos);
        }
        histogram.observe_f64(Component::Storage, 0.25);
        let counter = Counter::new();
        counter.add((MessageType::Get, Backend::Redis), 1 << 53);
        let gauge = instruments::Gauge::new();
        gauge.set((), -7);
        Self { counter, gauge, in_flight: InFlight::new(), events, histogram }
    }

    fn registry(&self) -> Registry {
        let registry = Registry::default();
        registry.register(&TEST_COUNTER, &self.counter).unwrap();
        registry.register(&c::PEERS_CONNECTED, &self.gauge).unwrap();
        registry.register(&c::HTTP_IN_FLIGHT, &self.in_flight).unwrap();
        registry.register_events(&c::MESSAGES_RECEIVED, &c::MESSAGE_PROCESSING, &self.events).unwrap();
        registry.register(&c::SCRAPE_DURATION, &self.histogram).unwrap();
        registry
    }
}

/// The samples of an OpenMetrics text: name and labels, in any order, with their values. Bounds are compared as
/// numbers.
fn samples(text: &str) -> BTreeMap<Series, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#')).map(sample);
    lines
        .map(|(name, mut labels, value)| {
            if let Some(bound) = labels.get_mut("le") {
                *bound = instruments::le(bound.parse().unwrap());
            }
            ((name, labels), value)
        })
        .collect()
}

#[test]
fn the_text_is_what_prometheus_client_would_write() {
    let instruments = Instruments::new();
    let mut theirs = prometheus_client::registry::Registry::default();
    fn register(to: &mut prometheus_client::registry::Registry, descriptor: &c::Descriptor, metric: impl Metric) {
        to.register(descriptor.openmetrics_name(), descriptor.help, metric);
    }
    register(&mut theirs, &TEST_COUNTER, instruments.counter.clone());
    register(&mut theirs, &c::PEERS_CONNECTED, instruments.gauge.clone());
    register(&mut theirs, &c::HTTP_IN_FLIGHT, instruments.in_flight.clone());
    register(&mut theirs, &c::MESSAGE_PROCESSING, instruments.events.clone());
    register(&mut theirs, &c::SCRAPE_DURATION, instruments.histogram.clone());
    let mut their_text = String::new();
    prometheus_client::encoding::text::encode(&mut their_text, &theirs).unwrap();

    let our_text = text(&instruments.registry(), Format::OpenMetrics);
    let mut ours = samples(&our_text);
    // The events also show a counter, which is the histogram's count.
    ours.retain(|(name, _), _| name != "messages_received_total");
    assert_eq!(ours, samples(&their_text));
    let types = |text: &str| -> std::collections::BTreeSet<String> {
        text.lines()
            .filter(|line| line.starts_with("# TYPE ") || line.starts_with("# HELP "))
            .map(str::to_owned)
            .collect()
    };
    let mut ours = types(&our_text);
    ours.retain(|line| !line.contains(" messages_received "));
    assert_eq!(ours, types(&their_text));
}

#[test]
fn both_texts_have_the_same_samples_and_each_its_own_metadata() {
    let registry = Instruments::new().registry();
    let (classic, openmetrics) = (text(&registry, Format::Text), text(&registry, Format::OpenMetrics));
    let lines =
        |text: &str| -> Vec<String> { text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect() };
    assert_eq!(lines(&classic), lines(&openmetrics));
    let understood = understand(&classic);
    assert_eq!(understood.families["messages_received_total"].0, "counter");
    assert!(openmetrics.contains("# TYPE messages_received counter\n"));
    assert!(openmetrics.contains("# UNIT message_processing_duration_seconds seconds\n"));
    assert!(openmetrics.ends_with("\n# EOF\n") && !classic.contains("# EOF") && !classic.contains("# UNIT"));
    for line in [
        r#"messages_received_total{type="put"} 8"#,
        r#"message_processing_duration_seconds_bucket{type="put",le="1e-05"} 3"#,
        r#"message_processing_duration_seconds_bucket{type="put",le="0.0025"} 6"#,
        r#"message_processing_duration_seconds_bucket{type="put",le="10.0"} 7"#,
        r#"message_processing_duration_seconds_bucket{type="put",le="+Inf"} 8"#,
        r#"message_processing_duration_seconds_sum{type="put"} 128.459809014"#,
        r#"message_processing_duration_seconds_count{type="put"} 8"#,
        r#"message_processing_duration_seconds_sum{type="get"} 0.0"#,
        "agent_peers_connected -7",
        r#"test_redis_total{type="get",backend="redis"} 9007199254740992"#,
    ] {
        assert!(classic.lines().any(|found| found == line), "{line} in {classic}");
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct MetricFamily {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    help: Option<String>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
    #[prost(message, repeated, tag = "4")]
    metric: Vec<MetricMessage>,
    #[prost(string, optional, tag = "5")]
    unit: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MetricMessage {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    gauge: Option<Value>,
    #[prost(message, optional, tag = "3")]
    counter: Option<Value>,
    #[prost(message, optional, tag = "5")]
    untyped: Option<Value>,
    #[prost(message, optional, tag = "7")]
    histogram: Option<HistogramMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LabelPair {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    value: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(double, optional, tag = "1")]
    value: Option<f64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HistogramMessage {
    #[prost(uint64, optional, tag = "1")]
    count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    sum: Option<f64>,
    #[prost(message, repeated, tag = "3")]
    bucket: Vec<Bucket>,
    #[prost(sint32, optional, tag = "5")]
    schema: Option<i32>,
    #[prost(double, optional, tag = "6")]
    zero_threshold: Option<f64>,
    #[prost(uint64, optional, tag = "7")]
    zero_count: Option<u64>,
    #[prost(message, repeated, tag = "12")]
    positive_span: Vec<Span>,
    #[prost(sint64, repeated, tag = "13")]
    positive_delta: Vec<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Bucket {
    #[prost(uint64, optional, tag = "1")]
    cumulative_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    upper_bound: Option<f64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Span {
    #[prost(sint32, optional, tag = "1")]
    offset: Option<i32>,
    #[prost(uint32, optional, tag = "2")]
    length: Option<u32>,
}

pub(super) fn families(registry: &Registry) -> Vec<MetricFamily> {
    let page = registry.render(Format::Protobuf, &FamilyFilter::all());
    let mut rest = &page[..];
    let mut families = Vec::new();
    while !rest.is_empty() {
        families.push(MetricFamily::decode_length_delimited(&mut rest).unwrap());
    }
    families
}

/// The messages as the samples of a classic text, so that the two can be compared.
pub(super) fn as_samples(families: &[MetricFamily]) -> BTreeMap<Series, f64> {
    let mut samples = BTreeMap::new();
    for family in families {
        let name = family.name.clone().unwrap();
        for metric in &family.metric {
            let pairs = metric.label.iter().map(|pair| (pair.name.clone().unwrap(), pair.value.clone().unwrap()));
            let labels: BTreeMap<_, _> = pairs.collect();
            let mut put = |suffix: &str, le: Option<f64>, value: f64| {
                let mut labels = labels.clone();
                labels.extend(le.map(|le| ("le".to_owned(), instruments::le(le))));
                assert!(samples.insert((format!("{name}{suffix}"), labels), value).is_none(), "{name}: twice");
            };
            match (family.kind, &metric.counter, &metric.gauge, &metric.untyped, &metric.histogram) {
                (Some(0), Some(value), None, None, None)
                | (Some(1), None, Some(value), None, None)
                | (Some(3), None, None, Some(value), None) => put("", None, value.value.unwrap()),
                (Some(4), None, None, None, Some(histogram)) => {
                    put("_sum", None, histogram.sum.unwrap());
                    put("_count", None, histogram.count.unwrap() as f64);
                    for bucket in &histogram.bucket {
                        put("_bucket", bucket.upper_bound, bucket.cumulative_count.unwrap() as f64);
                    }
                }
                _ => panic!("{family:?}"),
            }
        }
    }
    samples
}

#[test]
fn the_messages_contain_the_same_as_the_text() {
    let registry = Instruments::new().registry();
    let understood = understand(&text(&registry, Format::Text));
    let families = families(&registry);
    assert_eq!(as_samples(&families), understood.samples);
    let kinds = ["counter", "gauge", "", "untyped", "histogram"];
    let metadata = families.iter().map(|family| {
        let kind = kinds[usize::try_from(family.kind.unwrap()).unwrap()];
        (family.name.clone().unwrap(), (kind.to_owned(), family.help.clone().unwrap()))
    });
    assert_eq!(metadata.collect::<BTreeMap<_, _>>(), understood.families);
    let unit = |name: &str| families.iter().find(|family| family.name() == name).unwrap().unit.clone();
    assert_eq!(unit("message_processing_duration_seconds").as_deref(), Some("seconds"));
    assert_eq!(unit("agent_peers_connected"), None);
}

#[test]
fn the_messages_contain_native_histograms() {
    let families = families(&Instruments::new().registry());
    let family = families.iter().find(|family| family.name() == "message_processing_duration_seconds").unwrap();
    let of = |kind: &str| {
        let metric = family.metric.iter().find(|metric| metric.label[0].value() == kind).unwrap();
        metric.histogram.clone().unwrap()
    };
    let put = of("put");
    assert_eq!((put.schema, put.zero_threshold, put.zero_count), (Some(3), Some(ZERO_THRESHOLD), Some(1)));
    let (mut index, mut count, mut total, mut deltas) = (0, 0, 0, put.positive_delta.iter());
    let mut buckets = Vec::new();
    for span in &put.positive_span {
        index += span.offset();
        for _ in 0..span.length() {
            count += deltas.next().unwrap();
            total += count;
            if count > 0 {
                buckets.push((index, count));
            }
            index += 1;
        }
    }
    assert_eq!((deltas.next(), total), (None, 7));
    // 2^(i/8) s at least as large as each value: 1 ns, 10 us twice, 1.5 ms twice, 5 s, 123 s.
    assert_eq!(buckets, [(-239, 1), (-132, 2), (-75, 2), (19, 1), (56, 1)]);
    // A histogram without observations is native, too.
    let get = of("get");
    assert_eq!((get.count, get.schema, get.zero_threshold), (Some(0), Some(3), Some(ZERO_THRESHOLD)));
    assert_eq!((get.positive_span.len(), get.positive_delta.len()), (0, 0));
}

#[test]
fn the_families_of_others_are_encoded_as_messages_too() {
    let registry = Registry::default();
    let mut others = Others::default();
    let requests = CounterWithExemplar::<Vec<(String, String)>, u64>::default();
    requests.inc_by(3, Some(vec![("trace".into(), "a } # { b".into())]), None);
    others.register("requests", "Requests", requests);
    others.register("build", "Build", Info::new(vec![("version", "1 # {x=\"y\"} 2")]));
    let temperature = Family::<Vec<(&str, &str)>, Gauge>::default();
    temperature.get_or_create(&vec![("room", "a\"b\\c\nd }")]).set(-4);
    others.register("temperature", "First \"line\"\nsecond \\ line", temperature);
    let latency = Family::<Vec<(&str, &str)>, HistogramWithExemplars<Vec<(&str, &str)>>>::new_with_constructor(|| {
        HistogramWithExemplars::new([0.5, 2.0].into_iter())
    });
    latency.get_or_create(&vec![("to", "a")]).observe(0.25, Some(vec![("trace", "z")]), None);
    latency.get_or_create(&vec![("to", "b")]).observe(7.0, None, None);
    others.register_with_unit("latency", "Latency", Unit::Seconds, latency);
    registry.add_foreign("others", others);
    let understood = understand(&text(&registry, Format::Text));
    assert_eq!(as_samples(&families(&registry)), understood.samples);
    assert_eq!(understood.samples.len(), 3 + 2 * 5);
}

#[test]
fn only_the_requested_families_are_shown() {
    let registry = Instruments::new().registry();
    let mut others = Others::default();
    others.register("requests", "Requests", Counter::<()>::new());
    registry.add_foreign("others", others);
    for format in [Format::Text, Format::OpenMetrics, Format::Protobuf] {
        let names = |query: &str| {
            let page = registry.render(format, &FamilyFilter::from_query(Some(query)));
            let page = String::from_utf8_lossy(&page).into_owned();
            ["messages_received", "message_processing_duration_seconds", "agent_peers_connected", "requests_total"]
                .map(|name| page.contains(name))
        };
        assert_eq!(names("name[]=messages_received_total"), [true, false, false, false]);
        assert_eq!(names("name[]=messages_received"), [true, false, false, false]);
        assert_eq!(
            names("name%5B%5D=agent_peers_connected&name[]=message_processing_duration_seconds"),
            [false, true, true, false]
        );
        assert_eq!(names("name[]=requests_total"), [false, false, false, true]);
        assert_eq!(names("name[]=message_processing_duration_seconds_bucket"), [false; 4], "a sample is not a family");
        assert_eq!(names("name[]=nobody"), [false; 4]);
        assert_eq!(names("other=x"), [true; 4]);
    }
}

#[test]
fn a_name_can_be_used_only_once() {
    let registry = Registry::default();
    let mut others = Others::default();
    let gauge = instruments::Gauge::<()>::new();
    registry.register(&c::PEERS_CONNECTED, &gauge).unwrap();
    let error = registry.register(&c::PEERS_CONNECTED, &gauge).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the metric name agent_peers_connected is already used by another family of this registry"
    );
    // Not even by a foreign registry, whatever its type.
    others.register("agent_peers_connected", "Another", Counter::<()>::new());
    others.register("agent_peers", "Fine", Counter::<()>::new());
    registry.add_foreign("others", others);
    let text = text(&registry, Format::Text);
    assert_eq!(text.matches("# TYPE").count(), 2, "{text}");
    assert!(text.contains("# TYPE agent_peers_connected gauge\n") && text.contains("agent_peers_total 0\n"), "{text}");
}

/// A label with two values that have the same text.
#[derive(Debug, Clone, Copy)]
struct Ambiguous(bool);

impl Label for Ambiguous {
    const NAME: &'static str = "which";
    const ALL: &'static [Self] = &[Self(false), Self(true)];

    fn index(self) -> usize {
        self.0.into()
    }

    fn as_str(self) -> &'static str {
        "the same"
    }

    fn meaning(self) -> &'static str {
        ""
    }
}

#[test]
fn families_that_would_make_the_page_invalid_cannot_be_registered() {
    let registry = Registry::default();
    let named = |name| c::Descriptor { name, ..TEST_COUNTER };
    let refused = |error: Result<(), RegisterError>, text: &str| {
        let error = error.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    };
    refused(
        registry.register(&named("my-metric_total"), &Counter::<()>::new()),
        "`my-metric_total` is not a valid metric name",
    );
    refused(registry.register(&named("1st_total"), &Counter::<()>::new()), "is not a valid metric name");
    refused(
        registry.register(&c::SCRAPE_DURATION, &Counter::<()>::new()),
        "described as histogram but recorded as counter",
    );
    let twice = Counter::<(MessageType, MessageType)>::new();
    refused(registry.register(&TEST_COUNTER, &twice), "the same label twice");
    refused(registry.register(&TEST_COUNTER, &Counter::<Ambiguous>::new()), "two series of test_redis_total");
    let events = Events::<MessageType>::new(&durations());
    refused(registry.register_events(&c::MESSAGES_RECEIVED, &c::PEERS_CONNECTED, &events), "described as gauge");
    assert_eq!(text(&registry, Format::Text), "");
}

#[test]
fn infos_are_gauges_in_the_formats_that_have_no_infos() {
    let registry = Registry::default();
    registry.add_or_log(crate::metrics::registry::Info::new(&c::BUILD_INFO, &[("version", "1 \"x\"")]));
    assert!(
        text(&registry, Format::Text)
            .ends_with("# TYPE agent_build_info gauge\nagent_build_info{version=\"1 \\\"x\\\"\"} 1\n")
    );
    assert!(text(&registry, Format::OpenMetrics).contains("# TYPE agent_build info\nagent_build_info{"));
    let families = families(&registry);
    assert_eq!((families[0].name(), families[0].kind), ("agent_build_info", Some(1)));
}

//! Registries that others filled carelessly: the page has only what every scraper accepts.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, LabelSetEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::*;

#[test]
fn a_family_that_is_registered_twice_appears_once_with_the_samples_of_both() {
    let registry = Registry::default();
    let mut others = Others::default();
    for shard in ["a", "b", "a"] {
        let labels = std::iter::once(("shard".into(), shard.into()));
        let sub = others.sub_registry_with_labels(labels);
        let family = Family::<Vec<(&str, &str)>, Gauge>::default();
        family.get_or_create(&vec![("to", "x")]).set(1);
        sub.register("load", "Load", family);
    }
    // The same labels in the other order are the same series.
    let family = Family::<Vec<(&str, &str)>, Gauge>::default();
    family.get_or_create(&vec![("to", "x"), ("shard", "b")]).set(5);
    family.get_or_create(&vec![("to", "y"), ("shard", "b")]).set(6);
    others.register("load", "Load", family);
    // One name, two types: the first one keeps it.
    others.register("load", "Load", prometheus_client::metrics::counter::Counter::<u64>::default());
    registry.add_foreign("others", others);
    let text = text(&registry, Format::Text);
    let understood = understand(&text);
    assert_eq!(understood.families["load"], ("gauge".to_owned(), "Load.".to_owned()));
    let samples: Vec<_> = understood
        .samples
        .iter()
        .map(|((_, labels), value)| (labels["shard"].as_str(), labels["to"].as_str(), *value))
        .collect();
    // The registry writes its own families before those of its sub-registries, so 5 comes before 1.
    assert_eq!(samples, [("a", "x", 1.0), ("b", "x", 5.0), ("b", "y", 6.0)], "{text}");
}

#[test]
fn labels_in_another_order_are_the_same_series() {
    let registry = Registry::default();
    let mut others = Others::default();
    let family = Family::<Vec<(&str, &str)>, Gauge>::default();
    family.get_or_create(&vec![("a", "1"), ("b", "2")]).set(1);
    family.get_or_create(&vec![("b", "2"), ("a", "1")]).set(1);
    others.register("load", "Load", family);
    registry.add_foreign("others", others);
    assert_eq!(understand(&text(&registry, Format::Text)).samples.len(), 1);
    assert_eq!(own::as_samples(&own::families(&registry)).len(), 1);
}

#[test]
fn a_family_without_samples_is_left_out() {
    let registry = Registry::default();
    let mut others = Others::default();
    others.register("nothing", "Nothing", Family::<Vec<(&str, &str)>, Gauge>::default());
    registry.add_foreign("others", others);
    for format in [Format::Text, Format::Protobuf] {
        assert_eq!(text(&registry, format), "");
    }
    assert_eq!(text(&registry, Format::OpenMetrics), "# EOF\n");
}

#[test]
fn a_name_that_two_families_would_share_in_some_format_is_used_once() {
    let registry = Registry::default();
    let mut others = Others::default();
    others.register("requests", "A", prometheus_client::metrics::counter::Counter::<u64>::default());
    others.register("requests_total", "B", Gauge::<i64>::default());
    others.register("latency", "C", prometheus_client::metrics::histogram::Histogram::new([1.0]));
    others.register("latency_count", "D", Gauge::<i64>::default());
    others.register("latency_max", "E", Gauge::<i64>::default());
    registry.add_foreign("others", others);
    let understood = understand(&text(&registry, Format::Text));
    let names: Vec<_> = understood.families.keys().map(String::as_str).collect();
    assert_eq!(names, ["latency", "latency_max", "requests_total"]);
    assert_eq!(understood.families["requests_total"].0, "counter");
}

/// Encodes whatever it is given.
#[derive(Debug)]
struct Careless {
    name: String,
    kind: MetricType,
    /// The labels of each series; all have the same value.
    series: Vec<Vec<(String, String)>>,
    value: f64,
}

struct Labels<'a>(&'a [(String, String)]);

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

impl Collector for Careless {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut metric = encoder.encode_descriptor(&self.name, "Careless.", None, self.kind)?;
        for labels in &self.series {
            let labels = Labels(labels);
            let series = metric.encode_family(&labels)?;
            match self.kind {
                MetricType::Counter => ConstCounter::new(self.value).encode(series)?,
                _ => ConstGauge::new(self.value).encode(series)?,
            }
        }
        Ok(())
    }
}

fn careless(name: &str, labels: &[(&str, &str)], value: f64) -> Careless {
    let labels = labels.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    Careless { name: name.to_owned(), kind: MetricType::Gauge, series: vec![labels], value }
}

#[test]
fn invalid_samples_are_left_out_and_the_rest_stays() {
    let registry = Registry::default();
    let mut others = Others::default();
    for bad in [
        careless("two words", &[], 1.0),
        careless("1st", &[], 1.0),
        careless("", &[], 1.0),
        careless("a", &[("b-c", "d")], 1.0),
        careless("b", &[("", "d")], 1.0),
        careless("c", &[("__name__", "d")], 1.0),
        careless("d", &[("e", "1"), ("e", "2")], 1.0),
        careless("e", &[("x=\"\",y", "1")], 1.0),
        careless("f\n# TYPE g gauge\ng", &[], 1.0),
    ] {
        others.register_collector(Box::new(bad));
    }
    others.register_collector(Box::new(careless("good", &[("a", "}\n# EOF")], f64::INFINITY)));
    others.register_collector(Box::new(careless("good", &[("a", "n")], f64::NAN)));
    registry.add_foreign("others", others);
    let text = text(&registry, Format::OpenMetrics);
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines, ["e{x=\"\",y=\"1\"} 1.0", "good{a=\"}\\n# EOF\"} +Inf", "good{a=\"n\"} NaN"], "{text}");
}

/// A name or a label name, valid or not.
/// An embedding program that uses libp2p, too, has families of the same names.
#[test]
fn families_of_the_same_name_in_two_registries_are_joined() {
    let registry = Registry::default();
    for shard in ["a", "b"] {
        let family = Family::<Vec<(&str, &str)>, Gauge>::default();
        family.get_or_create(&vec![("shard", shard)]).set(1);
        let mut others = Others::default();
        others.register("load", "Load", family);
        registry.add_foreign(shard, others);
    }
    let understood = understand(&text(&registry, Format::Text));
    assert_eq!((understood.families.len(), understood.samples.len()), (1, 2));
    assert_eq!(own::as_samples(&own::families(&registry)), understood.samples);
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => proptest::sample::select(vec!["a", "b", "a_total", "a_info", "a_sum", "a_count", "a_bucket", "le"])
            .prop_map(str::to_owned),
        1 => hostile(),
    ]
}

fn anything() -> impl Strategy<Value = Careless> {
    let kind = prop_oneof![
        Just(MetricType::Gauge),
        Just(MetricType::Counter),
        // Samples of a gauge under a different type.
        Just(MetricType::Histogram),
        Just(MetricType::Info),
        Just(MetricType::Unknown)
    ];
    let value = prop_oneof![Just("x".to_owned()), Just("1".to_owned()), hostile()];
    let labels = proptest::collection::vec((name(), value), 0..3);
    let series = proptest::collection::vec(labels, 0..4);
    let value = any::<f64>().prop_filter("a number, which equals itself", |value| !value.is_nan());
    (name(), kind, series, value).prop_map(|(name, kind, series, value)| Careless { name, kind, series, value })
}

proptest! {
    #[test]
    fn whatever_is_registered_a_strict_parser_accepts_the_page(all in proptest::collection::vec(anything(), 0..8)) {
        let registry = Registry::default();
        let mut others = Others::default();
        for careless in all {
            others.register_collector(Box::new(careless));
        }
        registry.add_foreign("others", others);
        // This panics on a repeated family or sample, and on anything else that is invalid.
        let understood = understand(&text(&registry, Format::Text));
        for name in understood.families.keys() {
            prop_assert!(understood.samples.keys().any(|(sample, _)| sample.starts_with(name.as_str())), "{}", name);
        }
        // The same in every format; this panics on a repeated sample, too.
        prop_assert_eq!(own::as_samples(&own::families(&registry)), understood.samples.clone());
        let openmetrics = text(&registry, Format::OpenMetrics);
        let samples = openmetrics.lines().filter(|line| !line.starts_with('#')).count();
        prop_assert_eq!(samples, understood.samples.len());
    }
}

//! What other programs read from agents at work. Two releases of Prometheus and VictoriaMetrics scrape the
//! agents and are queried for what they saw; two releases of promtool and the strict parser of Python's
//! prometheus-client read single pages. `tests/tools.sh` installs them all.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peerscope::metrics::labels::MessageType;
use peerscope::metrics::{MetricsCollector, Timer};

use super::fixture::{Client, Endpoint};
use super::traffic::{Load, Pair};
use super::validators::{parse_openmetrics, promtool};
use crate::support::agent::{PATIENCE, TestAgent, eventually};
use crate::support::metrics::{Series, samples, series, value};
use crate::support::scraper::{Labels, Program, Scraper};

const OPENMETRICS: [(&str, &str); 1] = [("Accept", "application/openmetrics-text; version=1.0.0")];

/// The page is valid in both text formats. promtool complains about no family, not even libp2p's, so there are
/// no exceptions to list.
fn assert_pages_are_clean(agent: &TestAgent) {
    let page = agent.scrape();
    promtool(page.as_bytes()).unwrap_or_else(|complaint| panic!("{complaint}\n{page}"));
    let page = Client::connect(agent.metrics_socket()).get("/metrics", &OPENMETRICS);
    let understood = parse_openmetrics(&page.body).unwrap_or_else(|complaint| panic!("{complaint}\n{}", page.text()));
    let samples = page.text().lines().filter(|line| !line.starts_with('#')).count();
    assert!(understood.ends_with(&format!("samples {samples}\n")), "{samples} {understood}");
}

#[test]
fn promtool_and_the_strict_parser_accept_agents_at_work() {
    let pair = Pair::start();
    let before = pair.both().map(TestAgent::scrape);
    let load = Load::start(&pair);
    for _ in 0..4 {
        pair.both().into_iter().for_each(assert_pages_are_clean);
    }
    let during = pair.both().map(TestAgent::scrape);
    load.finish();
    let received = |page: &str| value(page, "messages_received_total", &[("type", "put")]);
    let stored = |page: &str| value(page, "storage_operations_total", &[("operation", "put"), ("backend", "redis")]);
    assert!(received(&before[0]) < received(&during[0]) && stored(&before[1]) < stored(&during[1]));
}

/// Counters are exact, histograms are complete, and a restart distorts no rate.
#[test]
fn three_servers_see_what_the_agents_did() {
    let mut pair = Pair::start();
    let targets = pair.both().map(TestAgent::metrics_socket);
    let scrapers = Program::ALL.map(|program| Scraper::start(program, &targets));
    // Each has seen the zeros from which the counters start.
    for scraper in &scrapers {
        for target in targets {
            scraper.await_value("up", target, 1.0);
            scraper.await_value("agent_peers_connected", target, 1.0);
            scraper.await_value("messages_received_total{type=\"put\"}", target, 0.0);
        }
    }

    let (first, second) = (&pair.first, &pair.second);
    first.cli(&["get", "key", "--peer", &second.peer_id()]).failed(1);
    for scraper in &scrapers {
        scraper.await_value("messages_failed_total{type=\"get\",reason=\"refused\"}", targets[1], 1.0);
        scraper.await_value("messages_send_failures_total{type=\"get\",reason=\"remote\"}", targets[0], 1.0);
    }

    let load = Load::start(&pair);
    for scraper in &scrapers {
        scraper.await_that(&format!("changes({PUTS}[1m])"), targets[0], |changes| changes >= 5.0);
    }
    let before = f64::from(load.finish());
    assert_counted(&scrapers, &pair, [before, before]);
    assert_same_as_the_pages(&scrapers, &pair);
    assert_histograms(&scrapers, &pair);

    assert!(pair.first.stop().success());
    eventually("the second one is alone", || value(&pair.second.scrape(), "agent_peers_connected", &[]) == 0.0);
    pair.first.restart();
    pair.await_link();
    assert_eq!(pair.first.metrics_socket(), targets[0]);
    for scraper in &scrapers {
        scraper.await_value(PUTS, targets[0], 0.0);
    }
    let load = Load::start(&pair);
    for scraper in &scrapers {
        scraper.await_that(PUTS, targets[0], |received| received > 0.0);
    }
    let after = f64::from(load.finish());
    assert_counted(&scrapers, &pair, [after, before + after]);
    assert_same_as_the_pages(&scrapers, &pair);
    assert_restart_is_seen(&scrapers, targets, before, after);
    for scraper in &scrapers {
        scraper.assert_targets_up(2);
        // The agent that was not restarted answered every scrape.
        scraper.await_value("min_over_time(up[10m])", targets[1], 1.0);
    }
    // Also with libp2p's series about a closed connection.
    pair.both().into_iter().for_each(assert_pages_are_clean);
}

const PUTS: &str = "messages_received_total{type=\"put\"}";

/// What every server has to return after this many rounds of the load since the start of each agent.
fn assert_counted(scrapers: &[Scraper], pair: &Pair, rounds: [f64; 2]) {
    let [first, second] = rounds;
    let expected: [(&str, [f64; 2]); 10] = [
        (PUTS, [first, 0.0]),
        ("messages_received_total{type=\"get\"}", [2.0 * first, 0.0]),
        ("messages_received_total{type=\"delete\"}", [first, 0.0]),
        ("messages_sent_total{type=\"put\"}", [0.0, second]),
        ("messages_sent_total{type=\"delete\"}", [0.0, second]),
        ("storage_operations_total{operation=\"put\",backend=\"local\"}", [first, 0.0]),
        ("storage_operations_total{operation=\"get\",backend=\"local\"}", [2.0 * first, 0.0]),
        ("storage_operations_total{operation=\"delete\",backend=\"local\"}", [first, 0.0]),
        ("storage_operations_total{operation=\"put\",backend=\"redis\"}", [0.0, second]),
        ("sum by (instance) (storage_operation_errors_total)", [0.0, 0.0]),
    ];
    for scraper in scrapers {
        for (expression, values) in expected {
            for (agent, expected) in pair.both().into_iter().zip(values) {
                scraper.await_value(expression, agent.metrics_socket(), expected);
            }
        }
    }
}

/// Some histograms with native buckets, each with the counter of the same events and the agent that has them.
const HISTOGRAMS: [Counted; 6] = [
    ("message_processing_duration_seconds", "messages_received_total", &[("type", "put")], 0),
    ("message_processing_duration_seconds", "messages_received_total", &[("type", "get")], 0),
    ("message_round_trip_duration_seconds", "messages_sent_total", &[("type", "put")], 1),
    (
        "storage_operation_duration_seconds",
        "storage_operations_total",
        &[("operation", "put"), ("backend", "local")],
        0,
    ),
    (
        "storage_operation_duration_seconds",
        "storage_operations_total",
        &[("operation", "get"), ("backend", "local")],
        0,
    ),
    (
        "storage_operation_duration_seconds",
        "storage_operations_total",
        &[("operation", "put"), ("backend", "redis")],
        1,
    ),
];

/// A histogram, its counter, the labels of both, and the index of the agent.
type Counted = (&'static str, &'static str, &'static [(&'static str, &'static str)], usize);

/// The bounds of the native bucket with this value. Those of schema 3 are the powers of the eighth root of
/// 2, so a bucket is 9 % wide. They are moved apart to allow for rounding.
fn native_bucket(value: f64) -> (f64, f64) {
    let index = (value.log2() * 8.0).ceil();
    (((index - 1.0) / 8.0).exp2() * (1.0 - 1e-12), (index / 8.0).exp2() * (1.0 + 1e-12))
}

/// Once nothing changes any more, every histogram has counted what its counter has, and the quantiles from its
/// native buckets are at least as good as those from its classic ones.
fn assert_histograms(scrapers: &[Scraper], pair: &Pair) {
    for (name, counter, labels, agent) in HISTOGRAMS {
        let agent = pair.both()[agent];
        let page = agent.scrape();
        let count = value(&page, counter, labels);
        assert!(count > 0.0, "{name}{labels:?}");
        let labels: String = labels.iter().map(|(label, value)| format!("{label}=\"{value}\",")).collect();
        for scraper in scrapers {
            let ask = |expression: &str| scraper.expect_value(expression, agent.metrics_socket());
            assert_eq!(ask(&format!("{counter}{{{labels}}}")), count);
            if scraper.program.keeps_both() {
                assert_eq!(ask(&format!("{name}_count{{{labels}}}")), count);
                assert_eq!(ask(&format!("{name}_bucket{{{labels}le=\"+Inf\"}}")), count);
            }
            if scraper.program.keeps_native() {
                assert_eq!(ask(&format!("histogram_count({name}{{{labels}}})")), count);
                for quantile in [0.5, 0.9, 0.99] {
                    let native = ask(&format!("histogram_quantile({quantile}, {name}{{{labels}}})"));
                    // A quantile between two observations may be either of them.
                    let rank = quantile * count;
                    let (low, _) = classic_bucket(&page, name, &labels, rank);
                    let (_, high) = classic_bucket(&page, name, &labels, (rank + 1.0).min(count));
                    // A classic bound need not be a native bound.
                    assert!(
                        native_bucket(low).0 <= native && native <= native_bucket(high).1,
                        "{:?}: {quantile} of {name}{{{labels}}} is {native}, not from {low} to {high}",
                        scraper.program
                    );
                }
            }
        }
    }
}

/// The bounds of the classic bucket with the observation of this rank.
fn classic_bucket(page: &str, name: &str, labels: &str, rank: f64) -> (f64, f64) {
    let bucket = format!("{name}_bucket{{{labels}le=\"");
    let mut low = 0.0;
    for line in page.lines().filter_map(|line| line.strip_prefix(&bucket)) {
        let (bound, cumulative) = line.split_once("\"} ").unwrap();
        let bound = bound.parse().unwrap();
        if cumulative.parse::<f64>().unwrap() >= rank {
            return (low, bound);
        }
        low = bound;
    }
    panic!("no observation {rank} in {bucket}");
}

/// Every server has exactly the series of an agent's page, with the same values where nothing changes any more.
/// Waits until that is so: libp2p creates a series when something happens for the first time.
fn assert_same_as_the_pages(scrapers: &[Scraper], pair: &Pair) {
    for scraper in scrapers {
        for agent in pair.both() {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let differences = differences(scraper, agent.metrics_socket(), &samples(&agent.scrape()));
                if differences.is_empty() {
                    break;
                }
                assert!(Instant::now() < deadline, "{:?} differs from the page: {differences:#?}", scraper.program);
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Every histogram of the agent's own, each with native buckets in addition to the classic ones.
const NATIVE: [&str; 5] = [
    "exposition_duration_seconds",
    "message_processing_duration_seconds",
    "message_round_trip_duration_seconds",
    "storage_operation_duration_seconds",
    "storage_local_commit_batch_size",
];

fn differences(scraper: &Scraper, target: SocketAddr, page: &BTreeMap<Series, f64>) -> Vec<String> {
    let instance = format!("{{instance=\"{target}\"}}");
    let mut seen: BTreeMap<_, _> = scraper.query(&instance).into_iter().map(named).collect();
    // Without what each server adds about its own scrapes.
    seen.retain(|key, _| page.contains_key(key) || key.0 != "up" && !key.0.starts_with("scrape_"));
    let mut expected = page.clone();
    if !scraper.program.keeps_both() {
        let native = |name: &str| {
            let of = |family| name.strip_prefix(family);
            NATIVE.into_iter().filter_map(of).any(|suffix| ["_bucket", "_count", "_sum"].contains(&suffix))
        };
        expected.retain(|(name, _), _| !native(name));
    }
    let mut differences = compare(&expected, &seen);
    if scraper.program.keeps_native() {
        for family in NATIVE {
            for (function, suffix) in [("histogram_count", "_count"), ("histogram_sum", "_sum")] {
                // The results from native histograms get the names of the classic series.
                let name = format!("{family}{suffix}");
                let seen = scraper.query(&format!("{function}({family}{instance})")).into_iter();
                let seen = seen.map(|(mut labels, value)| {
                    labels.insert("__name__".into(), name.clone());
                    named((labels, value))
                });
                let mut expected = page.clone();
                expected.retain(|(found, _), _| *found == name);
                let native = compare(&expected, &seen.collect());
                differences.extend(native.into_iter().map(|difference| format!("native: {difference}")));
            }
        }
    }
    differences
}

fn compare(expected: &BTreeMap<Series, f64>, seen: &BTreeMap<Series, f64>) -> Vec<String> {
    let missing = expected.keys().filter(|key| !seen.contains_key(key)).map(|key| format!("missing: {key:?}"));
    let more = seen.keys().filter(|key| !expected.contains_key(key)).map(|key| format!("more: {key:?}"));
    let others = expected.iter().filter_map(|(key, value)| {
        let seen = seen.get(key).filter(|_| still(&key.0))?;
        // VictoriaMetrics keeps about 15 digits.
        ((seen - value).abs() > value.abs() * 1e-12).then(|| format!("{key:?}: {seen} instead of {value}"))
    });
    missing.chain(more).chain(others).collect()
}

/// A series as on its page, without the labels that the server added.
fn named((mut labels, value): (Labels, f64)) -> (Series, f64) {
    labels.remove("job");
    labels.remove("instance");
    let name = labels.remove("__name__").expect("every series has a name");
    (series(&name, labels), value)
}

/// Whether the values of a family stay the same while the agent does nothing but answer scrapes.
fn still(name: &str) -> bool {
    ["message", "storage_", "agent_", "build_"].iter().any(|prefix| name.starts_with(prefix))
}

/// The first agent's counters fell to zero once; no rate was ever negative or higher than the load.
fn assert_restart_is_seen(scrapers: &[Scraper], targets: [SocketAddr; 2], before: f64, after: f64) {
    let whole = before + after;
    for scraper in scrapers {
        let ask = |expression: &str| scraper.expect_value(expression, targets[0]);
        assert_eq!(ask(&format!("resets({PUTS}[10m])")), 1.0, "{:?}", scraper.program);
        let sent = scraper.expect_value("resets(messages_sent_total{type=\"put\"}[10m])", targets[1]);
        assert_eq!(sent, 0.0, "{:?}", scraper.program);

        // Prometheus extrapolates to the ends of the range: by at most one interval between samples at each end.
        let intervals = ask(&format!("count_over_time({PUTS}[10m])")) - 1.0;
        let limit = match scraper.program {
            Program::VictoriaMetrics => whole,
            Program::Prometheus | Program::Prometheus3 => whole * (1.0 + 2.0 / intervals),
        };
        let mut increases = vec![format!("increase({PUTS}[10m])")];
        if scraper.program.keeps_native() {
            let histogram = "message_processing_duration_seconds{type=\"put\"}";
            increases.push(format!("histogram_count(increase({histogram}[10m]))"));
        }
        if scraper.program.keeps_both() {
            increases.push("increase(message_processing_duration_seconds_count{type=\"put\"}[10m])".into());
        }
        for increase in increases {
            let found = ask(&increase);
            assert!(
                whole * 0.999 <= found && found <= limit * 1.001,
                "{:?}: {increase} is {found}, not {whole} in {intervals} intervals",
                scraper.program
            );
        }
        let rates = format!("rate({PUTS}[5s])[10m:1s]");
        let (least, most) = (ask(&format!("min_over_time({rates})")), ask(&format!("max_over_time({rates})")));
        assert!(0.0 <= least && 0.0 < most && most <= whole, "{:?}: {least} {most}", scraper.program);
    }
}

/// No percentage of it that the test asks for, except 100 %, is a whole number: between two observations, every
/// value would be correct.
const OBSERVATIONS: usize = 401;

/// A quantile from native buckets is in the bucket of the duration that the test itself measured.
#[test]
fn native_quantiles_match_what_was_observed() {
    let endpoint = Endpoint::start();
    let scrapers = [Program::Prometheus, Program::Prometheus3];
    let scrapers = scrapers.map(|program| Scraper::start(program, &[endpoint.addr()]));
    let (low, high) = observe(&endpoint.collector);
    let histogram = "message_processing_duration_seconds{type=\"put\"}";
    #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
    let count = OBSERVATIONS as f64;
    for scraper in &scrapers {
        scraper.await_value(&format!("histogram_count({histogram})"), endpoint.addr(), count);
        let ask = |expression: &str| scraper.expect_value(expression, endpoint.addr());
        let sum = ask(&format!("histogram_sum({histogram})"));
        assert!((low.iter().sum()..=high.iter().sum()).contains(&sum), "{:?}: {sum}", scraper.program);
        for percent in [1, 10, 25, 50, 75, 90, 99, 100] {
            let quantile = ask(&format!("histogram_quantile({percent} / 100, {histogram})"));
            let rank = (OBSERVATIONS * percent).div_ceil(100);
            let (low, high) = (native_bucket(low[rank - 1]).0, native_bucket(high[rank - 1]).1);
            assert!(
                low <= quantile && quantile <= high,
                "{:?}: {percent} % are below {quantile}, which is not in the bucket from {low} to {high}",
                scraper.program
            );
        }
    }
}

/// Observes durations from 20 us to 0.2 s, each longer than the one before by the same factor. Returns the
/// lower and the upper limit of each, in seconds: a timer's clock is not the one used here, and is less precise
/// in a process that has just started.
fn observe(collector: &MetricsCollector) -> (Vec<f64>, Vec<f64>) {
    let before = Instant::now();
    let timer = Timer::start();
    let after = Instant::now();
    let mut aim = 20e-6;
    let observations = (0..OBSERVATIONS).map(|_| {
        while after.elapsed().as_secs_f64() < aim {
            std::hint::spin_loop(); // a sleep would be far longer than the shortest of them
        }
        aim *= 1.0233; // a factor of 10,000 in all
        let low = after.elapsed().as_secs_f64();
        collector.message_handled(MessageType::Put, timer);
        (low * 0.999 - 1e-6, before.elapsed().as_secs_f64() * 1.001 + 1e-6)
    });
    observations.unzip()
}

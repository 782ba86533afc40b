//! The pages of our own encoder, whole, cut short and damaged.

use prometheus_client::metrics::exemplar::{CounterWithExemplar, HistogramWithExemplars};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Unit;
use proptest::prelude::*;

use super::*;
use crate::metrics::exposition::{Format, Wanted, render};
use crate::metrics::labels::{Backend, HttpHandler, MessageType, Operation};
use crate::metrics::{
    AgentInfo, Health, MetricsCollector, MissingLines, NativeHistograms, Registry, Timer, register_scrape_time,
};

const OWN: [Format; 4] = [Format::Text, Format::OpenMetrics, Format::OpenMetricsDraft, Format::Protobuf];

/// An agent's page with something in every kind of family, and metrics of others.
fn page(format: Format) -> (BodyFormat, Vec<u8>) {
    let mut registry = Registry::new(NativeHistograms::default());
    let agent = AgentInfo { peer_id: "12D3KooW".into(), name: "a \"b\" \\ \n ü".into() };
    let collector = MetricsCollector::new(&mut registry, &agent);
    register_scrape_time(&mut registry, &Health::default(), &MissingLines::default());
    collector.message_handled(MessageType::Put, Timer::start());
    collector.message_sent(MessageType::Get, Timer::start());
    collector.storage_completed(Operation::Put, Backend::Local, Timer::start(), Ok(()));
    collector.scraped(Timer::start());
    drop(collector.http_started(HttpHandler::Metrics));
    let requests = CounterWithExemplar::<Vec<(String, String)>, u64>::default();
    requests.inc_by(3, Some(vec![("trace".into(), "a } # { b".into())]), None);
    registry.others_mut().register("requests", "Requests\n of \"others\"", requests);
    let latency = HistogramWithExemplars::<Vec<(&str, &str)>>::new([0.5].into_iter());
    latency.observe(0.25, Some(vec![("trace", "z")]), None);
    registry.others_mut().register_with_unit("latency", "Latency", Unit::Seconds, latency);
    registry.others_mut().register("build", "Build", Info::new(vec![("version", "1 # {x=\"y\"} 2\n")]));
    let page = render(&registry, format, &Wanted::all()).unwrap().to_vec();
    assert!(page.len() > 4_000);
    (BodyFormat::from_content_type(format.content_type()).unwrap(), page)
}

/// Where a page of protobuf may end: before and behind each of its messages.
fn message_ends(page: &[u8]) -> Vec<usize> {
    let mut ends = vec![0];
    while let Some((length, digits)) = crate::gateway::validate::wire::varint(&page[ends[ends.len() - 1]..]).unwrap() {
        ends.push(ends[ends.len() - 1] + digits + length as usize);
    }
    ends
}

#[test]
fn every_page_of_ours_is_good() {
    for format in OWN {
        let (format, page) = page(format);
        assert_good(format, &page);
    }
}

#[test]
fn a_page_that_is_cut_short_is_refused() {
    for format in OWN {
        let (body_format, page) = page(format);
        let ends = if format == Format::Protobuf { message_ends(&page) } else { vec![page.len()] };
        // Every byte of the start and of the end, and some of those between.
        let sampled = (0..page.len()).filter(|end| end % 47 == 0 || *end < 200 || *end + 200 > page.len());
        for end in sampled.chain(ends.clone()) {
            let good = match format {
                // What is missing can be told by its length alone, which is the transport's to know.
                Format::Text => end == 0 || page[end - 1] == b'\n',
                // The line feed behind `# EOF` may be missing.
                Format::OpenMetrics | Format::OpenMetricsDraft => end + 1 >= page.len(),
                _ => ends.contains(&end),
            };
            assert_eq!(verdict(body_format, [&page[..end]]).is_ok(), good, "{format:?} {end}");
        }
    }
}

proptest! {
    #[test]
    fn damage_makes_no_page_panic(
        format in 0..OWN.len(),
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>(), 0..3_u8), 1..8),
        step in 1..5_000_usize,
    ) {
        let (format, mut page) = page(OWN[format]);
        for (index, byte, edit) in edits {
            let at = index.index(page.len());
            match edit {
                0 => page[at] = byte,
                1 => page[at] ^= 1 << (byte % 8),
                _ => drop(page.drain(at..(at + usize::from(byte)).min(page.len() - 1).max(at))),
            }
        }
        prop_assert_eq!(verdict(format, [page.as_slice()]), verdict(format, page.chunks(step)));
    }
}

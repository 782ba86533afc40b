//! What a real Prometheus 3 sees when peers lie, leave and come back, and when gateways leave and come back.

use std::time::{Duration, Instant};

use super::fixture::{await_targets, exporter, gateway, joining, peer, value};
use super::observer::{JOB, await_error, observe, observe_both, targets_of};
use crate::support::agent::{TestAgent, eventually};
use crate::support::scraper::Labels;

const TYPED: &str = "Content-Type: text/plain; version=0.0.4\r\n";

fn labels(labels: &[(&str, &str)]) -> Labels {
    labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_page_cannot_take_the_labels_of_its_target() {
    let gateway = gateway("");
    let page = "# TYPE my_metric gauge\nmy_metric{instance=\"x\",job=\"y\",peer_name=\"z\",exposed=\"q\"} 1\n";
    let lie = "# TYPE up gauge\nup{instance=\"x\",job=\"peerscope\"} 7\n";
    let exporters = format!(
        "{{name: evil, url: \"{}\"}}, {{name: liar, url: \"{}\"}}",
        exporter(TYPED, page.into()),
        exporter(TYPED, lie.into())
    );
    let edge = peer(&gateway, "edge", &format!("expose: [{exporters}]\n"));
    let other = peer(&gateway, "other", "");
    let prometheus = observe(&gateway);
    eventually("my_metric", || !prometheus.query("my_metric").is_empty());
    let id = edge.peer_id();
    let target = [("job", JOB), ("instance", &id), ("peer_name", "edge"), ("exposed", "evil")];
    let said =
        [("exported_instance", "x"), ("exported_job", "y"), ("exported_peer_name", "z"), ("exported_exposed", "q")];
    let all = [&target[..], &said, &[("__name__", "my_metric")]].concat();
    assert_eq!(prometheus.query("my_metric"), [(labels(&all), 1.0)]);

    // Not even under other labels can a page write `up`: the rule of the printed configuration drops it.
    let up = format!("up{{instance=\"{id}\", exposed=\"liar\"}}");
    eventually("the liar was scraped", || prometheus.query(&up).iter().any(|(_, up)| *up == 1.0));
    assert_eq!(prometheus.query("up == 7"), []);
    let other = other.peer_id();
    eventually("the other peer and the gateway are not affected", || {
        let up = |rest: &str| prometheus.query(&format!("up{{exported_job=\"\", {rest}}}"));
        let one = |series: Vec<(Labels, f64)>| series.len() == 1 && series[0].1 == 1.0;
        one(up(&format!("instance=\"{other}\", exposed=\"\"")))
            && one(up(&format!("instance=\"{id}\", exposed=\"\"")))
            && one(up(&format!("instance=\"{id}\", exposed=\"evil\"")))
            && one(up(&format!("job=\"peerscope-gateway\", instance=\"{}\"", gateway.metrics_socket())))
    });
}

#[test]
fn two_gateways_show_the_same_fleet_and_one_is_enough() {
    let (mut first, second) = (gateway(""), gateway(""));
    let peers = ["a", "b"].map(|name| joining(TestAgent::prepare(), &[&first, &second], name, "").started());
    let [a, b] = peers.each_ref().map(TestAgent::peer_id);
    let prometheus = observe_both(&first, &second);
    let (up, down) = ([(a.as_str(), 1.0), (b.as_str(), 1.0)], [(a.as_str(), 0.0), (b.as_str(), 0.0)]);
    prometheus.await_up(JOB, &up);
    prometheus.await_up("peerscope-2", &up);

    first.stop();
    prometheus.await_up(JOB, &down);
    prometheus.await_up("peerscope-2", &up);
    await_error(&prometheus, &first.metrics_socket().to_string(), "connection refused");
    first.restart();
    prometheus.await_up(JOB, &up);
    prometheus.await_up("peerscope-2", &up);
}

/// A list without a peer makes Prometheus forget that peer, whereas an error makes it keep its list. So a gateway that
/// has just started, and whose peers are not back yet, has to return an error.
#[test]
fn a_restarted_gateway_deletes_no_targets() {
    let mut gateway = gateway("");
    let (mut late, early) = (peer(&gateway, "late", ""), peer(&gateway, "early", ""));
    let (late_id, early_id) = (late.peer_id(), early.peer_id());
    let prometheus = observe(&gateway);
    prometheus.await_up(JOB, &[(&late_id, 1.0), (&early_id, 1.0)]);

    late.kill();
    gateway.stop();
    prometheus.await_up(JOB, &[(&late_id, 0.0), (&early_id, 0.0)]);
    // As on a machine that has never seen these peers.
    std::fs::remove_file(gateway.data_dir().join("gateway.json")).unwrap();
    std::fs::write(gateway.config_file(), "gateway: {enabled: true, settle: 20s}\n").unwrap();
    gateway.restart();
    let refused = || value(&gateway, "http_requests_total", &[("handler", "gateway"), ("code", "503")]);
    eventually("Prometheus has asked for the list in vain", || refused() >= 2.0);
    // A connected peer can be scraped although there is no list yet.
    prometheus.await_up(JOB, &[(&late_id, 0.0), (&early_id, 1.0)]);
    await_error(&prometheus, &late_id, "HTTP status 404 this gateway does not know this peer");
    late.restart();
    prometheus.await_up(JOB, &[(&late_id, 1.0), (&early_id, 1.0)]);

    assert_eq!(gateway.http("/sd").status, 503, "both came back while the gateway was still waiting for them");
    eventually("the gateway returns its list", || {
        assert_eq!(targets_of(&prometheus, JOB), 2);
        gateway.http("/sd").status == 200
    });
    // Once Prometheus finds a new peer, it has read the list.
    let new = peer(&gateway, "new", "");
    prometheus.await_up(JOB, &[(&late_id, 1.0), (&early_id, 1.0), (&new.peer_id(), 1.0)]);
}

#[test]
fn a_departed_peer_is_down_for_the_grace_period_and_then_gone() {
    let grace = Duration::from_secs(5);
    let gateway = gateway("  grace: 5s\n");
    let (mut gone, stays) = (peer(&gateway, "gone", ""), peer(&gateway, "stays", ""));
    let (gone_id, stays_id) = (gone.peer_id(), stays.peer_id());
    await_targets(&gateway, 2);
    let prometheus = observe(&gateway);
    prometheus.await_up(JOB, &[(&gone_id, 1.0), (&stays_id, 1.0)]);

    let killed = Instant::now();
    gone.kill();
    println!("down after {:.1?}", prometheus.await_up(JOB, &[(&gone_id, 0.0), (&stays_id, 1.0)]));
    eventually("it is no longer a target", || targets_of(&prometheus, JOB) == 1);
    println!("gone after {:.1?}", killed.elapsed());
    assert!(killed.elapsed() >= grace);
    prometheus.await_up(JOB, &[(&stays_id, 1.0)]);
    gone.restart();
    println!("back after {:.1?}", prometheus.await_up(JOB, &[(&gone_id, 1.0), (&stays_id, 1.0)]));
}

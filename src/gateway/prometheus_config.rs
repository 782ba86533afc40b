//! The part of `prometheus.yml` for a gateway.

use crate::expose::MAX_EXPOSED;
use crate::metrics::catalogue::OF_PROMETHEUS;

/// Two jobs: `job` for the peers of the gateway at `address` (`HOST:PORT`, as Prometheus reaches it), and
/// `job`-gateway for the gateway itself, whose metrics page is at `path`. `body_size` is the gateway's own limit in
/// bytes, `max_peers` the most peers that it offers.
pub fn prometheus_config(job: &str, address: &str, path: &str, body_size: usize, max_peers: usize) -> String {
    let reserved = OF_PROMETHEUS.join("|");
    let targets = max_peers.saturating_mul(1 + MAX_EXPOSED);
    format!(
        "scrape_configs:
  # Every peer of the gateway is a target: instance is its PeerId, peer_name the name that it gives itself.
  - job_name: {job}
    # Prometheus 3.8 and later need `scrape_native_histograms: true` here for native histograms; earlier versions reject it.
    scrape_interval: 15s
    scrape_timeout: 10s
    # Peers are not trusted: what they send is limited, and their labels never replace the target's. With
    # `honor_labels: true` a peer could write series of any other target.
    honor_labels: false
    honor_timestamps: false
    sample_limit: 20000
    label_limit: 64
    label_name_length_limit: 256
    label_value_length_limit: 4096
    body_size_limit: {body_size}B
    # The most targets that this gateway can return. Above the limit, all of them would fail.
    target_limit: {targets}
    # Prometheus itself writes these series for each scrape. A page must not be able to forge them.
    metric_relabel_configs:
      - source_labels: [__name__]
        regex: {reserved}
        action: drop
    http_sd_configs:
      - url: http://{address}/sd
        refresh_interval: 30s
  # The gateway itself, to tell its failures from those of its peers.
  - job_name: {job}-gateway
    metrics_path: {path}
    static_configs:
      - targets: [\"{address}\"]
"
    )
}

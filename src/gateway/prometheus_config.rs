//! The piece of `prometheus.yml` for a gateway.

use crate::expose::MAX_EXPOSED;
use crate::metrics::catalogue::OF_PROMETHEUS;

/// Two jobs, `job` and `job`-gateway: the peers of the gateway at `address` (`HOST:PORT`, as Prometheus reaches it), and the gateway itself,
/// whose metrics page is at `path`. `body_size` is the gateway's own limit in bytes, `max_peers` the most targets
/// that it gives without their exporters.
pub fn prometheus_config(job: &str, address: &str, path: &str, body_size: usize, max_peers: usize) -> String {
    let reserved = OF_PROMETHEUS.join("|");
    let targets = max_peers.saturating_mul(1 + MAX_EXPOSED);
    format!(
        "scrape_configs:
  # Every peer of the gateway, as its own target: instance is its PeerId, peer_name what it calls itself.
  - job_name: {job}
    # Prometheus 3.8 and later need `scrape_native_histograms: true` here for native histograms; earlier ones refuse it.
    scrape_interval: 15s
    scrape_timeout: 10s
    # A peer may be anybody: what it sends is bounded, and its labels never replace these targets' own. With
    # `honor_labels: true` it could write the series of any other target.
    honor_labels: false
    honor_timestamps: false
    sample_limit: 20000
    label_limit: 64
    label_name_length_limit: 256
    label_value_length_limit: 4096
    body_size_limit: {body_size}B
    # Past it every target fails, so it is what this gateway can give at most.
    target_limit: {targets}
    # What Prometheus writes itself of each scrape; a page that has such a name would speak for it.
    metric_relabel_configs:
      - source_labels: [__name__]
        regex: {reserved}
        action: drop
    http_sd_configs:
      - url: http://{address}/sd
        refresh_interval: 30s
  # The gateway itself, past its peers: it tells whether it or a peer is to blame.
  - job_name: {job}-gateway
    metrics_path: {path}
    static_configs:
      - targets: [\"{address}\"]
"
    )
}

//! The part of `prometheus.yml` for a gateway.

use crate::expose::MAX_EXPOSED;
use crate::metrics::catalogue::OF_PROMETHEUS;

/// What Prometheus has to know about a gateway.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The name of the job for the peers; the gateway's own job is called like this with `-gateway`.
    pub name: &'a str,
    /// `HOST:PORT`, as Prometheus reaches the gateway.
    pub address: &'a str,
    /// Empty, or the path before every page's own (`gateway.external_url`).
    pub prefix: &'a str,
    /// The path of the gateway's own metrics page.
    pub path: &'a str,
    /// The gateway's own limit for a page, in bytes.
    pub body_size: usize,
    /// The most peers that it offers.
    pub max_peers: usize,
    /// How Prometheus checks the certificate; `None` for plain HTTP.
    pub tls: Option<ScraperTls<'a>>,
    /// As whom Prometheus logs in, and the file with the password.
    pub user: Option<(&'a str, &'a str)>,
}

/// Files on Prometheus's machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScraperTls<'a> {
    /// The CA of the gateway's certificate; `None` if the system trusts it.
    pub ca_file: Option<&'a str>,
    /// The client's certificate and key.
    pub certificate: Option<(&'a str, &'a str)>,
}

/// `scheme`, `tls_config` and `basic_auth`.
fn access(job: &Job<'_>, indent: &str) -> String {
    // A JSON string is also a YAML string.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut out = String::new();
    let mut line = |text: String| out += &format!("{indent}{text}\n");
    if let Some(tls) = job.tls {
        if tls.ca_file.is_some() || tls.certificate.is_some() {
            line("tls_config:".into());
        }
        if let Some(file) = tls.ca_file {
            line(format!("  ca_file: {}", quoted(file)));
        }
        if let Some((certificate, key)) = tls.certificate {
            line(format!("  cert_file: {}", quoted(certificate)));
            line(format!("  key_file: {}", quoted(key)));
        }
    }
    if let Some((user, file)) = job.user {
        line("basic_auth:".into());
        line(format!("  username: {}", quoted(user)));
        line(format!("  password_file: {}", quoted(file)));
    }
    out
}

/// The jobs for the peers of a gateway and for the gateway itself.
pub fn prometheus_config(job: &Job<'_>) -> String {
    let Job { name, address, prefix, path, body_size, max_peers, tls, .. } = *job;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let scheme_line = if tls.is_some() { "    scheme: https\n" } else { "" };
    let (access, access_of_sd) = (access(job, "    "), access(job, "        "));
    let reserved = OF_PROMETHEUS.join("|");
    let targets = max_peers.saturating_mul(1 + MAX_EXPOSED);
    format!(
        "scrape_configs:
  # Every peer of the gateway is a target: instance is its PeerId, peer_name the name that it gives itself.
  - job_name: {name}
    # Prometheus 3.8 and later need `scrape_native_histograms: true` here for native histograms; earlier versions reject it.
{scheme_line}{access}    scrape_interval: 15s
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
      - url: {scheme}://{address}{prefix}/sd
{access_of_sd}        refresh_interval: 30s
  # The gateway itself, to tell its failures from those of its peers.
  - job_name: {name}-gateway
{scheme_line}{access}    metrics_path: {prefix}{path}
    static_configs:
      - targets: [\"{address}\"]
"
    )
}

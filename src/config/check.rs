//! Checks beyond the type of a single value: limits, and keys that contradict each other.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::hash::Hash;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use redis::{ConnectionAddr, ConnectionInfo};

use super::error::{ConfigProblem, Origin};
use super::tree::{Step, YamlNode};
use super::{AccessRule, Config, NodeConfig};
use crate::expose::{Exposed, MAX_EXPOSED};
use crate::gateway::{self, PeerList};
use crate::metrics::{MetricsConfig, NativeHistograms};
use crate::units::quoted;
use crate::{network, storage};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// The longest timeout that makes sense for one request; more is probably a mistyped unit.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3600);

/// The longest `gateway.grace` and `gateway.settle` that make sense.
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 24 * 3600);

/// All problems of a configuration whose values are valid on their own.
pub(super) fn check(config: &Config, tree: &YamlNode, metrics_built_in: bool) -> Vec<ConfigProblem> {
    let mut check = Check { tree, problems: Vec::new() };
    check.node(&config.node);
    check.metrics(&config.metrics, metrics_built_in);
    check.storage(&config.storage);
    check.redis(&config.storage.redis);
    check.network(&config.network);
    check.access(&config.access);
    // Also bounds the pages of exposed exporters, so it is checked on every agent.
    check.range("gateway.max_body_size", config.gateway.max_body_size, KIB..=256 * MIB, "256MiB");
    check.expose(&config.expose);
    if config.gateway.enabled {
        check.gateway(config, metrics_built_in);
    }
    check.problems
}

struct Check<'a> {
    tree: &'a YamlNode,
    problems: Vec<ConfigProblem>,
}

impl Check<'_> {
    fn node(&mut self, node: &NodeConfig) {
        if node.name.trim().is_empty() {
            self.refuse("node.name", "is empty; leave the key out to use the host's name");
        }
        if node.name.len() > 255 {
            self.refuse("node.name", format!("has {} bytes; at most 255 are allowed", node.name.len()));
        }
        if node.name.chars().any(char::is_control) {
            self.refuse("node.name", "contains a control character");
        }
        self.path("node.data_dir", &node.data_dir);
    }

    fn metrics(&mut self, metrics: &MetricsConfig, built_in: bool) {
        // In a build without metrics they are off by default, so they were enabled explicitly.
        if metrics.enabled && !built_in {
            let message = "this build has no metrics: it was built without the cargo feature `metrics-prometheus`; \
                           set it to false, or use a build with that feature";
            self.refuse("metrics.enabled", message);
        }
        if let Some(path) = &metrics.web_config {
            self.path("metrics.web_config", path);
        }
        if metrics.address.iter().len() == 0 {
            self.refuse("metrics.address", "is empty; give at least one address, or set metrics.enabled to false");
        }
        let all = |ip: &&IpAddr| ip.is_unspecified();
        if let Some(all) = metrics.address.iter().find(all)
            && let Some(other) = metrics.address.iter().find(|ip| *ip != all && ip.is_ipv4() == all.is_ipv4())
        {
            self.refuse("metrics.address", format!("{all} includes {other}; remove one of the two"));
        }
        self.distinct("metrics.address", metrics.address.iter().map(|address| (address.to_string(), *address)));
        for (index, name) in metrics.host_names.iter().enumerate() {
            let good = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            if name.is_empty() || name.len() > 253 || !name.bytes().all(good) {
                let message = format!("{} is not a host name; write one without scheme and port", quoted(name));
                self.refuse(&format!("metrics.host_names[{index}]"), message);
            }
        }
        let native = metrics.native_histograms;
        self.range("metrics.native_histograms.schema", native.schema, NativeHistograms::SCHEMAS, "5");
        self.range("metrics.native_histograms.max_buckets", native.max_buckets, NativeHistograms::MAX_BUCKETS, "1000");
        let path = metrics.path.as_str();
        let message = if !path.starts_with('/') {
            "must begin with `/`, as in /metrics".into()
        } else if matches!(path, "/" | "/live" | "/ready") {
            format!("`{path}` is already another page of the endpoint; choose another path, such as /metrics")
        } else if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~".contains(&b)) {
            "may only contain letters, digits and / - . _ ~".into()
        } else if path.split('/').any(|part| matches!(part, "." | "..")) {
            "contains a segment `.` or `..`, which clients resolve before they send a request".into()
        } else if path.len() > 256 {
            format!("has {} bytes; at most 256 are allowed", path.len())
        } else {
            return;
        };
        self.refuse("metrics.path", message);
    }

    fn storage(&mut self, storage: &storage::Config) {
        self.range("storage.max_key_size", storage.max_key_size, 1..=64 * KIB, "64KiB");
        self.range("storage.max_value_size", storage.max_value_size, 1..=storage::LARGEST_VALUE, "16MiB");
        let cache = storage.local.cache_size;
        if cache < MIB {
            self.refuse(
                "storage.local.cache_size",
                format!("{cache} bytes is too small for a cache; at least 1MiB is needed"),
            );
        }
        if let Some(path) = &storage.local.path {
            self.path("storage.local.path", path);
        }
    }

    fn redis(&mut self, redis: &storage::RedisConfig) {
        self.timeout("storage.redis.timeout", redis.timeout);
        if redis.key_prefix.len() > KIB {
            self.refuse(
                "storage.redis.key_prefix",
                format!("has {} bytes; at most 1024 are allowed", redis.key_prefix.len()),
            );
        }
        if redis.urls.is_empty() {
            self.refuse("storage.redis.urls", "is empty; give at least one URL, such as redis://127.0.0.1:6379");
        }
        self.distinct("storage.redis.urls", redis.urls.iter().map(|url| (url.to_string(), url.to_string())));
        let tls = |url: &storage::RedisUrl| matches!(url.connection_info().addr(), ConnectionAddr::TcpTls { .. });
        if redis.ca_file.is_some() && !redis.urls.iter().any(tls) {
            self.refuse("storage.redis.ca_file", "is set, but no URL in storage.redis.urls begins with rediss://");
        }
        if redis.cluster == Some(false) && redis.urls.len() > 1 {
            let message = format!(
                "is false, but storage.redis.urls has {} entries; several URLs are the seeds of a cluster",
                redis.urls.len()
            );
            self.refuse("storage.redis.cluster", message);
        } else if redis.cluster.unwrap_or(redis.urls.len() > 1) {
            let nodes: Vec<_> = redis.urls.iter().map(storage::RedisUrl::connection_info).collect();
            self.cluster(&nodes);
        }
    }

    /// The cluster client takes its connection settings from the first seed and uses them for every node.
    fn cluster(&mut self, nodes: &[ConnectionInfo]) {
        let Some(first) = nodes.first() else { return };
        let tls = |node: &ConnectionInfo| matches!(node.addr(), ConnectionAddr::TcpTls { .. });
        for (index, node) in nodes.iter().enumerate() {
            let (settings, firsts) = (node.redis_settings(), first.redis_settings());
            let message = if matches!(node.addr(), ConnectionAddr::Unix(_)) {
                "a cluster cannot be reached through a Unix socket: its nodes refer to each other by host and port"
                    .into()
            } else if settings.db() != 0 {
                format!("a cluster has only database 0, not {}; remove the number", settings.db())
            } else if tls(node) != tls(first) {
                "redis:// and rediss:// cannot be mixed in one cluster: TLS is used for all of its nodes or for none"
                    .into()
            } else if (settings.username(), settings.password()) != (firsts.username(), firsts.password()) {
                "the user or password differs from that of the first URL; all nodes of a cluster share one login".into()
            } else if settings.protocol() != firsts.protocol() {
                "the protocol differs from that of the first URL".into()
            } else {
                continue;
            };
            self.refuse(&format!("storage.redis.urls[{index}]"), message);
        }
    }

    fn network(&mut self, network: &network::Config) {
        self.range("network.max_peers", network.max_peers, 1..=1_000_000, "1000000");
        self.range("network.max_in_flight", network.max_in_flight, 1..=65_536, "65536");
        self.timeout("network.request_timeout", network.request_timeout);
        if let Some(path) = &network.psk_file {
            self.path("network.psk_file", path);
        }
        self.distinct("network.listen", network.listen.iter().map(|address| (address.to_string(), &address.0)));
        self.distinct(
            "network.bootstrap",
            network.bootstrap.iter().map(|address| (address.to_string(), address.to_string())),
        );
        let listens =
            network.listen.iter().enumerate().map(|(i, address)| (format!("network.listen[{i}]"), &address.0));
        let dials =
            network.bootstrap.iter().enumerate().map(|(i, to)| (format!("network.bootstrap[{i}]"), &to.address));
        if network.psk_file.is_some() {
            for (key, _) in listens.chain(dials).filter(|(_, address)| is_quic(address)) {
                self.refuse(&key, "QUIC cannot be used with network.psk_file: a private network is TCP only");
            }
        }
        if let Some(allowed) = &network.allow_peers {
            let allowed: HashSet<_> = allowed.iter().map(|peer| peer.0).collect();
            for (index, to) in network.bootstrap.iter().enumerate().filter(|(_, to)| !allowed.contains(&to.peer)) {
                let message = format!("the peer {} is not in network.allow_peers, so it can never be dialed", to.peer);
                self.refuse(&format!("network.bootstrap[{index}]"), message);
            }
        }
    }

    fn access(&mut self, rules: &[AccessRule]) {
        let mut seen = HashMap::new();
        for (index, rule) in rules.iter().enumerate() {
            if let Some(first) = seen.insert(rule.peer, index) {
                let place = self.place(&format!("access[{first}]"));
                let message = format!("`{}` already has a rule, access[{first}]{place}; merge the two", rule.peer);
                self.refuse(&format!("access[{index}].peer"), message);
                seen.insert(rule.peer, first);
            }
        }
    }

    /// Only called for a gateway that is enabled: leftover settings of a disabled one do no harm.
    fn gateway(&mut self, config: &Config, built_in: bool) {
        let gateway::Config { peers, max_peers, grace, settle, max_scrapes, .. } = &config.gateway;
        if !built_in {
            let message = "this build has no gateway: it was built without the cargo feature `metrics-prometheus`; \
                           set it to false, or use a build with that feature";
            return self.refuse("gateway.enabled", message);
        }
        if !config.metrics.enabled {
            let message = "a gateway serves its peers on the metrics endpoint, but metrics.enabled is false";
            self.refuse("gateway.enabled", message);
        }
        let path = config.metrics.path.as_str();
        if path == "/sd" || path.starts_with("/peers/") {
            let message = format!("`{path}` is a page of the gateway; choose another path, such as /metrics");
            self.refuse("metrics.path", message);
        }
        self.range("gateway.max_peers", *max_peers, 1..=1_000_000, "1000000");
        self.range("gateway.max_scrapes", *max_scrapes, 1..=65_536, "65536");
        for (key, time) in [("gateway.grace", grace), ("gateway.settle", settle)] {
            if *time > LONGEST_GRACE {
                let shown = humantime::format_duration(*time);
                self.refuse(key, format!("{shown} is out of range; 0s to 365d is allowed"));
            }
        }
        let PeerList::These(named) = peers else { return };
        if named.is_empty() {
            self.refuse("gateway.peers", "is empty, so there is no peer to scrape; list PeerIds, or write `any`");
        }
        self.distinct("gateway.peers", named.iter().map(|peer| (peer.to_string(), peer.0)));
        if named.len() > config.network.max_peers as usize {
            let message = format!(
                "lists {} peers, but network.max_peers allows only {} to connect; raise network.max_peers",
                named.len(),
                config.network.max_peers
            );
            self.refuse("gateway.peers", message);
        }
        if let Some(allowed) = &config.network.allow_peers {
            let allowed: HashSet<_> = allowed.iter().map(|peer| peer.0).collect();
            for (index, peer) in named.iter().enumerate().filter(|(_, peer)| !allowed.contains(&peer.0)) {
                let message = format!("the peer {peer} is not in network.allow_peers, so it can never connect");
                self.refuse(&format!("gateway.peers[{index}]"), message);
            }
        }
    }

    fn expose(&mut self, exporters: &[Exposed]) {
        if exporters.len() > MAX_EXPOSED {
            self.refuse("expose", format!("has {} entries; at most {MAX_EXPOSED} are allowed", exporters.len()));
        }
        let mut seen = HashMap::new();
        for (index, exporter) in exporters.iter().enumerate() {
            let first = *seen.entry(&exporter.name).or_insert(index);
            if first != index {
                let place = self.place(&format!("expose[{first}]"));
                let message =
                    format!("`{}` is already the name of expose[{first}]{place}; choose another", exporter.name);
                self.refuse(&format!("expose[{index}].name"), message);
            }
            if !exporter.remote && !exporter.url.is_local() {
                let message = "its host is not this machine (127.0.0.0/8, [::1] or localhost); \
                               add `remote: true` to expose an exporter on another machine";
                self.refuse(&format!("expose[{index}].url"), message);
            }
        }
    }

    fn distinct<K: Hash + Eq>(&mut self, list: &str, items: impl Iterator<Item = (String, K)>) {
        let mut seen = HashMap::new();
        for (index, (shown, item)) in items.enumerate() {
            if let Some(first) = seen.get(&item) {
                self.refuse(&format!("{list}[{index}]"), format!("{shown} is already in the list, as [{first}]"));
            } else {
                seen.insert(item, index);
            }
        }
    }

    fn range<T: PartialOrd + Display>(&mut self, key: &str, value: T, allowed: RangeInclusive<T>, most: &str) {
        if !allowed.contains(&value) {
            self.refuse(key, format!("{value} is out of range; {} to {most} is allowed", allowed.start()));
        }
    }

    fn timeout(&mut self, key: &str, timeout: Duration) {
        if timeout < Duration::from_millis(1) || timeout > LONGEST_TIMEOUT {
            let shown = humantime::format_duration(timeout);
            self.refuse(key, format!("{shown} is out of range; 1ms to 1h is allowed"));
        }
    }

    fn path(&mut self, key: &str, path: &Path) {
        if path.as_os_str().is_empty() {
            self.refuse(key, "is empty; give a path, or leave the key out");
        } else if path.starts_with("~") {
            self.refuse(key, "begins with ~, which only a shell expands; write the full path");
        } else if path.as_os_str().as_encoded_bytes().contains(&0) {
            self.refuse(key, "contains a NUL character");
        }
    }

    fn refuse(&mut self, key: &str, message: impl Into<String>) {
        self.problems.push(ConfigProblem::new(self.origin(key), key, message));
    }

    /// Where `key` was written, or else its nearest parent.
    fn origin(&self, key: &str) -> Origin {
        let steps = key.split(['.', '[', ']']).filter(|part| !part.is_empty());
        let steps = steps.map(|part| part.parse().map_or_else(|_| Step::Key(part.into()), Step::Index));
        let mut node = self.tree;
        for step in steps {
            match node.child(&step) {
                Some(child) => node = child,
                None => break,
            }
        }
        node.origin.clone()
    }

    fn place(&self, key: &str) -> String {
        match self.origin(key) {
            Origin::At { line, column, .. } => format!(" (line {line}, column {column})"),
            _ => String::new(),
        }
    }
}

fn is_quic(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::Quic | Protocol::QuicV1))
}

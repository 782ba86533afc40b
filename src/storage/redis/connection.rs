//! How to reach Redis: one server or a cluster, with or without TLS.

use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo, SingleNodeRoutingInfo};
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, RedisResult, TlsCertificates, Value};

use super::super::{OpenError, RedisConfig};
use super::failure::{Classifier, Kind, RedisFailure};
use super::fence::ServerSide;
use super::node::NodeConnection;

/// How often the cluster client may follow a redirection or move on to another node within one attempt.
/// Two suffice for MOVED and then ASK; the third is for a node that has just failed.
const CLUSTER_REDIRECTIONS: u32 = 3;
/// The minimum and maximum wait of the cluster client before it does so, in milliseconds.
const CLUSTER_WAIT_MS: (u64, u64) = (10, 50);

/// Connects to Redis.
#[derive(Debug)]
pub(super) struct Connector {
    target: Target,
    classifier: Classifier,
}

enum Target {
    Single(Box<Client>),
    Cluster(Box<ClusterClient>),
}

// redis-rs masks passwords in its own `Debug`; this does not rely on it.
impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Single(_) => "Single",
            Self::Cluster(_) => "Cluster",
        })
    }
}

/// A live connection; clones share it.
#[derive(Clone)]
pub(super) enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection<NodeConnection>),
}

/// A connection that serves requests.
pub(super) struct Connected {
    pub(super) connection: Connection,
    /// The connection as the server knows it; `None` for a cluster, or if the server does not tell.
    pub(super) server_side: Option<ServerSide>,
    /// Why writes on earlier connections may still take effect, if that cannot be prevented.
    pub(super) unfenced: Option<String>,
}

/// The result of a probe.
#[derive(Debug)]
pub(super) enum Verdict {
    Healthy,
    /// The connection works, but not all operations will succeed, for this reason.
    Degraded(String),
    /// The connection is no longer usable.
    Broken(RedisFailure),
}

impl Connector {
    /// Checks that the URLs fit together, and reads the certificate. Does not connect.
    pub(super) fn new(config: &RedisConfig) -> Result<Self, OpenError> {
        let cluster = is_cluster(config)?;
        let infos: Vec<ConnectionInfo> = config.urls.iter().map(|url| url.connection_info()).collect();
        let uses_tls = infos.iter().any(|info| matches!(info.addr(), ConnectionAddr::TcpTls { .. }));
        let certificates = certificates(config, uses_tls)?;
        if uses_tls {
            // redis-rs uses rustls's process-wide provider and would panic if none, or more than one, were available.
            // An `Err` means that one is already installed, which is fine.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let classifier = Classifier {
            timeout: config.timeout,
            cluster,
            secrets: infos
                .iter()
                .filter_map(|info| info.redis_settings().password())
                .filter(|password| !password.is_empty())
                .map(str::to_owned)
                .collect(),
        };
        let target = if cluster {
            cluster_client(infos, certificates, config.timeout).map(|client| Target::Cluster(Box::new(client)))
        } else {
            single_client(infos, certificates).map(|client| Target::Single(Box::new(client)))
        };
        match target {
            Ok(target) => Ok(Self { target, classifier }),
            Err(error) => Err(OpenError::Redis(classifier.failure(&error).message)),
        }
    }

    /// Connects, authenticates, checks that Redis serves requests, and makes it close `before`, the abandoned
    /// connection.
    pub(super) async fn connect(&self, before: Option<&ServerSide>) -> Result<Connected, RedisFailure> {
        let timeout = self.classifier.timeout;
        let connecting = async {
            match &self.target {
                Target::Single(client) => {
                    client.get_multiplexed_async_connection_with_config(&config(timeout)).await.map(Connection::Single)
                }
                Target::Cluster(client) => client.get_async_generic_connection().await.map(Connection::Cluster),
            }
        };
        // A cluster is reached in three steps, each with its own timeout: seeds, slots, nodes. This bounds all of them
        // together, in case one of redis-rs's own timeouts fails.
        let mut connection = match tokio::time::timeout(timeout * 4, connecting).await {
            Ok(connected) => connected.map_err(|error| self.failure(&error))?,
            Err(_) => return Err(RedisFailure::timeout(timeout * 4)),
        };
        if let Verdict::Broken(failure) = connection.probe(&self.classifier).await {
            return Err(failure);
        }
        let (server_side, unfenced) = match &mut connection {
            Connection::Single(connection) => self.fence(connection, before).await?,
            Connection::Cluster(_) => (None, None),
        };
        Ok(Connected { connection, server_side, unfenced })
    }

    /// See [`fence`](super::fence). If the server does not permit it, returns the reason.
    async fn fence(
        &self,
        connection: &mut MultiplexedConnection,
        before: Option<&ServerSide>,
    ) -> Result<(Option<ServerSide>, Option<String>), RedisFailure> {
        let fenced = async {
            let own = ServerSide::of(connection).await?;
            // Without an old connection, this finds out whether closing one would be permitted.
            if let Some(end) = before.or(own.as_ref()) {
                end.end(connection).await?;
            }
            RedisResult::Ok(own)
        };
        match fenced.await {
            Ok(Some(own)) => Ok((Some(own), None)),
            Ok(None) => Ok((None, Some("CLIENT INFO does not identify this connection".into()))),
            Err(error) => {
                let failure = self.failure(&error);
                if failure.kind == Kind::Refused { Ok((None, Some(failure.message))) } else { Err(failure) }
            }
        }
    }

    /// The client of a single server; `None` for a cluster.
    pub(super) fn client(&self) -> Option<&Client> {
        match &self.target {
            Target::Single(client) => Some(client),
            Target::Cluster(_) => None,
        }
    }

    pub(super) fn failure(&self, error: &redis::RedisError) -> RedisFailure {
        self.classifier.failure(error)
    }

    pub(super) fn classifier(&self) -> &Classifier {
        &self.classifier
    }
}

impl Connection {
    /// Sends one command and waits for its answer, at most for the configured timeout.
    #[inline]
    pub(super) async fn send(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Single(connection) => ask(connection, command).await,
            Self::Cluster(connection) => connection.req_packed_command(command).await?.extract_error(),
        }
    }

    /// Checks that Redis can be reached and serves requests.
    pub(super) async fn probe(&mut self, classifier: &Classifier) -> Verdict {
        match self {
            Self::Single(_) => match self.send(&redis::cmd("PING")).await {
                Ok(_) => self.probe_role(classifier).await,
                Err(error) => judge(&error, classifier),
            },
            Self::Cluster(connection) => probe_cluster(connection, classifier).await,
        }
    }
}

impl Connection {
    /// Whether a single server accepts writes. Assumed if the user may not ask.
    async fn probe_role(&mut self, classifier: &Classifier) -> Verdict {
        match self.send(redis::cmd("INFO").arg("replication")).await {
            Ok(info) => match replica_of(&redis::from_redis_value::<String>(info).unwrap_or_default()) {
                Some(primary) => Verdict::Broken(RedisFailure::new(
                    Kind::Later,
                    format!(
                        "it is a replica of {primary} and rejects writes; storage.redis.urls must point to the primary"
                    ),
                )),
                None => Verdict::Healthy,
            },
            Err(error) => match classifier.failure(&error) {
                failure if failure.kind == Kind::Refused => Verdict::Healthy,
                failure => Verdict::Broken(failure),
            },
        }
    }
}

/// Whether there is room for writes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Headroom {
    /// Whether every node has free memory.
    pub(super) has_memory: bool,
    /// The replicas of all nodes that count for `min-replicas-to-write`.
    pub(super) replicas: u64,
}

impl Headroom {
    /// Parses `INFO memory` and `INFO replication` of each node.
    fn parse<'a>(nodes: impl Iterator<Item = &'a str>) -> Self {
        let mut all = Self { has_memory: true, replicas: 0 };
        for info in nodes {
            let number = |name: &str| -> u64 {
                info.lines().find_map(|line| line.trim_end().strip_prefix(name)?.parse().ok()).unwrap_or(0)
            };
            let (max, used) = (number("maxmemory:"), number("used_memory:"));
            all.has_memory &= max == 0 || used.saturating_sub(number("mem_not_counted_for_evict:")) <= max;
            all.replicas += number("min_slaves_good_slaves:");
        }
        all
    }
}

impl Connection {
    /// Whether there is room for writes; `None` if that cannot be determined.
    pub(super) async fn headroom(&mut self) -> Option<Headroom> {
        let mut texts = Vec::new();
        for section in ["memory", "replication"] {
            let mut info = redis::cmd("INFO");
            info.arg(section);
            let answer = match self {
                Self::Single(_) => self.send(&info).await,
                Self::Cluster(connection) => {
                    let masters = MultipleNodeRoutingInfo::AllMasters;
                    connection.route_command(info, RoutingInfo::MultiNode((masters, None))).await
                }
            };
            match answer.ok()? {
                Value::Map(nodes) => texts.extend(nodes.into_iter().map(|(_, info)| info)),
                info => texts.push(info),
            }
        }
        let texts: Option<Vec<String>> = texts.into_iter().map(|info| redis::from_redis_value(info).ok()).collect();
        Some(Headroom::parse(texts?.iter().map(String::as_str)))
    }
}

/// The primary, if `INFO replication` shows a replica that rejects writes.
fn replica_of(info: &str) -> Option<String> {
    let field = |name: &str| info.lines().find_map(|line| line.trim_end().strip_prefix(name));
    let takes_writes = field("role:") != Some("slave") || field("slave_read_only:") == Some("0");
    (!takes_writes)
        .then(|| format!("{}:{}", field("master_host:").unwrap_or("?"), field("master_port:").unwrap_or("?")))
}

/// What an error in reply to a PING says about the server.
fn judge(error: &redis::RedisError, classifier: &Classifier) -> Verdict {
    let failure = classifier.failure(error);
    match (failure.kind, error.code()) {
        // The user merely lacks the permission for PING.
        (Kind::Refused, Some("NOPERM")) => Verdict::Healthy,
        // Writes fail because Redis cannot save; reads still work.
        (Kind::Refused, Some("MISCONF")) => Verdict::Degraded(failure.message),
        _ => Verdict::Broken(failure),
    }
}

/// A cluster is healthy if every master answers and the cluster itself reports that it is healthy. It is broken if no
/// node answers at all. Otherwise it is degraded, and operations on the nodes that are up continue.
async fn probe_cluster(connection: &mut ClusterConnection<NodeConnection>, classifier: &Classifier) -> Verdict {
    let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, Some(ResponsePolicy::AllSucceeded)));
    let any = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
    let answer = connection.route_command(redis::cmd("PING"), masters).await.and_then(Value::extract_error);
    let problem = match answer.map_err(|error| judge(&error, classifier)) {
        Ok(_) | Err(Verdict::Healthy) => None,
        Err(Verdict::Degraded(reason)) => return Verdict::Degraded(reason),
        Err(Verdict::Broken(failure)) => Some(failure),
    };
    let mut info = redis::cmd("CLUSTER");
    info.arg("INFO");
    let state = connection.route_command(info, any).await.and_then(Value::extract_error);
    match (state, problem) {
        (Ok(state), None) if says_fail(&state) => {
            Verdict::Degraded("the cluster is down: some hash slots have no master".into())
        }
        (Ok(_), None) => Verdict::Healthy,
        (Ok(_), Some(failure)) => Verdict::Degraded(format!("a node of the cluster is down: {}", failure.message)),
        (Err(error), problem) => {
            let failure = classifier.failure(&error);
            match (failure.kind, problem) {
                // The user may not ask for the state, so the masters' answers must suffice.
                (Kind::Refused, None) => Verdict::Healthy,
                (_, None) => Verdict::Degraded(failure.message),
                (_, Some(problem)) => Verdict::Broken(problem),
            }
        }
    }
}

fn says_fail(cluster_info: &Value) -> bool {
    let text = match cluster_info {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.as_str().into(),
        _ => return false,
    };
    text.contains("cluster_state:fail")
}

/// Parses arbitrary replies to `INFO` and `CLUSTER INFO`.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(data: &[u8]) {
    let _headroom = Headroom::parse(String::from_utf8_lossy(data).split('\0'));
    let text = String::from_utf8_lossy(data);
    if let Some(primary) = replica_of(&text) {
        assert!(text.contains("role:slave") && primary.contains(':'));
    }
    assert_eq!(says_fail(&Value::BulkString(data.to_vec())), text.contains("cluster_state:fail"));
}

fn is_cluster(config: &RedisConfig) -> Result<bool, OpenError> {
    match (config.cluster, config.urls.len()) {
        (_, 0) => Err(OpenError::Redis("storage.redis.urls is empty; give at least one URL".into())),
        (Some(false), 2..) => Err(OpenError::Redis(
            "storage.redis.urls has several URLs, but storage.redis.cluster is false; give one URL, or leave `cluster` out"
                .into(),
        )),
        (Some(cluster), _) => Ok(cluster),
        (None, urls) => Ok(urls > 1),
    }
}

fn certificates(config: &RedisConfig, uses_tls: bool) -> Result<Option<TlsCertificates>, OpenError> {
    let Some(path) = &config.ca_file else { return Ok(None) };
    if !uses_tls {
        return Err(OpenError::Redis("storage.redis.ca_file is set, but no URL starts with rediss://".into()));
    }
    let unusable = |why: String| {
        OpenError::Redis(format!(
            "storage.redis.ca_file: cannot use {}: {why}; it must contain PEM certificates",
            path.display()
        ))
    };
    let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    // Otherwise an empty list of roots would surface only later, as a rejected certificate.
    if !String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE-----") {
        return Err(unusable("it contains no certificate".into()));
    }
    Ok(Some(TlsCertificates { client_tls: None, root_cert: Some(pem) }))
}

/// Sends one command to a single server and waits for its answer. An error reply is returned as an error.
#[inline]
pub(super) async fn ask(connection: &mut MultiplexedConnection, command: &Cmd) -> RedisResult<Value> {
    connection.send_packed_command(command).await?.extract_error()
}

/// The configuration of connections to a single server.
pub(super) fn config(timeout: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(timeout))
        .set_response_timeout(Some(timeout))
        .set_pipeline_buffer_size(super::MAX_IN_FLIGHT)
}

/// No linger time: data on an abandoned connection must not be sent any more, even after the process was killed.
fn tcp_settings() -> TcpSettings {
    TcpSettings::default().set_linger_time(Duration::ZERO)
}

fn single_client(infos: Vec<ConnectionInfo>, certificates: Option<TlsCertificates>) -> RedisResult<Client> {
    let info = infos.into_iter().next().ok_or((redis::ErrorKind::InvalidClientConfig, "no URL"))?;
    let info = info.set_tcp_settings(tcp_settings());
    match certificates {
        Some(certificates) => Client::build_with_tls(info, certificates),
        None => Client::open(info),
    }
}

fn cluster_client(
    seeds: Vec<ConnectionInfo>,
    certificates: Option<TlsCertificates>,
    timeout: Duration,
) -> RedisResult<ClusterClient> {
    let (min_wait, max_wait) = CLUSTER_WAIT_MS;
    let mut builder = ClusterClientBuilder::new(seeds)
        .connection_timeout(timeout)
        // Also bounds one attempt including all its redirections.
        .response_timeout(timeout)
        .retries(CLUSTER_REDIRECTIONS)
        .tcp_settings(tcp_settings())
        .min_retry_wait(min_wait)
        .max_retry_wait(max_wait);
    if let Some(certificates) = certificates {
        builder = builder.certs(certificates);
    }
    builder.build()
}

//! How to reach Redis: one server or a cluster, in clear or by TLS.

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

/// How often the cluster client may follow a redirection or go on to another node within one attempt.
/// Two suffice for MOVED and then ASK; the third is for a node that has just gone.
const CLUSTER_REDIRECTIONS: u32 = 3;
/// How long the cluster client waits before it follows; within one attempt, in milliseconds.
const CLUSTER_WAIT_MS: (u64, u64) = (10, 50);

/// Makes connections.
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
    /// What the server calls it.
    pub(super) server_side: Option<ServerSide>,
    /// Why what was sent on connections of before may still happen, where that cannot be prevented.
    pub(super) unfenced: Option<String>,
}

/// What a probe found.
#[derive(Debug)]
pub(super) enum Verdict {
    Healthy,
    /// The connection is good, but not all operations will succeed, and why.
    Degraded(String),
    /// The connection is of no use any more.
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
            // redis-rs takes rustls's process-wide provider and would panic when there is none, or a
            // choice of two. An `Err` means that somebody has installed one already, which is fine.
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

    /// Connects, authenticates, sees that Redis serves requests, and has it end `before`, the connection that was given
    /// up.
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
        // A cluster is reached in three steps, each with its own timeout: seeds, slots, nodes. This
        // bounds them together, should one of redis-rs's own timeouts fail.
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

    /// See [`fence`](super::fence). Where the server does not let this user, says why.
    async fn fence(
        &self,
        connection: &mut MultiplexedConnection,
        before: Option<&ServerSide>,
    ) -> Result<(Option<ServerSide>, Option<String>), RedisFailure> {
        let fenced = async {
            let own = ServerSide::of(connection).await?;
            // Without one to end: whether it would be allowed to.
            if let Some(end) = before.or(own.as_ref()) {
                end.end(connection).await?;
            }
            RedisResult::Ok(own)
        };
        match fenced.await {
            Ok(Some(own)) => Ok((Some(own), None)),
            Ok(None) => Ok((None, Some("it does not say which connection this is".into()))),
            Err(error) => {
                let failure = self.failure(&error);
                if failure.kind == Kind::Refused { Ok((None, Some(failure.message))) } else { Err(failure) }
            }
        }
    }

    /// What makes connections to a single server.
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

    /// Asks whether Redis is there and serves requests.
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
    /// Whether a single server takes writes. One that does not say is believed to.
    async fn probe_role(&mut self, classifier: &Classifier) -> Verdict {
        match self.send(redis::cmd("INFO").arg("replication")).await {
            Ok(info) => match replica_of(&redis::from_redis_value::<String>(info).unwrap_or_default()) {
                Some(primary) => Verdict::Broken(RedisFailure::new(
                    Kind::Later,
                    format!(
                        "it is a replica of {primary} and takes no writes; storage.redis.urls has to lead to the primary"
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
    /// On every node.
    pub(super) has_memory: bool,
    /// Of all nodes: those that count for `min-replicas-to-write`.
    pub(super) replicas: u64,
}

impl Headroom {
    /// By `INFO memory` and `INFO replication` of each node.
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
    /// Whether there is room for writes; `None` when it cannot be found out.
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

/// Of whom, by `INFO replication`, a server is a replica that takes no writes.
fn replica_of(info: &str) -> Option<String> {
    let field = |name: &str| info.lines().find_map(|line| line.trim_end().strip_prefix(name));
    let takes_writes = field("role:") != Some("slave") || field("slave_read_only:") == Some("0");
    (!takes_writes)
        .then(|| format!("{}:{}", field("master_host:").unwrap_or("?"), field("master_port:").unwrap_or("?")))
}

/// What an error as the answer to a PING says about the server.
fn judge(error: &redis::RedisError, classifier: &Classifier) -> Verdict {
    let failure = classifier.failure(error);
    match (failure.kind, error.code()) {
        // Only PING itself is forbidden to this user.
        (Kind::Refused, Some("NOPERM")) => Verdict::Healthy,
        // Writes fail because Redis cannot save; reads go on.
        (Kind::Refused, Some("MISCONF")) => Verdict::Degraded(failure.message),
        _ => Verdict::Broken(failure),
    }
}

/// A cluster is healthy when every master answers and the cluster itself says that it is. It is broken
/// when no node at all answers; between the two, the operations on the living nodes go on.
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
        (Ok(_), Some(failure)) => Verdict::Degraded(format!("a node of the cluster is away: {}", failure.message)),
        (Err(error), problem) => {
            let failure = classifier.failure(&error);
            match (failure.kind, problem) {
                // The user may not ask for the state; the masters' answers have to do.
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

/// What `INFO` and `CLUSTER INFO` may say.
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
        return Err(OpenError::Redis("storage.redis.ca_file is given, but no URL begins with rediss://".into()));
    }
    let unusable = |why: String| {
        OpenError::Redis(format!(
            "storage.redis.ca_file: cannot use {}: {why}; it has to hold PEM certificates",
            path.display()
        ))
    };
    let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    // An empty list of roots would only show as a refused certificate, later and less clearly.
    if !String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE-----") {
        return Err(unusable("there is no certificate in it".into()));
    }
    Ok(Some(TlsCertificates { client_tls: None, root_cert: Some(pem) }))
}

/// Sends one command to a single server and waits for its answer. An error that it answers with is one.
#[inline]
pub(super) async fn ask(connection: &mut MultiplexedConnection, command: &Cmd) -> RedisResult<Value> {
    connection.send_packed_command(command).await?.extract_error()
}

/// How connections to a single server are made and used.
pub(super) fn config(timeout: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(timeout))
        .set_response_timeout(Some(timeout))
        .set_pipeline_buffer_size(super::MAX_IN_FLIGHT)
}

/// What is given up is not to be sent any more, also when the process was killed.
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
        // Also bounds one attempt with all its redirections.
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

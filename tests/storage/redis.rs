//! Redis on real servers: the contract over every kind of connection, and errors from Redis.

use std::path::PathBuf;

use bytes::Bytes;
use peerscope::metrics::{Health, MetricsCollector, Registry};
use peerscope::storage::{BackendKind, Config, OpenError, RedisConfig, RedisUrl, Storage, StorageError};

use super::contract;
use crate::support;
use crate::support::port::ReservedPort;
use crate::support::redis::{RedisServer, eventually};

/// An open storage, with its health and metrics.
pub(super) struct Rig {
    pub(super) storage: Storage,
    pub(super) health: Health,
    #[cfg_attr(not(feature = "metrics-prometheus"), allow(dead_code, reason = "without metrics it is empty"))]
    pub(super) registry: Registry,
}

impl Rig {
    pub(super) async fn open(redis: RedisConfig) -> Self {
        Self::try_open(redis).await.unwrap()
    }

    pub(super) async fn try_open(redis: RedisConfig) -> Result<Self, OpenError> {
        let registry = Registry::default();
        let metrics = MetricsCollector::new(&registry, &support::agent_info());
        let health = Health::default();
        let config = Config { backend: BackendKind::Redis, redis, ..Config::default() };
        let storage = Storage::open(&config, PathBuf::new(), metrics, health.clone()).await?;
        Ok(Self { storage, health, registry })
    }

    pub(super) async fn ready(self) -> Self {
        eventually("the storage is ready", || self.health.is_ready()).await;
        self
    }

    /// Why the storage is not ready; empty if it is.
    pub(super) fn problem(&self) -> String {
        self.health.snapshot().into_iter().find_map(|state| state.problem).unwrap_or_default()
    }

    #[cfg(feature = "metrics-prometheus")]
    pub(super) fn counter(&self, name: &str) -> f64 {
        use crate::support::metrics::{encode, value};
        value(&encode(&self.registry), name, &[])
    }
}

pub(super) fn url(text: &str) -> RedisUrl {
    serde_json::from_value(text.into()).unwrap()
}

pub(super) fn config(urls: &[String]) -> RedisConfig {
    RedisConfig { urls: urls.iter().map(|text| url(text)).collect(), ..RedisConfig::default() }
}

pub(super) fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn open_error(result: Result<Rig, OpenError>) -> String {
    match result {
        Ok(rig) => panic!("{} was opened", rig.storage.describe()),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_server_fulfils_the_contract() {
    let server = RedisServer::start(&[]);
    let rig = Rig::open(config(&[server.url()])).await;
    // It may not be connected yet: the first operation waits for that.
    contract::storage_contract(rig.storage.clone()).await;
    assert_eq!(rig.storage.describe(), format!("redis redis://127.0.0.1:{}", server.port));
    assert!(rig.health.is_ready());
    #[cfg(feature = "metrics-prometheus")]
    {
        assert_eq!(rig.counter("storage_redis_retries_total"), 0.0);
        assert_eq!(rig.counter("storage_redis_reconnects_total"), 0.0);
        contract::metrics_contract(rig.storage.clone(), &rig.registry).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_password_database_and_prefix_fulfils_the_contract() {
    let options = "--requirepass administrator --user agent on >p@ss:w/rd ~app:* +@all -@admin -@dangerous";
    let server = RedisServer::start(&options.split(' ').collect::<Vec<_>>());
    let mut config = config(&[format!("redis://agent:p%40ss%3Aw%2Frd@127.0.0.1:{}/3", server.port)]);
    config.key_prefix = "app:".into();
    let rig = Rig::open(config).await;
    contract::storage_contract(rig.storage.clone()).await;

    rig.storage.put(key("seen"), key("from outside")).await.unwrap();
    let database = |number: u32| format!("redis://:administrator@127.0.0.1:{}/{number}", server.port);
    let raw: Option<String> = server.command_at(&database(3), &["GET", "app:seen"]);
    assert_eq!(raw.as_deref(), Some("from outside"), "the prefix and the database number are used");
    let elsewhere: Vec<String> = server.command_at(&database(0), &["KEYS", "*"]);
    assert!(elsewhere.is_empty(), "{elsewhere:?}");

    // A missing permission is reported with its consequence, until it is granted.
    let described = format!("redis redis://agent:***@127.0.0.1:{}/3", server.port);
    let unfenced = format!("{described} (a failed write may still take effect after a later one: NOPERM");
    assert!(rig.storage.describe().starts_with(&unfenced), "{}", rig.storage.describe());
    let may = ["ACL", "SETUSER", "agent", "+client|kill", "+client|info"];
    let () = server.command_at(&database(0), &may);
    let () = server.command_at(&database(0), &["CLIENT", "KILL", "USER", "agent"]);
    eventually("the permission is noticed", || rig.storage.describe() == described).await;
}

/// A CA, and a server certificate for 127.0.0.1 that it signed.
struct Certificates {
    ca: String,
    certificate: String,
    key: String,
}

fn make_certificates() -> Certificates {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().signed_by(&key, &ca, &ca_key).unwrap();
    Certificates { ca: ca.pem(), certificate: leaf.pem(), key: key.serialize_pem() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_a_private_ca_fulfils_the_contract_and_another_ca_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = make_certificates();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let ca = write("ca.pem", &certificates.ca);
    let other_ca = write("other.pem", &make_certificates().ca);
    let certificate = write("server.pem", &certificates.certificate);
    let private_key = write("server.key", &certificates.key);
    let reserved = ReservedPort::new();
    let tls_port = reserved.number();
    let _server = RedisServer::start(&[
        "--tls-port",
        &tls_port.to_string(),
        "--tls-cert-file",
        certificate.to_str().unwrap(),
        "--tls-key-file",
        private_key.to_str().unwrap(),
        "--tls-ca-cert-file",
        ca.to_str().unwrap(),
        "--tls-auth-clients",
        "no",
    ]);
    let with_ca =
        |ca_file| RedisConfig { ca_file: Some(ca_file), ..config(&[format!("rediss://127.0.0.1:{tls_port}")]) };

    let rig = Rig::open(with_ca(ca)).await;
    contract::storage_contract(rig.storage.clone()).await;
    assert_eq!(rig.storage.describe(), format!("redis rediss://127.0.0.1:{tls_port}"));

    let stranger = Rig::open(with_ca(other_ca)).await;
    let error = stranger.storage.get(&key("k")).await.unwrap_err();
    assert!(matches!(&error, StorageError::Unavailable(why) if why.contains("certificate")), "{error}");
    assert!(stranger.problem().contains("certificate"), "{}", stranger.problem());

    let error = open_error(Rig::try_open(with_ca(folder.path().join("absent.pem"))).await);
    assert!(error.contains("storage.redis.ca_file") && error.contains("absent.pem"), "{error}");
    let error = open_error(Rig::try_open(with_ca(private_key)).await);
    assert!(error.contains("no certificate"), "{error}");
}

#[tokio::test]
async fn urls_that_do_not_fit_together_are_refused_at_once() {
    let urls = |texts: &[&str]| config(&texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
    let error = open_error(Rig::try_open(urls(&[])).await);
    assert!(error.contains("storage.redis.urls is empty"), "{error}");

    let two = urls(&["redis://127.0.0.1:1", "redis://127.0.0.1:2"]);
    let error = open_error(Rig::try_open(RedisConfig { cluster: Some(false), ..two }).await);
    assert!(error.contains("several URLs") && error.contains("storage.redis.cluster"), "{error}");

    let error = open_error(Rig::try_open(urls(&["redis://:one@127.0.0.1:1", "redis://:two@127.0.0.1:2"])).await);
    assert!(error.contains("different password") && !error.contains("one@") && !error.contains("two"), "{error}");

    let error =
        open_error(Rig::try_open(RedisConfig { ca_file: Some("x".into()), ..urls(&["redis://127.0.0.1:1"]) }).await);
    assert!(error.contains("rediss://"), "{error}");
}

#[tokio::test]
async fn a_wrong_password_is_a_clear_error_without_retries() {
    let server = RedisServer::start(&["--requirepass", "correct horse"]);
    let rig = Rig::open(config(&[format!("redis://:battery-staple@127.0.0.1:{}", server.port)])).await;
    let error = rig.storage.put(key("k"), key("v")).await.unwrap_err();
    assert!(
        matches!(&error, StorageError::Backend(why) if why.contains("refused the configured user name or password")),
        "{error}"
    );
    assert!(rig.problem().contains("refused the configured user name or password"), "{}", rig.problem());
    assert!(!rig.health.is_ready());
    for text in [error.to_string(), rig.problem(), rig.storage.describe(), format!("{:?}", rig.storage)] {
        assert!(!text.contains("battery-staple"), "{text}");
    }
    #[cfg(feature = "metrics-prometheus")]
    assert_eq!(rig.counter("storage_redis_retries_total"), 0.0, "a retry cannot fix a wrong password");

    let without = Rig::open(config(&[server.url()])).await;
    let error = without.storage.get(&key("k")).await.unwrap_err();
    assert!(matches!(&error, StorageError::Backend(why) if why.starts_with("NOAUTH")), "{error}");
    assert!(without.problem().contains("NOAUTH"), "{}", without.problem());
}

#[tokio::test]
async fn an_error_that_a_retry_cannot_fix_is_returned_with_redis_own_message() {
    let server = RedisServer::start(&[]);
    let rig = Rig::open(config(&[server.url()])).await.ready().await;
    let () = server.command(&["LPUSH", "peerscope:list", "x"]);
    let error = rig.storage.get(&key("list")).await.unwrap_err();
    assert!(
        matches!(&error, StorageError::Backend(why) if why.starts_with("WRONGTYPE Operation against a key")),
        "{error}"
    );
    assert!(rig.health.is_ready(), "one key of another type is not an outage");

    // Another program's value, too long for a response to a peer.
    let max = Config::default().max_value_size;
    let () = server.command(&["SETRANGE", "peerscope:huge", &max.to_string(), "x"]);
    let error = rig.storage.get(&key("huge")).await.unwrap_err();
    assert!(matches!(error, StorageError::ValueTooLarge { len, max: m } if len == max + 1 && m == max), "{error}");

    #[cfg(feature = "metrics-prometheus")]
    assert_eq!(rig.counter("storage_redis_retries_total"), 0.0);
}

#[tokio::test]
async fn a_redis_without_free_memory_refuses_writes_and_serves_reads() {
    let server = RedisServer::start(&["--maxmemory-policy", "noeviction"]);
    let rig = Rig::open(config(&[server.url()])).await.ready().await;
    rig.storage.put(key("kept"), key("value")).await.unwrap();
    let () = server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = rig.storage.put(key("k"), key("v")).await.unwrap_err();
    assert!(matches!(&error, StorageError::Backend(why) if why.starts_with("OOM command not allowed")), "{error}");
    assert_eq!(rig.storage.get(&key("kept")).await.unwrap(), Some(key("value")));
    // Redis still answers PING and reads, but the problem must be visible.
    eventually("the problem is reported", || rig.problem().contains("OOM command not allowed")).await;
    rig.storage.delete(key("kept")).await.unwrap();
    assert!(!rig.health.is_ready(), "a delete needs no memory");
    let () = server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    eventually("the free memory is noticed without a write", || rig.health.is_ready()).await;
    rig.storage.put(key("k"), key("v")).await.unwrap();
    #[cfg(feature = "metrics-prometheus")]
    assert_eq!(rig.counter("storage_redis_retries_total"), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_finishes_operations_in_progress_and_disconnects() {
    let server = RedisServer::start(&[]);
    let rig = Rig::open(config(&[server.url()])).await.ready().await;
    // The server delays every command, so that the writes are in progress when the storage is closed.
    let () = server.command(&["CLIENT", "PAUSE", "300", "ALL"]);
    let mut writes = tokio::task::JoinSet::new();
    for i in 0..100 {
        let storage = rig.storage.clone();
        writes.spawn(async move { storage.put(key(&format!("k{i}")), key("v")).await });
    }
    eventually_in_flight(&rig, 100).await;
    rig.storage.close().await;
    while let Some(write) = writes.join_next().await {
        write.unwrap().expect("a write that was in progress at the close");
    }
    let kept: usize = server.command(&["DBSIZE"]);
    assert_eq!(kept, 100);

    let error = rig.storage.get(&key("k1")).await.unwrap_err();
    assert!(matches!(&error, StorageError::Unavailable(why) if why.contains("closed")), "{error}");
    eventually("the agent has disconnected", || {
        let clients: String = server.command(&["CLIENT", "LIST", "TYPE", "normal"]);
        clients.lines().count() == 1
    })
    .await;
    assert!(!rig.health.is_ready());
    rig.storage.close().await;
}

/// Waits until this many operations are in progress.
async fn eventually_in_flight(rig: &Rig, operations: u32) {
    #[cfg(feature = "metrics-prometheus")]
    {
        use crate::support::metrics::{encode, value};
        eventually("the operations are in progress", || {
            let text = encode(&rig.registry);
            value(&text, "storage_operations_in_flight", &[("backend", "redis")]) == f64::from(operations)
        })
        .await;
    }
    #[cfg(not(feature = "metrics-prometheus"))]
    {
        // Without the gauge there is nothing to wait for; the server's pause is longer than this.
        let _ = (rig, operations);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

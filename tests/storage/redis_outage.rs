//! Redis goes down in various ways, and comes back.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use peerscope::storage::{RedisConfig, StorageError};

use super::redis::{Rig, config, key};
use crate::support::redis::{RedisServer, eventually};

/// The sum of the waits before three retries, and a margin for a busy machine.
const RETRIES: Duration = Duration::from_millis(700 + 1500);

#[tokio::test]
async fn a_redis_that_is_down_at_the_start_is_found_when_it_comes_up() {
    let mut server = RedisServer::prepare(&[]);
    let before = Instant::now();
    let rig = Rig::open(config(&[server.url()])).await;
    assert!(before.elapsed() < Duration::from_millis(500), "opening does not wait for Redis");
    assert!(!rig.health.is_ready());

    let before = Instant::now();
    let error = rig.storage.put(key("k"), key("v")).await.unwrap_err();
    assert!(matches!(&error, StorageError::Unavailable(why) if why.contains("refused")), "{error}");
    assert!(before.elapsed() < RETRIES, "{:?}", before.elapsed());
    assert!(rig.problem().contains(&format!("redis://127.0.0.1:{}", server.port)), "{}", rig.problem());
    #[cfg(feature = "metrics-prometheus")]
    assert_eq!(rig.counter("storage_redis_retries_total"), 3.0);

    server.restart();
    let appeared = Instant::now();
    eventually("the storage is ready", || rig.health.is_ready()).await;
    assert!(appeared.elapsed() < Duration::from_secs(5), "{:?}", appeared.elapsed());
    rig.storage.put(key("k"), key("v")).await.unwrap();
    #[cfg(feature = "metrics-prometheus")]
    assert_eq!(rig.counter("storage_redis_reconnects_total"), 0.0, "the first connection is not a reconnection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_redis_under_load_causes_typed_errors_until_it_is_back() {
    let mut server = RedisServer::start(&[]);
    let rig = Rig::open(config(&[server.url()])).await.ready().await;
    let stop = Arc::new(AtomicBool::new(false));
    let (done, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..32 {
        let (storage, stop, done, failed) = (rig.storage.clone(), stop.clone(), done.clone(), failed.clone());
        callers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let before = Instant::now();
                match storage.put(key(&format!("k{caller}")), key("v")).await {
                    Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                    Err(StorageError::Unavailable(_) | StorageError::Timeout(_)) => {
                        failed.fetch_add(1, Ordering::Relaxed)
                    }
                    Err(error) => panic!("unexpected type of error: {error}"),
                };
                assert!(before.elapsed() < RETRIES, "one put took {:?}", before.elapsed());
            }
        });
    }
    for round in 1..=2 {
        let (done_before, failed_before) = (done.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
        eventually("the load runs", || done.load(Ordering::Relaxed) > done_before + 1000).await;
        server.kill();
        eventually("operations fail", || failed.load(Ordering::Relaxed) > failed_before + 32).await;
        assert!(!rig.health.is_ready());
        server.restart();
        let returned = Instant::now();
        eventually("the storage is ready", || rig.health.is_ready()).await;
        assert!(returned.elapsed() < Duration::from_secs(5), "{:?}", returned.elapsed());
        let done_before = done.load(Ordering::Relaxed);
        eventually("the load runs again", || done.load(Ordering::Relaxed) > done_before + 1000).await;
        #[cfg(feature = "metrics-prometheus")]
        {
            assert_eq!(rig.counter("storage_redis_reconnects_total"), f64::from(round));
            let failed = failed.load(Ordering::Relaxed) as f64;
            let retries = rig.counter("storage_redis_retries_total");
            // Except the one operation that each caller had in progress: it may have been performed, so is not retried.
            let under_way = 32.0 * f64::from(round);
            assert!(retries >= 3.0 * (failed - under_way), "{retries} retries, {failed} failed operations");
        }
        let _ = round;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_is_noticed_even_when_idle_and_delays_are_bounded() {
    let server = RedisServer::start(&[]);
    let timeout = Duration::from_millis(300);
    let rig = Rig::open(RedisConfig { timeout, ..config(&[server.url()]) }).await.ready().await;
    rig.storage.put(key("k"), key("v")).await.unwrap();

    server.freeze();
    // The connection still looks healthy, so the first attempt runs into its timeout.
    let before = Instant::now();
    let error = rig.storage.get(&key("k")).await.unwrap_err();
    let took = before.elapsed();
    assert!(matches!(error, StorageError::Timeout(t) if t == timeout), "{error}");
    assert!(took >= timeout && took < 4 * timeout + RETRIES, "{took:?}");
    eventually("the freeze is noticed", || !rig.health.is_ready()).await;
    // Redis is known to be down, so no attempt waits for an answer.
    let before = Instant::now();
    let error = rig.storage.get(&key("k")).await.unwrap_err();
    assert!(matches!(error, StorageError::Timeout(_)), "{error}");
    assert!(before.elapsed() < RETRIES, "{:?}", before.elapsed());

    server.thaw();
    eventually("the storage is ready", || rig.health.is_ready()).await;
    assert_eq!(rig.storage.get(&key("k")).await.unwrap(), Some(key("v")));
    #[cfg(feature = "metrics-prometheus")]
    assert!(rig.counter("storage_redis_reconnects_total") >= 1.0);

    // Without any operation the probe notices it.
    server.freeze();
    let before = Instant::now();
    eventually("the probe notices", || !rig.health.is_ready()).await;
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    assert!(rig.problem().contains("no answer within 300ms"), "{}", rig.problem());
    server.thaw();
    eventually("the storage is ready", || rig.health.is_ready()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_waiting_operations_is_bounded() {
    let flood = async |rig: &Rig, operations: usize| {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..operations {
            let storage = rig.storage.clone();
            tasks.spawn(async move { storage.get(&key("k")).await.unwrap_err() });
        }
        tasks.join_all().await
    };
    let busy = |errors: &[StorageError], bound: usize| {
        errors.iter().filter(|e| matches!(e, StorageError::Busy(b) if *b == bound)).count()
    };

    // Redis is known to be down: operations that wait for a retry are bounded.
    let away = RedisServer::prepare(&[]);
    let rig = Rig::open(config(&[away.url()])).await;
    eventually("the outage is noticed", || rig.problem().contains("refused")).await;
    let errors = flood(&rig, 3000).await;
    let refused = busy(&errors, 1024);
    assert!(refused > 0 && refused <= 3000 - 1024, "{refused} of 3000 were refused");
    assert!(errors.iter().all(|e| matches!(e, StorageError::Busy(_) | StorageError::Unavailable(_))));

    // Redis is frozen: operations in progress are bounded.
    let server = RedisServer::start(&[]);
    let timeout = Duration::from_millis(500);
    let rig = Rig::open(RedisConfig { timeout, ..config(&[server.url()]) }).await.ready().await;
    server.freeze();
    let errors = flood(&rig, 6000).await;
    assert!(busy(&errors, 4096) > 0, "none was refused");
    assert!(
        errors
            .iter()
            .all(|e| matches!(e, StorageError::Busy(_) | StorageError::Unavailable(_) | StorageError::Timeout(_)))
    );
}

#[tokio::test]
async fn the_agent_waits_for_a_server_that_is_loading_its_data() {
    let mut server = RedisServer::start(&[
        "--enable-debug-command",
        "yes",
        "--key-load-delay",
        "3000",
        "--loading-process-events-interval-bytes",
        "1024",
    ]);
    let rig = Rig::open(config(&[server.url()])).await.ready().await;
    // 400 keys at 3 ms each.
    let () = server.command(&["DEBUG", "POPULATE", "400", "filler", "100"]);
    let () = server.command(&["SAVE"]);
    server.kill();
    eventually("the loss is noticed", || !rig.health.is_ready()).await;
    server.restart_until_loading();
    eventually("the reason is Redis's own", || rig.problem().contains("LOADING")).await;
    eventually("the storage is ready", || rig.health.is_ready()).await;
    rig.storage.put(key("k"), key("v")).await.unwrap();
}

/// Collects log lines.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn each_outage_is_logged_once_and_never_with_the_password() {
    const LINE: &str = "Redis connection failed after 3 retries";
    // A subscriber for the whole process: one for a single thread misses events that other threads reach first. The
    // port distinguishes the lines of this test from those of others.
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::TRACE);
    tracing::subscriber::set_global_default(subscriber.with_writer(move || writer.clone()).finish()).unwrap();

    let mut server = RedisServer::start(&["--requirepass", "hush-hush"]);
    let url = format!("redis://:hush-hush@127.0.0.1:{}", server.port);
    let ours = format!("redis://:***@127.0.0.1:{}", server.port);
    let lines = |what: &str| -> Vec<String> {
        let text = log.text();
        text.lines().filter(|line| line.contains(&ours) && line.contains(what)).map(str::to_owned).collect()
    };
    let rig = Rig::open(config(&[url])).await.ready().await;
    for outage in 1..=2 {
        server.kill();
        eventually("the loss is noticed", || !rig.health.is_ready()).await;
        let operations = (0..50).map(|_| async { rig.storage.put(key("k"), key("v")).await.unwrap_err() });
        for error in futures::future::join_all(operations).await {
            assert!(!error.to_string().contains("hush"), "{error}");
        }
        assert_eq!(lines(LINE).len(), outage, "one line for 50 operations: {:#?}", lines(""));
        server.restart();
        eventually("the storage is ready", || rig.health.is_ready()).await;
    }
    rig.storage.close().await;
    let line = &lines(LINE)[0];
    assert!(line.contains("ERROR") && line.contains("cause="), "{line}");
    assert_eq!(lines("Redis connection lost").len(), 2, "{:#?}", lines(""));
    assert_eq!(lines("Redis is available").len(), 3, "{:#?}", lines(""));
    assert!(!log.text().contains("hush"));
}

#[tokio::test]
async fn an_outage_is_noticed_without_traffic() {
    let mut server = RedisServer::start(&[]);
    let rig = Rig::open(config(&[server.url()])).await.ready().await;
    server.kill();
    let killed = Instant::now();
    eventually("the loss is noticed", || rig.problem().contains("refused")).await;
    assert!(killed.elapsed() < Duration::from_secs(4), "{:?}", killed.elapsed());
    server.restart();
    let returned = Instant::now();
    eventually("the storage is ready", || rig.health.is_ready()).await;
    assert!(returned.elapsed() < Duration::from_secs(4), "{:?}", returned.elapsed());
    #[cfg(feature = "metrics-prometheus")]
    {
        assert_eq!(rig.counter("storage_redis_reconnects_total"), 1.0);
        assert_eq!(rig.counter("storage_redis_retries_total"), 0.0);
    }
}

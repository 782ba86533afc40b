//! Real servers that scrape agents, each with its data in a temporary directory.
//! `tests/tools.sh` fetches them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tempfile::TempDir;

use super::agent::{PATIENCE, connect, free_port, own_address};
use super::http;

/// Which server. Both versions of Prometheus accept native histograms if the endpoint offers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// Version 2, from Debian: keeps only the native buckets of a histogram that has both kinds.
    Prometheus,
    /// Keeps both kinds.
    Prometheus3,
    /// Reads the classic text, without native histograms.
    VictoriaMetrics,
}

impl Program {
    pub(crate) const ALL: [Self; 3] = [Self::Prometheus, Self::Prometheus3, Self::VictoriaMetrics];

    fn path(self) -> PathBuf {
        let (variable, name) = match self {
            Self::Prometheus => ("TEST_PROMETHEUS", "prometheus"),
            Self::Prometheus3 => ("TEST_PROMETHEUS_3", "prometheus-3"),
            Self::VictoriaMetrics => ("TEST_VICTORIA_METRICS", "victoria-metrics"),
        };
        std::env::var_os(variable).unwrap_or_else(|| name.into()).into()
    }

    pub(crate) fn keeps_native(self) -> bool {
        self != Self::VictoriaMetrics
    }

    /// Whether it keeps the classic buckets of a histogram that also has native ones.
    pub(crate) fn keeps_both(self) -> bool {
        self != Self::Prometheus
    }

    /// The settings of a job for the kinds of buckets to keep. Their names changed between releases, and each release
    /// rejects unknown ones.
    pub(crate) fn job(self) -> String {
        let both = if self == Self::Prometheus3 { "always_scrape_classic_histograms: true, " } else { "" };
        // From 3.8 on, the feature flag has no effect.
        let native = self.keeps_native() && version(&self.path()) >= (3, 8);
        let native = if native { "scrape_native_histograms: true, " } else { "" };
        format!("{both}{native}")
    }

    fn command(self, home: &Path, address: SocketAddr) -> Command {
        let mut command = Command::new(self.path());
        let (config, data) = (home.join("scrape.yml"), home.join("data"));
        match self {
            Self::Prometheus | Self::Prometheus3 => command
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", data.display()))
                .arg(format!("--web.listen-address={address}"))
                .arg("--enable-feature=native-histograms,exemplar-storage"),
            Self::VictoriaMetrics => command
                .arg(format!("-promscrape.config={}", config.display()))
                .arg(format!("-storageDataPath={}", data.display()))
                .arg(format!("-httpListenAddr={address}"))
                // It must not stop at options of Prometheus that it does not know.
                .args(["-promscrape.config.strictParse=false", "-promscrape.httpSDCheckInterval=1s"])
                // Samples can be queried at once instead of after half a minute.
                .args(["-search.latencyOffset=0s", "-search.disableCache", "-memory.allowedBytes=256MB"]),
        };
        command
    }
}

/// The first two parts of the version that `prometheus --version` prints.
fn version(program: &Path) -> (u32, u32) {
    let output = Command::new(program).arg("--version").output();
    let output = output.unwrap_or_else(|error| panic!("cannot start {} ({error}); {HOW}", program.display()));
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let version = said.strip_prefix("prometheus, version ").unwrap_or_else(|| panic!("{said}"));
    let mut parts = version.split('.').map_while(|part| part.parse().ok());
    parts.next().zip(parts.next()).unwrap_or_else(|| panic!("{said}"))
}

const HOW: &str = "run eval \"$(tests/tools.sh)\"";

pub(crate) type Labels = BTreeMap<String, String>;

/// A server that is killed when this is dropped.
pub(crate) struct Scraper {
    pub(crate) program: Program,
    child: Child,
    address: SocketAddr,
    home: TempDir,
}

impl Scraper {
    /// Starts a server that scrapes `targets` every second.
    pub(crate) fn start(program: Program, targets: &[SocketAddr]) -> Self {
        let targets: Vec<_> = targets.iter().map(|target| format!("'{target}'")).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n\
             scrape_configs: [{{job_name: peerscope, {}static_configs: [{{targets: [{}]}}]}}]\n",
            program.job(),
            targets.join(", ")
        );
        Self::start_with(program, &config)
    }

    /// Starts a server with this configuration file.
    pub(crate) fn start_with(program: Program, config: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("scrape.yml"), config).unwrap();
        let ip: Ipv4Addr = own_address();
        let address = SocketAddr::from((ip, free_port(ip)));
        let child = program
            .command(home.path(), address)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(home.path().join("log")).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {} ({error}); {HOW}", program.path().display()));
        Self { program, child, address, home }
    }

    /// The `data` of an answer of its API; `None` while it is not ready.
    fn get(&self, target: &str) -> Option<Value> {
        let reply = http::exchange(connect(self.address).ok()?, "GET", target, b"").ok()?;
        match reply.status {
            200 => Some(reply.json()["data"].take()),
            503 => None, // it is still starting
            _ => panic!("{:?} answers {target} with {}: {}", self.program, reply.status, reply.text()),
        }
    }

    /// The result of a PromQL expression, without whole native histograms; empty while the server is starting.
    pub(crate) fn query(&self, expression: &str) -> Vec<(Labels, f64)> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let Some(data) = self.get(&format!("/api/v1/query?query={encoded}")) else { return Vec::new() };
        let results = data["result"].as_array().unwrap_or_else(|| panic!("{expression}: {data}"));
        let series = results.iter().filter_map(|result| {
            let value = result["value"][1].as_str()?.parse().unwrap();
            Some((serde_json::from_value(result["metric"].clone()).unwrap(), value))
        });
        series.collect()
    }

    /// Its targets, as its API lists them; empty while the server is starting.
    pub(crate) fn targets(&self) -> Vec<Value> {
        let Some(mut data) = self.get("/api/v1/targets?state=active") else { return Vec::new() };
        serde_json::from_value(data["activeTargets"].take()).unwrap()
    }

    /// `up` of a job's targets by `instance`, only of those scraped after `since`.
    pub(crate) fn up(&self, job: &str, since: SystemTime) -> BTreeMap<String, f64> {
        let up = format!("up{{job=\"{job}\"}}");
        let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        let series = self.query(&format!("{up} and timestamp({up}) > {since:.3}"));
        series.into_iter().map(|(mut labels, value)| (labels.remove("instance").unwrap(), value)).collect()
    }

    /// Waits until a job has exactly these targets, each with this `up` from a new scrape. Returns how long that took.
    #[track_caller]
    pub(crate) fn await_up(&self, job: &str, expected: &[(&str, f64)]) -> Duration {
        let expected: BTreeMap<_, _> = expected.iter().map(|(instance, up)| ((*instance).to_owned(), *up)).collect();
        let (since, begin) = (SystemTime::now(), Instant::now());
        loop {
            let up = self.up(job, since);
            let waited = begin.elapsed();
            if up == expected {
                return waited;
            }
            assert!(waited < PATIENCE, "{job} is still {up:#?}, not {expected:#?}; {}", self.situation());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Details that help to find out why a test failed.
    fn situation(&self) -> String {
        let log = std::fs::read_to_string(self.home.path().join("log")).unwrap();
        format!("targets: {:#?}; log: {log}", self.get("/api/v1/targets"))
    }

    /// The value of an expression for `target`; `None` if there is none.
    #[track_caller]
    pub(crate) fn value(&self, expression: &str, target: SocketAddr) -> Option<f64> {
        let instance = target.to_string();
        let mut series = self.query(expression);
        series.retain(|(labels, _)| labels.get("instance") == Some(&instance));
        assert!(series.len() < 2, "{expression} is not one series: {series:?}");
        series.pop().map(|(_, value)| value)
    }

    /// Like [`value`](Self::value), for a series that must be there.
    #[track_caller]
    pub(crate) fn expect_value(&self, expression: &str, target: SocketAddr) -> f64 {
        self.value(expression, target).unwrap_or_else(|| panic!("{:?}: no {expression} of {target}", self.program))
    }

    /// Repeats the query until `accept` returns true for the value.
    #[track_caller]
    pub(crate) fn await_that(&self, expression: &str, target: SocketAddr, accept: impl Fn(f64) -> bool) {
        self.await_any(expression, target, accept, "something else");
    }

    #[track_caller]
    pub(crate) fn await_value(&self, expression: &str, target: SocketAddr, expected: f64) {
        self.await_any(expression, target, |value| value == expected, &expected.to_string());
    }

    #[track_caller]
    fn await_any(&self, expression: &str, target: SocketAddr, accept: impl Fn(f64) -> bool, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.value(expression, target);
            match value {
                Some(value) if accept(value) => return,
                _ => assert!(
                    Instant::now() < deadline,
                    "{:?}: {expression} of {target} is still {value:?}, not {wanted}; {}",
                    self.program,
                    self.situation()
                ),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asserts that every target is up, without an error from its last scrape.
    #[track_caller]
    pub(crate) fn assert_targets_up(&self, count: usize) {
        let data = self.get("/api/v1/targets").expect("it listens");
        let targets = data["activeTargets"].as_array().unwrap();
        assert_eq!(targets.len(), count, "{data}");
        for target in targets {
            let state = (&target["health"], &target["lastError"]);
            assert_eq!(state, (&"up".into(), &"".into()), "{:?}: {target}", self.program);
        }
    }
}

impl Drop for Scraper {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

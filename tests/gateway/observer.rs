//! A real Prometheus 3 that discovers and scrapes peers with what `peerscope gateway prometheus-config` prints.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use super::fixture::targets;
use crate::support::agent::{TestAgent, eventually};
use crate::support::scraper::{Program, Scraper};

/// The job of the peers, as the configuration calls it.
pub(crate) const JOB: &str = "peerscope";

/// What the gateway's own command prints.
pub(crate) fn printed(gateway: &TestAgent) -> String {
    let address = gateway.metrics_socket().to_string();
    String::from_utf8(gateway.cli(&["gateway", "prometheus-config", "--address", &address]).ok()).unwrap()
}

/// `printed` with `suffix` appended to the names of its jobs, and with short intervals.
pub(crate) fn hurried(program: Program, printed: &str, suffix: &str) -> String {
    let mut config = printed.to_owned();
    let mut replace = |from: &str, to: &str| {
        assert_eq!(config.matches(from).count(), 1, "{from} in {printed}");
        config = config.replace(from, to);
    };
    replace("scrape_interval: 15s", "scrape_interval: 1s");
    replace("scrape_timeout: 10s", "scrape_timeout: 900ms");
    replace("refresh_interval: 30s", "refresh_interval: 1s");
    let options = program.job().replace(", ", "\n    ");
    replace("job_name: peerscope\n", &format!("job_name: peerscope{suffix}\n    {options}\n"));
    replace(
        "job_name: peerscope-gateway\n",
        &format!("job_name: peerscope-gateway{suffix}\n    scrape_interval: 1s\n"),
    );
    config
}

/// A Prometheus that scrapes the peers of this gateway.
pub(crate) fn observe(gateway: &TestAgent) -> Scraper {
    Scraper::start_with(Program::Prometheus3, &hurried(Program::Prometheus3, &printed(gateway), ""))
}

/// A Prometheus that scrapes the peers of two gateways: [`JOB`] through the first, `peerscope-2` through the second.
pub(crate) fn observe_both(first: &TestAgent, second: &TestAgent) -> Scraper {
    let more = hurried(Program::Prometheus3, &printed(second), "-2");
    let more = more.strip_prefix("scrape_configs:\n").unwrap();
    Scraper::start_with(Program::Prometheus3, &(hurried(Program::Prometheus3, &printed(first), "") + more))
}

/// Checks that promtool accepts what the gateway's command prints, and discovers the gateway's peers with it.
#[track_caller]
pub(crate) fn assert_promtool_agrees(gateway: &TestAgent) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prometheus.yml");
    std::fs::write(&file, printed(gateway)).unwrap();
    let file = file.to_str().unwrap();
    promtool(&["check", "config", "--lint=all", "--lint-fatal", file]);
    let found = promtool(&["check", "service-discovery", "--timeout=1s", file, JOB]);
    let found: Value = serde_json::from_str(&found).unwrap_or_else(|error| panic!("{error} in {found}"));
    let instance = |labels: &Value| labels["instance"].as_str().unwrap().to_owned();
    let found: BTreeSet<_> = found.as_array().unwrap().iter().map(|found| instance(&found["labels"])).collect();
    let offered: BTreeSet<_> = targets(gateway).iter().map(|target| instance(&target["labels"])).collect();
    assert_eq!(found, offered);
}

/// Runs Prometheus 3's promtool, which must succeed, and returns its output.
#[track_caller]
fn promtool(args: &[&str]) -> String {
    let program = std::env::var_os("TEST_PROMTOOL_3").unwrap_or_else(|| "promtool-3".into());
    let output = Command::new(&program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program:?} does not start ({error}); run tests/tools.sh"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "promtool {args:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// Waits until the last error that Prometheus shows for this target contains these words. Returns the whole error.
#[track_caller]
pub(crate) fn await_error(prometheus: &Scraper, instance: &str, words: &str) -> String {
    let mut shown = None;
    let last_error = |targets: Vec<Value>| {
        let is_meant =
            |target: &Value| ["instance", "exposed"].iter().any(|label| target["labels"][*label] == instance);
        let target = targets.into_iter().find(is_meant)?;
        target["lastError"].as_str().map(str::to_owned)
    };
    eventually(&format!("{instance}: {words}"), || {
        shown = last_error(prometheus.targets());
        shown.as_ref().is_some_and(|shown| shown.contains(words))
    });
    shown.unwrap()
}

/// How many targets this job has in Prometheus, up or down.
pub(crate) fn targets_of(prometheus: &Scraper, job: &str) -> usize {
    prometheus.targets().iter().filter(|target| target["labels"]["job"] == job).count()
}

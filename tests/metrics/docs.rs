//! The documentation and the files to copy from are correct: tables, links, names, alerts.

use std::path::{Path, PathBuf};
use std::process::Command;

use peerscope::metrics::{catalogue, labels};

const START: &str = "<!-- catalogue: written by `TEST_BLESS=1 cargo test --test integration_metrics docs` -->\n";
const END: &str = "<!-- /catalogue -->";

#[test]
fn the_table_of_families_matches_the_catalogue() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(START).expect("docs/metrics.md has the line that starts the table");
    let (table, after) = rest.split_once(END).expect("docs/metrics.md has the line that ends the table");
    let current = format!("\n{}\n{}\n", catalogue::markdown(), labels::markdown());
    if table == current {
        return;
    }
    assert!(
        std::env::var_os("TEST_BLESS").is_some(),
        "docs/metrics.md is stale; run `TEST_BLESS=1 cargo test --test integration_metrics docs` and commit it"
    );
    std::fs::write(path, format!("{before}{START}{current}{END}{after}")).unwrap();
}

/// Operators set limits by the number of samples.
#[cfg(feature = "metrics-prometheus")]
#[test]
fn the_number_of_samples_is_as_documented() {
    use peerscope::metrics::labels::{Component, Label as _};
    use peerscope::metrics::{Health, MetricsCollector, MissingLines, Registry, register_scrape_time};

    let (registry, health) = (Registry::default(), Health::default());
    let _collector = MetricsCollector::new(&registry, &crate::support::agent_info());
    Component::ALL.iter().for_each(|&component| health.ready(component));
    register_scrape_time(&registry, &health, &MissingLines::default());
    let text = crate::support::metrics::encode(&registry);
    let samples = text.lines().filter(|line| !line.starts_with('#')).count();
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    assert!(page.contains(&format!("An agent shows {samples} samples of its own")), "it shows {samples}");
}

/// The documentation pages of the repository.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let in_folder = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
    };
    [in_folder(root), in_folder(&root.join("docs"))].concat()
}

/// The target of every `[text](target)` outside code blocks.
fn links(page: &str) -> Vec<&str> {
    let prose = page.split("```").step_by(2);
    prose.flat_map(|text| text.split("](").skip(1).filter_map(|rest| rest.split(')').next())).collect()
}

/// The anchor of a heading: lowercase, with hyphens for spaces, and otherwise only letters, digits, `-` and `_`.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_matches(['#', ' ']).chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn every_local_link_leads_somewhere() {
    let pages = pages();
    assert!(pages.iter().any(|page| page.ends_with("README.md")), "{pages:?}");
    let mut broken = Vec::new();
    let mut local = 0;
    for path in &pages {
        let page = std::fs::read_to_string(path).unwrap();
        for link in links(&page).into_iter().filter(|link| !link.contains("://")) {
            local += 1;
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let found = target.exists()
                && (fragment.is_empty()
                    || std::fs::read_to_string(&target)
                        .is_ok_and(|text| text.lines().any(|line| line.starts_with('#') && anchor(line) == fragment)));
            if !found {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(local >= 10, "only {local} links were found: is `links` broken?");
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

/// Alerts and queries fail silently if they name a family that does not exist.
#[test]
fn every_family_that_the_documentation_names_exists() {
    let prefixes =
        ["agent_", "exposition_", "gateway_", "http_", "message_", "messages_", "process_", "storage_", "web_"];
    let known: Vec<&str> = catalogue::ALL.iter().map(|family| family.name).collect();
    let mut unknown = Vec::new();
    for file in ["README.md", "docs/metrics.md", "docs/operations.md", "docs/gateway.md", "deploy/peerscope.rules.yml"]
    {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "_.".contains(c)));
        // `scrape_configs` and functions such as `message_handled` are not families; units and suffixes tell.
        let named = words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix)));
        let named = named.filter(|word| {
            ["_total", "_seconds", "_bytes", "_info", "_fds", "_ready", "_connected"]
                .iter()
                .any(|end| family(word).ends_with(end))
        });
        unknown.extend(named.filter(|word| !known.contains(&family(word))).map(|word| format!("{file}: {word}")));
    }
    assert!(unknown.is_empty(), "no such families:\n{}", unknown.join("\n"));
}

/// The family that the name of a series belongs to.
fn family(series: &str) -> &str {
    ["_bucket", "_sum", "_count"].iter().find_map(|end| series.strip_suffix(end)).unwrap_or(series)
}

/// Prometheus itself accepts the configuration and the alerts that operators copy.
#[test]
fn prometheus_accepts_the_configuration_and_the_alerts() {
    let promtool = std::env::var_os("TEST_PROMTOOL").unwrap_or_else(|| "promtool".into());
    let mut command = Command::new(promtool);
    let output = command.args(["check", "config", "deploy/prometheus.yml"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = output.output().expect("promtool starts; tests/tools.sh installs it");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("11 rules found"), "{said}");
}

//! `docs/metrics.md` says what the catalogue says, and no page links to nowhere.

use std::path::{Path, PathBuf};

use peerscope::metrics::catalogue;

const START: &str = "<!-- catalogue: written by `PEERSCOPE_BLESS=1 cargo test --test integration_metrics docs` -->\n";
const END: &str = "<!-- /catalogue -->";

#[test]
fn the_table_of_families_is_the_catalogue() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(START).expect("docs/metrics.md has the line that starts the table");
    let (table, after) = rest.split_once(END).expect("docs/metrics.md has the line that ends the table");
    let current = format!("\n{}\n", catalogue::markdown());
    if table == current {
        return;
    }
    assert!(
        std::env::var_os("PEERSCOPE_BLESS").is_some(),
        "docs/metrics.md is stale; run `PEERSCOPE_BLESS=1 cargo test --test integration_metrics docs` and commit it"
    );
    std::fs::write(path, format!("{before}{START}{current}{END}{after}")).unwrap();
}

/// The pages of the repository that people read.
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

/// The anchor that a heading gets: small letters, hyphens for spaces, and nothing else but letters and digits.
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
    assert!(broken.is_empty(), "links to nowhere:\n{}", broken.join("\n"));
}

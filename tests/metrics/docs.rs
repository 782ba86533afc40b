//! `docs/metrics.md` says what the catalogue says.

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

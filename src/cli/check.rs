//! `peerscope check`: validates and prints the resolved configuration; with `--store`, checks the whole embedded store.

use std::io::{IsTerminal as _, Write as _};

use clap::Args;

use super::{CommandError, print, print_json, run};
use crate::config::{self, Config};
use crate::panics;
use crate::storage::{self, BackendKind, Checked};

#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    pub(super) flags: run::Flags,
    /// Check every value and page of the embedded store instead of the configuration; the agent must be stopped
    #[arg(long = "store")]
    store_itself: bool,
}

pub(super) fn run(config: &Config, check: &Check, json: bool) -> Result<(), CommandError> {
    if check.store_itself {
        return store(config, json);
    }
    if let Some(path) = config.metrics.web_config.as_deref().filter(|_| config.metrics.enabled) {
        config::check_web_config(path)?;
    }
    if json { print_json(config) } else { print(config.to_yaml_masked().as_bytes()) }
}

fn store(config: &Config, json: bool) -> Result<(), CommandError> {
    if config.storage.backend != BackendKind::Local {
        return Err(CommandError::usage("--store checks the embedded store, but storage.backend is redis"));
    }
    let terminal = std::io::stderr().is_terminal();
    let tell = |read: u64, all: u64| {
        if terminal {
            let (read, all) = (read / MEBIBYTE, all / MEBIBYTE);
            // If the terminal is closed, losing the progress does no harm.
            let _closed = write!(std::io::stderr(), "\r{read} of {all} MiB read\x1b[K");
        }
    };
    // redb panics on some damaged files; those panics are reported as damage below.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panics::is_expected() {
            hook(panic);
        }
    }));
    let checked = storage::check(&config.storage.local, config.node.data_dir.join("store.redb"), &tell);
    if terminal {
        let _closed = write!(std::io::stderr(), "\r\x1b[K");
    }
    let checked = checked.map_err(|error| CommandError::failed(error.to_string()))?;
    if json {
        print_json(&checked)?;
    } else {
        print(describe(&checked).as_bytes())?;
    }
    if checked.is_good() { Ok(()) } else { Err(CommandError::failed("the store is damaged; restore it from a backup")) }
}

const MEBIBYTE: u64 = 1024 * 1024;

fn describe(checked: &Checked) -> String {
    let Checked { values, in_log, bytes, damaged_values, damaged_keys, damaged_pages } = checked;
    let mut out = format!("{values} values in {} MiB, and {in_log} writes in the log\n", bytes / MEBIBYTE);
    if *damaged_values > 0 {
        let more = match damaged_values - damaged_keys.len() as u64 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        out += &format!("{damaged_values} damaged values: {}{more}\n", damaged_keys.join(", "));
    }
    if let Some(reason) = damaged_pages {
        out += &format!("damaged pages: {reason}\n");
    }
    if checked.is_good() {
        out += "no damage\n";
    }
    out
}

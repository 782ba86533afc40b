//! `peerscope status`: shows the running agent at a glance.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;

use super::peers::problem;
use super::{CommandError, client, print};
use crate::config::Config;
use crate::control::{ConfigState, ContactReport, Status};

pub(super) fn run(config: &Config, json: bool) -> Result<(), CommandError> {
    let answer = client::ask(config, Method::GET, "/v1/status", Bytes::new())?;
    let status: Status = answer.json()?;
    if json {
        return print(&[&answer.body[..], b"\n"].concat());
    }
    print(render(&status).as_bytes())
}

/// How many peers that are not connected are shown; `peerscope peers` shows all.
const MOST_MISSING: usize = 5;

fn describe(config: &ConfigState) -> String {
    let hash = config.hash;
    let mut text = hash.to_string();
    if !config.last_reload_successful {
        text += ", the last reload FAILED; see the log";
    }
    if !config.restart_needed.is_empty() {
        text += &format!(", a restart is needed for {}", config.restart_needed.join(", "));
    }
    text
}

fn render(status: &Status) -> String {
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime_seconds));
    let mut rows = vec![
        ("agent", format!("{} ({} {})", status.name, status.version, status.revision)),
        ("peer id", status.peer_id.clone()),
        ("up for", uptime.to_string()),
        ("ready", if status.ready { "yes".into() } else { "NO".into() }),
        ("peers", status.peers_connected.to_string()),
        ("config", describe(&status.config)),
        ("store", status.store.clone()),
    ];
    let listening = status.components.iter().any(|c| c.component == "metrics");
    rows.push((
        "metrics",
        status.metrics.clone().unwrap_or_else(|| if listening { "not listening" } else { "off" }.into()),
    ));
    if let Some(problem) = &status.web_config_problem {
        rows.push(("", format!("metrics.web_config is NOT in use as it is: {problem}")));
    }
    let is_connected = |contact: &&ContactReport| contact.state == "connected";
    if !status.contacts.is_empty() {
        let connected = status.contacts.iter().filter(is_connected).count();
        rows.push(("bootstrap", format!("{connected} of {} connected", status.contacts.len())));
    }
    let missing = status.contacts.iter().filter(|contact| !is_connected(contact)).take(MOST_MISSING);
    rows.extend(missing.map(|contact| ("", format!("{} {}: {}", contact.peer_id, contact.state, problem(contact)))));
    rows.extend(status.listen.iter().map(|address| ("listening", address.clone())));
    for component in &status.components {
        let problem =
            component.problem.as_ref().map_or_else(|| "ready".to_owned(), |problem| format!("NOT READY: {problem}"));
        rows.push((component.component.as_str(), problem));
    }
    rows.iter().fold(String::new(), |mut out, (name, value)| {
        let _infallible = writeln!(out, "{name:<10} {value}");
        out
    })
}

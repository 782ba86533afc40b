//! Where the log goes: standard error, as text for people or as JSON for collectors.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::fmt;

use crate::config::{LogConfig, LogFormat};

pub(super) fn init(config: &LogConfig) {
    let builder = fmt().with_env_filter(config.level.filter()).with_writer(io::stderr).with_target(false);
    match config.format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

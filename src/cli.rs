//! The commands of the `peerscope` binary, one per file. This file defines the command line, and turns a failure into
//! a message and an exit code.

mod check;
mod client;
mod descriptors;
mod gateway;
mod id;
mod kv;
mod logging;
mod metrics;
mod peers;
mod reload;
mod run;
mod status;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::config::{self, Config, Sources};
use crate::control::SOCKET_NAME;
use crate::metrics::WebConfigError;
use crate::network::PeerIdText;

/// Exit codes, after sysexits.h.
mod exit {
    pub(super) const FAILED: u8 = 1;
    pub(super) const USAGE: u8 = 64;
    pub(super) const UNAVAILABLE: u8 = 69;
    pub(super) const CONFIG: u8 = 78;
}

/// A peer-to-peer agent that its operator can see into.
#[derive(Debug, Parser)]
#[command(name = "peerscope", version, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = "Exit codes: 0 success, 1 failure, 64 usage, 69 agent not reachable, 78 configuration.\n\
    Every configuration key can also be set in the environment, as in PEERSCOPE_METRICS__PORT=9100.")]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Common {
    /// The configuration file [default: the one that PEERSCOPE_CONFIG names, or none]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The directory of the key, the store and the control socket [default: $XDG_STATE_HOME/peerscope, or
    /// ~/.local/state/peerscope]
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent
    Run(run::Flags),
    /// Check the configuration and print it as merged from file, environment and flags; or check the store
    Check(check::Check),
    /// Print this agent's PeerId
    Id,
    /// Show the running agent at a glance
    Status,
    /// Make the running agent read its configuration again
    Reload(reload::Reload),
    /// List the connected peers; on a gateway, also the results of their scrapes, and the peers that left
    Peers,
    /// Print the value under a key, byte for byte
    Get(kv::Get),
    /// Store a value under a key
    Put(kv::Put),
    /// Remove a key
    Delete(kv::Delete),
    /// Print configuration for the programs that use a gateway
    Gateway(gateway::Gateway),
    /// Print the metrics of the running agent; on a gateway, with --peer, those of a peer
    Metrics(metrics::Flags),
    /// Print a shell completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Why a command failed: a message that says what happened and what to do, and the exit code.
#[derive(Debug)]
pub struct CommandError {
    code: u8,
    message: String,
}

impl CommandError {
    fn failed(message: impl Into<String>) -> Self {
        Self { code: exit::FAILED, message: message.into() }
    }

    fn usage(message: impl Into<String>) -> Self {
        Self { code: exit::USAGE, message: message.into() }
    }

    fn config(message: impl Into<String>) -> Self {
        Self { code: exit::CONFIG, message: message.into() }
    }

    fn unavailable(message: impl Into<String>) -> Self {
        Self { code: exit::UNAVAILABLE, message: message.into() }
    }

    fn output(error: &io::Error) -> Self {
        Self::failed(format!("cannot write the output: {error}"))
    }
}

impl From<config::ConfigError> for CommandError {
    fn from(error: config::ConfigError) -> Self {
        Self::config(error.to_string())
    }
}

impl From<WebConfigError> for CommandError {
    fn from(error: WebConfigError) -> Self {
        Self::config(error.to_string())
    }
}

/// Runs the command line `args`, whose first element is the program's name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // If the message cannot be written, that cannot be reported either.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(format!("peerscope: {}\n", failure.message));
            ExitCode::from(failure.code)
        }
    }
}

/// Writes to standard error, and gives up after a second if nobody reads it, so that the process ends in any case.
fn say(message: String) {
    let (said, done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _nobody_to_tell = io::stderr().write_all(message.as_bytes());
        let _gone = said.send(());
    });
    let _not_read = done.recv_timeout(Duration::from_secs(1));
}

fn dispatch(cli: Cli) -> Result<(), CommandError> {
    let Cli { common, command } = cli;
    match command {
        Command::Run(flags) => {
            let sources = common.sources(&flags)?;
            run::run(&flags.checked(Config::load(&sources)?)?, sources)
        }
        Command::Check(check) => check::run(&check.flags.checked(common.load(&check.flags)?)?, &check, common.json),
        Command::Id => id::run(&common.plain()?, common.json),
        Command::Status => status::run(&common.local()?, common.json),
        Command::Reload(reload) => reload::run(&common.local()?, &reload, common.json),
        Command::Peers => peers::run(&common.local()?, common.json),
        Command::Get(get) => kv::get(&common.local()?, &get, common.json),
        Command::Put(put) => kv::put(&common.local()?, &put, common.json),
        Command::Delete(delete) => kv::delete(&common.local()?, &delete, common.json),
        Command::Gateway(gateway) => gateway::run(&common.plain()?, &gateway),
        Command::Metrics(flags) => metrics::run(&common, &flags),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "peerscope", &mut script);
            print(&script)
        }
    }
}

impl Common {
    /// The configuration from file, environment and these flags.
    fn load(&self, flags: &run::Flags) -> Result<Config, CommandError> {
        Ok(Config::load(&self.sources(flags)?)?)
    }

    fn sources(&self, flags: &run::Flags) -> Result<Sources, CommandError> {
        let mut overrides = flags.overrides();
        if let Some(dir) = &self.data_dir {
            let Some(dir) = dir.to_str() else {
                return Err(CommandError {
                    code: exit::USAGE,
                    message: format!("--data-dir: {} is not valid UTF-8", dir.display()),
                });
            };
            overrides.push(("node.data_dir", run::text(dir), "--data-dir"));
        }
        let env = std::env::vars_os().collect();
        Ok(Sources { text: None, refuse_empty: false, file: self.config.clone(), env, flags: overrides })
    }

    /// Enough to find the running agent: a mistake in the file must not keep the operator from looking
    /// at it, as long as it is clear where it is.
    fn local(&self) -> Result<Config, CommandError> {
        let sources = self.sources(&run::Flags::default())?;
        Ok(Config::load(&sources).or_else(|error| {
            let mut config = Config::default();
            match Config::data_dir(&sources) {
                Ok(dir) if std::os::unix::net::UnixStream::connect(dir.join(SOCKET_NAME)).is_ok() => {
                    config.node.data_dir = dir;
                    Ok(config)
                }
                _ => Err(error),
            }
        })?)
    }

    fn plain(&self) -> Result<Config, CommandError> {
        self.load(&run::Flags::default())
    }
}

/// A peer whose store to use instead of this agent's own.
#[derive(Debug, Args)]
struct PeerFlag {
    /// Use the store of this peer, through the local agent, instead of the agent's own
    #[arg(long, value_name = "PEER_ID")]
    peer: Option<PeerIdText>,
}

/// Writes to standard output, byte for byte.
fn print(bytes: &[u8]) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // `peerscope metrics | head` is not an error.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|error| CommandError::output(&error)),
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<(), CommandError> {
    let mut text = serde_json::to_vec(value).map_err(|error| CommandError::failed(error.to_string()))?;
    text.push(b'\n');
    print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}

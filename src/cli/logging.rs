//! Writes the log to standard error, as text for people or as JSON for collectors, on a thread of its own.

mod queue;

use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::panic::PanicHookInfo;

use rustix::event::{PollFd, PollFlags};
use tracing_subscriber::{EnvFilter, fmt, reload};

pub(super) use self::queue::LastLines;
use self::queue::{Notice, Queue};
use super::CommandError;
use crate::config::{LogConfig, LogFormat, LogLevel};
use crate::metrics::MissingLines;
use crate::node::SetLogLevel;
use crate::panics;

/// The most bytes of a panic's message, and of its backtrace, that are logged.
const MAX_TEXT: usize = 16 * 1024;

/// Starts the log: lines and panics go to standard error, and the threads that log them never wait. `missing` counts
/// the lines that could not be written.
/// The second result changes the level.
pub(super) fn init(config: &LogConfig, missing: MissingLines) -> Result<(LastLines, SetLogLevel), CommandError> {
    // A handle of its own, without the lock of the shared one.
    let out = rustix::io::dup(io::stderr()).map(|out| Patient(out.into()));
    let started = out.map_err(io::Error::from).and_then(|out| Queue::start(out, notice(config.format), missing));
    let (queue, last) = started.map_err(|error| CommandError::failed(format!("cannot start the log: {error}")))?;
    let builder = fmt().with_env_filter(config.level.filter()).with_writer(queue.clone()).with_target(false);
    let set_level: SetLogLevel = match config.format {
        LogFormat::Text => {
            let builder = builder.with_ansi(io::stderr().is_terminal()).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |level| change(&handle, level))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |level| change(&handle, level))
        }
    };
    let format = config.format;
    std::panic::set_hook(Box::new(move |panic| log_panic(panic, &queue, format)));
    Ok((last, set_level))
}

fn change<S>(handle: &reload::Handle<EnvFilter, S>, level: &LogLevel) {
    // Fails only if the log has ended, with the process.
    let _ended = handle.reload(level.filter());
}

/// Standard error. Another process that shares it may have made it non-blocking; this thread waits for the reader.
struct Patient(File);

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    rustix::event::poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None)?;
                }
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The line that reports missing lines.
fn notice(format: LogFormat) -> Notice {
    match format {
        LogFormat::Text => |missing| format!("{}\n", missing_lines(missing)),
        LogFormat::Json => |missing| {
            let message = missing_lines(missing);
            format!("{{\"level\":\"WARN\",\"message\":\"{message}\",\"missing\":{missing}}}\n")
        },
    }
}

fn missing_lines(missing: u64) -> String {
    let lines = if missing == 1 { "1 log line is".to_owned() } else { format!("{missing} log lines are") };
    format!("{lines} missing here: writing failed or was too slow, or a line was too long")
}

/// Replaces std's hook, which writes to standard error itself and waits for it. A panic is logged whatever `log.level`
/// is; a long message is cut.
fn log_panic(panic: &PanicHookInfo<'_>, queue: &Queue, format: LogFormat) {
    if panics::is_expected() {
        return;
    }
    let message = cut(panic.payload_as_str().unwrap_or("a panic without a message"));
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or_default();
    if tracing::enabled!(tracing::Level::ERROR) {
        let backtrace = std::backtrace::Backtrace::capture().to_string();
        let backtrace = cut(&backtrace);
        tracing::error!(thread, place, backtrace, "A part of the agent panicked: {message}");
        return;
    }
    let message = format!("A part of the agent panicked: {message}");
    let line = match format {
        LogFormat::Text => format!("ERROR {message} thread={thread:?} place={place:?}\n"),
        LogFormat::Json => {
            let line = serde_json::json!({"level": "ERROR", "message": message, "thread": thread, "place": place});
            format!("{line}\n")
        }
    };
    queue.push(line.as_bytes());
}

/// At most the first [`MAX_TEXT`] bytes of a text.
fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or_default()
}

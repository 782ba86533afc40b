//! The signals that stop the agent, handled on a thread of their own: the second one ends the process whatever else
//! hangs. SIGHUP asks for the configuration to be read again.

use std::io;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use tokio::sync::watch;

/// A signal this soon after the first is an echo of it, not a second request: tools such as timeout(1) send the same
/// signal twice, to the process and to its group.
const ECHO: Duration = Duration::from_millis(250);

/// How long the callback for a second signal may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// SIGINT and SIGTERM, which stop the agent, and SIGHUP.
#[derive(Debug, Clone)]
pub struct Signals {
    stop: watch::Receiver<Option<&'static str>>,
    /// How many times SIGHUP was received.
    hangups: watch::Receiver<u64>,
}

impl Signals {
    /// Installs the handlers: these signals no longer end the process by themselves. Neither does SIGXFSZ, which a
    /// write beyond `ulimit -f` raises; that write fails instead. On a second signal, `again` is called with its name,
    /// and the process ends with the exit code that it returns.
    ///
    /// # Errors
    ///
    /// When the handlers cannot be installed or the thread cannot be started.
    pub fn start(again: impl Fn(&'static str) -> u8 + Send + Sync + 'static) -> io::Result<Self> {
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP, SIGXFSZ])?;
        let (sender, stop) = watch::channel(None);
        let (hangup, hangups) = watch::channel(0);
        let run = move || {
            let mut first: Option<Instant> = None;
            let again = Arc::new(again);
            for signal in signals.forever() {
                let Some(name) = name(signal) else {
                    if signal == SIGHUP {
                        hangup.send_modify(|hangups| *hangups += 1);
                    }
                    continue;
                };
                match first {
                    None => {
                        first = Some(Instant::now());
                        sender.send_replace(Some(name));
                    }
                    // Measured from the first signal, so that repeating it cannot put off the end.
                    Some(first) if first.elapsed() < ECHO => {}
                    Some(_) => end(&again, name),
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(run)?;
        Ok(Self { stop, hangups })
    }

    /// Waits for the next SIGHUP; several in quick succession may count as one.
    pub async fn hangup(&mut self) {
        if self.hangups.changed().await.is_err() {
            // The thread never ends.
            std::future::pending::<()>().await;
        }
    }

    /// Waits for the first signal to stop and returns its name.
    pub async fn first(&mut self) -> &'static str {
        match self.stop.wait_for(Option::is_some).await.map(|name| *name) {
            Ok(Some(name)) => name,
            // The thread never ends. Without it nothing could stop the agent cleanly.
            Ok(None) | Err(_) => "the signal thread has ended",
        }
    }
}

/// Ends the process with the exit code that `again` returns, or with 1 if `again` hangs as well.
fn end(again: &Arc<impl Fn(&'static str) -> u8 + Send + Sync + 'static>, name: &'static str) -> ! {
    let (answer, answered) = mpsc::channel();
    let ask = Arc::clone(again);
    let asked = std::thread::Builder::new().name("end".into()).spawn(move || {
        let _nobody_waits = answer.send(ask(name));
    });
    let code = asked.ok().and_then(|_| answered.recv_timeout(PATIENCE).ok()).unwrap_or(1);
    std::process::exit(code.into())
}

fn name(signal: i32) -> Option<&'static str> {
    match signal {
        SIGINT => Some("SIGINT"),
        SIGTERM => Some("SIGTERM"),
        _ => None,
    }
}

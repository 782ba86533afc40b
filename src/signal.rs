//! The signals that ask the agent to stop, on a thread of their own: the second one ends the process, whatever hangs.

use std::io;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use tokio::sync::watch;

/// A signal this soon after another one is its echo and not somebody's second wish: tools such as timeout(1) send the
/// one signal twice, to the process and to its group.
const ECHO: Duration = Duration::from_millis(250);

/// How long the last words may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// SIGINT, SIGTERM and SIGHUP, which comes when a terminal is closed.
#[derive(Debug, Clone)]
pub struct Signals(watch::Receiver<Option<&'static str>>);

impl Signals {
    /// From now on they do not end the process by themselves, and neither does SIGXFSZ, which comes with a write beyond
    /// `ulimit -f`; that write then fails. When a second one comes, `again` is called with its name and the process ends
    /// with the exit code that it answers.
    ///
    /// # Errors
    ///
    /// When the system refuses the handlers, or the thread.
    pub fn start(again: impl Fn(&'static str) -> u8 + Send + Sync + 'static) -> io::Result<Self> {
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP, SIGXFSZ])?;
        let (sender, receiver) = watch::channel(None);
        let run = move || {
            let mut first: Option<Instant> = None;
            let again = Arc::new(again);
            for name in signals.forever().filter_map(name) {
                match first {
                    None => {
                        first = Some(Instant::now());
                        sender.send_replace(Some(name));
                    }
                    // However many come: who goes on asking has to be heard.
                    Some(first) if first.elapsed() < ECHO => {}
                    Some(_) => end(&again, name),
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(run)?;
        Ok(Self(receiver))
    }

    /// Waits for the first of them and says its name.
    pub async fn first(&mut self) -> &'static str {
        match self.0.wait_for(Option::is_some).await.map(|name| *name) {
            Ok(Some(name)) => name,
            // The thread has no end. Without it nobody could stop the agent in order.
            Ok(None) | Err(_) => "the end of the thread for signals",
        }
    }
}

/// Ends the process with what `again` answers; without that answer, if what it does hangs as well.
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
        SIGHUP => Some("SIGHUP"),
        _ => None,
    }
}

//! Notices when the runtime hangs, or the network's event loop on it: tasks send heartbeats, and a thread outside the
//! runtime watches them.
//!
//! All of the agent except its endpoint, its log and its store's threads runs as tasks of one runtime. If the runtime's
//! threads hang, no task can report it. The event loop beats on its own, because other tasks go on if it alone hangs.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::metrics::Health;
use crate::metrics::labels::Component;

/// The time between two beats, and between two checks of them.
const BEAT: Duration = Duration::from_millis(500);

/// After this long without a beat, the runtime is not ready.
const LATE: Duration = Duration::from_secs(3);

/// Counts the beats of the runtime and of the network.
#[derive(Debug, Clone, Default)]
pub(super) struct Pulse {
    runtime: Arc<AtomicU64>,
    network: Arc<AtomicU64>,
}

/// Keeps the watching thread running until it is dropped.
#[derive(Debug)]
pub(super) struct Listening(Arc<Stop>);

#[derive(Debug, Default)]
struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Pulse {
    /// Beats for ever for the runtime that it runs on.
    pub(super) async fn beat_runtime(self) {
        beat(&self.runtime, async || {}).await;
    }

    /// Beats for the network after each `turn` that it completes. While it is being stopped, no turn is required.
    pub(super) async fn beat_network(self, turn: impl AsyncFn(), mut stopping: watch::Receiver<bool>) {
        let stopped = async {
            let _sender_gone = stopping.wait_for(|stopping| *stopping).await;
        };
        tokio::select! {
            () = beat(&self.network, turn) => {}
            () = stopped => beat(&self.network, async || {}).await,
        }
    }

    /// Watches the beats on a separate thread, and reports to `health`.
    pub(super) fn listen(&self, health: Health) -> io::Result<Listening> {
        let (pulse, stop) = (self.clone(), Arc::new(Stop::default()));
        let listening = Listening(Arc::clone(&stop));
        let board = health.clone();
        let run = move || {
            let mut watch = Watch::default();
            while !stop.wait(BEAT) {
                let beats = [&pulse.runtime, &pulse.network].map(|beats| beats.load(Ordering::Relaxed));
                watch.look(beats, Instant::now(), &board);
            }
        };
        std::thread::Builder::new().name("runtime-watch".into()).spawn(run)?;
        health.ready(Component::Runtime);
        Ok(listening)
    }
}

/// Counts each `turn`, for ever.
async fn beat(beats: &AtomicU64, turn: impl AsyncFn()) {
    loop {
        turn().await;
        beats.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(BEAT).await;
    }
}

impl Stop {
    /// Waits for `time`, or until it is stopped. Returns whether it is stopped.
    fn wait(&self, time: Duration) -> bool {
        // The standard library's lock: it shares nothing with the threads that are watched.
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        *self.changed.wait_timeout_while(stopped, time, |stopped| !*stopped).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        *self.0.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.changed.notify_all();
    }
}

/// What is known about the beats of the runtime and of the network; the network's begin later.
#[derive(Debug, Default)]
struct Watch {
    beats: [u64; 2],
    /// How long each has been silent.
    silent: [Duration; 2],
    /// When the beats were last checked.
    looked: Option<Instant>,
    /// Whether the silence has been logged.
    said: bool,
}

impl Watch {
    fn look(&mut self, beats: [u64; 2], now: Instant, health: &Health) {
        let since = self.looked.replace(now).map_or(Duration::ZERO, |looked| now.duration_since(looked));
        for (silent, (before, beats)) in self.silent.iter_mut().zip(self.beats.iter_mut().zip(beats)) {
            // If the whole process was stopped (SIGSTOP), so was the watching thread, and the runtime is not to blame.
            *silent = if beats == 0 || beats != *before { Duration::ZERO } else { *silent + since.min(2 * BEAT) };
            *before = beats;
        }
        let [runtime, network] = self.silent;
        let reason = if runtime >= LATE {
            format!("it has not responded for {} s", runtime.as_secs())
        } else if network >= LATE {
            format!("the network's event loop has not responded for {} s", network.as_secs())
        } else {
            if std::mem::take(&mut self.said) {
                health.ready(Component::Runtime);
                tracing::info!("The runtime responds again");
            }
            return;
        };
        if !std::mem::replace(&mut self.said, true) {
            tracing::error!("The runtime hangs, so peers and commands get no answer: {reason}");
        }
        health.not_ready(Component::Runtime, reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_noticed_unless_the_whole_process_was_stopped() {
        let health = Health::default();
        let mut watch = Watch::default();
        let mut now = Instant::now();
        let mut look = |beats, after| {
            now += after;
            watch.look([beats, 0], now, &health);
            health.snapshot().pop().and_then(|state| state.problem)
        };
        assert_eq!(look(1, BEAT), None);
        // SIGSTOP for an hour, and the watch is the first to run again.
        assert_eq!(look(1, Duration::from_secs(3600)), None);
        assert_eq!(look(2, BEAT), None);
        for _ in 0..5 {
            assert_eq!(look(2, BEAT), None);
        }
        assert_eq!(look(2, BEAT).unwrap(), "it has not responded for 3 s");
        for _ in 0..4 {
            look(2, BEAT);
        }
        assert_eq!(look(2, BEAT).unwrap(), "it has not responded for 5 s");
        assert_eq!(look(3, BEAT), None);
    }

    #[test]
    fn a_network_that_hangs_alone_is_named() {
        let health = Health::default();
        let (mut watch, mut now) = (Watch::default(), Instant::now());
        let mut look = |beats| {
            now += BEAT;
            watch.look(beats, now, &health);
            health.snapshot().pop().and_then(|state| state.problem)
        };
        for beat in 1..7 {
            assert_eq!(look([beat, 1]), None);
        }
        assert_eq!(look([7, 1]).unwrap(), "the network's event loop has not responded for 3 s");
        assert_eq!(look([8, 2]), None);
    }

    #[tokio::test]
    async fn the_network_beats_when_it_turns_and_while_it_stops() {
        let pulse = Pulse::default();
        let (stopping, stopped) = watch::channel(false);
        let hangs = async || std::future::pending().await;
        let task = tokio::spawn(pulse.clone().beat_network(hangs, stopped.clone()));
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pulse.network.load(Ordering::Relaxed), 0);
        stopping.send(true).unwrap();
        while pulse.network.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        task.abort();
    }
}

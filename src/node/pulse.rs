//! Whether the runtime turns, and the network's event loop on it: tasks beat, and a thread that needs no runtime listens.
//!
//! Everything of the agent but its endpoint, its log and its store's threads is a task of one runtime. When its threads
//! hang, nobody there can say so; and when one task hangs that all connections need, the others beat on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use crate::metrics::Health;
use crate::metrics::labels::Component;

/// The time between two beats, and between two looks at them.
const BEAT: Duration = Duration::from_millis(500);

/// Without a beat for this long, the runtime is not ready.
const LATE: Duration = Duration::from_secs(3);

/// The beats of what is to turn.
#[derive(Debug, Clone, Default)]
pub(super) struct Pulse {
    runtime: Arc<AtomicU64>,
    network: Arc<AtomicU64>,
}

/// Has somebody listen, until it is dropped.
#[derive(Debug)]
pub(super) struct Listening(Arc<Stop>);

#[derive(Debug, Default)]
struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Pulse {
    /// Beats for the runtime on which it runs, for ever.
    pub(super) async fn beat_runtime(self) {
        beat(&self.runtime, async || {}).await;
    }

    /// Beats for the network, whenever it has made a `turn`. One that is being stopped need not.
    pub(super) async fn beat_network(self, turn: impl AsyncFn(), mut stopping: watch::Receiver<bool>) {
        let stopped = async {
            let _sender_gone = stopping.wait_for(|stopping| *stopping).await;
        };
        tokio::select! {
            () = beat(&self.network, turn) => {}
            () = stopped => beat(&self.network, async || {}).await,
        }
    }

    /// Listens on a thread of its own, and tells `health`.
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
    /// Waits so long, or until it is stopped; whether it is.
    fn wait(&self, time: Duration) -> bool {
        let mut stopped = self.stopped.lock();
        self.changed.wait_while_for(&mut stopped, |stopped| !*stopped, time);
        *stopped
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        *self.0.stopped.lock() = true;
        self.0.changed.notify_all();
    }
}

/// What was heard so far: of the runtime, and of the network, whose beats begin later.
#[derive(Debug, Default)]
struct Watch {
    beats: [u64; 2],
    /// For how long it has heard nothing.
    silent: [Duration; 2],
    /// When it looked last.
    looked: Option<Instant>,
    /// Whether it said so.
    said: bool,
}

impl Watch {
    fn look(&mut self, beats: [u64; 2], now: Instant, health: &Health) {
        let since = self.looked.replace(now).map_or(Duration::ZERO, |looked| now.duration_since(looked));
        for (silent, (before, beats)) in self.silent.iter_mut().zip(self.beats.iter_mut().zip(beats)) {
            // Whoever stopped the process stopped all of it, and it is not the runtime's fault.
            *silent = if beats == 0 || beats != *before { Duration::ZERO } else { *silent + since.min(2 * BEAT) };
            *before = beats;
        }
        let [runtime, network] = self.silent;
        let reason = if runtime >= LATE {
            format!("it has not turned for {} s", runtime.as_secs())
        } else if network >= LATE {
            format!("the network's event loop has not turned for {} s", network.as_secs())
        } else {
            if std::mem::take(&mut self.said) {
                health.ready(Component::Runtime);
                tracing::info!("The runtime turns again");
            }
            return;
        };
        if !std::mem::replace(&mut self.said, true) {
            tracing::error!("The runtime hangs, and peers and commands with it: {reason}");
        }
        health.not_ready(Component::Runtime, reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_noticed_and_a_process_that_was_stopped_is_none() {
        let health = Health::default();
        let mut watch = Watch::default();
        let mut now = Instant::now();
        let mut look = |beats, after| {
            now += after;
            watch.look([beats, 0], now, &health);
            health.snapshot().pop().and_then(|state| state.problem)
        };
        assert_eq!(look(1, BEAT), None);
        // SIGSTOP for an hour, and the watch comes back first.
        assert_eq!(look(1, Duration::from_secs(3600)), None);
        assert_eq!(look(2, BEAT), None);
        for _ in 0..5 {
            assert_eq!(look(2, BEAT), None);
        }
        assert_eq!(look(2, BEAT).unwrap(), "it has not turned for 3 s");
        for _ in 0..4 {
            look(2, BEAT);
        }
        assert_eq!(look(2, BEAT).unwrap(), "it has not turned for 5 s");
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
        assert_eq!(look([7, 1]).unwrap(), "the network's event loop has not turned for 3 s");
        assert_eq!(look([8, 2]), None);
    }

    #[tokio::test]
    async fn a_network_beats_when_it_turns_and_while_it_stops() {
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

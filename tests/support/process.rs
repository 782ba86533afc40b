//! A `peerscope run` process, with its log and its notifications to systemd.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::agent::PATIENCE;

/// The process; killed when this is dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) log: Arc<Log>,
    notify: UnixDatagram,
}

impl Process {
    /// Spawns it with `notify_path` as its `NOTIFY_SOCKET`.
    pub(crate) fn spawn(mut command: Command, notify_path: &Path) -> Self {
        let _none_yet = std::fs::remove_file(notify_path);
        let notify = UnixDatagram::bind(notify_path).unwrap();
        command.env("NOTIFY_SOCKET", notify_path);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Log::default());
        let (stderr, reader) = (child.stderr.take().unwrap(), Arc::clone(&log));
        std::thread::spawn(move || reader.read(stderr));
        Self { child, log, notify }
    }

    /// The next message that it sends to systemd.
    pub(super) fn await_notification(&self) -> String {
        let deadline = Instant::now() + PATIENCE;
        self.notify.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut message = [0; 256];
        loop {
            match self.notify.recv(&mut message) {
                Ok(length) => return String::from_utf8(message[..length].to_vec()).unwrap().trim_end().to_owned(),
                Err(_) => assert!(
                    Instant::now() < deadline && !self.log.lines.lock().unwrap().1,
                    "no notification came; the log: {:#?}",
                    self.log.lines.lock().unwrap().0
                ),
            }
        }
    }

    /// Whether there is an unread message to systemd, which this reads.
    pub(crate) fn has_notified(&self) -> bool {
        self.notify.set_nonblocking(true).unwrap();
        self.notify.recv(&mut [0; 256]).is_ok()
    }

    /// Waits until the process has ended, and its log with it.
    pub(crate) fn ended(mut self, limit: Duration) -> ExitStatus {
        let lines = self.log.lines.lock().unwrap();
        let (lines, late) = self.log.changed.wait_timeout_while(lines, limit, |lines| !lines.1).unwrap();
        assert!(!late.timed_out(), "the agent did not end within {limit:?}; its log: {:#?}", lines.0);
        drop(lines);
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process wrote to standard error.
#[derive(Default)]
pub(crate) struct Log {
    /// The lines, and whether the log has ended.
    lines: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Log {
    fn read(&self, stderr: ChildStderr) {
        for line in BufReader::new(stderr).lines() {
            let Ok(line) = line else { break };
            self.lines.lock().unwrap().0.push(line);
            self.changed.notify_all();
        }
        self.lines.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().0.clone()
    }

    /// Waits for a line that contains `text`.
    #[track_caller]
    pub(crate) fn await_line(&self, text: &str) -> String {
        self.await_any(&[text])
    }

    /// Waits for a line that contains one of `texts`.
    #[track_caller]
    pub(super) fn await_any(&self, texts: &[&str]) -> String {
        let is_it = |line: &&String| texts.iter().any(|text| line.contains(text));
        let found = |lines: &[String]| lines.iter().find(is_it).cloned();
        let lines = self.lines.lock().unwrap();
        let waited = self.changed.wait_timeout_while(lines, PATIENCE, |lines| found(&lines.0).is_none() && !lines.1);
        let (lines, _) = waited.unwrap();
        let line = found(&lines.0).ok_or_else(|| lines.0.clone());
        drop(lines); // a panic with the lock held would poison it for the reader
        line.unwrap_or_else(|lines| panic!("no line with one of {texts:?} in {lines:#?}"))
    }
}

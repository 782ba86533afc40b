//! The queue in front of the log, and the thread that writes it.
//!
//! Logging neither blocks nor fails: a full disk, or a pipe that is not read or has lost its reader, costs log lines
//! and nothing else. Missing lines are counted, and reported before the next line that can be written.
//! (tracing-appender does most of this, but silently drops lines that it cannot write, bounds the number of lines
//! instead of their bytes, and writes to standard output, maybe the same pipe, if its queue is full at the end.)

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::metrics::MissingLines;

/// How many bytes of lines may be queued: a few seconds of a chatty agent at `debug`.
const MAX_WAITING: usize = 1 << 20;

/// In bytes; a longer line is dropped.
const MAX_LINE: usize = 64 << 10;

/// How long the end of the process waits for the remaining lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Makes the log line that reports missing lines.
pub(super) type Notice = fn(missing: u64) -> String;

/// The end that lines are pushed to. Clones share the queue.
#[derive(Debug, Clone)]
pub(super) struct Queue(Arc<QueueState>);

#[derive(Debug)]
struct QueueState {
    state: Mutex<Waiting>,
    /// The writing thread waits here for lines.
    wake: Condvar,
    /// The end of the process waits here until the queue is empty.
    empty: Condvar,
    missing: MissingLines,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Line>,
    bytes: usize,
    /// How many lines were dropped since the last one in `lines`.
    missing: u64,
    /// Whether the thread is writing a line.
    writing: bool,
}

#[derive(Debug)]
struct Line {
    text: Box<[u8]>,
    /// How many lines were dropped before it.
    missing: u64,
}

/// Waits for the queue at the end of the process.
#[derive(Debug, Clone)]
pub(in crate::cli) struct LastLines(Queue);

impl QueueState {
    /// The standard library's lock: whoever ends the process waits here, and parking_lot's may wait for the whole
    /// process's other locks.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Starts a thread that writes the queue to `out`.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        notice: Notice,
        missing: MissingLines,
    ) -> io::Result<(Self, LastLines)> {
        let shared = QueueState { state: Mutex::default(), wake: Condvar::new(), empty: Condvar::new(), missing };
        let queue = Self(Arc::new(shared));
        let thread = queue.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || thread.run(out, notice))?;
        let last = LastLines(queue.clone());
        Ok((queue, last))
    }

    pub(super) fn push(&self, line: &[u8]) {
        // Allocated before taking the lock: it may block, and the end of the process needs the lock, too.
        let text: Option<Box<[u8]>> = (line.len() <= MAX_LINE).then(|| line.into());
        let mut state = self.0.lock();
        let Some(text) = text.filter(|text| state.bytes + text.len() <= MAX_WAITING) else {
            state.missing += 1;
            drop(state);
            self.0.missing.add(1);
            return;
        };
        state.bytes += line.len();
        let missing = std::mem::take(&mut state.missing);
        state.lines.push_back(Line { text, missing });
        // A thread that is writing checks the queue again by itself.
        let wake = !state.writing;
        drop(state);
        if wake {
            self.0.wake.notify_one();
        }
    }

    fn next(&self) -> Line {
        let mut state = self.0.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.text.len();
                state.writing = true;
                return line;
            }
            state.writing = false;
            self.0.empty.notify_all();
            state = self.0.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(&self, mut out: impl Write, notice: Notice) {
        // Whether the last line was written only in part.
        let mut torn = false;
        // How many missing lines have not been reported.
        let mut missing = 0;
        loop {
            let line = self.next();
            missing += line.missing;
            if missing > 0 && write_line(&mut out, notice(missing).as_bytes(), &mut torn).is_ok() {
                missing = 0;
            }
            // Without the notice, the line would seem to follow the last one that was written.
            if missing > 0 || write_line(&mut out, &line.text, &mut torn).is_err() {
                missing += 1;
                self.0.missing.add(1);
            }
        }
    }
}

/// Writes a line, after ending one that was written only in part.
fn write_line(out: &mut impl Write, line: &[u8], torn: &mut bool) -> io::Result<()> {
    if *torn {
        out.write_all(b"\n")?;
        *torn = false;
    }
    let mut rest = line;
    while !rest.is_empty() {
        match out.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                rest = rest.get(written..).unwrap_or_default();
                *torn = !rest.is_empty();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl LastLines {
    /// Waits until everything that was logged is written, but no longer than a second.
    pub(in crate::cli) fn wait(&self) {
        let queue = &self.0.0;
        let state = queue.lock();
        let busy = |state: &mut Waiting| state.writing || !state.lines.is_empty();
        // A reader that has not caught up by then is not waited for.
        drop(queue.empty.wait_timeout_while(state, LAST_LINES, busy));
    }
}

/// Expects one whole line per call, as tracing-subscriber writes it.
impl Write for &Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = &'a Queue;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Follows a script: each message is how many bytes the next call writes at most, or 0 for an error.
    struct Scripted {
        script: mpsc::Receiver<usize>,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.script.recv().unwrap() {
                0 => Err(io::ErrorKind::StorageFull.into()),
                most => {
                    let bytes = &bytes[..bytes.len().min(most)];
                    self.written.send(bytes.to_vec()).unwrap();
                    Ok(bytes.len())
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Test {
        queue: Queue,
        script: mpsc::Sender<usize>,
        written: mpsc::Receiver<Vec<u8>>,
        missing: MissingLines,
    }

    fn start() -> Test {
        let ((script, scripted), (writer, written)) = (mpsc::channel(), mpsc::channel());
        let missing = MissingLines::default();
        let out = Scripted { script: scripted, written: writer };
        let (queue, _) = Queue::start(out, |missing| format!("{missing} missing\n"), missing.clone()).unwrap();
        Test { queue, script, written, missing }
    }

    impl Test {
        fn log(&self, line: &str) {
            (&self.queue).write_all(line.as_bytes()).unwrap();
        }

        fn may_write(&self, bytes: &[usize]) {
            for &bytes in bytes {
                self.script.send(bytes).unwrap();
            }
        }

        fn written(&self) -> String {
            String::from_utf8(self.written.recv().unwrap()).unwrap()
        }
    }

    const ALL: usize = usize::MAX;

    #[test]
    fn lines_come_out_in_order() {
        let test = start();
        test.may_write(&[ALL, ALL, ALL]);
        for line in ["one\n", "two\n", "three\n"] {
            test.log(line);
        }
        assert_eq!([test.written(), test.written(), test.written()], ["one\n", "two\n", "three\n"]);
        assert_eq!(test.missing.get(), 0);
    }

    #[test]
    fn logging_does_not_wait_for_the_reader() {
        let test = start();
        let line = "x".repeat(999) + "\n";
        // The thread may already have taken one.
        for _ in 0..2 * MAX_WAITING / line.len() {
            test.log(&line);
        }
        let missing = test.missing.get();
        assert!(missing >= (MAX_WAITING / line.len()) as u64 - 2, "{missing}");
        assert!(test.queue.0.lock().bytes <= MAX_WAITING);
        test.may_write(&[ALL; 3000]);
        assert_eq!(test.written(), line);
        // Reported before the next line that is queued, and only once.
        test.log("next\n");
        let mut last = String::new();
        loop {
            match test.written() {
                next if next == "next\n" => break,
                line => last = line,
            }
        }
        assert_eq!(last, format!("{missing} missing\n"));
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_reported() {
        let test = start();
        test.may_write(&[0, 0, 3, 0]);
        test.log("lost\n");
        test.log("lost, with the notice\n");
        test.log("torn\n");
        // This much of the notice about the two was written.
        assert_eq!(test.written(), "2 m");
        // The partial line is ended first.
        test.may_write(&[ALL; 3]);
        test.log("back\n");
        assert_eq!([test.written(), test.written(), test.written()], ["\n", "3 missing\n", "back\n"]);
        assert_eq!(test.missing.get(), 3);
    }

    #[test]
    fn a_line_beyond_the_limit_is_dropped() {
        let test = start();
        test.may_write(&[ALL, ALL]);
        test.log(&"x".repeat(MAX_LINE + 1));
        test.log("next\n");
        assert_eq!([test.written(), test.written()], ["1 missing\n", "next\n"]);
    }

    #[test]
    fn the_end_waits_for_the_last_lines_but_not_forever() {
        let test = start();
        test.log("first\n");
        test.log("last\n");
        let began = std::time::Instant::now();
        LastLines(test.queue.clone()).wait();
        assert!(began.elapsed() >= LAST_LINES);
        test.may_write(&[ALL, ALL]);
        LastLines(test.queue.clone()).wait();
        assert_eq!([test.written(), test.written()], ["first\n", "last\n"]);
    }
}

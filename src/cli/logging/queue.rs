//! The queue in front of the log, and the thread that writes it.
//!
//! Whoever logs neither waits nor fails: a full disk, a pipe that nobody reads or whose reader is gone cost lines of the
//! log and nothing else. What is missing is counted, and the next line that can be written says so. (tracing-appender
//! does most of this, but loses lines that cannot be written without a word, bounds their number and not their bytes, and
//! writes to standard output, which may be the very pipe, when its queue is full at the end.)

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;

use crate::metrics::MissingLines;

/// How many bytes of lines may wait: some seconds of a chatty agent, at `debug`.
const MAX_WAITING: usize = 1 << 20;

/// A line that is longer is left out.
const MAX_LINE: usize = 64 << 10;

/// How long the end waits for the lines that are left.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Says that so many lines are missing, as a line of the log.
pub(super) type Notice = fn(missing: u64) -> String;

/// Where the lines go in. Clones are the same queue.
#[derive(Debug, Clone)]
pub(super) struct Queue(Arc<QueueState>);

#[derive(Debug)]
struct QueueState {
    state: Mutex<Waiting>,
    /// The writing thread waits here for lines.
    wake: Condvar,
    /// The end waits here until there are none.
    empty: Condvar,
    missing: MissingLines,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Line>,
    bytes: usize,
    /// How many were left out since the last one in `lines`.
    missing: u64,
    /// Whether the thread has one in its hands.
    writing: bool,
}

#[derive(Debug)]
struct Line {
    text: Box<[u8]>,
    /// How many were left out before it.
    missing: u64,
}

/// For the end of the process.
#[derive(Debug, Clone)]
pub(in crate::cli) struct LastLines(Queue);

impl Queue {
    /// Has a thread write to `out` what is logged.
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
        // Before the lock, which whoever ends the process needs, too: an allocation may wait for memory.
        let text: Option<Box<[u8]>> = (line.len() <= MAX_LINE).then(|| line.into());
        let mut state = self.0.state.lock();
        let Some(text) = text.filter(|text| state.bytes + text.len() <= MAX_WAITING) else {
            state.missing += 1;
            drop(state);
            self.0.missing.add(1);
            return;
        };
        state.bytes += line.len();
        let missing = std::mem::take(&mut state.missing);
        state.lines.push_back(Line { text, missing });
        // It looks again when it is done with the one that it has.
        let wake = !state.writing;
        drop(state);
        if wake {
            self.0.wake.notify_one();
        }
    }

    fn next(&self) -> Line {
        let mut state = self.0.state.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.text.len();
                state.writing = true;
                return line;
            }
            state.writing = false;
            self.0.empty.notify_all();
            self.0.wake.wait(&mut state);
        }
    }

    fn run(&self, mut out: impl Write, notice: Notice) {
        // Whether a line was begun and could not be ended.
        let mut torn = false;
        // How many are missing, of which nobody was told.
        let mut missing = 0;
        loop {
            let line = self.next();
            missing += line.missing;
            if missing > 0 && write_line(&mut out, notice(missing).as_bytes(), &mut torn).is_ok() {
                missing = 0;
            }
            // Without the notice before it, it would pass for the next one.
            if missing > 0 || write_line(&mut out, &line.text, &mut torn).is_err() {
                missing += 1;
                self.0.missing.add(1);
            }
        }
    }
}

/// Writes a line, after the end of one that could not be ended.
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
        let mut state = queue.state.lock();
        let busy = |state: &mut Waiting| state.writing || !state.lines.is_empty();
        // Whoever does not read by now has had his time.
        queue.empty.wait_while_for(&mut state, busy, LAST_LINES);
    }
}

/// Takes one line; tracing-subscriber writes each at once.
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

    /// Writes what it is told to be able to: each message is how many bytes the next call takes, 0 an error.
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
    fn nobody_waits_for_a_reader_who_does_not_read() {
        let test = start();
        let line = "x".repeat(999) + "\n";
        // The thread has one in its hands, or has not come to it yet.
        for _ in 0..2 * MAX_WAITING / line.len() {
            test.log(&line);
        }
        let missing = test.missing.get();
        assert!(missing >= (MAX_WAITING / line.len()) as u64 - 2, "{missing}");
        assert!(test.queue.0.state.lock().bytes <= MAX_WAITING);
        test.may_write(&[ALL; 3000]);
        assert_eq!(test.written(), line);
        // Said where the next line is taken, and said once.
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
    fn what_cannot_be_written_is_counted_and_said() {
        let test = start();
        test.may_write(&[0, 0, 3, 0]);
        test.log("lost\n");
        test.log("lost, with the notice\n");
        test.log("torn\n");
        // The notice of the two got as far as this.
        assert_eq!(test.written(), "2 m");
        // A line that was begun is ended first.
        test.may_write(&[ALL; 3]);
        test.log("back\n");
        assert_eq!([test.written(), test.written(), test.written()], ["\n", "3 missing\n", "back\n"]);
        assert_eq!(test.missing.get(), 3);
    }

    #[test]
    fn a_line_beyond_the_limit_is_left_out() {
        let test = start();
        test.may_write(&[ALL, ALL]);
        test.log(&"x".repeat(MAX_LINE + 1));
        test.log("next\n");
        assert_eq!([test.written(), test.written()], ["1 missing\n", "next\n"]);
    }

    #[test]
    fn the_end_waits_for_the_last_lines_and_not_for_ever() {
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

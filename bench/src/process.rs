//! The processes that a run starts. Each is killed when its [`Process`] is dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;

/// The unit of the times in `/proc/PID/stat`: `USER_HZ`, which is 100 for all programs on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// A child process that does not outlive the run.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        Ok(Self(command.spawn()?))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// The processor time used so far, in seconds.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        ticks(&stat).map(|ticks| ticks / TICKS_PER_SECOND).ok_or_else(|| "/proc/PID/stat has no processor times".into())
    }

    /// Its resident memory, in bytes.
    pub(crate) fn resident(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        Ok(resident(&status).ok_or("/proc/PID/status has no VmRSS")? * 1024)
    }
}

/// The KiB in the line `VmRSS:    12345 kB` of a process's status.
fn resident(status: &str) -> Option<u64> {
    let (_, rest) = status.split_once("VmRSS:")?;
    rest.split_whitespace().next()?.parse().ok()
}

/// User plus system time in `/proc/PID/stat`: fields 14 and 15 of proc(5), the 12th and 13th after the name.
fn ticks(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    Some(fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?)
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts this binary as the server side of `contender` and returns the address that it prints.
pub(crate) fn serve(contender: &str, at: Option<&str>) -> Result<(Process, String)> {
    let (process, _, address) = start(contender, at)?;
    Ok((process, address))
}

fn start(contender: &str, at: Option<&str>) -> Result<(Process, BufReader<ChildStdout>, String)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--serve").arg(contender).stdin(Stdio::piped()).stdout(Stdio::piped());
    if let Some(at) = at {
        command.arg("--at").arg(at);
    }
    let mut process = Process(command.spawn()?);
    let mut stdout = BufReader::new(process.0.stdout.take().ok_or("the server side has no stdout")?);
    let mut address = String::new();
    stdout.read_line(&mut address)?;
    if address.trim().is_empty() {
        return Err(format!("the server side of {contender} ended before it was ready").into());
    }
    Ok((process, stdout, address.trim().to_owned()))
}

/// A server side that answers questions, one per line.
pub(crate) struct Server {
    pub(crate) process: Process,
    stdout: BufReader<ChildStdout>,
    pub(crate) address: String,
}

impl Server {
    pub(crate) fn start(contender: &str, at: &str) -> Result<Self> {
        let (process, stdout, address) = start(contender, Some(at))?;
        Ok(Self { process, stdout, address })
    }

    /// Asks one question and waits for the numbers in the answer.
    pub(crate) fn ask<const N: usize>(&mut self, question: &str) -> Result<[f64; N]> {
        let stdin = self.process.0.stdin.as_mut().ok_or("the server side has no stdin")?;
        writeln!(stdin, "{question}")?;
        let mut answer = String::new();
        self.stdout.read_line(&mut answer)?;
        let numbers: Vec<f64> = answer.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?;
        numbers.try_into().map_err(|_| format!("unexpected answer of the server side to `{question}`: {answer}").into())
    }
}

/// For the server side: prints the address and answers questions until the bench closes stdin or ends.
pub(crate) fn announce_and_answer(address: &str, mut answer: impl FnMut(&str) -> Result<String>) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{address}")?;
    stdout.flush()?;
    for question in std::io::stdin().lock().lines() {
        writeln!(stdout, "{}", answer(&question?)?)?;
        stdout.flush()?;
    }
    Ok(())
}

/// For the server side: prints the address and returns when the bench closes stdin or ends.
pub(crate) fn announce_and_wait(address: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{address}")?;
    stdout.flush()?;
    drop(stdout);
    std::io::stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Starts a `nats-server` on a port that it chooses, and returns its URL.
pub(crate) fn nats_server(dir: &Path) -> Result<(Process, String)> {
    let mut command = Command::new("nats-server");
    // It writes its port to a file in this folder.
    command.args(["--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir"]).arg(dir);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let process = Process(
        command
            .spawn()
            .map_err(|error| format!("cannot start nats-server: {error}; on Debian, install `nats-server`"))?,
    );
    let ports = dir.join(format!("nats-server_{}.ports", process.0.id()));
    let url = wait_for("nats-server's ports file", || {
        let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(&ports).ok()?).ok()?;
        Some(ports.get("nats")?.get(0)?.as_str()?.to_owned())
    })?;
    Ok((process, url))
}

/// Starts a `redis-server` that persists nothing, and returns its URL.
pub(crate) fn redis_server() -> Result<(Process, String)> {
    // Redis cannot choose a free port itself. Another process could take this one before Redis starts.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"]).arg(port.to_string());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let start = command.spawn();
    let process = Process(
        start.map_err(|error| format!("cannot start redis-server: {error}; on Debian, install `redis-server`"))?,
    );
    wait_for("redis-server", || TcpStream::connect(("127.0.0.1", port)).ok())?;
    Ok((process, format!("redis://127.0.0.1:{port}")))
}

/// Polls `ready` until it returns a value, for at most 10 s. For conditions without an event to wait on.
pub(crate) fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(value) = ready() {
            return Ok(value);
        }
        if Instant::now() > deadline {
            return Err(format!("timed out after 10 s waiting for {what}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_from_a_stat() {
        let stat = "17 (a) name) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 4 0 100 0 0";
        assert_eq!(ticks(stat), Some(300.0));
        assert!(ticks(&std::fs::read_to_string("/proc/self/stat").unwrap()).is_some());
    }

    #[test]
    fn resident_memory_is_read_from_a_status() {
        assert_eq!(resident("VmHWM:\t   9000 kB\nVmRSS:\t   8192 kB\nRssAnon:\t 1 kB\n"), Some(8192));
        assert_eq!(resident("Name:\tzombie\n"), None);
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(resident(&own).unwrap() > 100);
    }
}

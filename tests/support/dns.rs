//! A name server of the test's own, and the `/etc/resolv.conf` that leads to it. For tests in a mount and network
//! namespace of their own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// A file that takes the place of `/etc/resolv.conf`.
pub(crate) struct ResolvConf {
    file: PathBuf,
    _folder: tempfile::TempDir,
}

impl ResolvConf {
    pub(crate) fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        std::fs::write(&file, text).unwrap();
        let mounted = Command::new("mount").arg("--bind").arg(&file).arg("/etc/resolv.conf").status().unwrap();
        assert!(mounted.success());
        Self { file, _folder: folder }
    }

    /// Replaces its text.
    pub(crate) fn write(&self, text: &str) {
        std::fs::write(&self.file, text).unwrap();
    }

    /// The text that leads to this server, which is asked once and for a second.
    pub(crate) fn to(server: Ipv4Addr) -> String {
        format!("nameserver {server}\noptions timeout:1 attempts:1\n")
    }
}

/// A name server that knows one name for everything, at port 53 of a loopback address.
pub(crate) struct NameServer {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl NameServer {
    /// Answers every question for IPv4 addresses with these, and every other with nothing.
    pub(crate) fn start(address: Ipv4Addr, answers: &[Ipv4Addr]) -> Self {
        let socket = UdpSocket::bind(SocketAddr::new(IpAddr::V4(address), 53)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted, answers) = (Arc::clone(&stop), Arc::clone(&asked), answers.to_vec());
        let run = move || {
            let mut question = [0; 512];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut question) else { continue };
                counted.fetch_add(1, Ordering::Relaxed);
                // The client may have gone.
                let _ = socket.send_to(&answer(&question[..length], &answers), client);
            }
        };
        Self { stop, asked, thread: Some(std::thread::spawn(run)) }
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The answer to a query (RFC 1035, 4.1).
fn answer(query: &[u8], answers: &[Ipv4Addr]) -> Vec<u8> {
    let name_end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 1;
    let question = &query[12..name_end + 4];
    let is_ipv4 = question[question.len() - 4..] == [0, 1, 0, 1];
    let answers = if is_ipv4 { answers } else { &[] };
    let mut reply = query[..2].to_vec();
    // An authoritative answer without an error, one question, and the answers.
    reply.extend([0x85, 0x80, 0, 1, 0, u8::try_from(answers.len()).unwrap(), 0, 0, 0, 0]);
    reply.extend(question);
    for ip in answers {
        // The name as a pointer to the question, type A, class IN, a time to live of 0, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend(ip.octets());
    }
    reply
}

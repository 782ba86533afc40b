//! The example of a program that embeds an agent does what it says.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::agent::connect;
use crate::support::http;
use crate::support::metrics::value;

/// Killed if the test fails.
struct Example(Child);

impl Drop for Example {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

#[test]
fn an_embedding_program_shows_its_own_families_next_to_the_agents() {
    // Cargo builds examples for `cargo test`, next to the program, but not for `cargo test --test ...`.
    let program = Path::new(env!("CARGO_BIN_EXE_peerscope")).with_file_name("examples").join("embed");
    let child = Command::new(&program).stdout(Stdio::piped()).spawn();
    let mut example =
        Example(child.unwrap_or_else(|error| panic!("{}: {error}; run cargo build --examples", program.display())));
    let mut line = String::new();
    BufReader::new(example.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address =
        line.strip_prefix("http://").and_then(|rest| rest.split('/').next()).unwrap_or_else(|| panic!("{line}"));
    let address = address.parse().unwrap();
    let text = http::exchange(connect(address).unwrap(), "GET", "/metrics", b"").unwrap().text();
    assert_eq!(value(&text, "jobs_done_total", &[]), 1.0);
    assert_eq!(value(&text, "temperature_celsius", &[]), 21.5);
    assert_eq!(value(&text, "agent_peers_connected", &[]), 0.0);
    let pid = rustix::process::Pid::from_child(&example.0);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(example.0.wait().unwrap().success());
}

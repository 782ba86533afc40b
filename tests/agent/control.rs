//! The control socket: who may use it, and what happens when it is removed.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::process::Command;

use crate::support::agent::{TestAgent, eventually, run};
use crate::support::disk::not_run;

/// A cleanup script removes the socket, or another program takes its name. The commands still find the agent.
#[test]
fn a_removed_socket_is_created_again() {
    let mut agent = TestAgent::start();
    let socket = agent.control_socket();
    std::fs::remove_file(&socket).unwrap();
    eventually("it is back", || agent.cli(&["status"]).code == 0);
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    agent.await_log("The control socket was missing and has been recreated");

    // The agent may recreate it first.
    let other = loop {
        let _gone = std::fs::remove_file(&socket);
        if let Ok(other) = UnixListener::bind(&socket) {
            break other;
        }
    };
    eventually("it is back in place of the other", || {
        other.set_nonblocking(true).unwrap();
        std::fs::metadata(&socket).is_ok_and(|found| found.mode() & 0o777 == 0o600) && agent.cli(&["status"]).code == 0
    });
    assert_eq!(agent.stop().code(), Some(0));
    assert!(!socket.exists());
}

/// Even if permissions let another user reach the socket, the agent checks who connects.
#[test]
fn another_user_is_rejected() {
    let test = "agent::control::another_user_is_rejected";
    if !rustix::process::geteuid().is_root() {
        return not_run(test, "only root can become another user");
    }
    let mut agent = TestAgent::start();
    for path in [agent.home().to_owned(), agent.data_dir()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let socket = agent.control_socket();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let ask = |user: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--regid", user, "--clear-groups", "curl", "--silent", "--unix-socket"]);
        command.arg(&socket).args(["--max-time", "10", "http://agent/v1/status"]);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        run(command, b"")
    };
    assert_eq!(ask("0").code, 0);
    let refused = ask("4711");
    assert!(refused.code != 0 && refused.stdout.is_empty(), "{refused:?}");
    agent.await_log("another user tried to use the control socket");
    assert_eq!(agent.stop().code(), Some(0));
}

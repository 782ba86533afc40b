//! Runs a test in a process and a namespace of its own: its changes to network or mounts are visible to no other
//! process, and end with this one, even if the test panics or is killed.

use std::process::Command;

/// Set in a process that [`run`] has started.
const APART: &str = "TEST_APART";

/// Runs `story` under `unshare` with `namespace`, such as `--net`. `test` is the full name of the calling test, which
/// must do nothing else.
#[allow(clippy::print_stdout, reason = "the output of the story is the output of its test")]
pub(crate) fn run(namespace: &str, test: &str, story: impl FnOnce()) {
    if std::env::var_os(APART).is_some() {
        return story();
    }
    let root = rustix::process::geteuid().is_root();
    let output = Command::new("unshare")
        .args((!root).then_some("--map-root-user"))
        .arg(namespace)
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(APART, "1")
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap()))
        .output()
        .expect("`unshare` (util-linux) is installed");
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        said.contains("running 1 test"),
        "cannot create a namespace; run this test as root, or allow user namespaces for everyone, so that \
         `unshare --map-root-user {namespace} true` works: {complained}{said}"
    );
    // With a wrong name, no test runs and the process succeeds.
    assert!(output.status.success() && said.contains("1 passed"), "{test}:\n{said}{complained}");
    print!("{said}{complained}");
}

//! A story in a process of its own, with a namespace of its own: what it does to the network or to the mounts of the
//! machine nobody else sees, and it ends with the process, also when a test panics or is killed.

use std::process::Command;

/// Set in a process that [`run`] has started.
const APART: &str = "TEST_APART";

/// Runs `story` behind `unshare` with `namespace`, such as `--net`. `test` is the full name of the test that calls this
/// and does nothing else.
#[allow(clippy::print_stdout, reason = "what a story prints, its test has printed")]
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
        "no namespace could be made; run this test as root, or let everybody make user namespaces, so that \
         `unshare --map-root-user {namespace} true` works: {complained}{said}"
    );
    // Should the name be wrong, no test is run, and all of none succeed.
    assert!(output.status.success() && said.contains("1 passed"), "{test}:\n{said}{complained}");
    print!("{said}{complained}");
}

//! Disks that hang, fail or are slow: ext4 on a loop device, seen by the test's own process and its children alone.
//!
//! Needs root, `losetup`, `mount` and `fsfreeze` (util-linux), `mkfs.ext4` and `filefrag` (e2fsprogs), and `perl`.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::agent::TestAgent;
use super::apart;

/// Runs `story`, which may mount what it likes, in a process of its own. `test` is the full name of the test that calls
/// this and does nothing else. Where no disk can be made the story is not run, and that is said.
pub(crate) fn story(test: &str, story: impl FnOnce()) {
    if let Err(why) = can_be_made() {
        return not_run(test, &why);
    }
    apart::run("--mount", test, story);
}

/// Says that a test could not run: to the terminal itself, since the harness shows nothing of a test that passes.
pub(crate) fn not_run(test: &str, why: &str) {
    let _nobody_listens = std::io::stderr().write_all(format!("NOT RUN: {test}: {why}\n").as_bytes());
}

/// A user namespace does not help here: loop devices are the machine's own.
fn can_be_made() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("loop devices are for root alone; run it as root".into());
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/loop-control") {
        return Err(format!("this machine lends no loop devices: /dev/loop-control: {error}"));
    }
    let may_mount = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).output();
    match may_mount {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("nothing can be mounted here: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("`unshare` (util-linux) does not start: {error}")),
    }
}

/// An ext4 of 64 MiB in a file, mounted; unmounted when this is dropped, which has to be after its users are gone.
pub(crate) struct Disk {
    home: TempDir,
}

impl Disk {
    /// On a tmpfs that the image fills but for 16 MiB.
    pub(crate) fn new() -> Self {
        let disk = Self::unformatted();
        // All of the image takes room now, so that nothing of the file system can fail until a hole is punched.
        disk.shell(
            "mkfs.ext4 -q -F -b 4096 -m 0 -J size=4 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard tmpfs/image
             fallocate -l 64M tmpfs/image",
        );
        disk.mount();
        disk
    }

    /// What another disk holds, as it would be after a power cut at this moment: whatever it was not told to make
    /// durable is gone. The other disk is of no use from now on.
    pub(crate) fn after_power_cut(other: Self) -> Self {
        let disk = Self::unformatted();
        // EXT4_IOC_SHUTDOWN, without a last flush of the journal.
        other.shell(
            "perl -e 'my $flags = pack(\"L\", 2); open(F, \"<\", \"disk\") && ioctl(F, 0x8004587d, $flags) or die $!'",
        );
        disk.shell(&format!("cp --sparse=always {}/tmpfs/image tmpfs/image", other.home.path().display()));
        drop(other);
        disk.mount();
        disk
    }

    fn unformatted() -> Self {
        let disk = Self { home: tempfile::Builder::new().prefix("disk").tempdir().unwrap() };
        disk.shell(
            "mkdir tmpfs disk
             mount -t tmpfs -o size=80m tmpfs tmpfs
             fallocate -l 64M tmpfs/image",
        );
        disk
    }

    fn mount(&self) {
        // The loop device goes with the mount.
        self.shell("mount -o loop,nodiscard tmpfs/image disk");
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.home.path().join("disk")
    }

    /// Has `agent` keep its data directory here.
    pub(crate) fn hold_data_of(&self, agent: &TestAgent) {
        let (data, link) = (self.path().join("data"), agent.data_dir());
        std::fs::create_dir_all(&data).unwrap();
        let _none_yet = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(data, link).unwrap();
    }

    /// The configuration of an agent that keeps its store here, and the rest elsewhere.
    pub(crate) fn store_config(&self) -> String {
        format!("storage: {{local: {{path: {}}}}}\n", self.path().join("store.redb").display())
    }

    /// From now on whatever writes to it waits, until what this returns is dropped. It has to go before the agent that
    /// waits: the kernel ends no process in the middle of that, not even by SIGKILL.
    pub(crate) fn freeze(&self) -> Frozen {
        Frozen::new(&self.path())
    }

    /// From now on the blocks that are free now fail when they are written to, but for 400 kB that are left to the
    /// file system's own. What lies on the disk already, its journal too, can be written again.
    pub(crate) fn let_free_blocks_fail(&self) {
        // The blocks are found by a file that takes them, and given back; their part of the image is a hole then, and
        // the tmpfs has no room to fill it. A loop device calls a write that got done in part a success, so each is to be
        // a page.
        self.shell(
            "sync -f disk
             device=$(findmnt -n -o SOURCE disk)
             largest=/sys/block/${device##*/}/queue/max_sectors_kb
             echo \"echo $(cat $largest) >$largest\" >restore
             echo 4 >$largest
             echo 0 >/sys/fs/ext4/${device##*/}/reserved_clusters
             free=$(df -B1 --output=avail disk | tail -1)
             fallocate -l $((free - 400000)) disk/hole
             filefrag -b4096 -v disk/hole | awk '/^ *[0-9]+:/ { gsub(/[.:]/, \" \"); print $4, $5 }' >extents
             rm disk/hole
             sync -f disk
             while read first last; do
                 fallocate -p -o $((first * 4096)) -l $(((last - first + 1) * 4096)) tmpfs/image
             done <extents
             dd if=/dev/zero of=tmpfs/filler bs=64k 2>dd.log || true
             dd if=/dev/zero of=tmpfs/rest bs=4k 2>dd.log || true",
        );
    }

    /// The end of [`let_free_blocks_fail`](Self::let_free_blocks_fail).
    pub(crate) fn heal(&self) {
        self.shell("rm tmpfs/filler tmpfs/rest");
    }

    /// The numbers of its block device, as `7:0`.
    pub(crate) fn device(&self) -> String {
        let device = rustix::fs::stat(self.path()).unwrap().st_dev;
        format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
    }

    /// Has a shell run this script in its folder, up to the first command of it that fails.
    fn shell(&self, script: &str) {
        let mut command = Command::new("sh");
        let output =
            command.args(["-euc", script]).current_dir(self.home.path()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The device outlives its use here.
        let _nothing_to_restore = Command::new("sh").arg("restore").current_dir(self.home.path()).output();
        for mount in ["disk", "tmpfs"] {
            // Lazily: after a panic the agent may still be there, which ends with the story's process.
            let _gone_anyway = Command::new("umount").arg("--lazy").arg(self.home.path().join(mount)).output();
        }
    }
}

/// A disk that hangs, as long as this lives.
pub(crate) struct Frozen(Child);

impl Frozen {
    fn new(path: &Path) -> Self {
        // A process that thaws it when its input ends, which it also does when the test is killed. A frozen file system
        // would stay behind for good.
        let mut holder = Command::new("sh")
            .args(["-c", "fsfreeze -f \"$0\" && echo frozen && cat; fsfreeze -u \"$0\""])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let frozen = Self(holder);
        assert_eq!(said, "frozen\n", "fsfreeze");
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _thawed = self.0.wait();
    }
}

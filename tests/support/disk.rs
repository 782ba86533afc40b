//! Disks that hang, fail or are slow: ext4 on a loop device, visible only to the test's own process and its children.
//!
//! Needs root, `losetup`, `mount` and `fsfreeze` (util-linux), `mkfs.ext4` and `filefrag` (e2fsprogs), and `perl`.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::agent::TestAgent;
use super::apart;

/// Runs `story`, which may mount anything, in a process of its own. `test` is the full name of the calling test, which
/// must do nothing else. Where no disk can be created, the story is not run, and a message says so.
pub(crate) fn story(test: &str, story: impl FnOnce()) {
    if let Err(why) = can_be_made() {
        return not_run(test, &why);
    }
    apart::run("--mount", test, story);
}

/// Reports that a test could not run. Bypasses the harness, which shows no output of a test that passes.
pub(crate) fn not_run(test: &str, why: &str) {
    let _nobody_listens = std::io::stderr().write_all(format!("NOT RUN: {test}: {why}\n").as_bytes());
}

/// Whether a disk can be created. A user namespace does not help: loop devices belong to the machine.
fn can_be_made() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("loop devices need root; run it as root".into());
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/loop-control") {
        return Err(format!("this machine offers no loop devices: /dev/loop-control: {error}"));
    }
    let may_mount = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).output();
    match may_mount {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("cannot mount file systems here: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("cannot start `unshare` (util-linux): {error}")),
    }
}

/// A mounted ext4 of 64 MiB in a file; unmounted when this is dropped, which must be after its users are gone.
pub(crate) struct Disk {
    home: TempDir,
}

impl Disk {
    /// Creates it on a tmpfs that the image fills except for 16 MiB.
    pub(crate) fn new() -> Self {
        let disk = Self::unformatted();
        // Allocates the whole image now, so that no write can fail until a hole is punched.
        disk.shell(
            "mkfs.ext4 -q -F -b 4096 -m 0 -J size=4 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard tmpfs/image
             fallocate -l 64M tmpfs/image",
        );
        disk.mount();
        disk
    }

    /// A copy of another disk as it would be after a power cut now: everything that was not made durable is gone. The
    /// other disk cannot be used any more.
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
        // The loop device is released with the mount.
        self.shell("mount -o loop,nodiscard tmpfs/image disk");
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.home.path().join("disk")
    }

    /// Makes `agent` keep its data directory here.
    pub(crate) fn hold_data_of(&self, agent: &TestAgent) {
        let (data, link) = (self.path().join("data"), agent.data_dir());
        std::fs::create_dir_all(&data).unwrap();
        let _none_yet = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(data, link).unwrap();
    }

    /// The configuration of an agent that keeps only its store here.
    pub(crate) fn store_config(&self) -> String {
        format!("storage: {{local: {{path: {}}}}}\n", self.path().join("store.redb").display())
    }

    /// Blocks all writes to it until the returned value is dropped. That must happen before the blocked agent is
    /// dropped, because the kernel cannot end a process in such a write, not even with SIGKILL.
    pub(crate) fn freeze(&self) -> Frozen {
        Frozen::new(&self.path())
    }

    /// Makes writes to all blocks that are free now fail, except for 400 kB that are left to the file system itself.
    /// Blocks in use, including the journal, can still be written.
    pub(crate) fn let_free_blocks_fail(&self) {
        // A file finds the free blocks by taking them, and is removed. Their part of the image then becomes a hole,
        // which the tmpfs has no room to fill. A loop device reports a partial write as success, so each write must be
        // one page.
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

    /// Ends [`let_free_blocks_fail`](Self::let_free_blocks_fail).
    pub(crate) fn heal(&self) {
        self.shell("rm tmpfs/filler tmpfs/rest");
    }

    /// The numbers of its block device, such as `7:0`.
    pub(crate) fn device(&self) -> String {
        let device = rustix::fs::stat(self.path()).unwrap().st_dev;
        format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
    }

    /// Runs this script in a shell in its folder. Every command must succeed.
    fn shell(&self, script: &str) {
        let mut command = Command::new("sh");
        let output =
            command.args(["-euc", script]).current_dir(self.home.path()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The loop device outlives this use.
        let _nothing_to_restore = Command::new("sh").arg("restore").current_dir(self.home.path()).output();
        for mount in ["disk", "tmpfs"] {
            // Lazily: after a panic the agent may still be running until the test's process ends.
            let _gone_anyway = Command::new("umount").arg("--lazy").arg(self.home.path().join(mount)).output();
        }
    }
}

/// A disk hangs as long as this exists.
pub(crate) struct Frozen(Child);

impl Frozen {
    fn new(path: &Path) -> Self {
        // A process that thaws the file system when its input ends, even if the test is killed. Otherwise it would stay
        // frozen for good.
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

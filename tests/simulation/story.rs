//! One story: all parts of the store in one thread, so that the seed determines everything.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::oneshot;

use super::disk::{Faults, SimDisk};
use super::model::{Model, Value};
use crate::metrics::{AgentInfo, Health, MetricsCollector, Registry};
use crate::storage::local::disk::Disk;
use crate::storage::local::file::{Backend, StoreFile, View};
use crate::storage::local::open::{Options, TABLE_V1};
use crate::storage::local::queue::{Taken, Write};
use crate::storage::local::read::find_waiting;
use crate::storage::local::start::{Parts, open_all};
use crate::storage::local::state::{Before, Frozen, LookUp, Source, StoreState};
use crate::storage::local::watch::Watched;
use crate::storage::{OpenError, StorageError};

const KEYS: usize = 12;
const STEPS: usize = 120;
const MIB: u64 = 1024 * 1024;

/// What happened in all stories.
#[derive(Debug, Default)]
pub(super) struct Tally {
    stories: u64,
    acknowledged: u64,
    failed: u64,
    uncertain: u64,
    reads: u64,
    failed_reads: u64,
    flushes: u64,
    failed_flushes: u64,
    power_cuts: u64,
    restarts: u64,
    closes: u64,
    failed_openings: u64,
    recovered: u64,
    disk_full: u64,
}

impl Tally {
    pub(super) fn all_happened(&self) -> bool {
        [
            self.acknowledged,
            self.failed,
            self.uncertain,
            self.failed_reads,
            self.flushes,
            self.failed_flushes,
            self.power_cuts,
            self.restarts,
            self.closes,
            self.failed_openings,
            self.recovered,
            self.disk_full,
        ]
        .iter()
        .all(|&count| count > 0)
    }

    fn add(&mut self, other: &Self) {
        self.stories += 1;
        for (sum, more) in [
            (&mut self.acknowledged, other.acknowledged),
            (&mut self.failed, other.failed),
            (&mut self.uncertain, other.uncertain),
            (&mut self.reads, other.reads),
            (&mut self.failed_reads, other.failed_reads),
            (&mut self.flushes, other.flushes),
            (&mut self.failed_flushes, other.failed_flushes),
            (&mut self.power_cuts, other.power_cuts),
            (&mut self.restarts, other.restarts),
            (&mut self.closes, other.closes),
            (&mut self.failed_openings, other.failed_openings),
            (&mut self.recovered, other.recovered),
            (&mut self.disk_full, other.disk_full),
        ] {
            *sum += more;
        }
    }
}

/// The running store.
struct Store {
    shared: Arc<StoreState>,
    parts: Parts,
}

pub(super) struct Story {
    rng: SmallRng,
    disk: SimDisk,
    model: Model,
    options: Options,
    metrics: MetricsCollector,
    store: Option<Store>,
    /// Values are numbered, so that they all differ.
    next_value: u64,
    /// Whether the power fails after some more calls.
    stops: bool,
    faulty: bool,
    /// How many syncs had failed only because of earlier failures, when this was last checked.
    late_reports: u64,
    /// Whether acknowledged writes must be kept.
    trusts: bool,
    tell: bool,
    tally: Tally,
}

fn path() -> &'static Path {
    Path::new("/data/store.redb")
}

fn key(number: usize) -> Vec<u8> {
    format!("key-{number}").into_bytes()
}

#[allow(clippy::default_constructed_unit_structs, reason = "without metrics the registry is one")]
pub(super) fn metrics() -> MetricsCollector {
    let agent = AgentInfo { peer_id: "simulated".into(), name: "simulated".into() };
    MetricsCollector::new(&Registry::default(), &agent)
}

impl Story {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let cache_size = [0, 64 * 1024, 1024 * 1024][rng.random_range(0..3)];
        Self {
            disk: SimDisk::new(rng.random()),
            rng,
            model: Model::default(),
            options: Options { cache_size, check: false },
            metrics: metrics(),
            store: None,
            next_value: 0,
            stops: false,
            faulty: false,
            late_reports: 0,
            trusts: true,
            tell: std::env::var_os("SIMULATION_TELL").is_some(),
            tally: Tally::default(),
        }
    }

    pub(super) fn run(&mut self) {
        if self.rng.random_bool(0.1) {
            self.make_v1();
        }
        self.open();
        for _ in 0..STEPS {
            self.step();
        }
        // Once the disk works again, everything is there.
        self.heal();
        self.crash();
        self.check_all();
        self.close();
        self.open();
        self.check_all();
    }

    /// Adds this story to `tally`, and returns a hash that identifies it.
    pub(super) fn report(&self, tally: &mut Tally) -> u64 {
        tally.add(&self.tally);
        self.disk.trace_hash()
    }

    /// Prints an event if `SIMULATION_TELL=1` is set, to examine a seed that failed.
    fn told(&self, what: impl FnOnce() -> String) {
        if self.tell {
            eprintln!("{} {}", self.disk.calls(), what());
        }
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..40 => self.write(),
            40..60 => {
                let key = key(self.rng.random_range(0..KEYS));
                let _failed = self.read(&key);
            }
            60..72 => {
                let _failed = self.flush();
            }
            72..78 => self.retry(),
            78..82 => self.disk.evict(0.5),
            82..85 => self.disk.write_back(0.5),
            85..90 => self.disturb(),
            90..93 => self.heal(),
            93..95 => {
                self.stops = true;
                let stop_after = Some(self.rng.random_range(0..40));
                self.disk.set_faults(Faults { stop_after, ..Faults::default() });
            }
            95..97 => self.crash(),
            _ => self.close_and_open(),
        }
    }

    pub(super) fn fail(&mut self, faults: Faults) {
        self.faulty = true;
        self.disk.set_faults(faults);
    }

    pub(super) fn stop_after(&mut self, calls: u64) {
        self.stops = true;
        self.disk.set_faults(Faults { stop_after: Some(calls), ..Faults::default() });
    }

    pub(super) fn evict(&mut self) {
        self.disk.evict(1.0);
    }

    /// Writes a frame that damage may make disappear: a damaged last frame of a log looks like one that a crash cut
    /// short.
    pub(super) fn write_in_vain(&mut self) {
        self.trusts = false;
        self.write();
        self.trusts = true;
    }

    /// The process ends; the kernel keeps its cache.
    pub(super) fn restart(&mut self) {
        self.end_run(false);
        self.open();
    }

    /// The machine loses power.
    pub(super) fn cut_power(&mut self) {
        self.end_run(true);
        self.open();
    }

    pub(super) fn read_all(&mut self) {
        for key in self.model.keys() {
            let _failed = self.read(&key);
        }
    }

    /// Changes one random bit and opens the store again. `None` if that is refused, otherwise the number of values that
    /// are not served. The others must be right.
    pub(super) fn damage(&mut self) -> Option<usize> {
        self.end_run(true);
        let files = self.disk.files();
        let file = files[self.rng.random_range(0..files.len())].clone();
        let len = self.disk.len_of(&file).unwrap_or(0);
        // Most of a new log is zeros that are never read.
        self.disk.damage(&file, self.rng.random_range(0..len.min(200_000)), 1 << self.rng.random_range(0..8));
        if let Err(error) = self.try_open() {
            assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
            return None;
        }
        self.faulty = true;
        let keys = self.model.keys();
        Some(keys.iter().filter(|key| !self.read(key)).count())
    }

    /// Makes calls fail from now on, with random probabilities.
    fn disturb(&mut self) {
        self.faulty = true;
        let mut chance = || if self.rng.random_bool(0.5) { self.rng.random_range(0.0..0.5) } else { 0.0 };
        self.disk.set_faults(Faults {
            read_error: chance() / 4.0,
            write_error: chance(),
            short_write: chance(),
            set_len_error: chance(),
            sync_error: chance(),
            names_error: chance(),
            open_error: chance() / 4.0,
            stop_after: None,
        });
        if self.rng.random_bool(0.3) {
            let room = self.rng.random_range(0..4 * MIB);
            self.leave_room(room);
        }
    }

    /// The total size of the log's files, in bytes.
    pub(super) fn log_bytes(&self) -> u64 {
        let is_log = |file: &PathBuf| file.to_string_lossy().contains(".log");
        self.disk.files().into_iter().filter(is_log).filter_map(|file| self.disk.len_of(&file)).sum()
    }

    /// Removes the files of the log.
    pub(super) fn remove_log(&mut self) {
        for file in self.disk.files() {
            if file.to_string_lossy().contains(".log") {
                self.disk.remove(&file).unwrap();
            }
        }
    }

    /// Limits the disk to this many more bytes.
    pub(super) fn leave_room(&mut self, bytes: u64) {
        self.faulty = true;
        let used: u64 = self.disk.files().iter().filter_map(|file| self.disk.len_of(file)).sum();
        self.disk.set_capacity(Some(used + bytes));
    }

    pub(super) fn heal(&mut self) {
        self.faulty = false;
        self.disk.set_faults(Faults::default());
        self.disk.set_capacity(None);
        if self.stops {
            // The power comes back, and the machine restarts.
            self.stops = false;
            self.tally.power_cuts += 1;
            self.disk = self.disk.power_cut();
            if self.store.take().is_some() {
                self.open();
            }
        }
    }

    /// The process ends, but not the kernel, and the disk works again.
    pub(super) fn heal_kernel(&mut self) {
        self.end_run(false);
        self.heal();
    }

    /// Makes this many batches of writes, moves each to redb, and checks that everything is there, first without the
    /// page cache and then after a power cut.
    pub(super) fn goes_on(&mut self, writes: usize) {
        for _ in 0..writes {
            self.write();
            assert!(self.flush());
        }
        self.evict();
        self.check_all();
        self.cut_power();
        self.check_all();
    }

    /// Creates a store as the version without a log did.
    pub(super) fn make_v1(&mut self) {
        let file = self.disk.open(path(), true).unwrap();
        let view = View::staged(Arc::new(StoreFile::new(path(), file, Arc::default())));
        let database = redb::Builder::new().create_with_backend(Backend(view.clone())).unwrap();
        view.release().unwrap();
        let values: Vec<_> = (0..KEYS).map(|_| vec![b'1'; self.rng.random_range(0..20_000)]).collect();
        let write = |prefix: &str| {
            let transaction = database.begin_write().unwrap();
            let mut table = transaction.open_table(TABLE_V1).unwrap();
            for (number, value) in values.iter().enumerate() {
                table.insert(&*[prefix.as_bytes(), &key(number)].concat(), &**value).unwrap();
            }
            drop(table);
            transaction.commit().unwrap();
        };
        write("");
        self.disk.sync_names(path()).unwrap();
        // Its last transaction fails, which the view hides from redb.
        self.disk.set_faults(Faults { sync_error: 1.0, ..Faults::default() });
        write("failed-");
        self.disk.set_faults(Faults::default());
        view.end();
        for (number, value) in values.into_iter().enumerate() {
            self.model.acknowledged(&key(number), Some(value));
        }
    }

    /// Tries to open the store again in the same process, as the agent does after an I/O error.
    pub(super) fn try_open_again(&mut self) {
        if self.store.is_none() && self.try_open().is_err() {
            self.tally.failed_openings += 1;
        }
    }

    /// The process ends, with or without a power cut; then the store is opened again.
    fn crash(&mut self) {
        let power_cut = self.rng.random_bool(0.7);
        self.end_run(power_cut);
        self.open();
    }

    fn end_run(&mut self, power_cut: bool) {
        self.told(|| format!("crash, power cut: {power_cut}"));
        // Further calls of the dying store must not reach the disk.
        self.disk = if power_cut { self.disk.power_cut() } else { self.disk.restart() };
        if power_cut {
            self.tally.power_cuts += 1;
        } else {
            self.tally.restarts += 1;
        }
        self.stops = false;
        self.store = None;
    }

    pub(super) fn open(&mut self) {
        for attempt in 0.. {
            if attempt == 5 {
                self.heal();
            }
            match self.try_open() {
                Ok(()) => return,
                Err(OpenError::Io { .. }) if self.may_fail() => {
                    self.tally.failed_openings += 1;
                    if self.stops {
                        // The power failed during the opening.
                        self.end_run(true);
                    }
                }
                Err(error) => panic!("the store does not open: {error}"),
            }
        }
    }

    /// Whether the disk has a reason to fail, or has only now reported an earlier failure.
    fn may_fail(&mut self) -> bool {
        let before = std::mem::replace(&mut self.late_reports, self.disk.late_reports());
        self.faulty || self.stops || self.late_reports > before
    }

    fn try_open(&mut self) -> Result<(), OpenError> {
        self.late_reports = self.disk.late_reports();
        let shared = Arc::new(StoreState::new(PathBuf::from(path()), Health::default()));
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let mut parts = open_all(&disk, self.options, &shared, &self.metrics, &Watched::default())?;
        self.told(|| format!("opened, {:?}", parts.frozen.as_ref().map(|frozen| &frozen.segments)));
        shared.queue.open();
        // As the flusher does, but without a pause. An error without a number means that the power is off.
        parts.flusher.retry_reads(Arc::new(|error| error.raw_os_error().is_some()));
        self.store = Some(Store { shared, parts });
        Ok(())
    }

    pub(super) fn write(&mut self) {
        let lens = |rng: &mut SmallRng| {
            let len = [10, 100, 5_000, 30_000][rng.random_range(0..4)];
            rng.random_bool(0.75).then_some(len)
        };
        let writes: Vec<_> = (0..self.rng.random_range(1..4)).map(|_| lens(&mut self.rng)).collect();
        self.write_together(&writes);
    }

    /// Puts values of these lengths (`None` deletes) in one batch. Returns how many writes were acknowledged.
    pub(super) fn write_together(&mut self, lens: &[Option<usize>]) -> u64 {
        let before = self.tally.acknowledged;
        let Some(Store { shared, parts }) = &mut self.store else { return 0 };
        let mut waiting = Vec::new();
        for len in lens {
            let key = key(self.rng.random_range(0..KEYS));
            let value = len.map(|len| {
                self.next_value += 1;
                format!("{};", self.next_value).into_bytes().into_iter().cycle().take(len).collect::<Vec<_>>()
            });
            let (done, outcome) = oneshot::channel();
            let write = Write { key: key.clone().into(), value: value.clone().map(Bytes::from), done };
            match shared.queue.add(write) {
                Ok(()) => waiting.push((key, value, outcome)),
                Err(_) => self.tally.failed += 1,
            }
        }
        if let Taken::Batch(batch) = shared.queue.take(0, Duration::ZERO) {
            parts.writer.commit(&batch);
        }
        for (key, value, mut outcome) in waiting {
            let outcome = outcome.try_recv().expect("every write gets an outcome");
            self.told(|| {
                let value =
                    value.as_ref().map(|value| String::from_utf8_lossy(&value[..value.len().min(10)]).into_owned());
                let outcome = outcome.as_ref().map_err(ToString::to_string);
                format!("write {} {value:?}: {outcome:?}", String::from_utf8_lossy(&key))
            });
            match outcome {
                Ok(before) => {
                    self.tally.acknowledged += 1;
                    if let Before::Known(existed) = before
                        && let Some(expected) = self.model.exists(&key)
                    {
                        assert_eq!(existed, expected, "the outcome of a delete of {}", String::from_utf8_lossy(&key));
                    }
                    if self.trusts {
                        self.model.acknowledged(&key, value);
                    } else {
                        self.model.may_happen(&key, value);
                    }
                }
                Err(StorageError::Uncertain { .. }) => {
                    self.tally.uncertain += 1;
                    self.model.may_happen(&key, value);
                }
                Err(StorageError::DiskFull(_)) if self.trusts => self.tally.disk_full += 1,
                Err(_) => self.tally.failed += 1,
            }
        }
        self.tally.acknowledged - before
    }

    fn read(&mut self, key: &[u8]) -> bool {
        let Some(Store { shared, .. }) = &self.store else { return false };
        let found = match shared.look_up(key).expect("it is open") {
            LookUp::Found(value) => Ok(value),
            LookUp::In(snapshot) => find_waiting(shared, &snapshot, key),
        };
        match found {
            Ok(value) => {
                self.tally.reads += 1;
                let value: Value = value.map(|value| value.to_vec());
                if let Err(wrong) = self.model.read(key, &value) {
                    panic!("{}: {wrong}", String::from_utf8_lossy(key));
                }
                true
            }
            Err(error) => {
                self.tally.failed_reads += 1;
                assert!(self.faulty || self.stops, "a read failed on a healthy disk: {error}");
                false
            }
        }
    }

    pub(super) fn check_all(&mut self) {
        for key in self.model.keys() {
            assert!(self.read(&key), "{} cannot be read", String::from_utf8_lossy(&key));
        }
    }

    /// Tries to move the contents of the log to redb.
    pub(super) fn flush(&mut self) -> bool {
        self.late_reports = self.disk.late_reports();
        let Some(Store { parts, .. }) = &mut self.store else { return false };
        if parts.frozen.is_none() {
            parts.frozen = parts.writer.freeze();
        }
        let Some(frozen) = &parts.frozen else { return true };
        let flushed = parts.flusher.flush(frozen);
        if self.tell {
            eprintln!("flush {:?}: {flushed:?}", frozen.segments);
        }
        match flushed {
            Ok(()) => {
                self.tally.flushes += 1;
                parts.writer.in_redb(&frozen.segments);
                parts.frozen = None;
                true
            }
            Err(failure) => {
                self.tally.failed_flushes += 1;
                assert!(self.may_fail(), "a flush failed on a healthy disk: {failure:?}");
                false
            }
        }
    }

    pub(super) fn retry(&mut self) {
        let was = self.log_trouble();
        let Some(Store { parts, .. }) = &mut self.store else { return };
        parts.writer.retry_now();
        self.told(|| format!("retry of {was:?}"));
        if was.is_some() && self.log_trouble().is_none() {
            self.tally.recovered += 1;
        }
    }

    /// Why writes are refused, if they are.
    pub(super) fn log_trouble(&self) -> Option<String> {
        self.store.as_ref()?.shared.troubles.of(Source::Log)
    }

    fn close_and_open(&mut self) {
        self.close();
        self.open();
    }

    /// Closes the store like an agent that stops: writes that redb cannot take stay in the log.
    pub(super) fn close(&mut self) {
        self.retry();
        // The table on its way, and the next one.
        let flushed = self.flush() && self.flush();
        let Some(Store { parts: Parts { flusher, writer, frozen }, .. }) = self.store.take() else { return };
        self.tally.closes += 1;
        let frozen: Option<Frozen> = frozen;
        flusher.close();
        if flushed && frozen.is_none() {
            writer.end();
        }
        // Its handles are closed too, like those of a real process.
        if self.stops {
            self.stops = false;
            self.disk = self.disk.restart();
        }
    }
}

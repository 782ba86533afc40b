//! Puts and gets of 256-byte values on the embedded store, where puts are durable, and on Redis. One file per
//! contender.

#[cfg(feature = "all-contenders")]
mod fjall;
mod group_commit;
mod peerscope;
mod plain_redb;
mod redis;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use crate::measure::{Round, Window};
use crate::report::{Report, Unit};
use crate::{Plan, Result, process};

const VALUE: usize = 256;
/// The number of different keys. All exist before anything is measured.
const KEYS: usize = 100_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Put,
    Get,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
        }
    }
}

/// The number of keys and the size of values.
#[derive(Debug, Clone, Copy)]
struct Shape {
    keys: usize,
    value: usize,
}

/// The initial content of every contender.
const SMALL: Shape = Shape { keys: KEYS, value: VALUE };

/// More data than any cache here holds.
const LARGE: Shape = Shape { keys: 2_000_000, value: 500 };

/// The case of puts in the large shape. The warm-up is long enough to write every key once.
const SUSTAINED: &str = "embedded, put, 1024 callers, sustained";
const SUSTAINED_WARM_UP: Duration = Duration::from_secs(30);
const SUSTAINED_LENGTH: Duration = Duration::from_secs(30);

/// The key of the operation with this number. Consecutive operations have keys that are far apart in the tree.
fn key(number: usize) -> Bytes {
    SMALL.key(number)
}

fn value() -> Bytes {
    SMALL.value()
}

impl Shape {
    fn key(self, number: usize) -> Bytes {
        // Knuth's multiplicative hash. The factor is odd and not a multiple of 5, so all keys occur.
        format!("key-{:06}", number.wrapping_mul(2_654_435_761) % self.keys).into()
    }

    fn value(self) -> Bytes {
        Bytes::from_static(&[7; LARGE.value]).slice(..self.value)
    }
}

/// Fails unless the value has the size that was put: a fast wrong answer is worth nothing.
fn check(value: Option<&[u8]>) -> Result<()> {
    match value {
        Some(value) if value.len() == VALUE => Ok(()),
        _ => Err("a get did not return the value that was put".into()),
    }
}

/// The load of one round.
#[derive(Debug, Clone, Copy)]
struct Load {
    operation: Operation,
    shape: Shape,
    callers: usize,
    window: Window,
}

/// An open store that contains all keys.
trait Contender {
    fn round(&mut self, load: Load) -> Result<Round>;
}

type Contenders = Vec<(&'static str, Box<dyn Contender>)>;

pub(crate) fn run(plan: &Plan) -> Result<Report> {
    let mut report = Report::new("storage");
    let dir = tempfile::tempdir()?;
    let mut embedded = embedded(plan, dir.path())?;
    let (_server, url) = process::redis_server()?;
    let mut over_redis = over_redis(plan, &url)?;
    for round in 1..=plan.rounds {
        eprintln!("round {round} of {}", plan.rounds);
        for (operation, callers) in [
            (Operation::Put, 1),
            (Operation::Put, 16),
            (Operation::Put, 64),
            (Operation::Put, 1024),
            (Operation::Get, 1),
            (Operation::Get, 2),
        ] {
            let plural = if callers == 1 { "" } else { "s" };
            let case = format!("embedded, {}, {callers} caller{plural}", operation.name());
            measure(plan, &mut report, &case, operation, callers, &mut embedded)?;
        }
        for operation in [Operation::Put, Operation::Get] {
            let case = format!("Redis, {}, 64 callers", operation.name());
            measure(plan, &mut report, &case, operation, 64, &mut over_redis)?;
        }
    }
    // Once only, since each takes a minute. With one put per transaction, the keys would not be done in time.
    for (who, contender) in embedded.iter_mut().filter(|(who, _)| *who != plain_redb::NAME) {
        if plan.wants_case(SUSTAINED) {
            eprintln!("{who}, sustained");
            let window = Window::new(SUSTAINED_WARM_UP, SUSTAINED_LENGTH);
            let load = Load { operation: Operation::Put, shape: LARGE, callers: 1024, window };
            add(&mut report, SUSTAINED, who, contender.round(load)?);
        }
    }
    Ok(report)
}

fn add(report: &mut Report, case: &str, who: &'static str, measured: Round) {
    report.add(case, who, Unit::PerSecond, measured.per_second);
    report.add(&format!("{case}, p50"), who, Unit::Microseconds, measured.p50_us);
    report.add(&format!("{case}, p99"), who, Unit::Microseconds, measured.p99_us);
}

fn embedded(plan: &Plan, dir: &Path) -> Result<Contenders> {
    let mut contenders: Contenders = Vec::new();
    if plan.wants(peerscope::NAME) {
        contenders.push((peerscope::NAME, Box::new(peerscope::Store::local(dir.join("peerscope.redb"))?)));
    }
    if plan.wants(plain_redb::NAME) {
        contenders.push((plain_redb::NAME, Box::new(plain_redb::Store::open(&dir.join("plain.redb"))?)));
    }
    if plan.wants(group_commit::NAME) {
        contenders.push((group_commit::NAME, Box::new(group_commit::Store::open(&dir.join("group.redb"))?)));
    }
    #[cfg(feature = "all-contenders")]
    if plan.wants(fjall::NAME) {
        contenders.push((fjall::NAME, Box::new(fjall::Store::open(&dir.join("fjall"))?)));
    }
    Ok(contenders)
}

fn over_redis(plan: &Plan, url: &str) -> Result<Contenders> {
    let mut contenders: Contenders = Vec::new();
    if plan.wants(peerscope::NAME) {
        contenders.push((peerscope::NAME, Box::new(peerscope::Store::redis(url)?)));
    }
    if plan.wants(redis::NAME) {
        contenders.push((redis::NAME, Box::new(redis::Store::connect(url)?)));
    }
    Ok(contenders)
}

fn measure(
    plan: &Plan,
    report: &mut Report,
    case: &str,
    operation: Operation,
    callers: usize,
    contenders: &mut Contenders,
) -> Result<()> {
    if !plan.wants_case(case) {
        return Ok(());
    }
    for (who, contender) in contenders {
        let window = Window::new(plan.warm_up, plan.length);
        add(report, case, who, contender.round(Load { operation, shape: SMALL, callers, window })?);
    }
    Ok(())
}

/// Puts all keys in one transaction: the initial content of the redb contenders.
fn fill(database: &redb::Database) -> Result<()> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(TABLE)?;
        for number in 0..KEYS {
            table.insert(key(number).as_ref(), value().as_ref())?;
        }
    }
    Ok(transaction.commit()?)
}

const TABLE: redb::TableDefinition<'_, &[u8], &[u8]> = redb::TableDefinition::new("values");

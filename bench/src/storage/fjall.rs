//! fjall, which has a log like our store: one thread combines all waiting puts into one batch, commits it, syncs the
//! log and answers. No limits, checks or metrics. Gets run on the calling task.

use std::path::Path;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use super::{Contender, KEYS, Load, Operation, check, key, value};
use crate::Result;
use crate::measure::{Round, closed_loop};

pub(super) const NAME: &str = "fjall, group commit";

/// The most waiting puts, and the most in one batch.
const QUEUE: usize = 1024;

type Put = (Bytes, Bytes, oneshot::Sender<()>);

pub(super) struct Store {
    runtime: Runtime,
    values: Keyspace,
    puts: mpsc::Sender<Put>,
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let runtime = Runtime::new()?;
        let database = Database::builder(path).open()?;
        let values = database.keyspace("values", KeyspaceCreateOptions::default)?;
        for number in 0..KEYS {
            values.insert(&*key(number), &*value())?;
        }
        database.persist(PersistMode::SyncData)?;
        let (puts, waiting) = mpsc::channel(QUEUE);
        let written = values.clone();
        // Ends when the store is dropped or a write fails; waiting puts then fail.
        std::thread::spawn(move || write(&database, &written, waiting));
        Ok(Self { runtime, values, puts })
    }
}

fn write(database: &Database, values: &Keyspace, mut waiting: mpsc::Receiver<Put>) -> Result<()> {
    let mut done = Vec::with_capacity(QUEUE);
    while let Some(first) = waiting.blocking_recv() {
        let mut batch = database.batch();
        let mut next = Some(first);
        while let Some((key, value, answer)) = next {
            batch.insert(values, &*key, &*value);
            done.push(answer);
            next = if done.len() < QUEUE { waiting.try_recv().ok() } else { None };
        }
        batch.commit()?;
        database.persist(PersistMode::SyncData)?;
        for answer in done.drain(..) {
            // The caller may be gone.
            let _ = answer.send(());
        }
    }
    Ok(())
}

impl Contender for Store {
    fn round(&mut self, load: Load) -> Result<Round> {
        let (values, puts) = (self.values.clone(), self.puts.clone());
        self.runtime.block_on(closed_loop(load.callers, load.window, move |number| {
            let (values, puts) = (values.clone(), puts.clone());
            async move {
                match load.operation {
                    Operation::Get => check(values.get(key(number))?.as_deref()),
                    Operation::Put => {
                        let (answer, done) = oneshot::channel();
                        puts.send((load.shape.key(number), load.shape.value(), answer)).await?;
                        Ok(done.await?)
                    }
                }
            }
        }))
    }
}

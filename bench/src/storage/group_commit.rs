//! The ceiling of durable puts on redb: one thread combines all waiting puts into one transaction, commits it and
//! answers. No limits, checks, metrics or clean shutdown. Gets run on the calling task.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use redb::Database;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use super::{Contender, Load, Operation, TABLE, fill, plain_redb};
use crate::Result;
use crate::measure::{Round, closed_loop};

pub(super) const NAME: &str = "redb, group commit";

/// The most waiting puts, and the most in one transaction.
const QUEUE: usize = 1024;

type Put = (Bytes, Bytes, oneshot::Sender<()>);

pub(super) struct Store {
    runtime: Runtime,
    database: Arc<Database>,
    puts: mpsc::Sender<Put>,
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let runtime = Runtime::new()?;
        let database = Arc::new(Database::create(path)?);
        fill(&database)?;
        let (puts, waiting) = mpsc::channel(QUEUE);
        let writer = Arc::clone(&database);
        // Ends when the store is dropped or a write fails; waiting puts then fail.
        std::thread::spawn(move || write(&writer, waiting));
        Ok(Self { runtime, database, puts })
    }
}

fn write(database: &Database, mut waiting: mpsc::Receiver<Put>) -> Result<()> {
    let mut done = Vec::with_capacity(QUEUE);
    while let Some(first) = waiting.blocking_recv() {
        let transaction = database.begin_write()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            let mut next = Some(first);
            while let Some((key, value, answer)) = next {
                table.insert(key.as_ref(), value.as_ref())?;
                done.push(answer);
                // Puts that arrive while this transaction is being filled are included.
                next = if done.len() < QUEUE { waiting.try_recv().ok() } else { None };
            }
        }
        transaction.commit()?;
        for answer in done.drain(..) {
            // The caller may be gone.
            let _ = answer.send(());
        }
    }
    Ok(())
}

impl Contender for Store {
    fn round(&mut self, load: Load) -> Result<Round> {
        let (database, puts) = (Arc::clone(&self.database), self.puts.clone());
        self.runtime.block_on(closed_loop(load.callers, load.window, move |number| {
            let (database, puts) = (Arc::clone(&database), puts.clone());
            async move {
                match load.operation {
                    Operation::Get => plain_redb::get(&database, number),
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

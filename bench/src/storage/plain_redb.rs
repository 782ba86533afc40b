//! redb as in its README: every put is a separate, durable transaction; callers are threads.

use std::path::Path;
use std::sync::Arc;

use redb::{Database, ReadableDatabase};

use super::{Contender, Load, Operation, TABLE, check, fill, key, value};
use crate::Result;
use crate::measure::{Round, closed_loop_of_threads};

pub(super) const NAME: &str = "redb, one put a transaction";

pub(super) struct Store(Arc<Database>);

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let database = Database::create(path)?;
        fill(&database)?;
        Ok(Self(Arc::new(database)))
    }
}

impl Contender for Store {
    fn round(&mut self, load: Load) -> Result<Round> {
        let database = &*self.0;
        closed_loop_of_threads(load.callers, load.window, |number| match load.operation {
            Operation::Put => put(database, number),
            Operation::Get => get(database, number),
        })
    }
}

fn put(database: &Database, number: usize) -> Result<()> {
    let transaction = database.begin_write()?;
    transaction.open_table(TABLE)?.insert(key(number).as_ref(), value().as_ref())?;
    Ok(transaction.commit()?)
}

pub(super) fn get(database: &Database, number: usize) -> Result<()> {
    let table = database.begin_read()?.open_table(TABLE)?;
    let value = table.get(key(number).as_ref())?;
    check(value.as_ref().map(|value| value.value()))
}

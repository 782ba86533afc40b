//! A value as stored in redb: the caller's bytes, followed by a checksum of key and value.
//!
//! redb does not verify the pages that it reads, so without the checksum, data that the disk has changed would be
//! served.

use redb::Table;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const CHECKSUM: usize = 8;

/// xxh3-64 of the value, seeded with that of the key, so that a value under the wrong key is also detected.
fn checksum(key: &[u8], value: &[u8]) -> u64 {
    xxh3_64_with_seed(value, xxh3_64_with_seed(key, 0))
}

/// Inserts `value` with its checksum.
pub(super) fn insert(table: &mut Table<'_, &[u8], &[u8]>, key: &[u8], value: &[u8]) -> Result<(), redb::StorageError> {
    let mut place = table.insert_reserve(key, value.len() + CHECKSUM)?;
    if let Some((head, tail)) = place.as_mut().split_at_mut_checked(value.len()) {
        head.copy_from_slice(value);
        tail.copy_from_slice(&checksum(key, value).to_le_bytes());
    }
    Ok(())
}

/// The caller's bytes of the value stored under `key`; `None` if they are not the ones that were put.
pub(super) fn verified<'a>(key: &[u8], stored: &'a [u8]) -> Option<&'a [u8]> {
    let (value, tail) = stored.split_last_chunk::<CHECKSUM>()?;
    (u64::from_le_bytes(*tail) == checksum(key, value)).then_some(value)
}

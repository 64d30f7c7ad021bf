//! Reads combine memory with one snapshot of the file.
//!
//! The snapshot is taken while memory is locked, so that the two match: a change that is not in the overlay is in the
//! snapshot.

use super::failure::ReadError;
use super::keys::RecordLocation;
use super::overlay::matches_owner;
use super::state::StoreInner;
use super::table::{StoredInventory, TablePage};
use super::{journal, open, table};
use crate::domain::{Inventory, InventoryId};
use crate::store::log::ChainHead;
use crate::store::{KeyStatus, ListPage, ListQuery, Loaded, ScopedKey, StoreError};
use rusqlite::Connection;
use std::sync::Arc;

/// Maximum number of connections that are kept for later reads.
const IDLE_READERS_MAX: usize = 4;
/// Each attempt at a page reads at most this fraction of the rows of the attempt before it.
const ROWS_DIVISOR: usize = 4;

/// What memory knows about a key.
enum KeyLookup {
    Found(RecordLocation),
    Unknown(KeyStatus),
}

/// What memory knows about an inventory.
enum OverlayLookup {
    Known(StoredInventory),
    InTable,
}

impl StoreInner {
    pub fn load(&self, ids: &[InventoryId], keys: &[ScopedKey]) -> Result<Loaded, StoreError> {
        self.read_with_retry(|| self.load_once(ids, keys))
    }

    fn load_once(&self, ids: &[InventoryId], keys: &[ScopedKey]) -> Result<Loaded, ReadError> {
        let hashes: Vec<_> = keys.iter().map(|key| self.hasher.hash(key)).collect();
        let memory = self.lock();
        let inventory_lookups: Vec<OverlayLookup> = ids
            .iter()
            .map(|id| {
                memory.overlay.find(id).map_or(OverlayLookup::InTable, |state| OverlayLookup::Known(state.clone()))
            })
            .collect();
        let now = self.batch_time(&memory);
        let key_lookups: Vec<KeyLookup> = keys
            .iter()
            .zip(&hashes)
            .map(|(key, hash)| match memory.keys.find(*hash) {
                Some(location) => KeyLookup::Found(location),
                None => KeyLookup::Unknown(memory.keys.status_of_unknown(key, now)),
            })
            .collect();
        let needs_file = inventory_lookups.iter().any(|lookup| matches!(lookup, OverlayLookup::InTable))
            || key_lookups.iter().any(|lookup| matches!(lookup, KeyLookup::Found(_)));
        if !needs_file {
            drop(memory);
            let (inventories, heads) = states_and_heads(inventory_lookups.into_iter().map(|lookup| match lookup {
                OverlayLookup::Known(stored) => Some(stored),
                OverlayLookup::InTable => None,
            }));
            return Ok(Loaded { inventories, heads, key_statuses: unknown_statuses(key_lookups) });
        }
        let reader = self.snapshot()?;
        drop(memory);
        let found = ids.iter().zip(inventory_lookups).map(|(id, lookup)| match lookup {
            OverlayLookup::Known(state) => Ok(Some(state)),
            OverlayLookup::InTable => table::find(reader.connection(), id),
        });
        let (inventories, heads) = states_and_heads(found.collect::<Result<Vec<_>, ReadError>>()?.into_iter());
        let key_statuses = keys.iter().zip(key_lookups).map(|(key, lookup)| match lookup {
            KeyLookup::Unknown(status) => Ok(status),
            KeyLookup::Found(location) => {
                key_status(reader.connection(), key, location, || self.lock().keys.status_of_unknown(key, now))
            }
        });
        let key_statuses = key_statuses.collect::<Result<_, ReadError>>()?;
        self.lock().read_failures.reset();
        Ok(Loaded { inventories, heads, key_statuses })
    }

    pub fn list(&self, query: &ListQuery) -> Result<ListPage, StoreError> {
        if query.limit == 0 {
            return Ok(ListPage::default());
        }
        self.read_with_retry(|| self.page(query))
    }

    /// Reads a page. A fold that ends meanwhile makes the attempt useless, so each further attempt reads fewer rows; the
    /// last one reads one row with memory locked.
    fn page(&self, query: &ListQuery) -> Result<ListPage, ReadError> {
        let mut limit = query.limit;
        loop {
            let mut memory = self.lock();
            let generations_folded = memory.overlay.generations_folded;
            let (created_ids, created_end) = memory.overlay.created_ids(query, limit);
            let reader = self.snapshot()?;
            let TablePage { rows, is_all: rows_are_all } = if limit > 1 {
                drop(memory);
                let read = table::read_page(reader.connection(), query, limit)?;
                memory = self.lock();
                read
            } else {
                table::read_page(reader.connection(), query, limit)?
            };
            memory.read_failures.reset();
            // A generation that was dropped meanwhile may have held a newer state than the snapshot.
            if memory.overlay.generations_folded != generations_folded {
                limit = (limit / ROWS_DIVISOR).max(1);
                continue;
            }
            let ends = [created_end, rows.last().filter(|_| !rows_are_all).map(|(row, _)| row.id.clone())];
            let end = ends.into_iter().flatten().min();
            let mut merged: Vec<(InventoryId, Option<Arc<Inventory>>)> =
                rows.into_iter().map(|(row, _)| (row.id.clone(), Some(row))).collect();
            merged.extend(created_ids.into_iter().map(|id| (id, None)));
            merged.retain(|(id, _)| end.as_ref().is_none_or(|end| id <= end));
            merged.sort_by(|(one, _), (other, _)| one.cmp(other));
            merged.dedup_by(|later, earlier| later.0 == earlier.0);
            let current = |(id, row): (InventoryId, Option<Arc<Inventory>>)| match memory.overlay.find(&id) {
                Some(stored) => stored.inventory().cloned(),
                None => row,
            };
            let mut inventories: Vec<_> =
                merged.into_iter().filter_map(current).filter(|found| matches_owner(query, found)).collect();
            let is_more = inventories.len() > limit;
            inventories.truncate(limit);
            let next = if is_more { inventories.last().map(|last| last.id.clone()) } else { end };
            return Ok(ListPage { inventories, next });
        }
    }

    /// Returns where the chains of inventories begin.
    pub fn look_up_heads(&self, ids: &[&InventoryId]) -> Result<Vec<ChainHead>, StoreError> {
        let ids: Vec<InventoryId> = ids.iter().map(|id| (*id).clone()).collect();
        self.load(&ids, &[]).map(|loaded| loaded.heads)
    }

    /// Returns a reader whose view of the file does not change until it is dropped.
    pub fn snapshot(&self) -> Result<Reader<'_>, ReadError> {
        let failed = ReadError::sqlite("reading");
        let idle = self.readers.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => open::read_connection(&self.path).map_err(&failed)?,
        };
        let reader = Reader { connection: Some(connection), inner: self };
        reader.connection().prepare_cached("BEGIN").and_then(|mut begin| begin.execute([])).map_err(&failed)?;
        // A transaction gets its snapshot at its first read.
        journal::meta_value(reader.connection(), journal::FOLDED_THROUGH).map_err(failed)?;
        Ok(reader)
    }
}

pub struct Reader<'a> {
    connection: Option<Connection>,
    inner: &'a StoreInner,
}

impl Reader<'_> {
    pub fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("present until it is dropped")
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let ended = connection.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([])).is_ok();
        let mut readers = self.inner.readers.lock();
        if ended && readers.len() < IDLE_READERS_MAX {
            readers.push(connection);
        }
    }
}

/// Reads the record of a key that the index has found. The record may have been trimmed meanwhile, or belong to another
/// key with the same hash.
fn key_status(
    connection: &Connection,
    key: &ScopedKey,
    location: RecordLocation,
    unknown: impl FnOnce() -> KeyStatus,
) -> Result<KeyStatus, ReadError> {
    let record = journal::read(connection, location.seq, location.position)?;
    let record = record.filter(|record| record.caller == key.caller && record.key.as_ref() == Some(&key.key));
    Ok(match record {
        Some(record) => KeyStatus::Applied { payload: record.payload, reply: record.reply() },
        None => unknown(),
    })
}

fn states_and_heads(
    found: impl Iterator<Item = Option<StoredInventory>>,
) -> (Vec<Option<Arc<Inventory>>>, Vec<ChainHead>) {
    let parts = |stored: Option<StoredInventory>| match stored {
        Some(stored) => (stored.inventory().cloned(), stored.head),
        None => (None, ChainHead::default()),
    };
    found.map(parts).unzip()
}

fn unknown_statuses(key_lookups: Vec<KeyLookup>) -> Vec<KeyStatus> {
    let status = |lookup| match lookup {
        KeyLookup::Unknown(status) => status,
        KeyLookup::Found(_) => KeyStatus::New,
    };
    key_lookups.into_iter().map(status).collect()
}

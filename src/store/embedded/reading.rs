//! Reads combine memory with one snapshot of the file.
//!
//! The snapshot is taken while memory is locked, so that the two match: a change that is not in the overlay is in the
//! snapshot.

use super::failure::ReadError;
use super::keys::Place;
use super::overlay::matches_owner;
use super::{Shared, journal, open, table};
use crate::domain::{Inventory, InventoryId};
use crate::store::{Key, ListQuery, Loaded, Recall, StoreError};
use rusqlite::Connection;
use std::sync::{Arc, PoisonError};

/// Maximum number of connections that are kept for later reads.
const READERS_KEPT: usize = 4;
/// Number of attempts at a page, because a fold may end meanwhile; the last attempt keeps memory locked.
const ATTEMPTS_MAX: usize = 3;

/// What memory knows about a key.
enum KeySight {
    At(Place),
    NotThere(Recall),
}

/// What memory knows about an inventory.
enum Sight {
    Known(Option<Arc<Inventory>>),
    AskTable,
}

impl Shared {
    pub fn load(&self, ids: &[InventoryId], keys: &[Key]) -> Result<Loaded, StoreError> {
        self.reading(|| self.load_once(ids, keys))
    }

    fn load_once(&self, ids: &[InventoryId], keys: &[Key]) -> Result<Loaded, ReadError> {
        let hashes: Vec<_> = keys.iter().map(|key| self.hasher.hash(key)).collect();
        let memory = self.lock();
        let seen: Vec<Sight> = ids
            .iter()
            .map(|id| memory.overlay.find(id).map_or(Sight::AskTable, |state| Sight::Known(state.clone())))
            .collect();
        let now = self.batch_time(&memory);
        let places: Vec<KeySight> = keys
            .iter()
            .zip(&hashes)
            .map(|(key, hash)| match memory.keys.find(*hash) {
                Some(place) => KeySight::At(place),
                None => KeySight::NotThere(memory.keys.judge_unknown(key, now)),
            })
            .collect();
        let asks_file = seen.iter().any(|sight| matches!(sight, Sight::AskTable))
            || places.iter().any(|place| matches!(place, KeySight::At(_)));
        if !asks_file {
            drop(memory);
            return Ok(Loaded { inventories: known_only(seen), keys: unknown_only(places) });
        }
        let reader = self.snapshot()?;
        drop(memory);
        let inventories = ids.iter().zip(seen).map(|(id, sight)| match sight {
            Sight::Known(state) => Ok(state),
            Sight::AskTable => table::read(reader.connection(), id),
        });
        let inventories = inventories.collect::<Result<_, ReadError>>()?;
        let recalls = keys.iter().zip(places).map(|(key, place)| match place {
            KeySight::NotThere(recall) => Ok(recall),
            KeySight::At(place) => recall(reader.connection(), key, place, || self.lock().keys.judge_unknown(key, now)),
        });
        let recalls = recalls.collect::<Result<_, ReadError>>()?;
        self.lock().reading.end();
        Ok(Loaded { inventories, keys: recalls })
    }

    pub fn list(&self, query: &ListQuery) -> Result<Vec<Arc<Inventory>>, StoreError> {
        let mut query = query.clone();
        let mut found = Vec::new();
        while found.len() < query.limit {
            let (page, next) = self.reading(|| self.page(&query, query.limit - found.len()))?;
            found.extend(page);
            match next {
                Some(after) => query.after = Some(after),
                None => break,
            }
        }
        Ok(found)
    }

    /// Reads up to `limit` inventories. Also returns the id to continue after, if there may be more.
    fn page(&self, query: &ListQuery, limit: usize) -> Result<(Vec<Arc<Inventory>>, Option<InventoryId>), ReadError> {
        for attempt in 1.. {
            let mut memory = self.lock();
            let folds = memory.overlay.folds;
            let (born, born_is_all) = memory.overlay.born(query, limit);
            let reader = self.snapshot()?;
            let (rows, rows_are_all) = if attempt < ATTEMPTS_MAX {
                drop(memory);
                let read = table::read_page(reader.connection(), query, limit)?;
                memory = self.lock();
                read
            } else {
                table::read_page(reader.connection(), query, limit)?
            };
            memory.reading.end();
            // A generation that was dropped meanwhile may have held a newer state than the snapshot.
            if memory.overlay.folds != folds {
                continue;
            }
            let ends = [
                born.last().filter(|_| !born_is_all).cloned(),
                rows.last().filter(|_| !rows_are_all).map(|row| row.id.clone()),
            ];
            let end = ends.into_iter().flatten().min();
            let mut merged: Vec<(InventoryId, Option<Arc<Inventory>>)> =
                rows.into_iter().map(|row| (row.id.clone(), Some(row))).collect();
            merged.extend(born.into_iter().map(|id| (id, None)));
            merged.retain(|(id, _)| end.as_ref().is_none_or(|end| id <= end));
            merged.sort_by(|(one, _), (other, _)| one.cmp(other));
            merged.dedup_by(|later, earlier| later.0 == earlier.0);
            let current = |(id, row): (InventoryId, Option<Arc<Inventory>>)| match memory.overlay.find(&id) {
                Some(state) => state.clone(),
                None => row,
            };
            let mut page: Vec<_> =
                merged.into_iter().filter_map(current).filter(|found| matches_owner(query, found)).collect();
            let is_more = page.len() > limit;
            page.truncate(limit);
            let next = if is_more { page.last().map(|last| last.id.clone()) } else { end };
            return Ok((page, next));
        }
        Ok((Vec::new(), None))
    }

    /// Returns a reader whose view of the file does not change until it is dropped.
    fn snapshot(&self) -> Result<Reader<'_>, ReadError> {
        let failed = ReadError::sqlite("reading");
        let kept = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match kept {
            Some(connection) => connection,
            None => open::read_connection(&self.path).map_err(&failed)?,
        };
        let reader = Reader { connection: Some(connection), shared: self };
        reader.connection().prepare_cached("BEGIN").and_then(|mut begin| begin.execute([])).map_err(&failed)?;
        // A transaction gets its snapshot at its first read.
        journal::number(reader.connection(), journal::FOLDED_THROUGH).map_err(failed)?;
        Ok(reader)
    }
}

struct Reader<'a> {
    connection: Option<Connection>,
    shared: &'a Shared,
}

impl Reader<'_> {
    fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let ended = connection.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([])).is_ok();
        let mut readers = self.shared.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if ended && readers.len() < READERS_KEPT {
            readers.push(connection);
        }
    }
}

/// Reads the record of a key that the index has found. The record may have been trimmed meanwhile, or belong to another
/// key with the same hash.
fn recall(
    connection: &Connection,
    key: &Key,
    place: Place,
    unknown: impl FnOnce() -> Recall,
) -> Result<Recall, ReadError> {
    let entries = journal::read(connection, place.seq)?.unwrap_or_default();
    let entry = entries.into_iter().nth(place.index as usize).filter(|entry| entry.key == *key);
    Ok(match entry {
        Some(entry) => Recall::Applied { payload: entry.payload, reply: entry.reply },
        None => unknown(),
    })
}

fn known_only(seen: Vec<Sight>) -> Vec<Option<Arc<Inventory>>> {
    let known = |sight| match sight {
        Sight::Known(state) => state,
        Sight::AskTable => None,
    };
    seen.into_iter().map(known).collect()
}

fn unknown_only(places: Vec<KeySight>) -> Vec<Recall> {
    let recall = |place| match place {
        KeySight::NotThere(recall) => recall,
        KeySight::At(_) => Recall::New,
    };
    places.into_iter().map(recall).collect()
}

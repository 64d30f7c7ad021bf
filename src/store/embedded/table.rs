//! The table of inventories: one row per inventory, with a checksum over the whole row.

use super::failure::{ReadError, corrupt, store_error};
use crate::domain::{Epoch, Inventory, InventoryId, LayoutId, PlayerId};
use crate::store::format::{self, Malformed};
use crate::store::{ListQuery, StoreError};
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::sync::Arc;

/// A row that is encoded for writing.
#[derive(Debug)]
pub struct EncodedRow {
    pub id: InventoryId,
    /// `None` to delete the row.
    write: Option<RowValues>,
}

#[derive(Debug)]
struct RowValues {
    inventory: Arc<Inventory>,
    /// Whether to write all columns. Otherwise owner and layout are unchanged, and the owner index is not touched.
    all_columns: bool,
    checksum: u32,
    contents: Vec<u8>,
}

impl EncodedRow {
    /// Encodes a state; `None` deletes the row. `all_columns` must be set if the row may not exist, or if its owner or
    /// layout may differ.
    pub fn new(id: &InventoryId, state: Option<&Arc<Inventory>>, all_columns: bool) -> Self {
        let write = state.map(|inventory| {
            let contents = format::encode_contents(&inventory.contents);
            let checksum = checksum(&Columns::of(inventory), &contents);
            RowValues { inventory: inventory.clone(), all_columns, checksum, contents }
        });
        Self { id: id.clone(), write }
    }

    /// Writes or deletes the row.
    pub fn put(&self, connection: &Connection) -> rusqlite::Result<()> {
        let Some(RowValues { inventory, all_columns, checksum, contents }) = &self.write else {
            connection.prepare_cached(DELETE)?.execute([self.id.as_str()])?;
            return Ok(());
        };
        let Columns { id, owner, layout, epoch, revision } = Columns::of(inventory);
        if !all_columns {
            let changed = params![id, epoch, revision, checksum, contents];
            if connection.prepare_cached(UPDATE)?.execute(changed)? == 1 {
                return Ok(());
            }
        }
        let all = params![id, owner, layout, epoch, revision, checksum, contents];
        connection.prepare_cached(REPLACE)?.execute(all)?;
        Ok(())
    }
}

const DELETE: &str = "DELETE FROM inventories WHERE id = ?1";
const UPDATE: &str = "UPDATE inventories SET epoch = ?2, revision = ?3, checksum = ?4, contents = ?5 WHERE id = ?1";
const REPLACE: &str = "INSERT OR REPLACE INTO inventories (id, owner, layout, epoch, revision, checksum, contents)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
const SELECT_ONE: &str = "SELECT id, owner, layout, epoch, revision, checksum, contents FROM inventories WHERE id = ?1";
const SELECT_ALL: &str = "SELECT id, owner, layout, epoch, revision, checksum, contents FROM inventories ORDER BY id";
const SELECT_PAGE: &str = "SELECT id, owner, layout, epoch, revision, checksum, contents FROM inventories
    WHERE id > ?1 AND id >= ?2 ORDER BY id LIMIT ?3";
const SELECT_PAGE_OF_OWNER: &str = "SELECT id, owner, layout, epoch, revision, checksum, contents FROM inventories
    WHERE id > ?1 AND id >= ?2 AND owner = ?4 ORDER BY id LIMIT ?3";

/// Reads an inventory; `None` if it has no row.
pub fn read(connection: &Connection, id: &InventoryId) -> Result<Option<Arc<Inventory>>, ReadError> {
    let failed = ReadError::sqlite("reading an inventory");
    let mut select = connection.prepare_cached(SELECT_ONE).map_err(&failed)?;
    let row = select.query_row([id.as_str()], |row| Ok(read_row(row))).optional().map_err(failed)?;
    let corrupt_row = |error| ReadError::Corrupt(corrupt(&format!("inventory {id:?}"), &error));
    let found = row.transpose().map_err(corrupt_row)?;
    Ok(found.map(Arc::new))
}

/// Reads the next `limit` rows of the table in order. Also returns whether these are all.
pub fn read_page(
    connection: &Connection,
    query: &ListQuery,
    limit: usize,
) -> Result<(Vec<Arc<Inventory>>, bool), ReadError> {
    let failed = ReadError::sqlite("listing inventories");
    let after = query.after.as_ref().map_or("", InventoryId::as_str);
    let rows_max = i64::try_from(limit).unwrap_or(i64::MAX);
    let owner = query.owner.as_ref().map(PlayerId::as_str);
    let sql = if owner.is_some() { SELECT_PAGE_OF_OWNER } else { SELECT_PAGE };
    let mut select = connection.prepare_cached(sql).map_err(&failed)?;
    let mut rows = match owner {
        Some(owner) => select.query(params![after, query.prefix, rows_max, owner]),
        None => select.query(params![after, query.prefix, rows_max]),
    }
    .map_err(&failed)?;
    let mut page = Vec::new();
    while let Some(row) = rows.next().map_err(&failed)? {
        let inventory = read_row(row).map_err(|error| ReadError::Corrupt(corrupt("an inventory", &error)))?;
        if !inventory.id.as_str().starts_with(&query.prefix) {
            return Ok((page, true));
        }
        page.push(Arc::new(inventory));
    }
    let is_all = page.len() < limit;
    Ok((page, is_all))
}

/// Passes each row to `visit`, in order of ids. If a row cannot be read, passes the reason.
pub fn scan<E: From<StoreError>>(
    connection: &Connection,
    mut visit: impl FnMut(&str, Result<Inventory, Malformed>) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |error| store_error("reading inventories", &error);
    let mut select = connection.prepare_cached(SELECT_ALL).map_err(failed)?;
    let mut rows = select.query([]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let id: String = row.get(0).map_err(failed)?;
        visit(&id, read_row(row))?;
    }
    Ok(())
}

/// Returns whether the row exists, readable or not.
pub fn exists(connection: &Connection, id: &InventoryId) -> Result<bool, StoreError> {
    let failed = |error| store_error("looking for an inventory", &error);
    let mut select = connection.prepare_cached("SELECT 1 FROM inventories WHERE id = ?1").map_err(failed)?;
    select.exists([id.as_str()]).map_err(failed)
}

/// Counts the rows, readable or not.
pub fn count(connection: &Connection) -> Result<u64, StoreError> {
    let count = connection.query_row("SELECT count(*) FROM inventories", [], |row| row.get::<_, i64>(0));
    Ok(count.map_err(|error| store_error("counting inventories", &error))?.unsigned_abs())
}

struct Columns<'a> {
    id: &'a str,
    owner: Option<&'a str>,
    layout: &'a str,
    epoch: u32,
    revision: i64,
}

impl<'a> Columns<'a> {
    fn of(inventory: &'a Inventory) -> Self {
        Self {
            id: inventory.id.as_str(),
            owner: inventory.owner.as_ref().map(PlayerId::as_str),
            layout: inventory.layout.as_str(),
            epoch: inventory.epoch.get(),
            // The bits are kept; SQLite has no unsigned integers.
            revision: inventory.contents.revision().0.cast_signed(),
        }
    }
}

fn checksum(columns: &Columns<'_>, contents: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for text in [Some(columns.id), columns.owner, Some(columns.layout)] {
        // The length in front separates neighboring texts; a missing owner differs from an empty one.
        let bytes = text.map_or(u32::MAX, |text| text.len() as u32).to_le_bytes();
        hasher.update(&bytes);
        hasher.update(text.unwrap_or_default().as_bytes());
    }
    hasher.update(&columns.epoch.to_le_bytes());
    hasher.update(&columns.revision.to_le_bytes());
    hasher.update(contents);
    hasher.finalize()
}

fn read_row(row: &Row<'_>) -> Result<Inventory, Malformed> {
    let malformed_row = |error: rusqlite::Error| Malformed(error.to_string());
    let text = |column: usize| {
        row.get_ref(column).map_err(malformed_row)?.as_str_or_null().map_err(|e| Malformed(e.to_string()))
    };
    let columns = Columns {
        id: text(0)?.unwrap_or_default(),
        owner: text(1)?,
        layout: text(2)?.unwrap_or_default(),
        epoch: row.get(3).map_err(malformed_row)?,
        revision: row.get(4).map_err(malformed_row)?,
    };
    let stored: u32 = row.get(5).map_err(malformed_row)?;
    let contents = row.get_ref(6).map_err(malformed_row)?.as_blob().map_err(|error| Malformed(error.to_string()))?;
    if checksum(&columns, contents) != stored {
        return Err(Malformed::new("its checksum does not match"));
    }
    let invalid_name = |error| Malformed(format!("a name {error}"));
    let inventory = Inventory {
        id: InventoryId::new(columns.id).map_err(invalid_name)?,
        owner: columns.owner.map(PlayerId::new).transpose().map_err(invalid_name)?,
        layout: LayoutId::new(columns.layout).map_err(invalid_name)?,
        epoch: Epoch::new(columns.epoch).ok_or_else(|| Malformed::new("an epoch of 0"))?,
        contents: format::decode_contents(contents)?,
    };
    if inventory.contents.revision().0.cast_signed() == columns.revision {
        Ok(inventory)
    } else {
        Err(Malformed::new("its revision differs from the revision of its contents"))
    }
}

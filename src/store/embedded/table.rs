//! The table of inventories: one row per inventory, with a checksum over the whole row. A deleted inventory has a
//! tombstone, from which its history is found until it is trimmed.

use super::failure::{ReadError, corrupt, store_error};
use crate::domain::{Epoch, Inventory, InventoryId, LayoutId, PlayerId, Revision};
use crate::store::format::{self, Malformed};
use crate::store::log::{ChainHead, Position};
use crate::store::{ListQuery, StoreError};
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::sync::Arc;

/// The newest state of an inventory, and where its chain in the log begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredInventory {
    pub state: StoredState,
    pub head: ChainHead,
}

/// The state of an inventory that exists or existed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredState {
    Present(Arc<Inventory>),
    /// The version of the deletion.
    Deleted {
        epoch: Epoch,
        revision: Revision,
    },
}

impl StoredInventory {
    fn present((inventory, head): (Inventory, ChainHead)) -> Self {
        Self { state: StoredState::Present(Arc::new(inventory)), head }
    }

    /// Returns the inventory; `None` if it was deleted.
    pub fn inventory(&self) -> Option<&Arc<Inventory>> {
        match &self.state {
            StoredState::Present(inventory) => Some(inventory),
            StoredState::Deleted { .. } => None,
        }
    }
}

/// A row that is encoded for writing: of the table of inventories, or a tombstone.
#[derive(Debug)]
pub struct EncodedRow {
    pub id: InventoryId,
    head: ChainHead,
    write: RowValues,
}

#[derive(Debug)]
enum RowValues {
    Inventory(InventoryValues),
    Tombstone { epoch: Epoch, revision: Revision },
}

#[derive(Debug)]
struct InventoryValues {
    inventory: Arc<Inventory>,
    /// Whether to write all columns. Otherwise owner and layout are unchanged, and the owner index is not touched.
    all_columns: bool,
    checksum: u32,
    contents: Vec<u8>,
}

impl EncodedRow {
    /// Encodes a state. `all_columns` must be set if the row may not exist, or if its owner or layout may differ.
    pub fn new(id: &InventoryId, stored: &StoredInventory, all_columns: bool) -> Self {
        let head = stored.head;
        let write = match &stored.state {
            StoredState::Present(inventory) => {
                let contents = format::encode_contents(&inventory.contents);
                let checksum = checksum(&Columns::of(inventory, head), &contents);
                RowValues::Inventory(InventoryValues { inventory: inventory.clone(), all_columns, checksum, contents })
            }
            StoredState::Deleted { epoch, revision } => RowValues::Tombstone { epoch: *epoch, revision: *revision },
        };
        Self { id: id.clone(), head, write }
    }

    /// Writes the row, and removes the tombstone of a created inventory; or writes a tombstone in place of the row.
    pub fn put(&self, connection: &Connection) -> rusqlite::Result<()> {
        match &self.write {
            RowValues::Inventory(values) => self.put_inventory(connection, values),
            RowValues::Tombstone { epoch, revision } => {
                connection.prepare_cached(DELETE)?.execute([self.id.as_str()])?;
                let columns = Columns::of_tombstone(self.id.as_str(), *epoch, *revision, self.head);
                let Columns { id, epoch, revision, last, checkpoint, .. } = columns;
                let values = params![id, epoch, revision, last, checkpoint, checksum(&columns, &[])];
                connection.prepare_cached(REPLACE_TOMBSTONE)?.execute(values)?;
                Ok(())
            }
        }
    }

    fn put_inventory(&self, connection: &Connection, values: &InventoryValues) -> rusqlite::Result<()> {
        let InventoryValues { inventory, all_columns, checksum, contents } = values;
        let Columns { id, owner, layout, epoch, revision, last, checkpoint } = Columns::of(inventory, self.head);
        if !all_columns {
            let changed = params![id, epoch, revision, last, checkpoint, checksum, contents];
            if connection.prepare_cached(UPDATE)?.execute(changed)? == 1 {
                return Ok(());
            }
        }
        connection.prepare_cached(DELETE_TOMBSTONE)?.execute([id])?;
        let all = params![id, owner, layout, epoch, revision, last, checkpoint, checksum, contents];
        connection.prepare_cached(REPLACE)?.execute(all)?;
        Ok(())
    }
}

const DELETE: &str = "DELETE FROM inventories WHERE id = ?1";
const UPDATE: &str = "UPDATE inventories SET epoch = ?2, revision = ?3, last = ?4, checkpoint = ?5, checksum = ?6,
    contents = ?7 WHERE id = ?1";
const REPLACE: &str = "INSERT OR REPLACE INTO inventories
    (id, owner, layout, epoch, revision, last, checkpoint, checksum, contents) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
const SELECT_ONE: &str =
    "SELECT id, owner, layout, epoch, revision, last, checkpoint, checksum, contents FROM inventories
    WHERE id = ?1";
const SELECT_ALL: &str =
    "SELECT id, owner, layout, epoch, revision, last, checkpoint, checksum, contents FROM inventories
    ORDER BY id";
const SELECT_PAGE: &str =
    "SELECT id, owner, layout, epoch, revision, last, checkpoint, checksum, contents FROM inventories
    WHERE id > ?1 AND id >= ?2 ORDER BY id LIMIT ?3";
const SELECT_PAGE_OF_OWNER: &str = "SELECT id, owner, layout, epoch, revision, last, checkpoint, checksum, contents
    FROM inventories WHERE id > ?1 AND id >= ?2 AND owner = ?4 ORDER BY id LIMIT ?3";
const DELETE_TOMBSTONE: &str = "DELETE FROM tombstones WHERE id = ?1";
const REPLACE_TOMBSTONE: &str = "INSERT OR REPLACE INTO tombstones (id, epoch, revision, last, checkpoint, checksum)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const SELECT_TOMBSTONE: &str = "SELECT id, epoch, revision, last, checkpoint, checksum FROM tombstones WHERE id = ?1";
const SELECT_TOMBSTONES: &str = "SELECT id, epoch, revision, last, checkpoint, checksum FROM tombstones ORDER BY id";

/// Reads an inventory or its tombstone; `None` if it has neither.
pub fn find(connection: &Connection, id: &InventoryId) -> Result<Option<StoredInventory>, ReadError> {
    match read(connection, id)? {
        Some(stored) => Ok(Some(stored)),
        None => read_tombstone(connection, id),
    }
}

fn read_tombstone(connection: &Connection, id: &InventoryId) -> Result<Option<StoredInventory>, ReadError> {
    let failed = ReadError::sqlite("reading a tombstone");
    let mut select = connection.prepare_cached(SELECT_TOMBSTONE).map_err(&failed)?;
    let row = select.query_row([id.as_str()], |row| Ok(read_tombstone_row(row))).optional().map_err(failed)?;
    let corrupt_row = |error| ReadError::Corrupt(corrupt(&format!("the tombstone of inventory {id:?}"), &error));
    row.transpose().map_err(corrupt_row)
}

/// Passes each tombstone to `visit`, in order of ids. If one cannot be read, passes the reason.
pub fn scan_tombstones<E: From<StoreError>>(
    connection: &Connection,
    mut visit: impl FnMut(&str, Result<StoredInventory, Malformed>) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |error| store_error("reading tombstones", &error);
    let mut select = connection.prepare_cached(SELECT_TOMBSTONES).map_err(failed)?;
    let mut rows = select.query([]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let id: String = row.get(0).map_err(failed)?;
        visit(&id, read_tombstone_row(row))?;
    }
    Ok(())
}

fn read_tombstone_row(row: &Row<'_>) -> Result<StoredInventory, Malformed> {
    let malformed_row = |error: rusqlite::Error| Malformed(error.to_string());
    let id = row.get_ref(0).map_err(malformed_row)?.as_str().map_err(|error| Malformed(error.to_string()))?;
    let number = |column: usize| row.get::<_, i64>(column).map_err(malformed_row);
    let epoch = u32::try_from(number(1)?).ok().and_then(Epoch::new).ok_or_else(|| Malformed::new("an epoch of 0"))?;
    let revision = Revision(number(2)?.cast_unsigned());
    let head = chain_head(number(3)?, number(4)?);
    if i64::from(checksum(&Columns::of_tombstone(id, epoch, revision, head), &[])) != number(5)? {
        return Err(Malformed::new("its checksum does not match"));
    }
    Ok(StoredInventory { state: StoredState::Deleted { epoch, revision }, head })
}

fn chain_head(last: i64, checkpoint: i64) -> ChainHead {
    let position = |position: i64| Position::from_u64(position.cast_unsigned());
    ChainHead { last: position(last), checkpoint: position(checkpoint) }
}

/// Reads an inventory; `None` if it has no row.
pub fn read(connection: &Connection, id: &InventoryId) -> Result<Option<StoredInventory>, ReadError> {
    let failed = ReadError::sqlite("reading an inventory");
    let mut select = connection.prepare_cached(SELECT_ONE).map_err(&failed)?;
    let row = select.query_row([id.as_str()], |row| Ok(read_row(row))).optional().map_err(failed)?;
    let corrupt_row = |error| ReadError::Corrupt(corrupt(&format!("inventory {id:?}"), &error));
    let found = row.transpose().map_err(corrupt_row)?;
    Ok(found.map(StoredInventory::present))
}

/// Some rows of the table, in order of ids.
#[derive(Debug, Default)]
pub struct TablePage {
    pub rows: Vec<(Arc<Inventory>, ChainHead)>,
    /// Whether no more rows follow.
    pub is_all: bool,
}

/// Reads the next `limit` rows of the table in order.
pub fn read_page(connection: &Connection, query: &ListQuery, limit: usize) -> Result<TablePage, ReadError> {
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
    let mut page = TablePage::default();
    while let Some(row) = rows.next().map_err(&failed)? {
        let (inventory, head) = read_row(row).map_err(|error| ReadError::Corrupt(corrupt("an inventory", &error)))?;
        if !inventory.id.as_str().starts_with(&query.prefix) {
            page.is_all = true;
            return Ok(page);
        }
        page.rows.push((Arc::new(inventory), head));
    }
    page.is_all = page.rows.len() < limit;
    Ok(page)
}

/// Passes each row to `visit`, in order of ids. If a row cannot be read, passes the reason.
pub fn scan<E: From<StoreError>>(
    connection: &Connection,
    mut visit: impl FnMut(&str, Result<StoredInventory, Malformed>) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |error| store_error("reading inventories", &error);
    let mut select = connection.prepare_cached(SELECT_ALL).map_err(failed)?;
    let mut rows = select.query([]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let id: String = row.get(0).map_err(failed)?;
        visit(&id, read_row(row).map(StoredInventory::present))?;
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

/// The columns of an inventory, or of a tombstone, which has no owner and no layout.
struct Columns<'a> {
    id: &'a str,
    owner: Option<&'a str>,
    layout: &'a str,
    epoch: u32,
    revision: i64,
    last: i64,
    checkpoint: i64,
}

impl<'a> Columns<'a> {
    fn of(inventory: &'a Inventory, head: ChainHead) -> Self {
        Self {
            owner: inventory.owner.as_ref().map(PlayerId::as_str),
            layout: inventory.layout.as_str(),
            ..Self::of_tombstone(inventory.id.as_str(), inventory.epoch, inventory.contents.revision(), head)
        }
    }

    fn of_tombstone(id: &'a str, epoch: Epoch, revision: Revision, head: ChainHead) -> Self {
        Self {
            id,
            owner: None,
            layout: "",
            epoch: epoch.get(),
            // The bits are kept; SQLite has no unsigned integers.
            revision: revision.0.cast_signed(),
            last: head.last.get().cast_signed(),
            checkpoint: head.checkpoint.get().cast_signed(),
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
    for number in [columns.revision, columns.last, columns.checkpoint] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(contents);
    hasher.finalize()
}

fn read_row(row: &Row<'_>) -> Result<(Inventory, ChainHead), Malformed> {
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
        last: row.get(5).map_err(malformed_row)?,
        checkpoint: row.get(6).map_err(malformed_row)?,
    };
    let stored: u32 = row.get(7).map_err(malformed_row)?;
    let contents = row.get_ref(8).map_err(malformed_row)?.as_blob().map_err(|error| Malformed(error.to_string()))?;
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
        Ok((inventory, chain_head(columns.last, columns.checkpoint)))
    } else {
        Err(Malformed::new("its revision differs from the revision of its contents"))
    }
}

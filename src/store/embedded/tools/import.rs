//! Imports inventories into a store, all of them or none.
//!
//! The inventories are collected in a temporary file first, so that memory does not grow with their number. Then one
//! transaction copies them into the table, at revision 1. No mutation created them, so they have no key.

use super::restore::fold_all;
use super::{Step, ToolError, Watch, backup, io, sql, tell, temporary};
use crate::domain::{Catalog, Inventory};
use crate::store::embedded::items;
use crate::store::embedded::open::{self, Opened};
use crate::store::embedded::table::EncodedRow;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use std::path::Path;
use std::sync::Arc;

const SCHEMA: &str = "
    CREATE TABLE inventories (
        id TEXT PRIMARY KEY NOT NULL, owner TEXT, layout TEXT NOT NULL, epoch INTEGER NOT NULL,
        revision INTEGER NOT NULL, checksum INTEGER NOT NULL, contents BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE lines (id TEXT PRIMARY KEY NOT NULL, line INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    BEGIN;";

/// The inventories that are collected for an import.
#[derive(Debug)]
pub struct Staging {
    connection: Connection,
    file: tempfile::NamedTempFile,
    inventories: u64,
}

/// Exclusive access to a store that no process has open.
#[derive(Debug)]
pub struct Claim(Opened);

impl Claim {
    /// Fails while a service has the store open.
    pub fn take(path: &Path) -> Result<Self, ToolError> {
        Ok(Self(open::prepare(path)?))
    }
}

impl Staging {
    /// Collects the inventories in a temporary file beside `path`.
    pub fn new(path: &Path) -> Result<Self, ToolError> {
        let file = temporary(path, ".slotcast-import-")?;
        let connection = backup::scratch_connection(file.path())?;
        connection.execute_batch(SCHEMA).map_err(sql("gathering"))?;
        Ok(Self { connection, file, inventories: 0 })
    }

    /// Adds an inventory. If its id was added before, adds nothing and returns the line of the earlier one.
    pub fn put(&mut self, inventory: &Arc<Inventory>, line: u64) -> Result<Option<u64>, ToolError> {
        let failed = sql("gathering");
        let id = inventory.id.as_str();
        let mut earlier = self.connection.prepare_cached("SELECT line FROM lines WHERE id = ?1").map_err(&failed)?;
        let earlier: Option<i64> = earlier.query_row([id], |row| row.get(0)).optional().map_err(&failed)?;
        if let Some(earlier) = earlier {
            return Ok(Some(earlier.unsigned_abs()));
        }
        EncodedRow::new(&inventory.id, Some(inventory), true).put(&self.connection).map_err(&failed)?;
        let mut insert =
            self.connection.prepare_cached("INSERT INTO lines (id, line) VALUES (?1, ?2)").map_err(&failed)?;
        insert.execute(rusqlite::params![id, line.cast_signed()]).map_err(&failed)?;
        self.inventories += 1;
        Ok(None)
    }

    pub fn inventories(&self) -> u64 {
        self.inventories
    }

    /// Imports the inventories into the store, which is created if it does not exist. None of them may exist already.
    /// The store remembers the items of the catalog that the imported stacks use.
    pub fn commit(self, mut claim: Claim, catalog: &Catalog, watch: &mut Watch<'_>) -> Result<u64, ToolError> {
        let Self { connection: staged, file, inventories } = self;
        staged.execute_batch("COMMIT").map_err(sql("gathering"))?;
        staged.close().map_err(|(_, error)| sql("gathering")(error))?;
        tell(watch, Step { doing: "importing", done: 0, total: 0 })?;
        claim.0.create()?;
        let mut store = open::commit_connection(&claim.0.path, None)?;
        items::accept(&claim.0.path, &store, catalog)?;
        let failed = sql("importing");
        let staged = file.path().to_str().ok_or_else(|| {
            io(file.path())(std::io::Error::other("its folder's name is not UTF-8; import from another folder"))
        })?;
        store.execute("ATTACH DATABASE ?1 AS staged", [staged]).map_err(&failed)?;
        let transaction = store.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        fold_all(&transaction)?;
        transaction
            .execute(
                "INSERT INTO main.inventories (id, owner, layout, epoch, revision, checksum, contents)
                 SELECT id, owner, layout, epoch, revision, checksum, contents FROM staged.inventories ORDER BY id",
                [],
            )
            .map_err(&failed)?;
        transaction.commit().map_err(&failed)?;
        store.execute("DETACH DATABASE staged", []).map_err(&failed)?;
        open::trust(&store).map_err(&failed)?;
        store.close().map_err(|(_, error)| failed(error))?;
        Ok(inventories)
    }
}

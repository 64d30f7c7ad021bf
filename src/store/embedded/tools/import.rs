//! Imports inventories into a store, all of them or none.
//!
//! The inventories are collected in a temporary file first, so that memory does not grow with their number. Then one
//! transaction copies them into the table, at revision 1. No mutation created them, so they have no key.

use super::restore::fold_all;
use super::{ProgressCallback, ProgressUpdate, ToolError, backup, create_temporary, io, report_progress, sql};
use crate::domain::{Catalog, Inventory};
use crate::store::embedded::items;
use crate::store::embedded::open::{self, PreparedStore};
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
pub struct ExclusiveStore(PreparedStore);

impl ExclusiveStore {
    /// Fails while a service has the store open.
    pub fn open(path: &Path) -> Result<Self, ToolError> {
        Ok(Self(open::prepare(path)?))
    }
}

impl Staging {
    /// Collects the inventories in a temporary file beside `path`.
    pub fn new(path: &Path) -> Result<Self, ToolError> {
        let file = create_temporary(path, ".slotcast-import-")?;
        let connection = backup::scratch_connection(file.path())?;
        connection.execute_batch(SCHEMA).map_err(sql("staging"))?;
        Ok(Self { connection, file, inventories: 0 })
    }

    /// Adds an inventory. If its id was added before, adds nothing and returns the line of the earlier one.
    pub fn put(&mut self, inventory: &Arc<Inventory>, line: u64) -> Result<Option<u64>, ToolError> {
        let failed = sql("staging");
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

    /// Number of added inventories.
    pub fn inventories(&self) -> u64 {
        self.inventories
    }

    /// Imports the inventories into the store, which is created if it does not exist. None of them may exist already.
    /// The store remembers the items of the catalog that the imported stacks use.
    pub fn commit(
        self,
        mut target: ExclusiveStore,
        catalog: &Catalog,
        on_progress: &mut ProgressCallback<'_>,
    ) -> Result<u64, ToolError> {
        let Self { connection: staged, file, inventories } = self;
        staged.execute_batch("COMMIT").map_err(sql("staging"))?;
        staged.close().map_err(|(_, error)| sql("staging")(error))?;
        report_progress(on_progress, ProgressUpdate { phase: "importing", done: 0, total: 0 })?;
        target.0.create()?;
        let mut store = open::commit_connection(&target.0.path, None)?;
        items::accept(&target.0.path, &store, catalog)?;
        let failed = sql("importing");
        let staged = file.path().to_str().ok_or_else(|| {
            io(file.path())(std::io::Error::other("the path is not valid UTF-8; use another directory"))
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
        open::allow_checkpoint_on_close(&store).map_err(&failed)?;
        store.close().map_err(|(_, error)| failed(error))?;
        Ok(inventories)
    }
}

//! Imports inventories into a store, all of them or none.
//!
//! The inventories are collected in a temporary file first, so that memory does not grow with their number. Then one
//! transaction writes them to the log, as creations of the kind *import* without a key, and to the table, at revision 1.
//!
//! The transaction has many journal rows. The check of the write-ahead log ([`crate::store::embedded::wal`]) relies on one row
//! in each transaction, so this one uses SQLite's rollback journal instead of the write-ahead log.

use super::restore::fold_all;
use super::{ProgressCallback, ProgressUpdate, ToolError, backup, create_temporary, io, report_progress, sql};
use crate::domain::{
    Caller, Catalog, Fingerprint, Flow, Inventory, OperationKind, OperationOutcome, PredictionOutcome,
};
use crate::store::embedded::log::totals::{self, TotalsTable};
use crate::store::embedded::open::{self, PreparedStore};
use crate::store::embedded::table::{self, EncodedRow, StoredInventory, StoredState};
use crate::store::embedded::{header, items, journal, log};
use crate::store::format::{BatchEncoder, BatchTime};
use crate::store::log::{ChainHead, LogEntry, LogRecord, LoggedChange, LoggedChangeKind, LoggedOperation, Position};
use crate::store::supply::SupplyTotals;
use crate::store::{ListQuery, StoreError};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const SCHEMA: &str = "
    CREATE TABLE inventories (
        id TEXT PRIMARY KEY NOT NULL, owner TEXT, layout TEXT NOT NULL, epoch INTEGER NOT NULL,
        revision INTEGER NOT NULL, last INTEGER NOT NULL, checkpoint INTEGER NOT NULL, checksum INTEGER NOT NULL,
        contents BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE tombstones (id TEXT PRIMARY KEY NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE lines (id TEXT PRIMARY KEY NOT NULL, line INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    BEGIN;";

/// Maximum number of inventories in one record.
const RECORD_INVENTORIES: usize = 64;
/// Maximum size of the states in one record, in bytes; a larger inventory has a record of its own.
const RECORD_BYTES: usize = 16 * 1_024;
/// Size of the records in one journal row, in bytes: a row ends with the record that reaches it.
const ROW_BYTES: usize = 256 * 1_024;
/// The caller of imports in the log.
const CALLER: &str = "slotcast import";

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
    /// Fails while a service has the store open. Rolls back an import that was interrupted.
    pub fn open(path: &Path) -> Result<Self, ToolError> {
        let prepared = open::prepare(path)?;
        if header::has_pages_to_restore(&prepared.path).map_err(io(&prepared.path))? {
            // SQLite rolls back before the first read.
            let connection = Connection::open(&prepared.path).map_err(sql("opening the store"))?;
            let read = connection.query_row("PRAGMA schema_version", [], |row| row.get::<_, i64>(0));
            read.map_err(sql("rolling back an interrupted import"))?;
        }
        Ok(Self(prepared))
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
        let stored = StoredInventory { state: StoredState::Present(inventory.clone()), head: ChainHead::default() };
        EncodedRow::new(&inventory.id, &stored, true).put(&self.connection).map_err(&failed)?;
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
    /// The store remembers the items of the catalog that the imported stacks use. `now` is the time since the Unix epoch.
    pub fn commit(
        self,
        mut target: ExclusiveStore,
        catalog: &Catalog,
        now: Duration,
        on_progress: &mut ProgressCallback<'_>,
    ) -> Result<u64, ToolError> {
        let Self { connection: staged, file: _file, inventories: total } = self;
        staged.execute_batch("COMMIT").map_err(sql("staging"))?;
        report_progress(on_progress, ProgressUpdate { phase: "importing", done: 0, total })?;
        target.0.create()?;
        let mut store = open::commit_connection(&target.0.path, None)?;
        items::accept(&target.0.path, &store, catalog)?;
        let failed = sql("importing");
        set_journal_mode(&store, "DELETE")?;
        let transaction = store.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        fold_all(&transaction)?;
        let mut import = Import::new(&transaction, now)?;
        let mut query = ListQuery { limit: RECORD_INVENTORIES, ..ListQuery::default() };
        loop {
            let page = table::read_page(&staged, &query, RECORD_INVENTORIES).map_err(StoreError::from)?;
            let is_last = page.is_all;
            let page: Vec<Arc<Inventory>> = page.rows.into_iter().map(|(inventory, _)| inventory).collect();
            import.put(&page)?;
            report_progress(on_progress, ProgressUpdate { phase: "importing", done: import.inventories, total })?;
            query.after = page.last().map(|last| last.id.clone());
            if is_last {
                break;
            }
        }
        import.finish()?;
        transaction.commit().map_err(&failed)?;
        // Opening the store sets the mode, too.
        if let Err(error) = set_journal_mode(&store, "WAL") {
            tracing::debug!(%error, "the mode is set at the next opening");
        }
        open::allow_checkpoint_on_close(&store).map_err(&failed)?;
        store.close().map_err(|(_, error)| failed(error))?;
        Ok(total)
    }
}

fn set_journal_mode(connection: &Connection, mode: &str) -> Result<(), ToolError> {
    let set: String = connection
        .query_row(&format!("PRAGMA journal_mode = {mode}"), [], |row| row.get(0))
        .map_err(sql("changing the journal mode"))?;
    if set.eq_ignore_ascii_case(mode) {
        return Ok(());
    }
    let detail = format!(
        "cannot change its journal mode from {set} to {mode}: another process reads it; end commands such as backup, export, \
         fsck and history, then repeat the import"
    );
    Err(ToolError::Store(StoreError::Unavailable { detail }))
}

/// Returns approximately how many bytes an inventory takes in a record; at least 1.
fn state_bytes(inventory: &Inventory) -> usize {
    let stacks: usize = inventory.contents.stacks().map(|(_, stack)| 8 + stack.attributes.as_bytes().len()).sum();
    stacks + 2 * inventory.contents.slots().len() + 32
}

/// An import in progress, inside its transaction.
struct Import<'a> {
    connection: &'a Connection,
    time: BatchTime,
    /// The next journal row, and the position of its first record.
    seq: i64,
    first: Position,
    records: u64,
    row: BatchEncoder,
    supply: SupplyTotals,
    inventories: u64,
}

impl<'a> Import<'a> {
    fn new(connection: &'a Connection, now: Duration) -> Result<Self, ToolError> {
        let state = log::read_state(connection)?;
        let last = journal::last_batch(connection)?;
        let (seq, end, last_time) = match last {
            Some((seq, end, time)) => (seq, Some(end), time),
            None => {
                let folded = journal::meta_value(connection, journal::FOLDED_THROUGH);
                (folded.map_err(sql("reading the fold position"))?.unwrap_or(0), None, BatchTime::default())
            }
        };
        let unix_ms = now.as_millis() as u64;
        let time_ms = unix_ms.max(last_time.time_ms).max(state.last_ms);
        let time = BatchTime { uptime_ms: last_time.uptime_ms, unix_ms, time_ms };
        let first = state.next_position(end);
        let row = BatchEncoder::new(first, time, 1);
        Ok(Self {
            connection,
            time,
            seq: seq + 1,
            first,
            records: 0,
            row,
            supply: SupplyTotals::default(),
            inventories: 0,
        })
    }

    /// Writes the records with these inventories, and their rows in the table.
    fn put(&mut self, mut inventories: &[Arc<Inventory>]) -> Result<(), ToolError> {
        while !inventories.is_empty() {
            let mut bytes = 0;
            let is_first_or_fits = |inventory: &&Arc<Inventory>| {
                let is_first = bytes == 0;
                bytes += state_bytes(inventory);
                is_first || bytes <= RECORD_BYTES
            };
            let count = inventories.iter().take_while(is_first_or_fits).count();
            let (record, rest) = inventories.split_at(count);
            self.put_record(record)?;
            inventories = rest;
        }
        Ok(())
    }

    /// Writes one record with these inventories, and their rows in the table.
    fn put_record(&mut self, inventories: &[Arc<Inventory>]) -> Result<(), ToolError> {
        let position = self.first.plus(self.records);
        let mut record = LogRecord {
            position,
            time_ms: self.time.time_ms,
            caller: Caller::new(CALLER).unwrap_or_else(|_| unreachable!("a valid name")),
            key: None,
            payload: Fingerprint(0),
            reason: Arc::from(""),
            session: None,
            prediction: PredictionOutcome::Unpredicted,
            operations: Vec::with_capacity(inventories.len()),
            flows: Vec::new(),
            entries: Vec::with_capacity(inventories.len()),
        };
        for (operation, inventory) in (0..).zip(inventories) {
            // The head of its tombstone, if it existed before.
            let before = table::find(self.connection, &inventory.id).map_err(StoreError::from)?;
            let head = before.map(|before| before.head).unwrap_or_default();
            record
                .operations
                .push(LoggedOperation { kind: OperationKind::Import, outcome: OperationOutcome::default() });
            record.flows.extend(inventory.contents.stacks().map(|(_, stack)| Flow {
                operation,
                item: stack.item,
                added: u64::from(stack.count.get()),
                removed: 0,
            }));
            record.entries.push(LogEntry {
                version: inventory.version(),
                change: Some(LoggedChange {
                    previous: head.last,
                    kind: LoggedChangeKind::Created { after: inventory.clone() },
                    previous_checkpoint: head.checkpoint,
                }),
            });
            let head = ChainHead { last: position, checkpoint: position };
            let stored = StoredInventory { state: StoredState::Present(inventory.clone()), head };
            EncodedRow::new(&inventory.id, &stored, true).put(self.connection).map_err(sql("importing"))?;
        }
        self.supply.add_record(&record);
        self.row.push_record(&record);
        self.records += 1;
        self.inventories += inventories.len() as u64;
        if self.row.len_bytes() >= ROW_BYTES { self.end_row() } else { Ok(()) }
    }

    fn end_row(&mut self) -> Result<(), ToolError> {
        let next = self.first.plus(self.records);
        let row = std::mem::replace(&mut self.row, BatchEncoder::new(next, self.time, 1));
        if !row.is_empty() {
            journal::append(self.connection, self.seq, &row.finish()).map_err(sql("importing"))?;
            (self.seq, self.first, self.records) = (self.seq + 1, next, 0);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), ToolError> {
        self.end_row()?;
        let failed = sql("importing");
        totals::add(self.connection, TotalsTable::Supply, &self.supply).map_err(&failed)?;
        journal::set_meta_value(self.connection, journal::FOLDED_THROUGH, self.seq - 1).map_err(failed)
    }
}

//! Copies a store at one commit, while a server has it open.
//!
//! SQLite's backup copies the pages inside one [`Snapshot`], so concurrent commits neither wait for the copy nor
//! restart it. The copy contains every commit that was acknowledged before it began, and no commit in part. It is a
//! complete store with its keys, in one file without a write-ahead log, so that it can be read from a read-only
//! directory.
//!
//! `VACUUM INTO` would write every row again, in one call that reports no progress until it is done.
//!
//! A backup without history leaves out the sealed part of the log, as if retention had deleted it: it copies the other tables
//! row by row into a new store.

use super::snapshot::Snapshot;
use super::{
    ProgressCallback, ProgressUpdate, ToolError, check_output, create_temporary, io, report_progress, sql, sync_dir,
};
use crate::store::embedded::files::{file_len_bytes, parent_dir, with_suffix};
use crate::store::embedded::log::totals::{self, TotalsTable};
use crate::store::embedded::log::{self, LogState, tables};
use crate::store::embedded::open::{self, PAGE_BYTES};
use crate::store::embedded::{failure, header, journal};
use crate::store::format::Batch;
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::types::{ToSqlOutput, ValueRef};
use std::fs::File;
use std::path::Path;
use std::time::Instant;

/// Number of pages that are copied and flushed at a time (1 MiB). Flushing everything at the end would delay the
/// flushes of commits.
const STEP_PAGES: i32 = 256;
/// Size of the rows that are copied and flushed at a time, in bytes.
const STEP_BYTES: usize = 1 << 20;

/// The result of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupSummary {
    /// Size of the copy, in bytes.
    pub bytes: u64,
    /// Sequence number of the last journal row in the copy.
    pub last_seq: i64,
}

/// Copies the store to `target`. The copy has another name until it is complete and durable.
pub fn backup(
    snapshot: &Snapshot,
    target: &Path,
    replace: bool,
    on_progress: &mut ProgressCallback<'_>,
) -> Result<BackupSummary, ToolError> {
    create(snapshot, target, replace, |partial| copy(snapshot, partial, on_progress))
}

/// Same as [`backup`], but leaves out the sealed part of the log. The supply is complete in the copy; its history begins with
/// the journal.
pub fn backup_without_history(
    snapshot: &Snapshot,
    target: &Path,
    replace: bool,
    on_progress: &mut ProgressCallback<'_>,
) -> Result<BackupSummary, ToolError> {
    create(snapshot, target, replace, |partial| copy_without_history(snapshot, partial, on_progress))
}

/// Creates `target` as a whole. `write` writes the copy into an empty file, and returns the number of its last journal row.
fn create(
    snapshot: &Snapshot,
    target: &Path,
    replace: bool,
    write: impl FnOnce(&Path) -> Result<i64, ToolError>,
) -> Result<BackupSummary, ToolError> {
    if !replace && target.exists() {
        return Err(ToolError::Exists(target.to_owned()));
    }
    if target.is_dir() {
        return Err(ToolError::Io {
            path: target.to_owned(),
            detail: "it is a directory; give the path of a file".into(),
        });
    }
    check_output(snapshot, target)?;
    if let Some(log) = ["-wal", "-journal"].map(|suffix| with_suffix(target, suffix)).iter().find(|log| is_filled(log))
    {
        let detail = format!("{} exists, so this is or was a store in use; choose another file", log.display());
        return Err(ToolError::Io { path: target.to_owned(), detail });
    }
    let partial = create_temporary(target, ".slotcast-backup-")?;
    let last_seq = write(partial.path())?;
    partial.as_file().sync_all().map_err(io(target))?;
    let persisted = if replace { partial.persist(target) } else { partial.persist_noclobber(target) };
    let file = persisted.map_err(|failed| {
        let exists = failed.error.kind() == std::io::ErrorKind::AlreadyExists;
        if exists { ToolError::Exists(target.to_owned()) } else { io(parent_dir(target))(failed.error) }
    })?;
    sync_dir(target)?;
    let bytes = file.metadata().map_err(io(target))?.len();
    Ok(BackupSummary { bytes, last_seq })
}

/// Returns whether the file has contents; SQLite would use it as the copy's own log.
fn is_filled(log: &Path) -> bool {
    file_len_bytes(log) > 0
}

/// Copies all pages into an empty file, and takes the copy out of WAL mode. Returns the sequence number of the last
/// journal row.
pub fn copy(snapshot: &Snapshot, target: &Path, on_progress: &mut ProgressCallback<'_>) -> Result<i64, ToolError> {
    let last_seq = last_seq(snapshot)?;
    let mut copy = scratch_connection(target)?;
    let file = File::options().read(true).write(true).open(target).map_err(io(target))?;
    let backup = Backup::new(snapshot.connection(), &mut copy).map_err(sql("copying"))?;
    loop {
        let began = Instant::now();
        let stepped = backup.step(STEP_PAGES).map_err(sql("copying"))?;
        let progress = backup.progress();
        let bytes = |pages: i32| u64::from(pages.unsigned_abs()) * PAGE_BYTES;
        let (done, total) = (bytes(progress.pagecount - progress.remaining), bytes(progress.pagecount));
        report_progress(on_progress, ProgressUpdate { phase: "copying", done, total })?;
        // Waiting is unnecessary: the snapshot does not change, and no other process knows the copy.
        if stepped == StepResult::Done {
            break;
        }
        file.sync_data().map_err(io(target))?;
        // The server gets half of the disk's time.
        std::thread::sleep(began.elapsed());
    }
    drop(backup);
    copy.close().map_err(|(_, error)| sql("closing the copy")(error))?;
    // The copied head contains the mode. SQLite would need room for a write-ahead log and its index to change it.
    header::set_rollback_mode(&file).map_err(io(target))?;
    Ok(last_seq)
}

/// The tables that are copied as they are. The journal keeps the rows whose records are sealed: trimming them moves the
/// horizon of keys.
const COPIED_TABLES: [&str; 6] = ["journal", "inventories", "supply", "trimmed", "meta", "items"];

/// Copies all rows but those of the sealed part of the log into an empty file.
fn copy_without_history(
    snapshot: &Snapshot,
    target: &Path,
    on_progress: &mut ProgressCallback<'_>,
) -> Result<i64, ToolError> {
    let (last_seq, state) = (last_seq(snapshot)?, log::read_state(snapshot.connection())?);
    open::create_store_file(target).map_err(sql("creating the copy"))?;
    let connection = scratch_connection(target)?;
    // The history of inventories whose deletion is sealed is left out as a whole.
    let tombstones = format!("tombstones WHERE last > {}", tables::sql(state.sealed_through));
    let sources: Vec<&str> = COPIED_TABLES.into_iter().chain([tombstones.as_str()]).collect();
    let file = File::open(target).map_err(io(target))?;
    let mut copy = RowCopy::begin(snapshot.connection(), &connection, file, &sources)?;
    for source in sources {
        copy.copy_rows(source, target, on_progress)?;
    }
    copy.end_step(target, on_progress)?;
    mark_history_deleted(snapshot.connection(), &connection, state)?;
    connection.execute_batch("COMMIT").map_err(sql("copying"))?;
    connection.close().map_err(|(_, error)| sql("closing the copy")(error))?;
    Ok(last_seq)
}

/// Makes the copy what it would be if retention had deleted all segments.
fn mark_history_deleted(from: &Connection, to: &Connection, state: LogState) -> Result<(), ToolError> {
    let failed = sql("copying");
    // From the supply and the journal alone, so that damaged segments can be left behind.
    let folded_through = journal::meta_value(from, journal::FOLDED_THROUGH).map_err(&failed)?.unwrap_or(0);
    let mut trimmed = totals::read(from, TotalsTable::Supply)?;
    journal::scan(from, state.sealed_row + 1, |seq, encoded| {
        let corrupt = |error| failure::corrupt(&format!("journal row {seq}"), &error);
        let batch = Batch::parse_with_checksum(encoded).map_err(corrupt)?;
        for record in batch.records().take_while(|_| seq <= folded_through) {
            trimmed.subtract_record(&record.map_err(corrupt)?);
        }
        Ok(())
    })?;
    totals::replace(to, TotalsTable::Trimmed, &trimmed).map_err(&failed)?;
    let earliest = if state.sealed_through.is_none() { state.earliest } else { state.sealed_through.plus(1) };
    let (earliest_ms, oldest_ms) = (None, None);
    let state = LogState { earliest, trimmed_ms: state.last_ms, blocks: 0, bytes: 0, earliest_ms, oldest_ms, ..state };
    log::write_state(to, &state).map_err(failed)
}

/// A copy of rows in steps of one transaction each.
struct RowCopy<'a> {
    from: &'a Connection,
    to: &'a Connection,
    /// The file of `to`.
    file: File,
    rows: u64,
    rows_total: u64,
    /// Bytes that were copied in this step.
    bytes: usize,
    began: Instant,
}

impl<'a> RowCopy<'a> {
    fn begin(from: &'a Connection, to: &'a Connection, file: File, sources: &[&str]) -> Result<Self, ToolError> {
        let mut rows_total = 0;
        for source in sources {
            let count = from.query_row(&format!("SELECT count(*) FROM {source}"), [], |row| row.get::<_, i64>(0));
            rows_total += count.map_err(sql("counting rows"))?.unsigned_abs();
        }
        to.execute_batch("BEGIN").map_err(sql("copying"))?;
        Ok(Self { from, to, file, rows: 0, rows_total, bytes: 0, began: Instant::now() })
    }

    /// Copies the rows of a table; a condition may follow its name.
    fn copy_rows(
        &mut self,
        source: &str,
        target: &Path,
        on_progress: &mut ProgressCallback<'_>,
    ) -> Result<(), ToolError> {
        let failed = sql("copying");
        let mut select = self.from.prepare(&format!("SELECT * FROM {source}")).map_err(&failed)?;
        let columns = select.column_count();
        let table = source.split(' ').next().unwrap_or(source);
        let parameters = vec!["?"; columns].join(", ");
        let to = self.to;
        let mut insert = to.prepare(&format!("INSERT INTO {table} VALUES ({parameters})")).map_err(&failed)?;
        let mut rows = select.query([]).map_err(&failed)?;
        while let Some(row) = rows.next().map_err(&failed)? {
            for column in 0..columns {
                let value = row.get_ref(column).map_err(&failed)?;
                self.bytes += len_bytes(value);
                insert.raw_bind_parameter(column + 1, ToSqlOutput::Borrowed(value)).map_err(&failed)?;
            }
            insert.raw_execute().map_err(&failed)?;
            self.rows += 1;
            if self.bytes >= STEP_BYTES {
                self.end_step(target, on_progress)?;
            }
        }
        Ok(())
    }

    /// Ends the transaction of this step, flushes it, and begins the next one.
    fn end_step(&mut self, target: &Path, on_progress: &mut ProgressCallback<'_>) -> Result<(), ToolError> {
        self.to.execute_batch("COMMIT; BEGIN").map_err(sql("copying"))?;
        report_progress(on_progress, ProgressUpdate { phase: "copying", done: self.rows, total: self.rows_total })?;
        self.file.sync_data().map_err(io(target))?;
        // The server gets half of the disk's time.
        std::thread::sleep(self.began.elapsed());
        (self.bytes, self.began) = (0, Instant::now());
        Ok(())
    }
}

fn len_bytes(value: ValueRef<'_>) -> usize {
    match value {
        ValueRef::Null => 0,
        ValueRef::Integer(_) | ValueRef::Real(_) => size_of::<i64>(),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.len(),
    }
}

/// Opens a file that is discarded as a whole after an error, and flushed as a whole at the end.
pub fn scratch_connection(path: &Path) -> Result<Connection, ToolError> {
    let connection = Connection::open(path).map_err(sql("opening a temporary file"))?;
    let configured = connection
        .query_row("PRAGMA journal_mode = OFF", [], |_| Ok(()))
        .and_then(|()| connection.pragma_update(None, "synchronous", "OFF"))
        .and_then(|()| connection.pragma_update(None, "cache_size", -8192));
    configured.map_err(sql("opening a temporary file"))?;
    Ok(connection)
}

/// Returns the sequence number of the last journal row in the snapshot.
pub fn last_seq(snapshot: &Snapshot) -> Result<i64, ToolError> {
    let connection = snapshot.connection();
    let last = connection.query_row("SELECT max(seq) FROM journal", [], |row| row.get::<_, Option<i64>>(0));
    let folded = journal::meta_value(connection, journal::FOLDED_THROUGH).map_err(sql("reading the fold position"))?;
    Ok(last.map_err(sql("reading the journal"))?.or(folded).unwrap_or(0))
}

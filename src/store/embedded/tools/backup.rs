//! Copies a store at one commit, while a server has it open.
//!
//! SQLite's backup copies the pages inside one [`Snapshot`], so concurrent commits neither wait for the copy nor
//! restart it. The copy contains every commit that was acknowledged before it began, and no commit in part. It is a
//! complete store with its keys, in one file without a write-ahead log, so that it can be read from a read-only
//! directory.
//!
//! `VACUUM INTO` would write every row again, in one call that reports no progress until it is done.

use super::snapshot::Snapshot;
use super::{
    ProgressCallback, ProgressUpdate, ToolError, check_output, create_temporary, io, report_progress, sql, sync_dir,
};
use crate::store::embedded::files::{file_len_bytes, parent_dir, with_suffix};
use crate::store::embedded::journal;
use crate::store::embedded::open::PAGE_BYTES;
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use std::fs::File;
use std::path::Path;
use std::time::Instant;

/// Number of pages that are copied and flushed at a time (1 MiB). Flushing everything at the end would delay the
/// flushes of commits.
const STEP_PAGES: i32 = 256;

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
    let last_seq = copy(snapshot, partial.path(), on_progress)?;
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
    let file = File::open(target).map_err(io(target))?;
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
    drop(copy);
    drop(file);
    // The copied head contains the mode; a separate connection reads it from there.
    let copy = Connection::open(target).map_err(sql("opening the copy"))?;
    let mode: String =
        copy.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0)).map_err(sql("finishing the copy"))?;
    if mode != "delete" {
        let detail = format!("its journal mode is still {mode}: another process has it open");
        return Err(ToolError::Io { path: target.to_owned(), detail });
    }
    copy.close().map_err(|(_, error)| sql("closing the copy")(error))?;
    Ok(last_seq)
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

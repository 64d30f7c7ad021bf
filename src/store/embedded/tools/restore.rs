//! Restores a backup as the store.
//!
//! The store returns to the backup's commit, and readers must notice this: a reader with a later state could have the
//! same revision that the restored server makes next, with other contents. So every inventory gets a **new epoch**,
//! and its revisions begin at 1 again, as at creation. A stream that resumes gets a full frame with the reason. The
//! digest is unchanged, because it only depends on the contents, which are the same.
//!
//! **Keys** remain, with their original replies (including the old epochs and revisions): a retry of a mutation in the
//! backup gets the stored reply and does not run again. A retry of a mutation that was applied after the backup finds
//! no key and runs: its effect is gone, so running it applies it once. Keys that had expired in the backup are still
//! refused. The key window continues where it was, because it uses the store's own clock.
//!
//! The **log** remains as well. Everything is folded first, and later records have a new writer, so that no position names
//! two records of one store. If the replaced store cannot be read, numbers of writers are skipped, because some of
//! them may have been used. The new epochs have no entries: the history of an inventory continues before the restore with the epoch that
//! it had then. The supply is that of the backup.

use super::backup::{copy, scratch_connection};
use super::snapshot::Snapshot;
use super::{ProgressCallback, ProgressUpdate, ToolError, check, create_temporary, io, report_progress, sql};
use crate::domain::{Contents, Edit, Epoch, Inventory, Revision};
use crate::store::embedded::files::{FileId, StoreLock, with_suffix};
use crate::store::embedded::log::totals::{self, TotalsTable};
use crate::store::embedded::table::{EncodedRow, StoredInventory, StoredState};
use crate::store::embedded::{journal, log, open, replace, replay, table};
use crate::store::log::Position;
use crate::store::{ListQuery, StoreError};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::NamedTempFile;

/// How far the number of the writer advances if the replaced store cannot be read: it may have been restored as many times since
/// the backup.
const UNKNOWN_WRITER_STEP: u16 = 256;
/// Number of inventories in memory at a time.
const PAGE: usize = 512;

/// The result of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreSummary {
    /// Number of inventories; each has a new epoch.
    pub inventories: u64,
    /// The new path of the replaced store; `None` if there was none.
    pub old_store: Option<PathBuf>,
}

/// Replaces the store at `target` by `source`. Fails if there is a store, unless `force` is set; then the replaced
/// store is kept under another name, which ends with `label_number`.
pub fn restore(
    source: &Path,
    target: &Path,
    force: bool,
    label_number: u64,
    new_epoch: &mut dyn FnMut() -> Epoch,
    on_progress: &mut ProgressCallback<'_>,
) -> Result<RestoreSummary, ToolError> {
    let target = open::resolve(target)?;
    let mut lock = StoreLock::acquire(&target)?;
    open::complete_replacement(&target, &mut lock)?;
    let exists = target.exists() || with_suffix(&target, "-wal").exists();
    if exists && !force {
        return Err(ToolError::StoreExists(target));
    }
    let source_id = FileId::at(source);
    if source_id.is_some() && source_id == FileId::at(&target) {
        return Err(ToolError::Io { path: target, detail: "it is the store itself; choose a backup".into() });
    }
    let snapshot = Snapshot::open(source)?;
    let (new, inventories) = copy_with_new_epochs(&snapshot, source, &target, new_epoch, on_progress)?;
    let old_store = replace::replace(new, &target, &format!("replaced-{label_number}")).map_err(io(&target))?;
    Ok(RestoreSummary { inventories, old_store })
}

/// Creates a complete and durable copy beside `target`, in which every inventory has a new epoch. Also returns the
/// number of inventories.
pub fn copy_with_new_epochs(
    snapshot: &Snapshot,
    source: &Path,
    target: &Path,
    new_epoch: &mut dyn FnMut() -> Epoch,
    on_progress: &mut ProgressCallback<'_>,
) -> Result<(NamedTempFile, u64), ToolError> {
    let findings = check::check(snapshot, on_progress);
    if !findings.problems.is_empty() {
        return Err(ToolError::Corrupt { path: source.to_owned(), findings: Box::new(findings) });
    }
    let partial = create_temporary(target, ".slotcast-restore-")?;
    copy(snapshot, partial.path(), on_progress)?;
    let connection = scratch_connection(partial.path())?;
    let total = findings.inventories;
    let of_backup = log::read_state(&connection)?.writer;
    let (last_writer, step) = match writer_of(target) {
        Ok(of_target) => (of_target.max(of_backup), 1),
        Err(_) => (of_backup, UNKNOWN_WRITER_STEP),
    };
    let writer = last_writer.checked_add(step).filter(|writer| *writer <= Position::WRITER_MAX);
    let writer = writer.ok_or_else(|| {
        ToolError::Store(StoreError::Unavailable {
            detail: format!(
                "its writer number would exceed {}; export it and import it into a new store",
                Position::WRITER_MAX
            ),
        })
    })?;
    assign_new_epochs(&connection, writer, new_epoch, &mut |done| {
        report_progress(on_progress, ProgressUpdate { phase: "assigning new epochs", done, total })
    })?;
    connection.close().map_err(|(_, error)| sql("closing the copy")(error))?;
    partial.as_file().sync_all().map_err(io(target))?;
    Ok((partial, total))
}

/// Returns the number of the writer of the store that is replaced; 0 if there is none.
fn writer_of(target: &Path) -> Result<u16, ToolError> {
    if !target.exists() {
        return Ok(0);
    }
    let (replaced, _) = Snapshot::open_damaged(target)?;
    Ok(log::read_state(replaced.connection())?.writer)
}

/// Folds everything, gives every inventory a new epoch, and makes `writer` the writer of later records.
fn assign_new_epochs(
    connection: &Connection,
    writer: u16,
    new_epoch: &mut dyn FnMut() -> Epoch,
    on_inventories_done: &mut dyn FnMut(u64) -> Result<(), ToolError>,
) -> Result<(), ToolError> {
    let transaction = connection.unchecked_transaction().map_err(sql("beginning"))?;
    fold_all(&transaction)?;
    let mut query = ListQuery { limit: PAGE, ..ListQuery::default() };
    let mut done = 0;
    loop {
        let page = table::read_page(&transaction, &query, PAGE).map_err(StoreError::from)?;
        for (inventory, head) in &page.rows {
            let renewed = Arc::new(with_new_epoch(inventory, new_epoch));
            let stored = StoredInventory { state: StoredState::Present(renewed), head: *head };
            EncodedRow::new(&inventory.id, &stored, false).put(&transaction).map_err(sql("assigning new epochs"))?;
        }
        done += page.rows.len() as u64;
        on_inventories_done(done)?;
        query.after = page.rows.last().map(|(last, _)| last.id.clone());
        if page.is_all {
            break;
        }
    }
    let state = log::LogState { writer, ..log::read_state(&transaction)? };
    log::write_state(&transaction, &state).map_err(sql("assigning a new writer"))?;
    transaction.commit().map_err(sql("assigning new epochs"))
}

fn with_new_epoch(inventory: &Inventory, new_epoch: &mut dyn FnMut() -> Epoch) -> Inventory {
    let epoch = loop {
        let epoch = new_epoch();
        if epoch != inventory.epoch {
            break epoch;
        }
    };
    let contents = &inventory.contents;
    let stacks: Vec<Edit> = contents.stacks().map(|(slot, stack)| (slot, Some(stack.clone()))).collect();
    let contents = Contents::new(contents.slots().len(), Revision::CREATED, &stacks);
    Inventory { epoch, contents, ..inventory.clone() }
}

/// Folds everything into the table, inside the caller's transaction.
pub fn fold_all(connection: &Connection) -> Result<(), ToolError> {
    let unfolded = replay::unfolded(connection, Err)?;
    for (id, state) in &unfolded.states {
        EncodedRow::new(id, state, true).put(connection).map_err(sql("folding"))?;
    }
    let failed = sql("storing the fold position");
    totals::add(connection, TotalsTable::Supply, &unfolded.supply).map_err(&failed)?;
    journal::set_meta_value(connection, journal::FOLDED_THROUGH, unfolded.last_seq).map_err(failed)
}

//! A backup becomes the store.
//!
//! The world goes back to the backup's commit, and readers must notice: whoever has a state from after it could hold the
//! very revision that the restored service makes next, with other content. So every inventory gets a **new epoch**, and
//! its revisions begin at 1 again, as at a creation; a stream that resumes gets a full frame with the reason. The digest
//! stays: it is of the content alone, and the content is the same.
//!
//! **Keys** stay, with their replies as they were given (epochs and revisions of then): a retry of what is in the backup
//! is answered, not run again. A retry of what was applied after the backup finds nothing and runs: its effect has gone
//! with the rest of what was later, so running it is applying it once. What the backup had forgotten stays refused. The
//! window goes on where it was, since it is counted on the store's own clock.
//!
//! Journal rows stay for their keys only: everything is folded first, and [`journal::REWRITTEN_THROUGH`] says that the
//! table no longer follows from them.

use super::backup::{copy, scratch_connection};
use super::snapshot::Snapshot;
use super::{Step, ToolError, Watch, check, folder_of, io, sql, sync_folder, tell, temporary};
use crate::domain::{Contents, Edit, Epoch, Inventory, Revision};
use crate::store::embedded::table::EncodedRow;
use crate::store::embedded::{journal, open, replay, table};
use crate::store::{ListQuery, StoreError};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Inventories in memory at a time.
const PAGE: usize = 512;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub inventories: u64,
    /// Where the store that was there before is now.
    pub kept: Option<PathBuf>,
}

/// Puts `source` in the place of the store at `target`. One that is there is refused unless `replace` says otherwise; it
/// is kept under another name, which ends with `stamp`.
pub fn restore(
    source: &Path,
    target: &Path,
    replace: bool,
    stamp: u64,
    new_epoch: &mut dyn FnMut() -> Epoch,
    watch: &mut Watch<'_>,
) -> Result<Restored, ToolError> {
    let target = open::resolved(target)?;
    let _lock = open::lock(&target)?;
    let is_there = target.exists() || open::beside(&target, "-wal").exists();
    if is_there && !replace {
        return Err(ToolError::StoreExists(target));
    }
    let snapshot = Snapshot::open(source)?;
    if snapshot.path() == target {
        return Err(ToolError::Io { path: target, detail: "it is the store itself; name a backup".into() });
    }
    let findings = check::check(&snapshot, watch);
    if !findings.problems.is_empty() {
        return Err(ToolError::Damaged { path: source.to_owned(), findings: Box::new(findings) });
    }
    let partial = temporary(&target, ".slotcast-restore-")?;
    copy(&snapshot, partial.path(), watch)?;
    let connection = scratch_connection(partial.path())?;
    let total = findings.inventories;
    renew(&connection, new_epoch, &mut |done| tell(watch, Step { doing: "giving new epochs", done, total }))?;
    connection.close().map_err(|(_, error)| sql("closing the copy")(error))?;
    partial.as_file().sync_all().map_err(io(&target))?;
    let kept = if is_there { Some(set_aside(&target, stamp)?) } else { None };
    partial.persist_noclobber(&target).map_err(|failed| io(folder_of(&target))(failed.error))?;
    sync_folder(&target)?;
    Ok(Restored { inventories: findings.inventories, kept })
}

/// The database goes first: should it end there, the log alone is refused when it is opened, and not taken for a store
/// without its last commits.
fn set_aside(target: &Path, stamp: u64) -> Result<PathBuf, ToolError> {
    let names = (0_u32..).map(|number| match number {
        0 => open::beside(target, &format!(".replaced-{stamp}")),
        more => open::beside(target, &format!(".replaced-{stamp}-{more}")),
    });
    let is_free = |name: &PathBuf| !name.exists() && !open::beside(name, "-wal").exists();
    let kept = names.into_iter().find(is_free).unwrap_or_default();
    for suffix in ["", "-journal", "-wal"] {
        let from = open::beside(target, suffix);
        if from.exists() {
            std::fs::rename(&from, open::beside(&kept, suffix)).map_err(io(&from))?;
        }
    }
    // Made anew from the log by whoever opens it.
    match std::fs::remove_file(open::beside(target, "-shm")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(target)(error)),
        Err(_) | Ok(()) => {}
    }
    sync_folder(target)?;
    Ok(kept)
}

/// Folds everything, and begins every inventory anew.
fn renew(
    connection: &Connection,
    new_epoch: &mut dyn FnMut() -> Epoch,
    told: &mut dyn FnMut(u64) -> Result<(), ToolError>,
) -> Result<(), ToolError> {
    let transaction = connection.unchecked_transaction().map_err(sql("beginning"))?;
    fold_all(&transaction)?;
    let mut query = ListQuery { limit: PAGE, ..ListQuery::default() };
    let mut done = 0;
    loop {
        let (page, is_last) = table::read_page(&transaction, &query, PAGE).map_err(StoreError::from)?;
        for inventory in &page {
            let renewed = Arc::new(renewed(inventory, new_epoch));
            EncodedRow::new(&renewed.id, Some(&renewed), false).put(&transaction).map_err(sql("giving new epochs"))?;
        }
        done += page.len() as u64;
        told(done)?;
        query.after = page.last().map(|last| last.id.clone());
        if is_last {
            break;
        }
    }
    transaction.commit().map_err(sql("giving new epochs"))
}

fn renewed(inventory: &Inventory, new_epoch: &mut dyn FnMut() -> Epoch) -> Inventory {
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

/// Brings the table up to date, inside a transaction, and marks that it no longer follows from the journal alone.
pub fn fold_all(connection: &Connection) -> Result<(), ToolError> {
    let unfolded = replay::unfolded(connection, Err)?;
    for (id, state) in &unfolded.states {
        EncodedRow::new(id, state.as_ref(), true).put(connection).map_err(sql("folding"))?;
    }
    for mark in [journal::FOLDED_THROUGH, journal::REWRITTEN_THROUGH] {
        journal::put_number(connection, mark, unfolded.last_seq).map_err(sql("marking what is folded"))?;
    }
    Ok(())
}

//! Tools for the operator of a store's file: they inspect and copy it while a server has it open, and create or change
//! one that no server has open.
//!
//! A [`Snapshot`] is a SQLite read transaction from outside the server, so it needs no lock. It sees exactly the
//! commits up to the moment when it was taken, because a commit is one transaction. While it lasts, the write-ahead log
//! of the server cannot restart and grows with each commit, and the fold tries to empty the log only after every
//! additional 16 MiB. [`check()`] is fsck, [`backup()`] and [`restore()`] copy pages, and [`import::Staging`] imports
//! inventories.

mod accept_loss;
mod backup;
mod chains;
mod check;
pub mod import;
mod log_check;
mod restore;
mod snapshot;

pub use accept_loss::{AcceptedLoss, accept_loss};
pub use backup::{BackupSummary, backup, backup_without_history};
pub use check::{Findings, PROBLEMS_MAX, check};
pub use restore::{RestoreSummary, restore};
pub use snapshot::{Inventories, NewestState, Snapshot};

use super::failure;
use super::files::{self, FileId};
use super::items::CatalogError;
use super::open::OpenError;
use crate::store::StoreError;
use std::fs::{File, TryLockError};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// The progress of a long-running tool, reported regularly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgressUpdate {
    /// The current phase as a gerund, such as "copying".
    pub phase: &'static str,
    /// In bytes or in rows, depending on the phase.
    pub done: u64,
    /// 0 if the total is unknown.
    pub total: u64,
}

/// Receives the progress. A break ends the tool, which then leaves no changes.
pub type ProgressCallback<'a> = dyn FnMut(ProgressUpdate) -> ControlFlow<()> + 'a;

fn report_progress(on_progress: &mut ProgressCallback<'_>, update: ProgressUpdate) -> Result<(), ToolError> {
    if on_progress(update).is_break() { Err(ToolError::Interrupted) } else { Ok(()) }
}

/// Why a tool failed.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("{} already exists; choose another name, or replace it with --force", .0.display())]
    Exists(PathBuf),
    #[error("{} already exists; replace it with --force, which keeps it under another name", .0.display())]
    StoreExists(PathBuf),
    #[error("interrupted; nothing was changed")]
    Interrupted,
    #[error("{}: {detail}", path.display())]
    Io { path: PathBuf, detail: String },
    #[error("{} is corrupt and was not used; `slotcast fsck --data` lists all problems; if only the log is damaged, make a copy with `slotcast backup --without-history` and restore that. {}", path.display(), findings.problems.join("; "))]
    Corrupt { path: PathBuf, findings: Box<Findings> },
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> ToolError {
    move |error| ToolError::Io { path: path.to_owned(), detail: error.to_string() }
}

fn sql(action: &'static str) -> impl Fn(rusqlite::Error) -> ToolError {
    move |error| ToolError::Store(failure::store_error(action, &error))
}

/// Makes created or changed names in a file's directory durable.
fn sync_dir(path: &Path) -> Result<(), ToolError> {
    files::sync_dir(path).map_err(io(files::parent_dir(path)))
}

/// Creates a temporary file beside `path`, which is removed unless the caller persists it.
fn create_temporary(path: &Path, prefix: &str) -> Result<tempfile::NamedTempFile, ToolError> {
    files::create_temporary(path, prefix).map_err(io(files::parent_dir(path)))
}

/// Checks that a tool may write its output to `target`: it must not be one of the store's own files, or belong to a
/// store that is in use.
pub fn check_output(snapshot: &Snapshot, target: &Path) -> Result<(), ToolError> {
    let refused = |detail: &str| Err(ToolError::Io { path: target.to_owned(), detail: detail.to_owned() });
    let Some(id) = FileId::at(target) else { return Ok(()) };
    let of_store = ["", "-wal", "-shm", "-journal", "-lock"].map(|suffix| files::with_suffix(snapshot.path(), suffix));
    if of_store.iter().any(|file| FileId::at(file) == Some(id)) {
        return refused("it belongs to the store itself; choose another file");
    }
    match File::open(target).map(|file| file.try_lock_shared()) {
        Ok(Err(TryLockError::WouldBlock)) => refused("a running server has it open; choose another file"),
        // Writing the file later shows whether it is writable.
        Ok(Ok(()) | Err(TryLockError::Error(_))) | Err(_) => Ok(()),
    }
}

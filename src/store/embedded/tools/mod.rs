//! What an operator does with a store's file: look at it and copy it while a service has it open, and make or change one
//! that no service has open.
//!
//! A [`Snapshot`] is a read transaction of SQLite's from outside of the service, so it needs no lock and sees exactly
//! what was committed when it was taken: a commit is one transaction. What it costs the service: as long as it lasts the
//! write-ahead log cannot start over and grows by what is committed meanwhile, and the fold tries to empty it only after
//! every 16 MiB more. [`check()`] is fsck, [`backup()`] and [`restore()`] copy pages, [`import::Staging`] takes inventories in.

mod backup;
mod check;
mod expected;
pub mod import;
mod restore;
mod snapshot;

pub use backup::{BackedUp, backup};
pub use check::{Findings, PROBLEMS_MAX, check};
pub use restore::{Restored, restore};
pub use snapshot::{Inventories, Snapshot};

use super::failure;
use super::items::CatalogError;
use super::open::OpenError;
use crate::store::StoreError;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// How far a long work is; told now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub doing: &'static str,
    pub done: u64,
    /// 0: not known.
    pub total: u64,
}

/// Told of each step. A break ends the work, and nothing of it is left.
pub type Watch<'a> = dyn FnMut(Step) -> ControlFlow<()> + 'a;

fn tell(watch: &mut Watch<'_>, step: Step) -> Result<(), ToolError> {
    if watch(step).is_break() { Err(ToolError::Interrupted) } else { Ok(()) }
}

#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("{} is there already; give another name, or replace it with --force", .0.display())]
    Exists(PathBuf),
    #[error("{} is there already; set it aside with --force: it is kept under another name", .0.display())]
    StoreExists(PathBuf),
    #[error("interrupted; nothing was changed")]
    Interrupted,
    #[error("{}: {detail}", path.display())]
    Io { path: PathBuf, detail: String },
    #[error("{} is damaged and was not taken; `slotcast fsck --data` tells all of it. {}", path.display(), findings.problems.join("; "))]
    Damaged { path: PathBuf, findings: Box<Findings> },
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> ToolError {
    move |error| ToolError::Io { path: path.to_owned(), detail: error.to_string() }
}

fn sql(doing: &'static str) -> impl Fn(rusqlite::Error) -> ToolError {
    move |error| ToolError::Store(failure::store_error(doing, &error))
}

/// The folder that a file lies in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

/// Names that were made or changed in a folder last from now on.
fn sync_folder(path: &Path) -> Result<(), ToolError> {
    let folder = folder_of(path);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder))
}

/// A file of its own beside `path`, gone again unless it is kept. Readable as the store's own file is.
fn temporary(path: &Path, prefix: &str) -> Result<tempfile::NamedTempFile, ToolError> {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder_of(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).permissions(std::fs::Permissions::from_mode(0o644));
    builder.tempfile_in(folder).map_err(io(folder))
}

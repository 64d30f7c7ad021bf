//! Lets a store with a damaged write-ahead log continue without the commits after the damage.
//!
//! Readers may have seen these commits, and later commits use their revisions again. So this works as a restore of the
//! data that is still readable, with the same effects on epochs and keys. A retry of a discarded commit finds no key
//! and runs, because its effect is gone. The damaged files are kept under another name.

use super::restore::copy_with_new_epochs;
use super::snapshot::Snapshot;
use super::{ProgressCallback, ToolError, backup, io};
use crate::domain::Epoch;
use crate::store::embedded::files::StoreLock;
use crate::store::embedded::open::{self, OpenError};
use crate::store::embedded::replace;
use crate::store::embedded::wal::WalDamage;
use std::path::{Path, PathBuf};

/// The result of discarding the commits after the damage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedLoss {
    pub damage: WalDamage,
    /// Sequence number of the last journal row that remains.
    pub last_seq: i64,
    /// Number of inventories; each has a new epoch.
    pub inventories: u64,
    /// The new path of the damaged store; its write-ahead log is beside it.
    pub old_store: Option<PathBuf>,
}

/// Discards the commits after the damage in the write-ahead log of the store at `path`. Returns `None` if there is no
/// damage. Needs as much free disk space as the store uses.
pub fn accept_loss(
    path: &Path,
    label_number: u64,
    new_epoch: &mut dyn FnMut() -> Epoch,
    on_progress: &mut ProgressCallback<'_>,
) -> Result<Option<AcceptedLoss>, ToolError> {
    let path = open::resolve(path)?;
    // Released last: until then the snapshot must not lose its locks.
    let mut lock = StoreLock::acquire(&path)?;
    open::complete_replacement(&path, &mut lock)?;
    // The server reports any other fault when it opens the store.
    let Err(OpenError::DamagedWal { damage, .. }) = open::check_wal(&path) else { return Ok(None) };
    let (snapshot, _) = Snapshot::open_damaged(&path)?;
    let last_seq = backup::last_seq(&snapshot)?;
    let (new, inventories) = copy_with_new_epochs(&snapshot, &path, &path, new_epoch, on_progress)?;
    drop(snapshot);
    let old_store = replace::replace(new, &path, &format!("damaged-{label_number}")).map_err(io(&path))?;
    Ok(Some(AcceptedLoss { damage, last_seq, inventories, old_store }))
}

//! A store whose write-ahead log is damaged goes on without the commits behind the damage.
//!
//! Readers may have seen them, and their revision numbers will be used again: so it is done as a restore of what can still
//! be read, and everything that is said there of epochs and keys holds. A retry of a commit that is given up finds no key
//! and runs, since its effect has gone. The damaged files stay under another name.

use super::restore::renewed_copy;
use super::snapshot::Snapshot;
use super::{ToolError, Watch, backup, io};
use crate::domain::Epoch;
use crate::store::embedded::files::Locked;
use crate::store::embedded::log::Damage;
use crate::store::embedded::open::{self, OpenError};
use crate::store::embedded::replace;
use std::path::{Path, PathBuf};

/// What was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedLoss {
    pub damage: Damage,
    /// The last commit that is still there, as a row of the journal.
    pub last_seq: i64,
    /// Each of them has a new epoch.
    pub inventories: u64,
    /// Where the damaged store is now; its log is beside it.
    pub kept: Option<PathBuf>,
}

/// Gives up the commits behind the damage in the log of the store at `path`; none if there is no damage. Needs as much room
/// again as the store takes.
pub fn accept_loss(
    path: &Path,
    stamp: u64,
    new_epoch: &mut dyn FnMut() -> Epoch,
    watch: &mut Watch<'_>,
) -> Result<Option<AcceptedLoss>, ToolError> {
    let path = open::resolved(path)?;
    // Released last: until then the snapshot must not lose its locks.
    let mut lock = Locked::take(&path)?;
    open::complete_replacement(&path, &mut lock)?;
    // Whatever else is wrong, the service tells when it opens the store.
    let Err(OpenError::DamagedLog { damage, .. }) = open::check_log(&path) else { return Ok(None) };
    let (snapshot, _) = Snapshot::open_damaged(&path)?;
    let last_seq = backup::last_seq(&snapshot)?;
    let (new, inventories) = renewed_copy(&snapshot, &path, &path, new_epoch, watch)?;
    drop(snapshot);
    let kept = replace::replace(new, &path, &format!("damaged-{stamp}")).map_err(io(&path))?;
    Ok(Some(AcceptedLoss { damage, last_seq, inventories, kept }))
}

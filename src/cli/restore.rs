//! `slotcast restore`: replaces the store with a backup.

use super::CommandResult;
use super::data::{DataDirectory, Progress, store_path, unix_ms};
use super::output::print;
use crate::engine::new_epoch;
use crate::store::embedded::tools;
use std::path::PathBuf;

/// Replace the store with a backup. Stop the server first.
///
/// Verifies the whole backup first. Every inventory gets a new epoch, so a stream that resumes receives a full state.
/// Idempotency keys are kept: a retry of a mutation in the backup gets its stored reply, and a retry of a later
/// mutation is applied, because the restore has undone its effect. With --force, an existing store is renamed and kept
/// in the same directory.
#[derive(Debug, clap::Args)]
pub struct Restore {
    #[command(flatten)]
    data: DataDirectory,
    /// Backup file, or directory of a store.
    source: PathBuf,
    /// Rename an existing store and restore in its place.
    #[arg(long)]
    force: bool,
}

impl Restore {
    pub fn run(self) -> CommandResult {
        let progress = Progress::interruptible()?;
        let source = if self.source.is_dir() { store_path(&self.source) } else { self.source.clone() };
        let (target, restored_at_s) = (self.data.create()?, unix_ms() / 1_000);
        let restored = tools::restore(&source, &target, self.force, restored_at_s, &mut new_epoch, &mut |step| {
            progress.show(step)
        })?;
        drop(progress);
        if let Some(old_store) = restored.old_store {
            print(format_args!("the previous store was renamed to {}", old_store.display()))?;
        }
        Ok(print(format_args!("{}: {} inventories, each with a new epoch", target.display(), restored.inventories))?)
    }
}

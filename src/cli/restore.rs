//! `slotcast restore`: a backup becomes the store.

use super::CommandResult;
use super::data::{DataFolder, Progress, store_in, unix_ms};
use super::output::print;
use crate::engine::new_epoch;
use crate::store::embedded::tools;
use std::path::PathBuf;

/// Puts a backup in the place of the store; the service must not run on it.
///
/// The backup is checked as a whole first. Every inventory gets a new epoch, so that clients notice: a stream that resumes
/// gets all slots anew. Idempotency keys are kept: a retry of a mutation that is in the backup is answered as it was then,
/// and a retry of a later one runs, since its effect has gone. With --force a store that is there is set aside under
/// another name beside it, never deleted.
#[derive(Debug, clap::Args)]
pub struct Restore {
    #[command(flatten)]
    data: DataFolder,
    /// The backup, or the folder of a store.
    source: PathBuf,
    /// Set the store that is there aside.
    #[arg(long)]
    force: bool,
}

impl Restore {
    pub fn run(self) -> CommandResult {
        let progress = Progress::interruptible()?;
        let source = if self.source.is_dir() { store_in(&self.source) } else { self.source.clone() };
        let (target, stamp) = (self.data.make()?, unix_ms() / 1_000);
        let restored =
            tools::restore(&source, &target, self.force, stamp, &mut new_epoch, &mut |step| progress.show(step))?;
        drop(progress);
        if let Some(kept) = restored.kept {
            print(format_args!("the store that was there is now {}", kept.display()))?;
        }
        Ok(print(format_args!("{}: {} inventories, each with a new epoch", target.display(), restored.inventories))?)
    }
}

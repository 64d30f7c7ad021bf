//! `slotcast backup`: a copy of the store, while the service runs.

use super::CommandResult;
use super::data::{DataFolder, Progress};
use super::output::print;
use crate::store::embedded::tools::{self, Snapshot};
use std::path::PathBuf;

/// Copies the store to a file, while the service runs or not.
///
/// The copy holds every mutation that was acknowledged before the start, and none in part. It is a whole store, with the
/// idempotency keys; `slotcast restore` puts it in a store's place, `slotcast fsck --data FILE` checks it. It appears under
/// its name once it is complete and on the disk. While it is made, the service's write-ahead log grows by what is
/// committed meanwhile.
#[derive(Debug, clap::Args)]
pub struct Backup {
    #[command(flatten)]
    data: DataFolder,
    /// The file to make.
    target: PathBuf,
    /// Replace the file if it is there.
    #[arg(long)]
    force: bool,
}

impl Backup {
    pub fn run(self) -> CommandResult {
        let progress = Progress::interruptible()?;
        let snapshot = Snapshot::open(&self.data.store())?;
        let made = tools::backup(&snapshot, &self.target, self.force, &mut |step| progress.show(step))?;
        drop(progress);
        let (target, bytes, last) = (self.target.display(), made.bytes, made.last_seq);
        Ok(print(format_args!("{target}: {bytes} bytes, through commit {last}"))?)
    }
}

//! `slotcast backup`: copies the store.

use super::CommandResult;
use super::data::{DataDirectory, Progress};
use super::output::print;
use crate::store::embedded::tools::{self, Snapshot};
use std::path::PathBuf;

/// Copy the store to a file. Can run while the server is running.
///
/// The copy contains every mutation that was acknowledged before the backup started, and no partial mutation. It is a
/// complete store, including idempotency keys. Check it with `slotcast fsck --data FILE` and restore it with
/// `slotcast restore`. The file is created atomically, after it is complete and synced to disk. During a backup, the
/// server's write-ahead log grows with each commit.
#[derive(Debug, clap::Args)]
pub struct Backup {
    #[command(flatten)]
    data: DataDirectory,
    /// File to create.
    target: PathBuf,
    /// Overwrite the file if it exists.
    #[arg(long)]
    force: bool,
}

impl Backup {
    pub fn run(self) -> CommandResult {
        let progress = Progress::interruptible()?;
        let snapshot = Snapshot::open(&self.data.store_path())?;
        let backup = tools::backup(&snapshot, &self.target, self.force, &mut |step| progress.show(step))?;
        drop(progress);
        let (target, bytes, last) = (self.target.display(), backup.bytes, backup.last_seq);
        Ok(print(format_args!("{target}: {bytes} bytes, up to commit {last}"))?)
    }
}

//! `slotcast backup`: copies the store.

use super::CommandResult;
use super::data::{DataDirectory, Progress};
use super::output::print;
use crate::store::embedded::tools::{self, Snapshot};
use std::path::PathBuf;

/// Copy the store to a file. Can run while the server is running.
///
/// The copy contains every mutation that was acknowledged before the backup started, and no partial mutation. It is a
/// complete store, including idempotency keys and history. Check it with `slotcast fsck --data FILE` and restore it with
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
    /// Omit the sealed history, which makes the copy smaller. The history of a store that is restored from the copy begins
    /// with the journal; the supply remains complete.
    #[arg(long)]
    without_history: bool,
}

impl Backup {
    pub fn run(self) -> CommandResult {
        let progress = Progress::interruptible()?;
        let snapshot = Snapshot::open(&self.data.store_path())?;
        let backup = if self.without_history { tools::backup_without_history } else { tools::backup };
        let backup = backup(&snapshot, &self.target, self.force, &mut |step| progress.show(step))?;
        drop(progress);
        let (target, bytes, last) = (self.target.display(), backup.bytes, backup.last_seq);
        Ok(print(format_args!("{target}: {bytes} bytes, up to commit {last}"))?)
    }
}

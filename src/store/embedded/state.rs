//! The state of an open store, which callers and the fold share.

use super::files::OpenFiles;
use super::keys::{JournalRow, KeyHasher, KeyIndex, RowLocation};
use super::log::LogState;
use super::overlay::Overlay;
use super::probe::RecentDamage;
use super::settings::EmbeddedSettings;
use super::stop::FailureStreak;
use crate::store::format::BatchTime;
use crate::store::log::{ChainHead, Position};
use crate::store::{MutationRecord, StoreError};
use parking_lot::{Condvar, FairMutex, Mutex, MutexGuard};
use rusqlite::Connection;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;

/// The state that callers and the fold share.
#[derive(Debug)]
pub struct StoreInner {
    pub path: PathBuf,
    pub settings: EmbeddedSettings,
    pub hasher: KeyHasher,
    pub memory: Mutex<MemoryState>,
    /// Wakes the fold.
    pub fold_wakeup: Condvar,
    /// Wakes the threads that wait for the fold.
    pub fold_progress: Condvar,
    /// Held while a transaction writes to the file: SQLite allows one writer at a time, and waits for it by polling.
    ///
    /// The lock is fair: unlocking hands it to the thread that has waited longest. The fold takes it again at once for
    /// its next slice, so with an ordinary mutex the fold would nearly always win over a waiting commit. With this one
    /// a commit waits for one slice, or for two if it began to wait in the last microseconds of the first one, while a
    /// waiting thread still spins. A series of commits does not starve the fold.
    pub write_lock: FairMutex<()>,
    /// Held during a WAL checkpoint. A thread that needs both this lock and `write_lock` takes this lock
    /// first.
    pub checkpoint: Mutex<()>,
    /// Idle read connections.
    pub readers: Mutex<Vec<Connection>>,
    /// The reason why the store has stopped writing; `None` while it runs.
    pub stopped: watch::Sender<Option<StoreError>>,
    pub recent_damage: RecentDamage,
    // Must be closed after every connection, see [`super::files::StoreLock`].
    pub files: OpenFiles,
}

/// The in-memory state, guarded by one lock that is never held during a write.
#[derive(Debug)]
pub struct MemoryState {
    pub overlay: Overlay,
    pub keys: KeyIndex,
    /// The last committed journal row.
    pub last_seq: i64,
    /// The position of the next record.
    pub next_position: Position,
    /// The position of the last record; none if the log is empty. After a restore it is of another writer.
    pub last_position: Position,
    /// The time of the last record, in milliseconds since the Unix epoch.
    pub last_time_ms: u64,
    /// The sealed part of the log.
    pub log: LogState,
    /// The last row of the generation that is being folded.
    pub folding_through: i64,
    /// The last row that is folded into the table.
    pub folded_through: i64,
    /// Value of the store's own clock when it was opened, in milliseconds.
    pub opened_uptime_ms: u64,
    /// Value of [`EmbeddedSettings::clock`] when the store was opened.
    pub opened_at: Duration,
    /// Approximate length of the write-ahead log, in bytes.
    pub wal_bytes: u64,
    /// The length of the write-ahead log from which a checkpoint is due, in bytes.
    pub wal_due_bytes: u64,
    /// Number of calls of [`super::EmbeddedStore::fold`]; `fold_calls_completed` is how many of them have ended.
    pub fold_calls: u64,
    /// Whether one of them asked to seal all due rows.
    pub seal_all: bool,
    pub fold_calls_completed: u64,
    /// Why the last round of the fold failed; `None` after a successful round.
    pub fold_failure: Option<StoreError>,
    /// Failed commits, including commits that find no room because the fold fails.
    pub commit_failures: FailureStreak,
    /// Failed reads of the file.
    pub read_failures: FailureStreak,
    pub is_closing: bool,
}

impl StoreInner {
    pub fn new(
        path: PathBuf,
        settings: EmbeddedSettings,
        hasher: KeyHasher,
        mut memory: MemoryState,
        files: OpenFiles,
    ) -> Self {
        memory.wal_due_bytes = settings.wal_checkpoint_bytes;
        Self {
            path,
            settings,
            hasher,
            memory: Mutex::new(memory),
            fold_wakeup: Condvar::new(),
            fold_progress: Condvar::new(),
            write_lock: FairMutex::default(),
            checkpoint: Mutex::default(),
            readers: Mutex::default(),
            stopped: watch::Sender::default(),
            recent_damage: RecentDamage::default(),
            files,
        }
    }

    pub fn committed(&self, row: JournalRow, batch: &[MutationRecord], heads: &[ChainHead]) {
        let now = (self.settings.clock)();
        let RowLocation { seq, first, count, bytes } = row.location;
        let mut memory = self.lock();
        (memory.last_seq, memory.next_position) = (seq, first.plus(count));
        memory.last_position = memory.next_position.before();
        memory.last_time_ms = row.time.time_ms;
        memory.keys.push(row, batch.iter().map(|mutation| &mutation.key));
        memory.overlay.active.add(batch, heads, now);
        memory.wal_bytes += super::fold::wal_bytes_added(bytes);
        memory.commit_failures.reset();
        if self.has_fold_work(&memory) {
            self.fold_wakeup.notify_all();
        }
    }

    /// Reads both clocks, and determines the time of the next records. The key window uses the store's own clock, so that no step of the wall clock frees a key. The
    /// wall clock is compared with the times inside keys.
    pub fn batch_time(&self, memory: &MemoryState) -> BatchTime {
        let open_for = (self.settings.clock)().saturating_sub(memory.opened_at);
        let uptime_ms = memory.opened_uptime_ms + open_for.as_millis() as u64;
        let unix_ms = (self.settings.wall_clock)().as_millis() as u64;
        BatchTime { uptime_ms, unix_ms, time_ms: unix_ms.max(memory.last_time_ms) }
    }

    /// Stops the store if its paths no longer refer to its files, or if the files were overwritten.
    pub fn check_files(&self) -> Result<(), StoreError> {
        self.files.check().map_err(|problem| {
            let failure = StoreError::Unavailable {
                detail: format!("{problem} while the store was open; put the file back or restore a backup"),
            };
            self.stop(&failure);
            failure
        })
    }

    pub fn lock(&self) -> MutexGuard<'_, MemoryState> {
        self.memory.lock()
    }
}

/// The state of a store when it was opened.
pub struct InitialState {
    pub last_seq: i64,
    pub next_position: Position,
    pub last_position: Position,
    pub last_time_ms: u64,
    pub log: LogState,
    pub folded_through: i64,
    pub uptime_ms: u64,
    pub opened_at: Duration,
}

impl MemoryState {
    pub fn new(overlay: Overlay, keys: KeyIndex, initial: InitialState) -> Self {
        Self {
            overlay,
            keys,
            last_seq: initial.last_seq,
            next_position: initial.next_position,
            last_position: initial.last_position,
            last_time_ms: initial.last_time_ms,
            log: initial.log,
            folding_through: initial.folded_through,
            folded_through: initial.folded_through,
            opened_uptime_ms: initial.uptime_ms,
            opened_at: initial.opened_at,
            wal_bytes: 0,
            wal_due_bytes: 0,
            fold_calls: 0,
            seal_all: false,
            fold_calls_completed: 0,
            fold_failure: None,
            commit_failures: FailureStreak::default(),
            read_failures: FailureStreak::default(),
            is_closing: false,
        }
    }
}

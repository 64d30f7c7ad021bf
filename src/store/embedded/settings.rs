//! What can be chosen, and what can be measured.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Time since a fixed moment. An argument, so that tests can drive it.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

#[derive(Clone)]
pub struct EmbeddedSettings {
    /// The most bytes that the file may take; commits are refused as full above it. The write-ahead log beside it is not
    /// counted. None: as much as the disk has.
    pub bytes_max: Option<u64>,
    /// What the fold may use above that: it has to put away what is committed already, or no journal row could ever be
    /// trimmed and no room come back.
    pub fold_reserve_bytes: u64,
    /// How long an idempotency key is remembered, by the store's own clock, unless there are too many.
    pub key_window: Duration,
    /// How many keys are remembered, beside those of records that are not folded yet.
    pub keys_max: usize,
    /// A round of the fold begins after so many records,
    pub round_records: usize,
    /// or so many changed inventories,
    pub round_inventories: usize,
    /// or when the oldest change is this old.
    pub round_after: Duration,
    /// For how long the fold writes at a time while nothing presses; a commit waits for one slice at most.
    pub slice: Duration,
    /// Commits wait while this many records are not folded. It bounds the time that opening takes,
    pub unfolded_records_max: usize,
    /// and this the memory. An inventory that changes again while it is folded counts twice.
    pub unfolded_inventories_max: usize,
    /// The write-ahead log is emptied when it is longer than this, and a little longer meanwhile. Each time the disk's
    /// flush delays a commit, so it is not to be short; and opening after a crash reads all of it.
    pub wal_bytes_soft: u64,
    /// For how long commits, or reads of most of the file, may fail without one success before the store stops. Failures
    /// for want of room do not count: they may last.
    pub failing_max: Duration,
    /// Time since any moment, never going back.
    pub clock: Clock,
    /// Time since 1970, as the machine tells it. Compared with the times inside keys, and may step.
    pub wall_clock: Clock,
}

impl Default for EmbeddedSettings {
    fn default() -> Self {
        let start = Instant::now();
        Self {
            bytes_max: None,
            fold_reserve_bytes: 64 << 20,
            key_window: Duration::from_secs(15 * 60),
            keys_max: 1_000_000,
            round_records: 100_000,
            round_inventories: 40_000,
            round_after: Duration::from_secs(5),
            slice: Duration::from_micros(250),
            unfolded_records_max: 200_000,
            unfolded_inventories_max: 98_304,
            wal_bytes_soft: 64 << 20,
            failing_max: Duration::from_secs(15),
            clock: Arc::new(move || start.elapsed()),
            wall_clock: Arc::new(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()),
        }
    }
}

impl std::fmt::Debug for EmbeddedSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedSettings")
            .field("bytes_max", &self.bytes_max)
            .field("key_window", &self.key_window)
            .field("keys_max", &self.keys_max)
            .finish_non_exhaustive()
    }
}

/// How the store is doing, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    pub journal_rows: usize,
    pub remembered_keys: usize,
    /// Callers with keys ahead of the wall clock, remembered or forgotten.
    pub callers_ahead: usize,
    pub unfolded_records: usize,
    pub unfolded_inventories: usize,
    /// Generations that were folded since the store was opened.
    pub folds: u64,
    /// The write-ahead log's file; it is reused from its beginning, and shrinks only after it had grown far too long.
    pub wal_bytes: u64,
}

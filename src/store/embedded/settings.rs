//! Settings and statistics of the embedded store.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// A clock: the time since a fixed moment. It is configurable, so that tests can control it.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Settings of an [`super::EmbeddedStore`].
#[derive(Clone)]
pub struct EmbeddedSettings {
    /// Maximum size of the file, in bytes; larger commits are refused as full. The write-ahead log beside the file is
    /// not counted. `None`: only the disk limits the size.
    pub bytes_max: Option<u64>,
    /// Additional bytes that the fold may use above that. Without them the fold could not store changes that are
    /// already committed, so that no journal row could ever be trimmed and no room be freed.
    pub fold_reserve_bytes: u64,
    /// How long an idempotency key is remembered by the store's own clock, unless there are too many keys.
    pub key_window: Duration,
    /// Maximum number of remembered keys, except for the keys of records that are not folded yet.
    pub keys_max: usize,
    /// How long sealed records are kept, by the wall clock.
    pub history_age: Duration,
    /// Maximum size of the sealed records, in bytes; the oldest are deleted above it. `None`: only the age limits it.
    pub history_bytes_max: Option<u64>,
    /// Size of the journal rows that become a segment of the log, in bytes.
    pub segment_bytes: usize,
    /// Age of a journal row after which it is sealed although too few rows for a segment are due.
    pub seal_after: Duration,
    /// Number of records after which a round of the fold begins.
    pub round_records: usize,
    /// Number of changed inventories after which a round of the fold begins.
    pub round_inventories: usize,
    /// Age of the oldest change after which a round of the fold begins.
    pub fold_after: Duration,
    /// How long the fold writes at a time while there is enough room. A commit waits for at most one slice.
    pub slice: Duration,
    /// Commits wait while this many records are not folded. Bounds the time that opening takes.
    pub unfolded_records_max: usize,
    /// Commits wait while this many inventories are not folded. Bounds the memory. An inventory that changes again
    /// while it is folded counts twice.
    pub unfolded_inventories_max: usize,
    /// Length from which the write-ahead log is emptied, in bytes; it grows a little longer meanwhile. Emptying flushes
    /// the disk, which delays a commit, so the log should not be short; but opening after a crash reads all of it.
    pub wal_checkpoint_bytes: u64,
    /// How long commits, or reads of most of the file, may fail without one success before the store stops. Failures
    /// because the disk is full do not count: they may last.
    pub failing_max: Duration,
    /// Monotonic time since any fixed moment.
    pub clock: Clock,
    /// Time since the Unix epoch by the machine's clock, which may step. It is compared with the times inside keys.
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
            history_age: Duration::from_secs(30 * 24 * 3_600),
            history_bytes_max: None,
            segment_bytes: 1 << 20,
            seal_after: Duration::from_secs(24 * 3_600),
            round_records: 100_000,
            round_inventories: 40_000,
            fold_after: Duration::from_secs(5),
            slice: Duration::from_micros(250),
            unfolded_records_max: 200_000,
            unfolded_inventories_max: 98_304,
            wal_checkpoint_bytes: 64 << 20,
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

/// Statistics of the store at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddedStatistics {
    pub journal_rows: usize,
    /// Number of blocks in the sealed part of the log.
    pub log_blocks: u64,
    /// Size of these blocks, in bytes.
    pub log_bytes: u64,
    pub remembered_keys: usize,
    /// Number of callers with keys ahead of the wall clock, remembered or expired.
    pub callers_ahead: usize,
    pub unfolded_records: usize,
    pub unfolded_inventories: usize,
    /// Number of generations that were folded since the store was opened.
    pub generations_folded: u64,
    /// Size of the write-ahead log's file, in bytes. The file is reused from its beginning, and shrinks only after it
    /// has grown far too long.
    pub wal_bytes: u64,
}

//! The embedded store: one SQLite file with an append-only journal in it.
//!
//! A commit appends one journal row that contains the whole batch, and writes nothing else; [`fold`] updates the table
//! of inventories afterwards. Memory holds the changes that are not folded yet ([`overlay`]) and the location of each
//! idempotency key's record ([`keys`]). Opening rebuilds both from the journal ([`replay`]). SQLite provides the file
//! format and crash safety; the store adds its own checksums, since SQLite has none.
//!
//! Threads: callers read over their own connections; one caller at a time commits; the fold has its own thread. Writers
//! share a fair lock ([`state`]).

mod checkpoint;
mod failure;
mod files;
mod fold;
mod header;
mod items;
mod journal;
mod keys;
mod log;
mod open;
mod overlay;
mod probe;
mod reading;
mod replace;
mod replay;
mod settings;
mod state;
mod stop;
mod table;
pub mod tools;
mod wal;

pub use items::{CatalogError, CodeConflict};
pub use open::{FORMAT_VERSION, OpenError};
pub use settings::{Clock, EmbeddedSettings, EmbeddedStatistics};

use super::log::{ChainHead, Position};
use super::{
    CommitError, ListPage, ListQuery, Loaded, LogUsage, MutationRecord, ScopedKey, Store, StoreError, StoreUsage,
};
use crate::domain::InventoryId;
use crate::store::format::{BatchEncoder, BatchTime, ChainHeads};
use failure::RetryError;
use files::{OpenFiles, PeriodicCheck, StoreLock};
use keys::{KeyHasher, RowLocation};
use parking_lot::Mutex;
use rusqlite::Connection;
use state::{MemoryState, StoreInner};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::watch;

/// A store in one file, for one process.
///
/// Dropping it interrupts the fold; the next opening replays the rest. [`Self::close`] leaves nothing to replay.
#[derive(Debug)]
pub struct EmbeddedStore {
    // Drop order: the connections first, then the lock, which is in `inner`.
    writer: Mutex<Connection>,
    inner: Arc<StoreInner>,
    fold: Option<JoinHandle<()>>,
    file_check: Option<PeriodicCheck>,
}

impl EmbeddedStore {
    /// Opens the file, or creates it; its directory must exist. SQLite's `-wal` and `-shm` and the store's `-lock` are
    /// beside it.
    ///
    /// Takes about 2 us per remembered key and 10 us per inventory that was not folded, independent of the file's size.
    pub fn open(given_path: &Path, settings: EmbeddedSettings) -> Result<Self, OpenError> {
        let mut prepared = open::prepare(given_path)?;
        prepared.create()?;
        let open::PreparedStore { path, lock, .. } = prepared;
        let hasher = KeyHasher::default();
        let Connections { writer, fold_connection, memory } = connect(&lock, &settings, &hasher)?;
        let failed = |error| open::open_error(&path, &error);
        [&writer, &fold_connection].into_iter().try_for_each(open::allow_checkpoint_on_close).map_err(failed)?;
        let files = OpenFiles::new(lock, given_path).map_err(|error| open::io_error(&path, &error.to_string()))?;
        tracing::info!(
            path = %path.display(),
            journal_rows = memory.keys.rows(),
            remembered_keys = memory.keys.remembered(),
            replayed_records = memory.overlay.active.records,
            replayed_inventories = memory.overlay.active.states.len(),
            "opened the store"
        );
        let inner = Arc::new(StoreInner::new(path.clone(), settings, hasher, memory, files));
        let (for_fold, for_file_check) = (inner.clone(), inner.clone());
        // Constructed before the threads, so that everything is dropped in order if a thread cannot be started.
        let mut store = Self { writer: Mutex::new(writer), inner, fold: None, file_check: None };
        let no_thread = |error| open::io_error(&path, &format!("cannot start a thread: {error}"));
        let fold = std::thread::Builder::new().name("slotcast-fold".into()).spawn(move || {
            let _guard = fold::StopOnPanic(&for_fold);
            fold::run(&for_fold, fold_connection);
        });
        store.fold = Some(fold.map_err(no_thread)?);
        store.file_check = Some(PeriodicCheck::start(move || for_file_check.check_files().is_ok()).map_err(no_thread)?);
        Ok(store)
    }

    /// Folds everything that was committed before the call, seals the rows that are due, and returns when that is done.
    pub fn fold(&self) -> Result<(), StoreError> {
        self.run_fold(true)
    }

    /// Folds everything that was committed before the call. With `seal_all`, also seals all rows that are due.
    fn run_fold(&self, seal_all: bool) -> Result<(), StoreError> {
        let mut memory = self.inner.lock();
        memory.fold_calls += 1;
        memory.seal_all |= seal_all;
        let requested = memory.fold_calls;
        self.inner.fold_wakeup.notify_all();
        while memory.fold_calls_completed < requested {
            if let Some(stopped) = self.inner.stop_reason() {
                return Err(stopped);
            }
            self.inner.fold_progress.wait(&mut memory);
        }
        memory.fold_failure.clone().map_or(Ok(()), Err)
    }

    /// Folds everything and empties the write-ahead log, so that the next opening has nothing to replay. Call it after
    /// the last commit; later commits are replayed as after a crash.
    pub fn flush(&self) -> Result<(), StoreError> {
        // What is due is sealed after the next opening, so that stopping does not take long.
        self.run_fold(false)?;
        // A log that was cut or replaced must not be copied into the file.
        self.inner.check_files()?;
        let writer = self.writer.lock();
        self.with_writes_paused(|| checkpoint::checkpoint_and_truncate(&writer)).map_err(|error| {
            let failed = failure::store_error("emptying the write-ahead log", &error);
            // Otherwise closing would try again, and then remove the log.
            if failure::is_fatal(&error) {
                self.inner.stop(&failed);
            }
            failed
        })
    }

    /// Closes the file, which then needs no replay.
    pub fn close(self) -> Result<(), StoreError> {
        self.flush()
    }

    /// Runs `work` while all writes wait. If `work` copies the file and its `-wal`, the copies contain exactly the
    /// commits so far.
    pub fn with_writes_paused<T>(&self, work: impl FnOnce() -> T) -> T {
        let _no_checkpoint = self.inner.checkpoint.lock();
        let _write_lock = self.inner.write_lock.lock();
        work()
    }

    /// Returns the current statistics; reads the size of the log from the file system.
    pub fn statistics(&self) -> EmbeddedStatistics {
        let wal_bytes = files::file_len_bytes(&files::with_suffix(&self.inner.path, "-wal"));
        let memory = self.inner.lock();
        let (unfolded_records, unfolded_inventories) = memory.overlay.unfolded();
        EmbeddedStatistics {
            journal_rows: memory.keys.rows(),
            log_blocks: memory.log.blocks,
            log_bytes: memory.log.bytes,
            remembered_keys: memory.keys.remembered(),
            callers_ahead: memory.keys.horizon.callers_ahead(),
            unfolded_records,
            unfolded_inventories,
            generations_folded: memory.overlay.generations_folded,
            wal_bytes,
        }
    }

    /// Waits while too much is unfolded: the fold has the disk to itself until the limits admit another batch.
    fn admit_batch(&self) -> Result<NextBatch, StoreError> {
        let mut memory = self.inner.lock();
        loop {
            if let Some(stopped) = self.inner.stop_reason() {
                return Err(stopped);
            }
            let (records, inventories) = memory.overlay.unfolded();
            let settings = &self.inner.settings;
            if records < settings.unfolded_records_max && inventories < settings.unfolded_inventories_max {
                let (seq, first) = (memory.last_seq + 1, memory.next_position);
                return Ok(NextBatch { seq, first, time: self.inner.batch_time(&memory) });
            }
            if let Some(failure) = memory.fold_failure.clone() {
                drop(memory);
                self.inner.commit_failed(&failure);
                return Err(failure);
            }
            self.inner.fold_wakeup.notify_all();
            self.inner.fold_progress.wait(&mut memory);
        }
    }

    /// Appends a journal row durably. If that fails, the error distinguishes whether the row may have been written.
    fn append(&self, writer: &Connection, seq: i64, encoded: &[u8]) -> Result<(), CommitError> {
        let write_lock = self.inner.write_lock.lock();
        if let Some(stopped) = self.inner.stop_reason() {
            return Err(CommitError::NotCommitted(stopped));
        }
        let attempt = || journal::append(writer, seq, encoded);
        let appended = self.inner.retry_failed_reads(failure::is_failed_read, attempt);
        drop(write_lock);
        appended.map_err(|RetryError { error, unreadable }| {
            let action = "committing";
            if failure::is_fatal(&error) {
                let failed = failure::store_error(action, &error);
                self.inner.stop(&failed);
                return CommitError::Unknown(failed);
            }
            let failed = self.inner.diagnose(action, &error, unreadable);
            self.inner.commit_failed(&failed);
            CommitError::NotCommitted(failed)
        })
    }
}

/// Where and when the next batch is committed.
struct NextBatch {
    /// Its journal row.
    seq: i64,
    /// The position of its first record.
    first: Position,
    time: BatchTime,
}

/// The connections and the memory of a store that is being opened.
struct Connections {
    writer: Connection,
    fold_connection: Connection,
    memory: MemoryState,
}

/// Opens the connections and replays the journal. Retries from the beginning while reads fail.
fn connect(lock: &StoreLock, settings: &EmbeddedSettings, hasher: &KeyHasher) -> Result<Connections, OpenError> {
    let path = lock.path();
    let attempt = || {
        let writer = open::commit_connection(path, settings.bytes_max)?;
        let fold_bytes_max = settings.bytes_max.map(|bytes| bytes + settings.fold_reserve_bytes);
        let fold_connection = open::fold_connection(path, fold_bytes_max)?;
        let memory =
            replay::replay(path, &writer, hasher, settings).map_err(|error| open::replay_error(path, error))?;
        Ok(Connections { writer, fold_connection, memory })
    };
    // An I/O error may come from a write or a sync, which must not be retried.
    let may_be_a_failed_read = |error: &OpenError| matches!(error, OpenError::Corrupt { .. });
    let opened = failure::retry_failed_reads(may_be_a_failed_read, || probe::find_read_error(lock), attempt);
    opened.map_err(|RetryError { error, unreadable }| match unreadable {
        Some(why) => OpenError::Io { path: path.to_owned(), detail: format!("I/O error: {why}; check the disk") },
        None => error,
    })
}

impl Store for EmbeddedStore {
    fn load(&self, ids: &[InventoryId], keys: &[ScopedKey]) -> Result<Loaded, StoreError> {
        self.inner.load(ids, keys)
    }

    fn commit(&self, batch: &[MutationRecord]) -> Result<Vec<ChainHead>, CommitError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let writer = self.writer.lock();
        let NextBatch { seq, first, time } = self.admit_batch().map_err(CommitError::NotCommitted)?;
        let mut heads =
            ChainHeads::new(batch, |ids| self.inner.look_up_heads(ids)).map_err(CommitError::NotCommitted)?;
        let mut encoder = BatchEncoder::new(first, time, batch.len());
        batch.iter().for_each(|mutation| encoder.push(mutation, &mut heads));
        let encoded = encoder.finish();
        let location = RowLocation { seq, first, count: batch.len() as u64, bytes: encoded.len() };
        let row = self.inner.hasher.row(location, time, batch.iter().map(|mutation| &mutation.key));
        self.append(&writer, seq, &encoded)?;
        // A commit would be lost if it were only in a file that no longer has its name.
        self.inner.check_files().map_err(CommitError::Unknown)?;
        let heads = heads.into_vec();
        self.inner.committed(row, batch, &heads);
        Ok(heads)
    }

    fn list(&self, query: &ListQuery) -> Result<ListPage, StoreError> {
        self.inner.list(query)
    }

    fn stopped(&self) -> watch::Receiver<Option<StoreError>> {
        self.inner.stopped.subscribe()
    }

    /// Returns the size of the file itself, to which the limit applies, without the write-ahead log beside it.
    fn usage(&self) -> Option<StoreUsage> {
        let settings = &self.inner.settings;
        let (bytes, bytes_max) = (files::file_len_bytes(&self.inner.path), settings.bytes_max.unwrap_or(0));
        let memory = self.inner.lock();
        let log = LogUsage {
            journal_rows: memory.keys.rows() as u64,
            journal_bytes: memory.keys.bytes(),
            blocks: memory.log.blocks,
            block_bytes: memory.log.bytes,
            earliest_ms: memory.log.earliest_ms.or_else(|| memory.keys.unsealed_since_ms(memory.log.sealed_row)),
            trimmed_ms: memory.log.trimmed_ms,
            age_max_ms: settings.history_age.as_millis() as u64,
        };
        let unfolded = memory.overlay.unfolded().0 as u64;
        Some(StoreUsage { bytes, bytes_max, unfolded, is_maintenance_failing: memory.fold_failure.is_some(), log })
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        drop(self.file_check.take());
        // Closing removes the log by its name, so the name must still lead to it.
        let _ = self.inner.check_files();
        self.inner.lock().is_closing = true;
        self.inner.fold_wakeup.notify_all();
        if self.fold.take().is_some_and(|fold| fold.join().is_err()) {
            tracing::error!("the fold thread panicked");
        }
        // The last connection to close removes the log, and a read-only connection cannot remove it.
        self.inner.readers.lock().clear();
        if self.inner.is_stopped() {
            keep_wal(&self.writer.lock());
        }
    }
}

/// Prevents a checkpoint on close: after a failure the write-ahead log is the only good copy, or its path refers to
/// another file.
fn keep_wal(connection: &Connection) {
    if let Err(error) = open::keep_wal(connection, true) {
        tracing::warn!(%error, "cannot keep the write-ahead log on close; closing checkpoints it");
    }
}

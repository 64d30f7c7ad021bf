//! The embedded store: one SQLite file with an append-only journal in it.
//!
//! A commit appends one journal row that contains the whole batch, and writes nothing else; [`fold`] updates the table
//! of inventories afterwards. Memory holds the changes that are not folded yet ([`overlay`]) and the place of each
//! idempotency key's record ([`keys`]). Opening rebuilds both from the journal ([`replay`]). SQLite provides the file
//! format and crash safety; the store adds its own checksums, since SQLite has none.
//!
//! Threads: callers read over their own connections; one caller at a time commits; the fold has its own thread. Writers
//! take turns ([`turn`]).

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
mod stop;
mod table;
pub mod tools;
mod turn;

pub use items::{CatalogError, Conflict};
pub use open::{APPLICATION_ID, FORMAT_VERSION, OpenError};
pub use settings::{Clock, EmbeddedSettings, Statistics};

use super::{CommitError, Key, ListQuery, Loaded, Store, StoreError, StoreUsage, Transaction};
use crate::domain::{Inventory, InventoryId};
use crate::store::format::{BatchTime, BatchWriter};
use failure::Failed;
use files::{Locked, OpenFiles, Watch};
use keys::{KeyHasher, KeyIndex};
use overlay::Overlay;
use probe::Probe;
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use stop::Streak;
use tokio::sync::watch;
use turn::Turn;

/// A store in one file, for one process.
///
/// Dropping it interrupts the fold; the next opening replays the rest. [`Self::close`] leaves nothing to replay.
#[derive(Debug)]
pub struct EmbeddedStore {
    // Drop order: the connections first, then the lock, which is in `shared`.
    writer: Mutex<Connection>,
    shared: Arc<Shared>,
    fold: Option<JoinHandle<()>>,
    watch: Option<Watch>,
}

/// The state that callers and the fold share.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    settings: EmbeddedSettings,
    hasher: KeyHasher,
    memory: Mutex<Memory>,
    /// Wakes the fold.
    work: Condvar,
    /// Wakes the threads that wait for the fold.
    progress: Condvar,
    turn: Turn,
    /// Held while the log is copied into the file. A thread that needs both this lock and the turn takes this lock
    /// first.
    checkpoint: Mutex<()>,
    readers: Mutex<Vec<Connection>>,
    /// The reason why the store has stopped writing; `None` while it runs.
    stopped: watch::Sender<Option<StoreError>>,
    probe: Probe,
    // Must be closed after every connection, see [`Locked`].
    files: OpenFiles,
}

/// The in-memory state, guarded by one lock that is never held during a write.
#[derive(Debug)]
struct Memory {
    overlay: Overlay,
    keys: KeyIndex,
    last_seq: i64,
    /// The last row of the generation that is being folded.
    folding_through: i64,
    folded_through: i64,
    /// Value of the store's own clock when it was opened, in milliseconds.
    opened_uptime_ms: u64,
    /// Value of [`EmbeddedSettings::clock`] when the store was opened.
    opened: Duration,
    /// Approximate length of the log, in bytes.
    log_bytes: u64,
    /// The length from which the log is due to be emptied, in bytes.
    log_due_bytes: u64,
    /// Number of requested folds; `answered` is how many of them have ended.
    asked: u64,
    answered: u64,
    /// The failure of the last round, until a round succeeds.
    failure: Option<StoreError>,
    /// Failed commits, including commits that find no room because the fold fails.
    committing: Streak,
    /// Failed reads of the file.
    reading: Streak,
    closing: bool,
}

impl EmbeddedStore {
    /// Opens the file, or creates it; its folder must exist. SQLite's `-wal` and `-shm` and the store's `-lock` are
    /// beside it.
    ///
    /// Takes about 2 us per remembered key and 10 us per inventory that was not folded, independent of the file's size.
    pub fn open(given: &Path, settings: EmbeddedSettings) -> Result<Self, OpenError> {
        let mut opened = open::prepare(given)?;
        opened.create()?;
        let open::Opened { path, lock, .. } = opened;
        let hasher = KeyHasher::default();
        let Connections { writer, fold_connection, memory } = connect(&lock, &settings, &hasher)?;
        let failed = |error| open::refused(&path, &error);
        [&writer, &fold_connection].into_iter().try_for_each(open::trust).map_err(failed)?;
        // The fold's connection has room even if the store is full.
        fold_connection.execute_batch(items::SCHEMA).map_err(failed)?;
        let files = OpenFiles::new(lock, given).map_err(|error| open::io_error(&path, &error.to_string()))?;
        tracing::info!(
            path = %path.display(),
            journal_rows = memory.keys.rows(),
            remembered_keys = memory.keys.remembered(),
            replayed_records = memory.overlay.growing.records,
            replayed_inventories = memory.overlay.growing.states.len(),
            "opened the store"
        );
        let shared = Arc::new(Shared::new(path.clone(), settings, hasher, memory, files));
        let (for_fold, for_watch) = (shared.clone(), shared.clone());
        // Constructed before the threads, so that everything is dropped in order if a thread cannot be started.
        let mut store = Self { writer: Mutex::new(writer), shared, fold: None, watch: None };
        let no_thread = |error| open::io_error(&path, &format!("no thread: {error}"));
        let fold = std::thread::Builder::new().name("slotcast-fold".into()).spawn(move || {
            let _guard = fold::StopOnPanic(&for_fold);
            fold::run(&for_fold, fold_connection);
        });
        store.fold = Some(fold.map_err(no_thread)?);
        store.watch = Some(Watch::start(move || for_watch.check_files().is_ok()).map_err(no_thread)?);
        Ok(store)
    }

    /// Folds everything that was committed before the call, trims the rows that are due, and returns when that is done.
    pub fn fold(&self) -> Result<(), StoreError> {
        let mut memory = self.shared.lock();
        memory.asked += 1;
        let mine = memory.asked;
        self.shared.work.notify_all();
        while memory.answered < mine {
            if let Some(stopped) = self.shared.stop_reason() {
                return Err(stopped);
            }
            memory = self.shared.wait(&self.shared.progress, memory);
        }
        memory.failure.clone().map_or(Ok(()), Err)
    }

    /// Folds everything and empties the write-ahead log, so that the next opening has nothing to replay. Call it after
    /// the last commit; later commits are replayed as after a crash.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.fold()?;
        // A log that was cut or replaced must not be copied into the file.
        self.shared.check_files()?;
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.paused(|| checkpoint::empty(&writer)).map_err(|error| {
            let failed = failure::store_error("emptying the write-ahead log", &error);
            // Otherwise closing would try again, and then remove the log.
            if failure::is_fatal(&error) {
                self.shared.stop(&failed);
            }
            failed
        })
    }

    /// Closes the file, which then needs no replay.
    pub fn close(self) -> Result<(), StoreError> {
        self.flush()
    }

    /// Runs `work` while nothing is written: a copy of the file and its `-wal` that `work` makes opens to exactly the
    /// commits up to now. Commits and the fold wait meanwhile.
    pub fn paused<T>(&self, work: impl FnOnce() -> T) -> T {
        let _no_checkpoint = self.shared.checkpoint.lock().unwrap_or_else(PoisonError::into_inner);
        let _turn = self.shared.turn.wait();
        work()
    }

    pub fn statistics(&self) -> Statistics {
        let wal_bytes = files::file_bytes(&files::beside(&self.shared.path, "-wal"));
        let memory = self.shared.lock();
        let (unfolded_records, unfolded_inventories) = memory.overlay.unfolded();
        Statistics {
            journal_rows: memory.keys.rows(),
            remembered_keys: memory.keys.remembered(),
            callers_ahead: memory.keys.horizon.callers_ahead(),
            unfolded_records,
            unfolded_inventories,
            folds: memory.overlay.folds,
            wal_bytes,
        }
    }

    /// Waits while too much is unfolded: the fold has the disk to itself until there is room again.
    fn wait_for_room(&self) -> Result<BatchTime, StoreError> {
        let mut memory = self.shared.lock();
        loop {
            if let Some(stopped) = self.shared.stop_reason() {
                return Err(stopped);
            }
            let (records, inventories) = memory.overlay.unfolded();
            let settings = &self.shared.settings;
            if records < settings.unfolded_records_max && inventories < settings.unfolded_inventories_max {
                return Ok(self.shared.batch_time(&memory));
            }
            if let Some(failure) = memory.failure.clone() {
                drop(memory);
                self.shared.commit_failed(&failure);
                return Err(failure);
            }
            self.shared.work.notify_all();
            memory = self.shared.wait(&self.shared.progress, memory);
        }
    }

    /// Appends a journal row durably. If that fails, the error distinguishes whether the row may have been written.
    fn append(&self, writer: &Connection, seq: i64, sealed: &[u8]) -> Result<(), CommitError> {
        let turn = self.shared.turn.wait();
        if let Some(stopped) = self.shared.stop_reason() {
            return Err(CommitError::NotCommitted(stopped));
        }
        let attempt = || journal::append(writer, seq, sealed);
        let appended = self.shared.retrying_reads(failure::is_failed_read, attempt);
        drop(turn);
        appended.map_err(|Failed { error, unreadable }| {
            let doing = "committing";
            if failure::is_fatal(&error) {
                let failed = failure::store_error(doing, &error);
                self.shared.stop(&failed);
                return CommitError::Unknown(failed);
            }
            let failed = self.shared.diagnose(doing, &error, unreadable);
            self.shared.commit_failed(&failed);
            CommitError::NotCommitted(failed)
        })
    }
}

/// The connections and the memory of a store that is being opened.
struct Connections {
    writer: Connection,
    fold_connection: Connection,
    memory: Memory,
}

/// Opens the connections and replays the journal. Retries from the beginning while reads fail.
fn connect(lock: &Locked, settings: &EmbeddedSettings, hasher: &KeyHasher) -> Result<Connections, OpenError> {
    let path = lock.path();
    let attempt = || {
        let writer = open::commit_connection(path, settings.bytes_max)?;
        let fold_bytes_max = settings.bytes_max.map(|bytes| bytes + settings.fold_reserve_bytes);
        let fold_connection = open::fold_connection(path, fold_bytes_max)?;
        let memory = replay::replay(path, &writer, hasher, settings).map_err(|error| open::damaged(path, error))?;
        Ok(Connections { writer, fold_connection, memory })
    };
    // An I/O error may come from a write or a sync, which must not be retried.
    let may_be_a_failed_read = |error: &OpenError| matches!(error, OpenError::Corrupt { .. });
    let opened = failure::retrying_reads(may_be_a_failed_read, || probe::first_failure(lock), attempt);
    opened.map_err(|Failed { error, unreadable }| match unreadable {
        Some(why) => OpenError::Io { path: path.to_owned(), detail: format!("I/O error: {why}; check the disk") },
        None => error,
    })
}

impl Store for EmbeddedStore {
    fn load(&self, ids: &[InventoryId], keys: &[Key]) -> Result<Loaded, StoreError> {
        self.shared.load(ids, keys)
    }

    fn commit(&self, batch: &[Transaction]) -> Result<(), CommitError> {
        if batch.is_empty() {
            return Ok(());
        }
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let time = self.wait_for_room().map_err(CommitError::NotCommitted)?;
        let mut written = BatchWriter::new(time);
        batch.iter().for_each(|transaction| written.push(transaction));
        let sealed = written.finish();
        let seq = self.shared.lock().last_seq + 1;
        let row = self.shared.hasher.row(seq, time, batch.iter().map(|transaction| &transaction.key));
        self.append(&writer, seq, &sealed)?;
        // A commit would be lost if it were only in a file that no longer has its name.
        self.shared.check_files().map_err(CommitError::Unknown)?;
        self.shared.committed(seq, row, batch, fold::log_bytes_of(&sealed));
        Ok(())
    }

    fn list(&self, query: &ListQuery) -> Result<Vec<Arc<Inventory>>, StoreError> {
        self.shared.list(query)
    }

    fn stopped(&self) -> watch::Receiver<Option<StoreError>> {
        self.shared.stopped.subscribe()
    }

    /// Returns the size of the file itself, to which the limit applies, without the write-ahead log beside it.
    fn usage(&self) -> Option<StoreUsage> {
        Some(StoreUsage {
            bytes: files::file_bytes(&self.shared.path),
            bytes_max: self.shared.settings.bytes_max.unwrap_or(0),
            unfolded: self.statistics().unfolded_records as u64,
        })
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        drop(self.watch.take());
        // Closing removes the log by its name, so the name must still lead to it.
        let _ = self.shared.check_files();
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
        if self.fold.take().is_some_and(|fold| fold.join().is_err()) {
            tracing::error!("the fold's thread had panicked");
        }
        // The last connection to close removes the log, and a read-only connection cannot remove it.
        self.shared.readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        if self.shared.is_stopped() {
            keep_log(&self.writer.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// Keeps closing from emptying the log: after a failure the log is the only good copy, or its name leads to another
/// file.
fn keep_log(connection: &Connection) {
    if let Err(error) = open::keep_log(connection, true) {
        tracing::warn!(%error, "closing will checkpoint");
    }
}

impl Shared {
    fn new(path: PathBuf, settings: EmbeddedSettings, hasher: KeyHasher, mut memory: Memory, files: OpenFiles) -> Self {
        memory.log_due_bytes = settings.wal_bytes_soft;
        Self {
            path,
            settings,
            hasher,
            memory: Mutex::new(memory),
            work: Condvar::new(),
            progress: Condvar::new(),
            turn: Turn::default(),
            checkpoint: Mutex::default(),
            readers: Mutex::default(),
            stopped: watch::Sender::default(),
            probe: Probe::default(),
            files,
        }
    }

    fn committed(&self, seq: i64, row: keys::Row, batch: &[Transaction], log_bytes: u64) {
        let now = (self.settings.clock)();
        let mut memory = self.lock();
        memory.last_seq = seq;
        memory.keys.push(row, batch.iter().map(|transaction| &transaction.key));
        memory.overlay.growing.add(batch, now);
        memory.log_bytes += log_bytes;
        memory.committing.end();
        if self.has_work(&memory) {
            self.work.notify_all();
        }
    }

    /// Reads both clocks. The key window uses the store's own clock, so that no step of the wall clock frees a key. The
    /// wall clock is compared with the times inside keys.
    fn batch_time(&self, memory: &Memory) -> BatchTime {
        let open_for = (self.settings.clock)().saturating_sub(memory.opened);
        let uptime_ms = memory.opened_uptime_ms + open_for.as_millis() as u64;
        BatchTime { uptime_ms, unix_ms: (self.settings.wall_clock)().as_millis() as u64 }
    }

    /// Stops the store if its names no longer lead to its files, or if the files were overwritten.
    fn check_files(&self) -> Result<(), StoreError> {
        self.files.check().map_err(|lost| {
            let failure = StoreError::Unavailable {
                detail: format!("{lost} while the store was open; put the data back or restore a backup"),
            };
            self.stop(&failure);
            failure
        })
    }

    /// Only a bug can panic while the lock is held; the state in it is still the best available.
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, what: &Condvar, memory: MutexGuard<'a, Memory>) -> MutexGuard<'a, Memory> {
        what.wait(memory).unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of a store when it was opened.
struct Marks {
    last_seq: i64,
    folded_through: i64,
    uptime_ms: u64,
    opened: Duration,
}

impl Memory {
    fn new(overlay: Overlay, keys: KeyIndex, marks: Marks) -> Self {
        Self {
            overlay,
            keys,
            last_seq: marks.last_seq,
            folding_through: marks.folded_through,
            folded_through: marks.folded_through,
            opened_uptime_ms: marks.uptime_ms,
            opened: marks.opened,
            log_bytes: 0,
            log_due_bytes: 0,
            asked: 0,
            answered: 0,
            failure: None,
            committing: Streak::default(),
            reading: Streak::default(),
            closing: false,
        }
    }
}

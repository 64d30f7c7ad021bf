//! The fold: a thread that updates the table in the background, seals the journal's rows ([`super::log`]) and empties the
//! write-ahead log.
//!
//! The fold works in rounds. A round takes the generation that has grown so far, and writes its states in order of ids,
//! in slices of a fraction of a millisecond; it holds the write lock during each slice. Each inventory is written once,
//! however often it changed. A failure loses nothing: changes that are not folded stay in the journal and in memory.

use super::failure::{self, RetryError};
use super::log::totals::{self, TotalsTable};
use super::open::PAGE_BYTES;
use super::overlay::Generation;
use super::state::{MemoryState, StoreInner};
use super::table::EncodedRow;
use super::{checkpoint, journal};
use crate::domain::InventoryId;
use crate::store::StoreError;
use crate::store::format::Malformed;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Number of rows that are encoded before taking the write lock; also the maximum that one slice writes.
const ROWS_AHEAD: usize = 192;
/// How often the fold checks the length of the write-ahead log, in slices.
const SLICES_PER_WAL_CHECK: usize = 32;
/// How often the thread checks the clock while nothing wakes it.
const IDLE_MAX: Duration = Duration::from_millis(100);
const BACK_OFF_MIN: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);

/// Why the fold stopped its work early.
pub enum FoldError {
    Closing,
    Failed {
        action: &'static str,
        error: rusqlite::Error,
    },
    /// The log cannot be read, or is damaged.
    Store(StoreError),
}

impl FoldError {
    pub fn malformed(error: Malformed) -> Self {
        Self::Store(StoreError::Corrupt { detail: error.to_string() })
    }

    fn is_failed_read(&self) -> bool {
        matches!(self, Self::Failed { error, .. } if failure::is_failed_read(error))
    }

    fn is_full(&self) -> bool {
        matches!(self, Self::Failed { error, .. } if error.sqlite_error_code() == Some(ErrorCode::DiskFull))
    }
}

pub fn run(inner: &StoreInner, connection: Connection) {
    let mut back_off = BACK_OFF_MIN;
    while let Some(task) = inner.wait_for_task() {
        let fold = Fold { inner, connection: &connection };
        match inner.retry_failed_reads(FoldError::is_failed_read, || fold.run_task(&task)) {
            Ok(()) => {
                back_off = BACK_OFF_MIN;
                inner.record_success(&task);
            }
            Err(RetryError { error: FoldError::Closing, .. }) => break,
            Err(RetryError { error: FoldError::Failed { action, error }, unreadable }) => {
                let failure = inner.diagnose(action, &error, unreadable);
                inner.record_failure(failure, failure::is_fatal(&error), back_off);
                back_off = (back_off * 2).min(BACK_OFF_MAX);
            }
            Err(RetryError { error: FoldError::Store(failure), .. }) => {
                inner.record_failure(failure, false, back_off);
                back_off = (back_off * 2).min(BACK_OFF_MAX);
            }
        }
    }
    if inner.is_stopped() {
        super::keep_wal(&connection);
    }
}

impl StoreInner {
    /// Waits until there is work; returns `None` when the store is closing.
    fn wait_for_task(&self) -> Option<FoldTask> {
        let mut memory = self.lock();
        loop {
            if memory.is_closing {
                return None;
            }
            let fold = memory.fold_calls > memory.fold_calls_completed || self.is_round_due(&memory);
            let has_log_work =
                || self.is_seal_due(&memory) || self.is_prune_due(&memory) || self.is_retention_due(&memory);
            let is_due = fold || memory.seal_all || self.has_fold_work(&memory) || has_log_work();
            if !self.is_stopped() && is_due {
                let seal_all = std::mem::take(&mut memory.seal_all);
                let (fold_calls, due_bytes) = (memory.fold_calls, memory.wal_due_bytes);
                return Some(FoldTask { fold, seal_all, due_bytes, fold_calls });
            }
            self.fold_wakeup.wait_for(&mut memory, IDLE_MAX);
        }
    }

    /// Returns whether to wake the fold.
    pub(super) fn has_fold_work(&self, memory: &MemoryState) -> bool {
        let wal_is_long = memory.wal_bytes > memory.wal_due_bytes;
        wal_is_long || self.is_round_due(memory)
    }

    pub(super) fn is_round_due(&self, memory: &MemoryState) -> bool {
        let (overlay, settings) = (&memory.overlay, &self.settings);
        let active = &overlay.active;
        let age = active.first_change_at.map_or(Duration::ZERO, |at| (settings.clock)().saturating_sub(at));
        overlay.frozen.is_some()
            || active.records >= settings.round_records
            || active.states.len() >= settings.round_inventories
            || active.records > 0 && age >= settings.fold_after
    }

    /// Maximum duration of one slice. It grows as room runs out, so that commits slow down before they stop.
    pub fn slice_max(&self) -> Duration {
        let (records, inventories) = self.lock().overlay.unfolded();
        let eighths = |part: usize, whole: usize| (part * 8).checked_div(whole).unwrap_or(8);
        let settings = &self.settings;
        match eighths(records, settings.unfolded_records_max)
            .max(eighths(inventories, settings.unfolded_inventories_max))
        {
            0..=4 => settings.slice,
            5 => settings.slice * 2,
            6 => settings.slice * 4,
            _ => settings.slice * 8,
        }
    }

    fn record_success(&self, task: &FoldTask) {
        let mut memory = self.lock();
        memory.fold_calls_completed = task.fold_calls;
        memory.fold_failure = None;
        self.fold_progress.notify_all();
    }

    fn record_failure(&self, failure: StoreError, is_fatal: bool, back_off: Duration) {
        if is_fatal {
            self.stop(&failure);
        } else {
            let retry_ms = back_off.as_millis() as u64;
            tracing::error!(%failure, retry_ms, "the maintenance of the store failed and will be retried; nothing is lost");
        }
        let mut memory = self.lock();
        memory.fold_calls_completed = memory.fold_calls;
        memory.fold_failure = Some(failure);
        self.fold_progress.notify_all();
        let is_quiet =
            |memory: &mut MemoryState| !memory.is_closing && memory.fold_calls <= memory.fold_calls_completed;
        self.fold_wakeup.wait_while_for(&mut memory, is_quiet, back_off);
    }
}

/// What one pass of the thread does.
pub struct FoldTask {
    /// Whether to fold, in addition to sealing and checking the write-ahead log.
    fold: bool,
    /// Whether to seal all due rows, even if they are few.
    pub seal_all: bool,
    /// The length of the write-ahead log from which a checkpoint is due, in bytes.
    pub due_bytes: u64,
    /// Number of calls of [`super::EmbeddedStore::fold`] before this pass.
    fold_calls: u64,
}

/// Stops the store if the fold's thread panics. Otherwise nothing would ever be folded, and commits would wait forever.
pub struct StopOnPanic<'a>(pub &'a StoreInner);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(&StoreError::Unavailable { detail: "the fold thread panicked".into() });
        }
    }
}

pub struct Fold<'a> {
    pub inner: &'a StoreInner,
    pub connection: &'a Connection,
}

impl Fold<'_> {
    fn run_task(&self, task: &FoldTask) -> Result<(), FoldError> {
        let due_bytes = task.due_bytes;
        match self.fold_and_seal(task) {
            // Existing pages of the file can be overwritten without room; then the write-ahead log restarts at its
            // beginning.
            Err(error) if error.is_full() => self.checkpoint_if_due(0).and(Err(error)),
            Err(error @ FoldError::Store(_)) => self.checkpoint_if_due(due_bytes).and(Err(error)),
            Err(error) => Err(error),
            Ok(()) => self.checkpoint_if_due(due_bytes),
        }
    }

    /// Deletes old history, folds and seals. Deleting comes first, and does not wait for the others to succeed: a full file
    /// has room again afterwards.
    fn fold_and_seal(&self, task: &FoldTask) -> Result<(), FoldError> {
        let retained = self.apply_retention(task);
        if task.fold {
            // After a failure a generation is left over, and the requested changes are in the next one.
            let is_resumed = self.inner.lock().overlay.frozen.is_some();
            for _ in 0..1 + usize::from(is_resumed) {
                let Some((generation, through)) = self.begin() else { break };
                self.fold(&generation, through)?;
                self.end(through);
            }
        }
        self.seal(task)?;
        retained?;
        // Sealing may have made the history too large.
        if task.seal_all { self.apply_retention(task) } else { Ok(()) }
    }

    /// Returns the generation to fold, and the last journal row that it contains.
    fn begin(&self) -> Option<(Arc<Generation>, i64)> {
        let mut memory = self.inner.lock();
        if memory.overlay.frozen.is_none() {
            if memory.overlay.active.records == 0 {
                return None;
            }
            // As large as the last generation. It is allocated without the lock, because a large allocation takes long.
            let inventories = memory.overlay.active.states.len();
            drop(memory);
            let next = Generation::with_capacity(inventories);
            memory = self.inner.lock();
            memory.folding_through = memory.last_seq;
            let grown = std::mem::replace(&mut memory.overlay.active, next);
            memory.overlay.frozen = Some(Arc::new(grown));
        }
        let through = memory.folding_through;
        memory.overlay.frozen.clone().map(|generation| (generation, through))
    }

    fn fold(&self, generation: &Generation, through: i64) -> Result<(), FoldError> {
        let mut ids: Vec<&InventoryId> = generation.states.keys().collect();
        ids.sort_unstable();
        let mut ids = ids.into_iter();
        let mut encoded = VecDeque::with_capacity(ROWS_AHEAD);
        for slice in 1.. {
            for id in ids.by_ref().take(ROWS_AHEAD - encoded.len()) {
                let Some(state) = generation.states.get(id) else { continue };
                encoded.push_back(EncodedRow::new(id, state, generation.created_ids.contains(id)));
            }
            if encoded.is_empty() {
                break;
            }
            self.write_slice("folding", &mut encoded, |transaction, row| row.put(transaction))?;
            self.check_closing()?;
            if slice % SLICES_PER_WAL_CHECK == 0 {
                let due_bytes = self.inner.lock().wal_due_bytes;
                self.checkpoint_if_due(due_bytes)?;
            }
        }
        // Together, so that the supply is exact at the mark.
        self.in_transaction("storing the fold position", |transaction| {
            totals::add(transaction, TotalsTable::Supply, &generation.supply)?;
            journal::set_meta_value(transaction, journal::FOLDED_THROUGH, through)
        })
    }

    /// Writes rows from the front in one transaction, until the slice's time is over.
    pub fn write_slice<T>(
        &self,
        action: &'static str,
        rows: &mut VecDeque<T>,
        write: impl Fn(&Connection, &T) -> rusqlite::Result<()>,
    ) -> Result<(), FoldError> {
        let (slice_max, clock) = (self.inner.slice_max(), &self.inner.settings.clock);
        let mut written = 0;
        self.in_transaction(action, |transaction| {
            let end = clock() + slice_max;
            for row in rows.iter() {
                write(transaction, row)?;
                written += 1;
                if clock() >= end {
                    break;
                }
            }
            Ok(())
        })?;
        rows.drain(..written);
        Ok(())
    }

    /// Runs a transaction with the write lock.
    pub fn in_transaction(
        &self,
        action: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), FoldError> {
        let _write_lock = self.inner.write_lock.lock();
        let run = || {
            let transaction = Transaction::new_unchecked(self.connection, TransactionBehavior::Immediate)?;
            work(&transaction)?;
            transaction.commit()
        };
        run().map_err(|error| FoldError::Failed { action, error })
    }

    fn end(&self, through: i64) {
        let mut memory = self.inner.lock();
        memory.folded_through = through;
        memory.overlay.generations_folded += 1;
        let folded = memory.overlay.frozen.take();
        self.inner.fold_progress.notify_all();
        drop(memory);
        // Freeing many states takes long, so it happens without the lock.
        drop(folded);
    }

    pub fn checkpoint_if_due(&self, due_bytes: u64) -> Result<(), FoldError> {
        let checkpoint_bytes = self.inner.settings.wal_checkpoint_bytes;
        let checkpoint = self.inner.checkpoint.lock();
        let wal_bytes =
            checkpoint::checkpoint_if_due(self.connection, &self.inner.write_lock, due_bytes, checkpoint_bytes)
                .map_err(|error| FoldError::Failed { action: "emptying the write-ahead log", error })?;
        drop(checkpoint);
        let mut memory = self.inner.lock();
        memory.wal_bytes = wal_bytes;
        memory.wal_due_bytes = checkpoint::next_due_bytes(wal_bytes, due_bytes, checkpoint_bytes);
        Ok(())
    }

    pub fn check_closing(&self) -> Result<(), FoldError> {
        if self.inner.lock().is_closing { Err(FoldError::Closing) } else { Ok(()) }
    }
}

/// Approximate number of bytes that a commit adds to the log: the batch and the pages around it.
pub fn wal_bytes_added(batch_bytes: usize) -> u64 {
    batch_bytes as u64 + 3 * PAGE_BYTES
}

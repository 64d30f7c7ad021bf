//! The fold: a thread that updates the table behind the commits, trims the journal and empties the log.
//!
//! The fold works in rounds. A round takes the generation that has grown so far, and writes its states in order of ids,
//! in slices of a fraction of a millisecond; it holds the turn during each slice. Each inventory is written once,
//! however often it changed. A failure loses nothing: changes that are not folded stay in the journal and in memory.

use super::failure::{self, Failed};
use super::keys::{DueRow, Limits};
use super::open::PAGE_BYTES;
use super::overlay::Generation;
use super::table::EncodedRow;
use super::{Memory, Shared, checkpoint, journal};
use crate::domain::InventoryId;
use crate::store::StoreError;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Number of rows that are encoded before taking the turn; also the maximum that one slice writes.
const ROWS_AHEAD: usize = 192;
/// Number of journal rows that one slice trims.
const TRIMMED_ROWS: usize = 8;
/// How often the fold checks the log's length, in slices.
const SLICES_PER_LOOK: usize = 32;
/// How often the thread checks the clock while nothing wakes it.
const IDLE_MAX: Duration = Duration::from_millis(100);
const BACK_OFF_MIN: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);

/// Why the fold stopped its work early.
enum Halt {
    Closing,
    Failed { doing: &'static str, error: rusqlite::Error },
}

impl Halt {
    fn is_failed_read(&self) -> bool {
        matches!(self, Self::Failed { error, .. } if failure::is_failed_read(error))
    }

    fn is_full(&self) -> bool {
        matches!(self, Self::Failed { error, .. } if error.sqlite_error_code() == Some(ErrorCode::DiskFull))
    }
}

pub fn run(shared: &Shared, connection: Connection) {
    let mut back_off = BACK_OFF_MIN;
    while let Some(work) = shared.wait_for_work() {
        let fold = Fold { shared, connection: &connection };
        match shared.retrying_reads(Halt::is_failed_read, || fold.work(&work)) {
            Ok(()) => {
                back_off = BACK_OFF_MIN;
                shared.worked(&work);
            }
            Err(Failed { error: Halt::Closing, .. }) => break,
            Err(Failed { error: Halt::Failed { doing, error }, unreadable }) => {
                let failure = shared.diagnose(doing, &error, unreadable);
                shared.failed(failure, failure::is_fatal(&error), back_off);
                back_off = (back_off * 2).min(BACK_OFF_MAX);
            }
        }
    }
    if shared.is_stopped() {
        super::keep_log(&connection);
    }
}

impl Shared {
    /// Waits until there is work; returns `None` when the store is closing.
    fn wait_for_work(&self) -> Option<Work> {
        let mut memory = self.lock();
        loop {
            if memory.closing {
                return None;
            }
            let fold = memory.asked > memory.answered || self.is_round_due(&memory);
            if !self.is_stopped() && (fold || self.has_work(&memory)) {
                return Some(Work { fold, asked: memory.asked });
            }
            let waited = self.work.wait_timeout(memory, IDLE_MAX);
            memory = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Returns whether to wake the fold.
    pub(super) fn has_work(&self, memory: &Memory) -> bool {
        let log_is_long = memory.log_bytes > memory.log_due_bytes;
        log_is_long || self.is_round_due(memory) || !self.trim_due(memory, 1).is_empty()
    }

    fn is_round_due(&self, memory: &Memory) -> bool {
        let (overlay, settings) = (&memory.overlay, &self.settings);
        let growing = &overlay.growing;
        let age = growing.since.map_or(Duration::ZERO, |since| (settings.clock)().saturating_sub(since));
        overlay.folding.is_some()
            || growing.records >= settings.round_records
            || growing.states.len() >= settings.round_inventories
            || growing.records > 0 && age >= settings.round_after
    }

    fn trim_due(&self, memory: &Memory, rows_max: usize) -> Vec<DueRow> {
        let limits = Limits {
            now: self.batch_time(memory),
            folded_through: memory.folded_through,
            window_ms: self.settings.key_window.as_millis() as u64,
            keys_max: self.settings.keys_max,
        };
        memory.keys.due(&limits, rows_max)
    }

    /// Maximum duration of one slice. It grows as room runs out, so that commits slow down before they stop.
    fn slice_max(&self) -> Duration {
        let (records, inventories) = self.lock().overlay.unfolded();
        let of = |part: usize, whole: usize| (part * 8).checked_div(whole).unwrap_or(8);
        let settings = &self.settings;
        match of(records, settings.unfolded_records_max).max(of(inventories, settings.unfolded_inventories_max)) {
            0..=4 => settings.slice,
            5 => settings.slice * 2,
            6 => settings.slice * 4,
            _ => settings.slice * 8,
        }
    }

    fn worked(&self, work: &Work) {
        let mut memory = self.lock();
        memory.answered = work.asked;
        memory.failure = None;
        self.progress.notify_all();
    }

    fn failed(&self, failure: StoreError, is_fatal: bool, back_off: Duration) {
        if is_fatal {
            self.stop(&failure);
        } else {
            let retry_ms = back_off.as_millis() as u64;
            tracing::error!(%failure, retry_ms, "the background fold failed and will be retried; nothing is lost");
        }
        let mut memory = self.lock();
        memory.answered = memory.asked;
        memory.failure = Some(failure);
        self.progress.notify_all();
        let is_quiet = |memory: &mut Memory| !memory.closing && memory.asked <= memory.answered;
        drop(self.work.wait_timeout_while(memory, back_off, is_quiet));
    }
}

/// The work of one pass of the thread.
struct Work {
    /// Whether to fold, in addition to trimming and checking the log.
    fold: bool,
    /// Number of folds that were requested before this pass.
    asked: u64,
}

/// Stops the store if the fold's thread panics. Otherwise nothing would ever be folded, and commits would wait forever.
pub struct StopOnPanic<'a>(pub &'a Shared);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(&StoreError::Unavailable { detail: "the fold's thread panicked".into() });
        }
    }
}

struct Fold<'a> {
    shared: &'a Shared,
    connection: &'a Connection,
}

impl Fold<'_> {
    fn work(&self, work: &Work) -> Result<(), Halt> {
        let due_bytes = self.shared.lock().log_due_bytes;
        match self.fold_and_trim(work) {
            // Existing pages of the file can be overwritten without room; then the log restarts at its beginning.
            Err(halt) if halt.is_full() => self.look_at_log(0).and(Err(halt)),
            Err(halt) => Err(halt),
            Ok(()) => self.look_at_log(due_bytes),
        }
    }

    fn fold_and_trim(&self, work: &Work) -> Result<(), Halt> {
        if work.fold {
            // After a failure a generation is left over, and the requested changes are in the next one.
            let is_left_over = self.shared.lock().overlay.folding.is_some();
            for _ in 0..1 + usize::from(is_left_over) {
                let Some((generation, through)) = self.begin() else { break };
                self.fold(&generation, through)?;
                self.end(through);
            }
        }
        self.trim()
    }

    /// Returns the generation to fold, and the last journal row that it contains.
    fn begin(&self) -> Option<(Arc<Generation>, i64)> {
        let mut memory = self.shared.lock();
        if memory.overlay.folding.is_none() {
            if memory.overlay.growing.records == 0 {
                return None;
            }
            // As large as the last generation. It is allocated without the lock, because a large allocation takes long.
            let inventories = memory.overlay.growing.states.len();
            drop(memory);
            let next = Generation::with_capacity(inventories);
            memory = self.shared.lock();
            memory.folding_through = memory.last_seq;
            let grown = std::mem::replace(&mut memory.overlay.growing, next);
            memory.overlay.folding = Some(Arc::new(grown));
        }
        let through = memory.folding_through;
        memory.overlay.folding.clone().map(|generation| (generation, through))
    }

    fn fold(&self, generation: &Generation, through: i64) -> Result<(), Halt> {
        let mut ids: Vec<&InventoryId> = generation.states.keys().collect();
        ids.sort_unstable();
        let mut ids = ids.into_iter();
        let mut encoded = VecDeque::with_capacity(ROWS_AHEAD);
        for slice in 1.. {
            for id in ids.by_ref().take(ROWS_AHEAD - encoded.len()) {
                let state = generation.states.get(id).and_then(Option::as_ref);
                encoded.push_back(EncodedRow::new(id, state, generation.born.contains(id)));
            }
            if encoded.is_empty() {
                break;
            }
            self.write_slice(&mut encoded).map_err(|error| Halt::Failed { doing: "folding", error })?;
            self.check_closing()?;
            if slice % SLICES_PER_LOOK == 0 {
                let due_bytes = self.shared.lock().log_due_bytes;
                self.look_at_log(due_bytes)?;
            }
        }
        let _turn = self.shared.turn.wait();
        journal::put_number(self.connection, journal::FOLDED_THROUGH, through)
            .map_err(|error| Halt::Failed { doing: "marking what is folded", error })
    }

    /// Writes rows from the front until the slice's time is over.
    fn write_slice(&self, encoded: &mut VecDeque<EncodedRow>) -> rusqlite::Result<()> {
        let slice_max = self.shared.slice_max();
        let clock = &self.shared.settings.clock;
        let _turn = self.shared.turn.wait();
        let end = clock() + slice_max;
        let transaction = Transaction::new_unchecked(self.connection, TransactionBehavior::Immediate)?;
        let mut written = 0;
        for row in encoded.iter() {
            row.put(&transaction)?;
            written += 1;
            if clock() >= end {
                break;
            }
        }
        transaction.commit()?;
        encoded.drain(..written);
        Ok(())
    }

    fn end(&self, through: i64) {
        let mut memory = self.shared.lock();
        memory.folded_through = through;
        memory.overlay.folds += 1;
        let folded = memory.overlay.folding.take();
        self.shared.progress.notify_all();
        drop(memory);
        // Freeing many states takes long, so it happens without the lock.
        drop(folded);
    }

    fn trim(&self) -> Result<(), Halt> {
        loop {
            let due = self.shared.trim_due(&self.shared.lock(), TRIMMED_ROWS);
            let Some(last) = due.last() else { return Ok(()) };
            let failed = |error| Halt::Failed { doing: "trimming the journal", error };
            let forgetting = journal::forgetting(self.connection, &due).map_err(failed)?;
            // The horizon comes first: a key that is about to be forgotten must not count as new in between.
            let change = self.shared.lock().keys.horizon.forget(forgetting);
            let turn = self.shared.turn.wait();
            journal::trim(self.connection, last.seq, &change).map_err(failed)?;
            drop(turn);
            for _ in &due {
                self.shared.lock().keys.forget_oldest();
            }
            self.check_closing()?;
        }
    }

    fn look_at_log(&self, due_bytes: u64) -> Result<(), Halt> {
        let soft = self.shared.settings.wal_bytes_soft;
        let checkpoint = self.shared.checkpoint.lock().unwrap_or_else(PoisonError::into_inner);
        let log_bytes = checkpoint::if_due(self.connection, &self.shared.turn, due_bytes, soft)
            .map_err(|error| Halt::Failed { doing: "emptying the write-ahead log", error })?;
        drop(checkpoint);
        let mut memory = self.shared.lock();
        memory.log_bytes = log_bytes;
        memory.log_due_bytes = checkpoint::next_due_bytes(log_bytes, due_bytes, soft);
        Ok(())
    }

    fn check_closing(&self) -> Result<(), Halt> {
        if self.shared.lock().closing { Err(Halt::Closing) } else { Ok(()) }
    }
}

/// Approximate number of bytes that a commit adds to the log: the batch and the pages around it.
pub fn log_bytes_of(batch: &[u8]) -> u64 {
    batch.len() as u64 + 3 * PAGE_BYTES
}

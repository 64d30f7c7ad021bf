//! Retention: deletes the oldest segments when they are too old or the log is too large.

use super::totals::{self, TotalsTable};
use super::{LogState, tables, write_state};
use crate::store::embedded::fold::{Fold, FoldError, FoldTask};
use crate::store::embedded::state::{MemoryState, StoreInner};
use crate::store::format::segment::SegmentHeader;

impl StoreInner {
    /// Returns whether the oldest segment may be deleted: its last record is older than the retention, or the blocks take
    /// too much room.
    pub fn is_retention_due(&self, memory: &MemoryState) -> bool {
        let (settings, now) = (&self.settings, self.batch_time(memory));
        let Some(oldest_ms) = memory.log.oldest_ms else { return false };
        let is_old = now.unix_ms.saturating_sub(oldest_ms) > settings.history_age.as_millis() as u64;
        let is_large = settings.history_bytes_max.is_some_and(|bytes_max| memory.log.bytes > bytes_max);
        is_old || is_large
    }
}

impl Fold<'_> {
    /// Deletes the oldest segment if it exceeds the retention; or all such segments, if the task says so.
    pub fn apply_retention(&self, task: &FoldTask) -> Result<(), FoldError> {
        loop {
            let memory = self.inner.lock();
            let (is_due, state) = (self.inner.is_retention_due(&memory), memory.log);
            drop(memory);
            if !is_due {
                return Ok(());
            }
            let [oldest, next] = tables::first_segments(self.connection).map_err(FoldError::Store)?;
            let Some(oldest) = oldest else { return Ok(()) };
            self.delete_segment(&oldest, next.as_ref(), state)?;
            self.check_closing()?;
            if !task.seal_all {
                return Ok(());
            }
            self.checkpoint_if_due(task.due_bytes)?;
        }
    }

    fn delete_segment(
        &self,
        oldest: &SegmentHeader,
        next: Option<&SegmentHeader>,
        state: LogState,
    ) -> Result<(), FoldError> {
        let state = LogState {
            // The rows between two segments may have been damaged.
            earliest: next.map_or(oldest.last.plus(1), |next| next.first),
            trimmed_ms: oldest.last_ms,
            blocks: state.blocks.saturating_sub(oldest.blocks),
            bytes: state.bytes.saturating_sub(oldest.bytes),
            earliest_ms: next.map(|next| next.first_ms),
            oldest_ms: next.map(|next| next.last_ms),
            ..state
        };
        self.in_transaction("deleting old history", |transaction| {
            tables::delete_segment(transaction, oldest.first)?;
            tables::delete_blocks_through(transaction, oldest.last)?;
            totals::add(transaction, TotalsTable::Trimmed, &oldest.sums)?;
            // The history of these deleted inventories is gone as a whole.
            transaction
                .prepare_cached("DELETE FROM tombstones WHERE last <= ?1")?
                .execute([tables::sql(oldest.last)])?;
            write_state(transaction, &state)
        })?;
        self.inner.lock().log = state;
        Ok(())
    }
}

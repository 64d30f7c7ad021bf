//! Retention: deletes the oldest segments when they are too old or the log is too large.

use super::totals::{self, TotalsTable};
use super::{LogState, tables, write_state};
use crate::store::embedded::fold::{Fold, FoldError};
use crate::store::embedded::state::{MemoryState, StoreInner};
use crate::store::format::segment::SegmentHead;

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
    /// Deletes the oldest segments while they exceed the retention.
    pub fn apply_retention(&self) -> Result<(), FoldError> {
        loop {
            let memory = self.inner.lock();
            let (is_due, state) = (self.inner.is_retention_due(&memory), memory.log);
            drop(memory);
            if !is_due {
                return Ok(());
            }
            let oldest =
                tables::first_segment(self.connection).map_err(|error| FoldError::Corrupt(error.to_string()))?;
            let Some(oldest) = oldest else { return Ok(()) };
            self.delete_segment(&oldest, state)?;
            self.check_closing()?;
        }
    }

    fn delete_segment(&self, oldest: &SegmentHead, state: LogState) -> Result<(), FoldError> {
        let mut state = LogState {
            earliest: oldest.last.plus(1),
            trimmed_ms: oldest.last_ms,
            blocks: state.blocks.saturating_sub(oldest.blocks),
            bytes: state.bytes.saturating_sub(oldest.bytes),
            ..state
        };
        self.in_transaction(|transaction| {
            tables::delete_segment(transaction, oldest.first)?;
            tables::delete_blocks_through(transaction, oldest.last)?;
            totals::add(transaction, TotalsTable::Trimmed, &oldest.sums)?;
            // The history of these deleted inventories is gone as a whole.
            transaction
                .prepare_cached("DELETE FROM tombstones WHERE last <= ?1")?
                .execute([tables::sql(oldest.last)])?;
            write_state(transaction, &state)
        })?;
        let next = tables::first_segment(self.connection).map_err(|error| FoldError::Corrupt(error.to_string()))?;
        (state.earliest_ms, state.oldest_ms) = next.map(|next| (next.first_ms, next.last_ms)).unzip();
        self.inner.lock().log = state;
        Ok(())
    }
}

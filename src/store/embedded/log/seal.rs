//! Sealing: moves the records of due journal rows into blocks and segments, on the fold's thread.
//!
//! 1. Read the rows of a segment while commits continue, and encode and compress their blocks.
//! 2. Insert the blocks in slices, each a transaction.
//! 3. In one transaction, insert the segment and set the marks. From here on the records are in the blocks.
//! 4. Prune the journal: delete the rows, a few at a time.
//!
//! A crash between these steps loses nothing: blocks without a segment are deleted before the next sealing, and rows that
//! are sealed but not deleted are deleted later.

use super::{LogState, tables, write_state};
use crate::store::embedded::fold::{Fold, FoldError, FoldTask};
use crate::store::embedded::journal;
use crate::store::embedded::keys::{RowLocation, SealLimits, SealableRow};
use crate::store::embedded::state::{MemoryState, StoreInner};
use crate::store::format::block::{BLOCK_BYTES, Compressor};
use crate::store::format::segment::SegmentHeader;
use crate::store::format::{Batch, BatchEncoder, BatchTime, Malformed};
use crate::store::log::{LogRecord, Position};
use std::collections::VecDeque;

/// What a failed transaction was for.
const SEALING: &str = "sealing the log";
/// Number of journal rows that one slice deletes.
const PRUNED_ROWS: usize = 8;

/// Size of a compressed block that fills one overflow page of SQLite and little more, in bytes. A slightly larger one would
/// need another page, and leave most of it empty.
const BODY_BYTES: usize = 4_400;
/// Minimum and maximum size of the records of a block, in bytes.
const BLOCK_BYTES_RANGE: (usize, usize) = (BLOCK_BYTES / 2, 2 * BLOCK_BYTES);

/// The blocks of a segment, each with the position of its first record, and the segment's header.
struct BuiltSegment {
    blocks: VecDeque<(Position, Vec<u8>)>,
    header: SegmentHeader,
    last_row: i64,
    /// Size of the records of the next block, in bytes: a block ends with the record that reaches it.
    block_bytes: usize,
}

impl StoreInner {
    fn seal_limits(&self, memory: &MemoryState) -> SealLimits {
        SealLimits {
            now: self.batch_time(memory),
            folded_through: memory.folded_through,
            window_ms: self.settings.key_window.as_millis() as u64,
            keys_max: self.settings.keys_max,
        }
    }

    /// Returns whether enough rows for a segment are due, or whether the oldest due row has waited long enough.
    pub fn is_seal_due(&self, memory: &MemoryState) -> bool {
        let limits = self.seal_limits(memory);
        let mut bytes = 0;
        memory.keys.sealable(memory.log.sealed_row, &limits).any(|SealableRow { location, age_ms }| {
            bytes += location.bytes;
            bytes >= self.settings.segment_bytes || age_ms >= self.settings.seal_after.as_millis() as u64
        })
    }

    /// Returns whether sealed rows remain in the journal.
    pub fn is_prune_due(&self, memory: &MemoryState) -> bool {
        !memory.keys.prunable(memory.log.sealed_row, self.batch_time(memory), 1).is_empty()
    }

    /// Returns the due rows of the next segment.
    fn rows_to_seal(&self, memory: &MemoryState) -> Vec<RowLocation> {
        let limits = self.seal_limits(memory);
        let mut bytes = 0;
        let rows = memory.keys.sealable(memory.log.sealed_row, &limits).map(|row| row.location);
        let has_room = |row: &RowLocation| {
            let has_room = bytes < self.settings.segment_bytes;
            bytes += row.bytes;
            has_room
        };
        rows.take_while(has_room).collect()
    }
}

impl Fold<'_> {
    /// Seals one segment of rows, if enough are due; or all due rows, if the task says so. Between two segments, the fold's
    /// other work is done: a long backlog must not keep commits waiting, nor the write-ahead log growing.
    pub fn seal(&self, task: &FoldTask) -> Result<(), FoldError> {
        loop {
            let memory = self.inner.lock();
            let is_due = task.seal_all || self.inner.is_seal_due(&memory);
            let rows = if is_due { self.inner.rows_to_seal(&memory) } else { Vec::new() };
            let state = memory.log;
            drop(memory);
            let Some(first) = rows.first() else { return self.prune() };
            match self.build_segment(&rows)? {
                Some(segment) => self.insert_segment(segment, state)?,
                None => self.skip_row(*first, state)?,
            }
            self.prune()?;
            self.check_closing()?;
            if !task.seal_all {
                return Ok(());
            }
            self.checkpoint_if_due(task.due_bytes)?;
        }
    }

    /// Reads the rows and builds their blocks, up to the first damaged row. Returns `None` if the first row is damaged.
    fn build_segment(&self, rows: &[RowLocation]) -> Result<Option<BuiltSegment>, FoldError> {
        let mut compressor = Compressor::new().map_err(FoldError::malformed)?;
        let mut segment: Option<BuiltSegment> = None;
        let mut encoder: Option<BatchEncoder> = None;
        for row in rows {
            let Some(records) = self.read_row(row)? else { break };
            for record in records {
                let segment = segment.get_or_insert_with(|| BuiltSegment::new(&record));
                // Positions within a block are consecutive, also if the writer changed.
                if record.position != segment.header.last.plus(1) && segment.header.records > 0 {
                    segment.end_block(encoder.take(), &mut compressor)?;
                }
                segment.header.add_record(&record);
                let block = encoder.get_or_insert_with(|| new_block(&record));
                block.push_record(&record);
                if block.len_bytes() >= segment.block_bytes {
                    segment.end_block(encoder.take(), &mut compressor)?;
                }
                segment.last_row = row.seq;
            }
            self.check_closing()?;
        }
        if let Some(segment) = &mut segment {
            segment.end_block(encoder, &mut compressor)?;
        }
        Ok(segment)
    }

    /// Reads the records of a row; `None` if it is damaged.
    fn read_row(&self, row: &RowLocation) -> Result<Option<Vec<LogRecord>>, FoldError> {
        let encoded = journal::encoded_batch(self.connection, row.seq);
        let encoded = encoded.map_err(|error| FoldError::Failed { action: SEALING, error })?;
        let read = |encoded: Vec<u8>| Batch::parse_with_checksum(&encoded)?.records().collect::<Result<Vec<_>, _>>();
        match encoded.ok_or_else(|| Malformed::new("it is missing")).and_then(read) {
            Ok(records) => Ok(Some(records)),
            Err(error) => {
                let records = row.count;
                tracing::error!(seq = row.seq, records, %error, "a journal row is damaged; its records cannot be sealed");
                Ok(None)
            }
        }
    }

    /// Passes over a damaged row: its records are missing from the history. Otherwise no later row could ever be sealed, and
    /// no key be forgotten.
    fn skip_row(&self, row: RowLocation, state: LogState) -> Result<(), FoldError> {
        // Its positions are used, even if no later row tells so at the next opening.
        let sealed_through = row.first.plus(row.count.saturating_sub(1));
        let state = LogState { sealed_row: row.seq, sealed_through, ..state };
        self.in_transaction(SEALING, |transaction| write_state(transaction, &state))?;
        self.inner.lock().log = state;
        Ok(())
    }

    fn insert_segment(&self, segment: BuiltSegment, state: LogState) -> Result<(), FoldError> {
        let BuiltSegment { mut blocks, header, last_row, .. } = segment;
        self.in_transaction(SEALING, |transaction| tables::delete_blocks_after(transaction, state.sealed_through))?;
        while !blocks.is_empty() {
            self.write_slice(SEALING, &mut blocks, |transaction, (first, body)| {
                tables::insert_block(transaction, *first, body)
            })?;
            self.check_closing()?;
        }
        let state = LogState {
            sealed_row: last_row,
            sealed_through: header.last,
            blocks: state.blocks + header.blocks,
            bytes: state.bytes + header.bytes,
            last_ms: header.last_ms,
            earliest_ms: state.earliest_ms.or(Some(header.first_ms)),
            oldest_ms: state.oldest_ms.or(Some(header.last_ms)),
            ..state
        };
        self.in_transaction(SEALING, |transaction| {
            tables::insert_segment(transaction, &header)?;
            write_state(transaction, &state)
        })?;
        self.inner.lock().log = state;
        Ok(())
    }

    /// Deletes the rows whose records are in blocks, and forgets their keys.
    fn prune(&self) -> Result<(), FoldError> {
        loop {
            let memory = self.inner.lock();
            let due = memory.keys.prunable(memory.log.sealed_row, self.inner.batch_time(&memory), PRUNED_ROWS);
            drop(memory);
            let Some(last) = due.last() else { return Ok(()) };
            let failed = |error| FoldError::Failed { action: "pruning the journal", error };
            let expired = journal::expired_keys(self.connection, &due).map_err(failed)?;
            // The horizon comes first: a key that is about to be removed must not count as new in between.
            let change = self.inner.lock().keys.horizon.expire(expired);
            let write_lock = self.inner.write_lock.lock();
            journal::prune(self.connection, last.seq, &change).map_err(failed)?;
            drop(write_lock);
            for _ in &due {
                self.inner.lock().keys.remove_oldest();
            }
            self.check_closing()?;
        }
    }
}

impl BuiltSegment {
    /// Begins a segment with its first record.
    fn new(first: &LogRecord) -> Self {
        Self { blocks: VecDeque::new(), header: SegmentHeader::new(first), last_row: 0, block_bytes: BLOCK_BYTES }
    }

    fn end_block(&mut self, encoder: Option<BatchEncoder>, compressor: &mut Compressor) -> Result<(), FoldError> {
        let Some(encoder) = encoder else { return Ok(()) };
        let (first, mut batch) = (encoder.first(), Vec::with_capacity(BLOCK_BYTES + BLOCK_BYTES / 4));
        encoder.put(&mut batch);
        let body = compressor.compress(&batch).map_err(FoldError::malformed)?;
        self.header.add_block(body.len());
        // Records of one segment compress alike.
        let (min, max) = BLOCK_BYTES_RANGE;
        self.block_bytes = (encoder.len_bytes() * BODY_BYTES / body.len()).clamp(min, max);
        self.blocks.push_back((first, body));
        Ok(())
    }
}

fn new_block(first: &LogRecord) -> BatchEncoder {
    let time = BatchTime { uptime_ms: 0, unix_ms: first.time_ms, time_ms: first.time_ms };
    BatchEncoder::new(first.position, time, BLOCK_BYTES / 64)
}

//! Sealing: moves the records of due journal rows into blocks and segments, on the fold's thread.
//!
//! 1. Read the rows of a segment while commits continue, and encode and compress their blocks.
//! 2. Insert the blocks in slices, each a transaction.
//! 3. In one transaction, insert the segment and set the marks. From here on the records are in the blocks.
//! 4. Trim the rows, a few at a time.
//!
//! A crash between these steps loses nothing: blocks without a segment are deleted before the next sealing, and rows that
//! are sealed but not trimmed are trimmed later.

use super::{LogState, tables, write_state};
use crate::store::embedded::fold::{Fold, FoldError};
use crate::store::embedded::journal;
use crate::store::embedded::keys::{RowLocation, SealableRow, TrimLimits};
use crate::store::embedded::state::{MemoryState, StoreInner};
use crate::store::format::block::{BLOCK_BYTES, Compressor};
use crate::store::format::segment::SegmentHead;
use crate::store::format::{Batch, BatchEncoder, BatchTime, Malformed};
use crate::store::log::{LogRecord, Position};
use rusqlite::{Transaction, TransactionBehavior};
use std::collections::VecDeque;

/// Number of journal rows that one slice trims.
const TRIMMED_ROWS: usize = 8;

/// Size of a compressed block that fills two overflow pages of SQLite and little more, in bytes. A slightly larger one would
/// need another page, and leave most of it empty.
const BODY_BYTES: usize = 8_400;
/// Minimum and maximum size of the records of a block, in bytes.
const BLOCK_BYTES_RANGE: (usize, usize) = (BLOCK_BYTES / 2, 2 * BLOCK_BYTES);

/// The blocks of a segment, each with the position of its first record, and the segment's head.
struct BuiltSegment {
    blocks: VecDeque<(Position, Vec<u8>)>,
    head: SegmentHead,
    last_row: i64,
    /// Size of the records of the next block, in bytes: a block ends with the record that reaches it.
    block_bytes: usize,
}

impl StoreInner {
    fn trim_limits(&self, memory: &MemoryState) -> TrimLimits {
        TrimLimits {
            now: self.batch_time(memory),
            folded_through: memory.folded_through,
            window_ms: self.settings.key_window.as_millis() as u64,
            keys_max: self.settings.keys_max,
        }
    }

    /// Returns whether enough rows for a segment are due, or whether the oldest due row has waited long enough.
    pub fn is_seal_due(&self, memory: &MemoryState) -> bool {
        let limits = self.trim_limits(memory);
        let mut bytes = 0;
        memory.keys.sealable(memory.log.sealed_row, &limits).any(|SealableRow { location, age_ms }| {
            bytes += location.bytes;
            bytes >= self.settings.segment_bytes || age_ms >= self.settings.seal_after.as_millis() as u64
        })
    }

    /// Returns whether sealed rows remain in the journal.
    pub fn is_trim_due(&self, memory: &MemoryState) -> bool {
        !memory.keys.trimmable(memory.log.sealed_row, self.batch_time(memory), 1).is_empty()
    }

    /// Returns the due rows of the next segment.
    fn rows_to_seal(&self, memory: &MemoryState) -> Vec<RowLocation> {
        let limits = self.trim_limits(memory);
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
    /// Seals the due rows; without `all`, only while enough are due.
    pub fn seal(&self, all: bool) -> Result<(), FoldError> {
        loop {
            let memory = self.inner.lock();
            let rows =
                if all || self.inner.is_seal_due(&memory) { self.inner.rows_to_seal(&memory) } else { Vec::new() };
            let state = memory.log;
            drop(memory);
            if let Some(segment) = self.build_segment(&rows)? {
                self.insert_segment(segment, state)?;
            }
            self.trim()?;
            if rows.is_empty() {
                return Ok(());
            }
            self.check_closing()?;
        }
    }

    /// Reads the rows and builds their blocks. Returns `None` if there are no rows.
    fn build_segment(&self, rows: &[RowLocation]) -> Result<Option<BuiltSegment>, FoldError> {
        let mut compressor = Compressor::new().map_err(|error| FoldError::Corrupt(error.to_string()))?;
        let mut segment: Option<BuiltSegment> = None;
        let mut encoder: Option<BatchEncoder> = None;
        for row in rows {
            let encoded = journal::encoded_batch(self.connection, row.seq).map_err(sealing)?;
            let corrupt = |error: Malformed| FoldError::Corrupt(format!("journal row {}: {error}", row.seq));
            let encoded = encoded.ok_or_else(|| corrupt(Malformed::new("it is missing")))?;
            let batch = Batch::parse_with_checksum(&encoded).map_err(corrupt)?;
            for record in batch.records() {
                let record = record.map_err(corrupt)?;
                let segment = segment.get_or_insert_with(|| BuiltSegment {
                    blocks: VecDeque::new(),
                    head: SegmentHead::new(&record),
                    last_row: row.seq,
                    block_bytes: BLOCK_BYTES,
                });
                // Positions within a block are consecutive, also if the writer changed.
                if record.position != segment.head.last.plus(1) && segment.head.records > 0 {
                    segment.end_block(encoder.take(), &mut compressor)?;
                }
                segment.head.add_record(&record);
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

    fn insert_segment(&self, segment: BuiltSegment, state: LogState) -> Result<(), FoldError> {
        let BuiltSegment { mut blocks, head, last_row, .. } = segment;
        self.in_transaction(|transaction| tables::delete_blocks_after(transaction, state.sealed_through))?;
        while !blocks.is_empty() {
            self.insert_blocks(&mut blocks)?;
            self.check_closing()?;
        }
        let state = LogState {
            sealed_row: last_row,
            sealed_through: head.last,
            blocks: state.blocks + head.blocks,
            bytes: state.bytes + head.bytes,
            last_ms: head.last_ms,
            earliest_ms: state.earliest_ms.or(Some(head.first_ms)),
            oldest_ms: state.oldest_ms.or(Some(head.last_ms)),
            ..state
        };
        self.in_transaction(|transaction| {
            tables::insert_segment(transaction, &head)?;
            write_state(transaction, &state)
        })?;
        self.inner.lock().log = state;
        Ok(())
    }

    /// Inserts blocks from the front until the slice's time is over.
    fn insert_blocks(&self, blocks: &mut VecDeque<(Position, Vec<u8>)>) -> Result<(), FoldError> {
        let (slice_max, clock) = (self.inner.slice_max(), &self.inner.settings.clock);
        let mut inserted = 0;
        self.in_transaction(|transaction| {
            let end = clock() + slice_max;
            for (first, body) in blocks.iter() {
                tables::insert_block(transaction, *first, body)?;
                inserted += 1;
                if clock() >= end {
                    break;
                }
            }
            Ok(())
        })?;
        blocks.drain(..inserted);
        Ok(())
    }

    /// Deletes the rows whose records are in blocks, and forgets their keys.
    fn trim(&self) -> Result<(), FoldError> {
        loop {
            let memory = self.inner.lock();
            let due = memory.keys.trimmable(memory.log.sealed_row, self.inner.batch_time(&memory), TRIMMED_ROWS);
            drop(memory);
            let Some(last) = due.last() else { return Ok(()) };
            let failed = |error| FoldError::Failed { action: "trimming the journal", error };
            let expired = journal::expired_keys(self.connection, &due).map_err(failed)?;
            // The horizon comes first: a key that is about to be removed must not count as new in between.
            let change = self.inner.lock().keys.horizon.expire(expired);
            let write_lock = self.inner.write_lock.lock();
            journal::trim(self.connection, last.seq, &change).map_err(failed)?;
            drop(write_lock);
            for _ in &due {
                self.inner.lock().keys.remove_oldest();
            }
            self.check_closing()?;
        }
    }

    /// Runs a transaction with the write lock.
    pub fn in_transaction(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>) -> Result<(), FoldError> {
        let _write_lock = self.inner.write_lock.lock();
        let run = || {
            let transaction = Transaction::new_unchecked(self.connection, TransactionBehavior::Immediate)?;
            work(&transaction)?;
            transaction.commit()
        };
        run().map_err(sealing)
    }
}

impl BuiltSegment {
    fn end_block(&mut self, encoder: Option<BatchEncoder>, compressor: &mut Compressor) -> Result<(), FoldError> {
        let Some(encoder) = encoder else { return Ok(()) };
        let (first, mut batch) = (encoder.first(), Vec::with_capacity(BLOCK_BYTES + BLOCK_BYTES / 4));
        encoder.put(&mut batch);
        let body = compressor.compress(&batch).map_err(|error| FoldError::Corrupt(error.to_string()))?;
        self.head.add_block(body.len());
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

fn sealing(error: rusqlite::Error) -> FoldError {
    FoldError::Failed { action: "sealing the log", error }
}

//! Finds the records of the log: in the journal or in a block.

use super::{LogState, tables};
use crate::store::StoreError;
use crate::store::embedded::failure::{corrupt, store_error};
use crate::store::embedded::journal;
use crate::store::format::batch::first_position;
use crate::store::format::block::Decompressor;
use crate::store::format::segment::SegmentHeader;
use crate::store::format::{Batch, verify_checksum};
use crate::store::log::{LogRecord, Position};
use rusqlite::{Connection, OptionalExtension};
use std::cell::RefCell;
use std::ops::ControlFlow;

/// Finds the journal row that has the record at a position; `None` if there is none.
pub type FindRow<'a> = dyn Fn(Position) -> Result<Option<i64>, StoreError> + 'a;

/// Reads the log as one connection sees it, within one transaction.
pub struct LogReader<'a> {
    pub connection: &'a Connection,
    pub state: LogState,
    find_row: Box<FindRow<'a>>,
    /// The batch that was read last: the next record is often in it.
    last_batch: RefCell<Option<Vec<u8>>>,
    decompressor: RefCell<Decompressor>,
}

impl<'a> LogReader<'a> {
    /// Reads a store's log, given what the store knows about its journal rows.
    pub fn new(connection: &'a Connection, state: LogState, find_row: Box<FindRow<'a>>) -> Result<Self, StoreError> {
        let decompressor = RefCell::new(tables::new_decompressor()?);
        Ok(Self { connection, state, find_row, last_batch: RefCell::default(), decompressor })
    }

    /// Reads a file that another process may have open. Journal rows are found by a binary search.
    pub fn of_file(connection: &'a Connection) -> Result<Self, StoreError> {
        let state = super::read_state(connection)?;
        Self::new(connection, state, Box::new(move |position| search_row(connection, position)))
    }

    /// Reads the record at a position; `None` if there is none, or if it was deleted.
    pub fn record(&self, position: Position) -> Result<Option<LogRecord>, StoreError> {
        let in_last = |batch: &Vec<u8>| read(batch, position).transpose();
        if let Some(found) = self.last_batch.borrow().as_ref().and_then(in_last) {
            return found.map(Some);
        }
        if position.is_none() || position < self.state.earliest {
            return Ok(None);
        }
        let batch = if position <= self.state.sealed_through {
            tables::block_of(self.connection, position, &mut self.decompressor.borrow_mut())?.map(|(_, batch)| batch)
        } else {
            self.journal_batch(position)?
        };
        let Some(batch) = batch else { return Ok(None) };
        let record = read(&batch, position)?;
        self.last_batch.replace(Some(batch));
        Ok(record)
    }

    /// Reads the record of an inventory's change, which must be there unless it was deleted.
    pub fn record_in_chain(&self, position: Position) -> Result<Option<LogRecord>, StoreError> {
        let record = self.record(position)?;
        if record.is_none() && !position.is_none() && position >= self.state.earliest {
            return Err(StoreError::Corrupt { detail: format!("the log has no record at position {position}") });
        }
        Ok(record)
    }

    fn journal_batch(&self, position: Position) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(seq) = (self.find_row)(position)? else { return Ok(None) };
        let encoded = journal::encoded_batch(self.connection, seq);
        let encoded = encoded.map_err(|error| store_error("reading the journal", &error))?;
        encoded.map(|encoded| without_checksum(seq, encoded)).transpose()
    }

    /// Passes the records that are kept to `visit`, newest first and a batch at a time, until it breaks: those before
    /// `before`, or all. Passes over the segments for which `may_match` returns `false`.
    pub fn scan_newest_first(
        &self,
        before: Option<Position>,
        may_match: impl Fn(&SegmentHeader) -> bool,
        mut visit: impl FnMut(Vec<LogRecord>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut visit_batch = |batch: &[u8]| {
            let mut records = Vec::new();
            let batch = Batch::parse(batch).map_err(|error| corrupt("a batch of the log", &error))?;
            for record in batch.records() {
                let record =
                    record.map_err(|error| corrupt(&format!("the batch at position {}", batch.first), &error))?;
                if before.is_none_or(|before| record.position < before) {
                    records.push(record);
                }
            }
            records.reverse();
            Ok::<_, StoreError>(visit(records))
        };
        let failed = |error| store_error("reading the journal", &error);
        let mut select = self
            .connection
            .prepare("SELECT seq, batch FROM journal WHERE seq > ?1 ORDER BY seq DESC")
            .map_err(failed)?;
        let mut rows = select.query([self.state.sealed_row]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let (seq, encoded) = (row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
            if visit_batch(&without_checksum(seq, encoded)?)?.is_break() {
                return Ok(());
            }
        }
        let mut segments = Vec::new();
        tables::scan_segments(self.connection, |_, head| {
            let head = head?;
            if before.is_none_or(|before| head.first < before) && may_match(&head) {
                segments.push((head.first, head.last));
            }
            Ok(())
        })?;
        for (first, last) in segments.into_iter().rev() {
            for block in tables::block_positions(self.connection, first, last)?.into_iter().rev() {
                let block = tables::block_of(self.connection, block, &mut self.decompressor.borrow_mut())?;
                let Some((_, batch)) = block else { continue };
                if visit_batch(&batch)?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Verifies the checksum of an encoded batch, and removes it: blocks have no batch with a checksum.
fn without_checksum(seq: i64, mut encoded: Vec<u8>) -> Result<Vec<u8>, StoreError> {
    let batch_bytes = verify_checksum(&encoded).map_err(|error| corrupt(&format!("journal row {seq}"), &error))?.len();
    encoded.drain(..encoded.len() - batch_bytes);
    Ok(encoded)
}

/// Reads the record at a position of a batch; `None` if the batch does not have it.
fn read(batch: &[u8], position: Position) -> Result<Option<LogRecord>, StoreError> {
    let record = Batch::parse(batch).and_then(|batch| batch.record(position));
    record.map_err(|error| corrupt(&format!("the record at position {position}"), &error))
}

/// Searches the journal row that has the record at a position.
pub fn search_row(connection: &Connection, position: Position) -> Result<Option<i64>, StoreError> {
    let failed = |error| store_error("searching the journal", &error);
    let mut bounds = connection.prepare_cached("SELECT min(seq), max(seq) FROM journal").map_err(failed)?;
    let bounds = bounds.query_row([], |row| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?)));
    let (Some(mut low), Some(mut high)) = bounds.map_err(failed)? else { return Ok(None) };
    // The row that is searched is the last one that begins at or before the position.
    while low < high {
        let middle = low + (high - low + 1) / 2;
        if first_of_row(connection, middle)?.is_some_and(|first| first <= position) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    Ok(Some(low))
}

/// Reads the position of a row's first record from the beginning of its batch.
fn first_of_row(connection: &Connection, seq: i64) -> Result<Option<Position>, StoreError> {
    let failed = |error| store_error("searching the journal", &error);
    let mut select =
        connection.prepare_cached("SELECT substr(batch, 1, 16) FROM journal WHERE seq = ?1").map_err(failed)?;
    let start: Option<Vec<u8>> = select.query_row([seq], |row| row.get(0)).optional().map_err(failed)?;
    let first = start.map(|start| first_position(&start)).transpose();
    first.map_err(|error| corrupt(&format!("journal row {seq}"), &error))
}

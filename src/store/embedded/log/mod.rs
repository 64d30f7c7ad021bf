//! The sealed part of the log: what happens to the journal's rows when their keys are forgotten.
//!
//! Rows that are folded and whose keys may expire are *due*. [`seal`] moves the records of about 1 MiB of due rows into
//! compressed blocks of about 8 KiB, and combines these blocks into a segment, whose header summarizes their contents. The rows
//! are deleted (*pruned*) afterwards. So each record is always in the journal or in a block, and the journal, which is read when
//! the store opens, stays short. [`retention`] deletes the oldest segments. [`reader`] finds records by position, [`history`] walks the chain of one
//! inventory, [`queries`] are the store's functions on top of both, and [`totals`] are the tables of supply.

pub mod history;
mod queries;
pub mod reader;
mod retention;
pub mod seal;
pub mod tables;
pub mod totals;

use super::failure::store_error;
use super::journal;
use crate::store::StoreError;
use crate::store::log::Position;
use rusqlite::Connection;

/// Name of the `meta` entry for the last journal row whose records are in blocks.
pub const SEALED_ROW: &str = "sealed_row";
/// Name of the `meta` entry for the position of the last record in a block. Blocks after it belong to no segment: sealing was
/// interrupted.
pub const SEALED_THROUGH: &str = "sealed_through";
/// Name of the `meta` entry for the position of the earliest record that is kept.
pub const EARLIEST: &str = "earliest";
/// Name of the `meta` entry for the time of the last record that was deleted, in milliseconds since the Unix epoch.
const TRIMMED_MS: &str = "trimmed_ms";
/// Name of the `meta` entry for the number of the writer; 1 unless the store was restored.
pub const WRITER: &str = "writer";
/// Name of the `meta` entry for the number of blocks in segments.
const BLOCKS: &str = "blocks";
/// Name of the `meta` entry for the size of the blocks in segments, in bytes.
const BLOCKS_BYTES: &str = "block_bytes";

/// Names of the `meta` entries for the times of the last sealed record, of the first and of the last record of the oldest
/// segment, in milliseconds since the Unix epoch.
const LAST_MS: &str = "sealed_ms";
const EARLIEST_MS: &str = "earliest_ms";
const OLDEST_MS: &str = "oldest_ms";

/// The sealed part of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last journal row whose records are in blocks. Rows up to it may be pruned.
    pub sealed_row: i64,
    /// The last record in a block.
    pub sealed_through: Position,
    /// The earliest record that is kept; none if no segment was deleted.
    pub earliest: Position,
    /// The time of the last record that was deleted, in milliseconds since the Unix epoch.
    pub trimmed_ms: u64,
    pub writer: u16,
    /// Number of blocks.
    pub blocks: u64,
    /// Size of the blocks, in bytes.
    pub bytes: u64,
    /// The time of the last sealed record, also if it was deleted, in milliseconds since the Unix epoch.
    pub last_ms: u64,
    /// The time of the first record of the oldest segment, in milliseconds since the Unix epoch; `None` without segments.
    pub earliest_ms: Option<u64>,
    /// The time of the last record of the oldest segment, in milliseconds since the Unix epoch; `None` without segments.
    pub oldest_ms: Option<u64>,
}

impl LogState {
    /// Returns the position of the next record, given the position after the last record in the journal.
    pub fn next_position(&self, journal_end: Option<Position>) -> Position {
        let end = journal_end.unwrap_or_default().max(self.sealed_through.plus(1));
        if end.writer() == self.writer { end } else { Position::new(self.writer, 1) }
    }
}

/// Reads the state of the sealed part.
pub fn read_state(connection: &Connection) -> Result<LogState, StoreError> {
    let failed = |error| store_error("reading the state of the log", &error);
    let number = |name| Ok::<_, rusqlite::Error>(journal::meta_value(connection, name)?.map(i64::cast_unsigned));
    let read = || -> rusqlite::Result<_> {
        let position = |name| Ok::<_, rusqlite::Error>(Position::from_u64(number(name)?.unwrap_or(0)));
        Ok(LogState {
            sealed_row: journal::meta_value(connection, SEALED_ROW)?.unwrap_or(0),
            sealed_through: position(SEALED_THROUGH)?,
            earliest: position(EARLIEST)?,
            trimmed_ms: number(TRIMMED_MS)?.unwrap_or(0),
            writer: number(WRITER)?.and_then(|writer| u16::try_from(writer).ok()).unwrap_or(1),
            blocks: number(BLOCKS)?.unwrap_or(0),
            bytes: number(BLOCKS_BYTES)?.unwrap_or(0),
            last_ms: number(LAST_MS)?.unwrap_or(0),
            // 0 without segments.
            earliest_ms: number(EARLIEST_MS)?.filter(|time_ms| *time_ms > 0),
            oldest_ms: number(OLDEST_MS)?.filter(|time_ms| *time_ms > 0),
        })
    };
    read().map_err(failed)
}

/// Writes the state of the sealed part, inside the caller's transaction.
pub fn write_state(connection: &Connection, state: &LogState) -> rusqlite::Result<()> {
    let numbers = [
        (SEALED_ROW, state.sealed_row),
        (SEALED_THROUGH, state.sealed_through.get().cast_signed()),
        (EARLIEST, state.earliest.get().cast_signed()),
        (TRIMMED_MS, state.trimmed_ms.cast_signed()),
        (WRITER, i64::from(state.writer)),
        (BLOCKS, state.blocks.cast_signed()),
        (BLOCKS_BYTES, state.bytes.cast_signed()),
        (LAST_MS, state.last_ms.cast_signed()),
        (EARLIEST_MS, state.earliest_ms.unwrap_or(0).cast_signed()),
        (OLDEST_MS, state.oldest_ms.unwrap_or(0).cast_signed()),
    ];
    numbers.into_iter().try_for_each(|(name, number)| journal::set_meta_value(connection, name, number))
}

//! The tables of blocks and of segments.

use crate::store::StoreError;
use crate::store::embedded::failure::{corrupt, store_error};
use crate::store::format::block::Decompressor;
use crate::store::format::segment::SegmentHeader;
use crate::store::log::Position;
use rusqlite::{Connection, OptionalExtension, params};

pub fn insert_block(connection: &Connection, first: Position, body: &[u8]) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached("INSERT INTO blocks (first, body) VALUES (?1, ?2)")?;
    insert.execute(params![sql(first), body])?;
    Ok(())
}

/// Deletes the blocks after `through`.
pub fn delete_blocks_after(connection: &Connection, through: Position) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM blocks WHERE first > ?1")?.execute([sql(through)])?;
    Ok(())
}

/// Deletes the blocks up to `through`.
pub fn delete_blocks_through(connection: &Connection, through: Position) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM blocks WHERE first <= ?1")?.execute([sql(through)])?;
    Ok(())
}

/// Reads and decompresses the block that may contain a position: the last one that begins at or before it. Also returns the
/// position of its first record.
pub fn block_of(
    connection: &Connection,
    position: Position,
    decompressor: &mut Decompressor,
) -> Result<Option<(Position, Vec<u8>)>, StoreError> {
    let failed = |error| store_error("reading a block of the log", &error);
    let mut select = connection
        .prepare_cached("SELECT first, body FROM blocks WHERE first <= ?1 ORDER BY first DESC LIMIT 1")
        .map_err(failed)?;
    let found = select.query_row([sql(position)], |row| {
        let first = Position::from_u64(row.get::<_, i64>(0)?.cast_unsigned());
        Ok((first, row.get_ref(1)?.as_blob().map(|body| decompressor.decompress(body))))
    });
    let Some((first, body)) = found.optional().map_err(failed)? else { return Ok(None) };
    let body = body.map_err(|error| StoreError::Corrupt { detail: error.to_string() })?;
    Ok(Some((first, body.map_err(|error| corrupt(&format!("the block of the log at position {first}"), &error))?)))
}

/// Creates a decompressor.
pub fn new_decompressor() -> Result<Decompressor, StoreError> {
    Decompressor::new().map_err(|error| StoreError::Unavailable { detail: format!("cannot decompress: {error}") })
}

/// Passes each block from `first` to `last` to `visit`, decompressed, oldest first. If one cannot be read, passes the reason.
pub fn scan_blocks(
    connection: &Connection,
    first: Position,
    last: Position,
    mut visit: impl FnMut(Position, usize, Result<Vec<u8>, StoreError>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let failed = |error| store_error("reading the blocks of the log", &error);
    let mut decompressor = new_decompressor()?;
    let mut select = connection
        .prepare_cached("SELECT first, body FROM blocks WHERE first >= ?1 AND first <= ?2 ORDER BY first")
        .map_err(failed)?;
    let mut rows = select.query([sql(first), sql(last)]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let first = Position::from_u64(row.get::<_, i64>(0).map_err(failed)?.cast_unsigned());
        let body = row.get_ref(1).map_err(failed)?.as_blob();
        let body = body.map_err(|error| StoreError::Corrupt { detail: error.to_string() })?;
        let batch = decompressor
            .decompress(body)
            .map_err(|error| corrupt(&format!("the block of the log at position {first}"), &error));
        visit(first, body.len(), batch)?;
    }
    Ok(())
}

pub fn insert_segment(connection: &Connection, head: &SegmentHeader) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached("INSERT INTO segments (first, head) VALUES (?1, ?2)")?;
    insert.execute(params![sql(head.first), head.encode()])?;
    Ok(())
}

pub fn delete_segment(connection: &Connection, first: Position) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM segments WHERE first = ?1")?.execute([sql(first)])?;
    Ok(())
}

/// Reads the two oldest segments.
pub fn first_segments(connection: &Connection) -> Result<[Option<SegmentHeader>; 2], StoreError> {
    let failed = |error| store_error("reading a segment of the log", &error);
    let mut select =
        connection.prepare_cached("SELECT first, head FROM segments ORDER BY first LIMIT 2").map_err(failed)?;
    let mut rows = select.query([]).map_err(failed)?;
    let mut next = || match rows.next().map_err(failed)? {
        Some(row) => read_segment(row).map_err(failed)?.1.map(Some),
        None => Ok(None),
    };
    Ok([next()?, next()?])
}

/// Returns the positions at which the blocks from `first` to `last` begin, in order.
pub fn block_positions(connection: &Connection, first: Position, last: Position) -> Result<Vec<Position>, StoreError> {
    let failed = |error| store_error("reading the blocks of the log", &error);
    let mut select = connection
        .prepare_cached("SELECT first FROM blocks WHERE first >= ?1 AND first <= ?2 ORDER BY first")
        .map_err(failed)?;
    let rows = select.query_map([sql(first), sql(last)], |row| row.get::<_, i64>(0)).map_err(failed)?;
    rows.map(|first| Ok(Position::from_u64(first.map_err(failed)?.cast_unsigned()))).collect()
}

/// Passes each segment to `visit`, oldest first. If one cannot be read, passes the reason.
pub fn scan_segments(
    connection: &Connection,
    mut visit: impl FnMut(Position, Result<SegmentHeader, StoreError>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let failed = |error| store_error("reading the segments of the log", &error);
    let mut select = connection.prepare("SELECT first, head FROM segments ORDER BY first").map_err(failed)?;
    let mut rows = select.query([]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let (first, head) = read_segment(row).map_err(failed)?;
        visit(first, head)?;
    }
    Ok(())
}

fn read_segment(row: &rusqlite::Row<'_>) -> rusqlite::Result<(Position, Result<SegmentHeader, StoreError>)> {
    let first = Position::from_u64(row.get::<_, i64>(0)?.cast_unsigned());
    let head = SegmentHeader::decode(row.get_ref(1)?.as_blob().unwrap_or_default());
    Ok((first, head.map_err(|error| corrupt(&format!("the segment of the log at position {first}"), &error))))
}

/// SQLite has no unsigned integers; positions are below 2^63.
pub fn sql(position: Position) -> i64 {
    position.get().cast_signed()
}

//! The journal: the newest part of the log, one row per committed batch, in order, without gaps. A row stays until it is
//! folded, its keys may expire, and its records are in a sealed block.
//!
//! Rows are numbered from 1, and not by the position of their first record, because [`super::wal`] tells by consecutive
//! numbers which commits were acknowledged.

use super::failure::{ReadError, corrupt, store_error};
use super::keys::PrunableRow;
use crate::domain::Caller;
use crate::store::format::{Batch, BatchTime};
use crate::store::horizon::{ExpiredKeys, HorizonChange, KeyHorizon};
use crate::store::log::{LogRecord, Position};
use crate::store::{ScopedKey, StoreError};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

/// Appends a row in its own transaction. The row is durable when this returns.
pub fn append(connection: &Connection, seq: i64, batch: &[u8]) -> rusqlite::Result<()> {
    connection.prepare_cached("INSERT INTO journal (seq, batch) VALUES (?1, ?2)")?.execute(params![seq, batch])?;
    Ok(())
}

/// Reads the record at a position of a row; `None` if the row has been trimmed, or does not have the position.
pub fn read(connection: &Connection, seq: i64, position: Position) -> Result<Option<LogRecord>, ReadError> {
    let encoded = encoded_batch(connection, seq).map_err(ReadError::sqlite("reading the journal"))?;
    let Some(encoded) = encoded else { return Ok(None) };
    let record = Batch::parse_with_checksum(&encoded).and_then(|batch| batch.record(position));
    record.map_err(|error| ReadError::Corrupt(corrupt(&format!("journal row {seq}"), &error)))
}

/// Reads the encoded batch of a row; `None` if it has been trimmed.
pub fn encoded_batch(connection: &Connection, seq: i64) -> rusqlite::Result<Option<Vec<u8>>> {
    let mut select = connection.prepare_cached("SELECT batch FROM journal WHERE seq = ?1")?;
    select.query_row([seq], |row| row.get(0)).optional()
}

/// Reads the number of the last row, the position after its last record, and its time; `None` if the journal is empty.
pub fn last_batch(connection: &Connection) -> Result<Option<(i64, Position, BatchTime)>, StoreError> {
    let failed = |error| store_error("reading the journal", &error);
    let mut select =
        connection.prepare_cached("SELECT seq, batch FROM journal ORDER BY seq DESC LIMIT 1").map_err(failed)?;
    let last = select.query_row([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)));
    let Some((seq, encoded)) = last.optional().map_err(failed)? else { return Ok(None) };
    let batch = Batch::parse_with_checksum(&encoded).map_err(|error| corrupt(&format!("journal row {seq}"), &error))?;
    Ok(Some((seq, batch.end(), batch.time)))
}

/// Passes each row from `first` on to `visit`, oldest first.
pub fn scan(
    connection: &Connection,
    first: i64,
    mut visit: impl FnMut(i64, &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let failed = |error| store_error("reading the journal", &error);
    let mut select =
        connection.prepare("SELECT seq, batch FROM journal WHERE seq >= ?1 ORDER BY seq").map_err(failed)?;
    let mut rows = select.query([first]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let seq = row.get(0).map_err(failed)?;
        let encoded = row.get_ref(1).map_err(failed)?;
        let encoded = encoded.as_blob().map_err(|error| StoreError::Corrupt { detail: error.to_string() })?;
        visit(seq, encoded)?;
    }
    Ok(())
}

/// Computes how deleting these rows changes the horizon. Reads the rows with keys that were ahead of the wall clock.
pub fn expired_keys(connection: &Connection, due: &[PrunableRow]) -> rusqlite::Result<ExpiredKeys> {
    let mut expired = ExpiredKeys::default();
    for PrunableRow { seq, received_ms, latest_key_ms } in due {
        let Some(latest_key_ms) = *latest_key_ms else { continue };
        let keys = if latest_key_ms > *received_ms {
            encoded_batch(connection, *seq)?.and_then(|encoded| keys_of(&encoded))
        } else {
            None
        };
        match keys {
            Some(keys) => expired.add(*received_ms, keys.iter()),
            // No key was ahead; or the row is damaged, so that the callers of its keys are unknown.
            None => expired.raise(latest_key_ms),
        }
    }
    Ok(expired)
}

fn keys_of(encoded: &[u8]) -> Option<Vec<ScopedKey>> {
    let batch = Batch::parse_with_checksum(encoded).ok()?;
    let keys: Result<Vec<_>, _> = batch.keys().collect();
    Some(keys.ok()?.into_iter().flatten().collect())
}

/// Removes all rows up to `through` and stores the resulting horizon, in one transaction.
pub fn prune(connection: &Connection, through: i64, change: &HorizonChange) -> rusqlite::Result<()> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    transaction.prepare_cached("DELETE FROM journal WHERE seq <= ?1")?.execute([through])?;
    if let Some(common_ms) = change.common_ms {
        set_meta_value(&transaction, FORGOTTEN_BEFORE_MS, common_ms.cast_signed())?;
    }
    for caller in &change.dropped {
        transaction.prepare_cached("DELETE FROM meta WHERE name = ?1")?.execute([ahead_name(caller)])?;
    }
    for (caller, expired_ms) in &change.ahead {
        set_meta_value(&transaction, &ahead_name(caller), expired_ms.cast_signed())?;
    }
    transaction.commit()
}

/// Reads the stored horizon.
pub fn horizon(connection: &Connection, callers_max: usize) -> Result<KeyHorizon, StoreError> {
    let failed = |error| store_error("reading the horizon of keys", &error);
    let common_ms = meta_value(connection, FORGOTTEN_BEFORE_MS).map_err(failed)?;
    let mut horizon = KeyHorizon::new(common_ms.map(i64::cast_unsigned), callers_max);
    // '0' is the character after '/'.
    let sql = "SELECT name, value FROM meta WHERE name > 'forgotten_ahead/' AND name < 'forgotten_ahead0'";
    let mut select = connection.prepare(sql).map_err(failed)?;
    let rows = select.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))).map_err(failed)?;
    for row in rows {
        let (name, expired_ms) = row.map_err(failed)?;
        let caller = Caller::new(&name[FORGOTTEN_AHEAD.len()..]);
        let caller = caller.map_err(|error| StoreError::Corrupt { detail: format!("meta {name:?}: {error}") })?;
        horizon.restore(caller, expired_ms.cast_unsigned());
    }
    Ok(horizon)
}

fn ahead_name(caller: &Caller) -> String {
    format!("{FORGOTTEN_AHEAD}{caller}")
}

/// Name of the `meta` entry for the last row that is folded into the table.
pub const FOLDED_THROUGH: &str = "folded_through";
/// Name of the `meta` entry for the common horizon: unknown keys with this time, or an earlier one, are not new.
const FORGOTTEN_BEFORE_MS: &str = "forgotten_before_ms";
/// Prefix of the `meta` entry for a caller's own horizon; the caller's name follows. Unknown keys of this caller with
/// this time, or an earlier one, are not new.
const FORGOTTEN_AHEAD: &str = "forgotten_ahead/";

/// Reads an entry of the `meta` table; `None` if it does not exist.
pub fn meta_value(connection: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    // Each read of the store begins with this query, and parsing it takes longer than running it, so the statement is
    // cached.
    let mut select = connection.prepare_cached("SELECT value FROM meta WHERE name = ?1")?;
    select.query_row([name], |row| row.get(0)).optional()
}

/// Writes an entry of the `meta` table.
pub fn set_meta_value(connection: &Connection, name: &str, value: i64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    connection.prepare_cached(sql)?.execute(params![name, value])?;
    Ok(())
}

//! The journal: one row a committed batch, in order, without gaps. Rows stay until they are folded and their keys may be
//! forgotten.

use super::failure::{ReadError, malformed, store_error};
use super::keys::Due;
use crate::store::StoreError;
use crate::store::format::{self, Entry};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

/// One transaction by itself: durable when this returns.
pub fn append(connection: &Connection, seq: i64, batch: &[u8]) -> rusqlite::Result<()> {
    connection.prepare_cached("INSERT INTO journal (seq, batch) VALUES (?1, ?2)")?.execute(params![seq, batch])?;
    Ok(())
}

/// A row's records; none when it has been trimmed.
pub fn read(connection: &Connection, seq: i64) -> Result<Option<Vec<Entry>>, ReadError> {
    let failed = ReadError::sqlite("reading the journal");
    let mut select = connection.prepare_cached("SELECT batch FROM journal WHERE seq = ?1").map_err(&failed)?;
    let sealed: Option<Vec<u8>> = select.query_row([seq], |row| row.get(0)).optional().map_err(failed)?;
    let entries = sealed.map(|sealed| format::entries(&sealed)).transpose();
    let damaged = |error| ReadError::Malformed(malformed(&format!("journal row {seq}"), &error));
    Ok(entries.map_err(damaged)?.map(|(_, entries)| entries))
}

/// Hands each row from `first` on to `visit`, oldest first.
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
        let sealed = row.get_ref(1).map_err(failed)?;
        let sealed = sealed.as_blob().map_err(|error| StoreError::Corrupt { detail: error.to_string() })?;
        visit(seq, sealed)?;
    }
    Ok(())
}

/// Removes rows, and keeps the horizon that this means, in one transaction.
pub fn trim(connection: &Connection, due: &Due) -> rusqlite::Result<()> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    transaction.prepare_cached("DELETE FROM journal WHERE seq <= ?1")?.execute([due.through])?;
    if let Some(horizon_ms) = due.horizon_ms {
        put_number(&transaction, FORGOTTEN_BEFORE_MS, horizon_ms.cast_signed())?;
    }
    transaction.commit()
}

/// All rows up to this one are in the table.
pub const FOLDED_THROUGH: &str = "folded_through";
/// The table was written anew after this row (a restore, an import): up to it, journal rows tell of keys alone.
pub const REWRITTEN_THROUGH: &str = "rewritten_through";
/// The latest time inside a forgotten key.
pub const FORGOTTEN_BEFORE_MS: &str = "forgotten_before_ms";

pub fn number(connection: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0)).optional()
}

pub fn put_number(connection: &Connection, name: &str, value: i64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    connection.prepare_cached(sql)?.execute(params![name, value])?;
    Ok(())
}

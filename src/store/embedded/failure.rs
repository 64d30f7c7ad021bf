//! What SQLite's errors mean here.

use crate::store::StoreError;
use crate::store::format::Malformed;
use rusqlite::ErrorCode;

/// Whether the disk itself failed. What was being written may be there or not, and the kernel may have given up on
/// pages that it had taken: nothing that is written afterwards could be trusted.
pub fn is_io(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure)
}

pub fn store_error(doing: &str, error: &rusqlite::Error) -> StoreError {
    let detail = format!("{doing}: {error}");
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full { detail },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt { detail },
        None if is_conversion(error) => StoreError::Corrupt { detail },
        Some(_) | None => StoreError::Unavailable { detail },
    }
}

pub fn malformed(what: &str, error: &Malformed) -> StoreError {
    StoreError::Corrupt { detail: format!("{what}: {error}") }
}

/// A value of another type than was written.
fn is_conversion(error: &rusqlite::Error) -> bool {
    matches!(
        error,
        rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..)
    )
}

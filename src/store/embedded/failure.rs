//! The meaning of SQLite's errors, and which of them may be retried.
//!
//! | error | known state | reaction |
//! |---|---|---|
//! | a read failed | the failed step wrote nothing, and its transaction is rolled back | retry |
//! | disk full (`ENOSPC` in a write) | rolled back: its frames have no commit mark | retry until there is room |
//! | busy, cannot open | nothing was written | retry |
//! | other I/O errors (write, sync, truncation, the log's index) | the state on disk is unknown | the store stops |
//!
//! A failed sync is never retried: the kernel may have marked the pages as clean that it could not write, so that the
//! next sync succeeds without them (<https://www.usenix.org/conference/atc20/presentation/rebello>). This also applies
//! to a checkpoint, although the log still has everything: SQLite counts frames as copied (`nBackfill`) after a partial
//! checkpoint without a sync, and a retry would not copy them again. Reopening the store copies the whole log.
//!
//! A checkpoint that fails on a full disk may be retried: `nBackfill` advances only after a complete pass, so a retry
//! rewrites every page that the failed pass wrote, and the sync at the end covers all of them on the same descriptor.
//!
//! SQLite reports a read that the disk refused (`EIO`, `ENXIO`) as `SQLITE_CORRUPT`: "database disk image is
//! malformed". Reading the files directly ([`super::probe`]) distinguishes an I/O error from damage.

use crate::store::StoreError;
use crate::store::format::Malformed;
use rusqlite::{ErrorCode, ffi};

/// Number of consecutive attempts after which an action with failing reads counts as failed.
const READ_ATTEMPTS_MAX: usize = 3;

/// Returns whether the disk failed in a way that leaves its contents unknown: later writes could not be trusted.
pub fn is_fatal(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) && !is_failed_read(error)
}

/// Returns whether a file could not be opened.
pub fn cannot_open(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::CannotOpen)
}

/// Returns whether a read failed, or returned data that SQLite cannot interpret. The failed step wrote nothing.
pub fn is_failed_read(error: &rusqlite::Error) -> bool {
    let Some(error) = error.sqlite_error() else { return false };
    let failed_reads = [ffi::SQLITE_IOERR_READ, ffi::SQLITE_IOERR_SHORT_READ, ffi::SQLITE_IOERR_CORRUPTFS];
    failed_reads.contains(&error.extended_code)
        || matches!(error.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
}

/// The error of an action whose attempts all failed.
#[derive(Debug)]
pub struct RetryError<E> {
    pub error: E,
    /// Where and why reading the files directly failed, before the last attempt.
    pub unreadable: Option<String>,
}

/// Retries at once while reads fail, because a disk often returns at the second attempt the data that it refused at the
/// first. `unreadable` reads the files directly before the last attempt: if that succeeds and the last attempt still
/// fails, the data is damaged. The warning omits the error, because SQLite may report a failed read as corruption.
pub fn retry_failed_reads<T, E>(
    is_failed_read: impl Fn(&E) -> bool,
    unreadable: impl FnOnce() -> Option<String>,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, RetryError<E>> {
    for _ in 1..READ_ATTEMPTS_MAX {
        match attempt() {
            Err(error) if is_failed_read(&error) => tracing::warn!("a read of the store's files failed and is retried"),
            ended => return ended.map_err(|error| RetryError { error, unreadable: None }),
        }
    }
    let unreadable = unreadable();
    attempt().map_err(|error| RetryError { error, unreadable })
}

pub fn store_error(action: &str, error: &rusqlite::Error) -> StoreError {
    let detail = format!("{action} failed: {error}");
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full { detail },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt { detail },
        None if is_conversion(error) => StoreError::Corrupt { detail },
        Some(_) | None => StoreError::Unavailable { detail },
    }
}

/// A failed read, before it is known whether the disk or the stored data is at fault.
#[derive(Debug)]
pub enum ReadError {
    Sqlite {
        action: &'static str,
        error: rusqlite::Error,
    },
    /// The data that was read differs from the data that was written.
    Corrupt(StoreError),
}

impl ReadError {
    pub fn sqlite(action: &'static str) -> impl Fn(rusqlite::Error) -> Self {
        move |error| Self::Sqlite { action, error }
    }

    pub fn is_failed_read(&self) -> bool {
        matches!(self, Self::Sqlite { error, .. } if is_failed_read(error))
    }
}

impl From<ReadError> for StoreError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Sqlite { action, error } => store_error(action, &error),
            ReadError::Corrupt(error) => error,
        }
    }
}

pub fn corrupt(subject: &str, error: &Malformed) -> StoreError {
    StoreError::Corrupt { detail: format!("{subject}: {error}") }
}

/// Returns whether the value has another type than the one that was written.
fn is_conversion(error: &rusqlite::Error) -> bool {
    matches!(
        error,
        rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sqlite(code: i32) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)
    }

    #[test]
    fn failed_reads_may_be_retried_and_every_other_io_error_is_fatal() {
        for code in [ffi::SQLITE_IOERR_READ, ffi::SQLITE_IOERR_CORRUPTFS, ffi::SQLITE_CORRUPT, ffi::SQLITE_NOTADB] {
            assert!(is_failed_read(&sqlite(code)) && !is_fatal(&sqlite(code)), "{code}");
        }
        for code in [
            ffi::SQLITE_IOERR_WRITE,
            ffi::SQLITE_IOERR_FSYNC,
            ffi::SQLITE_IOERR_DIR_FSYNC,
            ffi::SQLITE_IOERR_TRUNCATE,
            ffi::SQLITE_IOERR_SHMSIZE,
        ] {
            assert!(is_fatal(&sqlite(code)) && !is_failed_read(&sqlite(code)), "{code}");
        }
        for code in [ffi::SQLITE_FULL, ffi::SQLITE_BUSY, ffi::SQLITE_CANTOPEN] {
            assert!(!is_fatal(&sqlite(code)) && !is_failed_read(&sqlite(code)), "{code}");
        }
    }

    #[test]
    fn a_failed_read_is_attempted_three_times_and_anything_else_once() {
        let attempts = |code| {
            let mut attempts = 0;
            let ended: Result<(), _> = retry_failed_reads(
                is_failed_read,
                || Some("at byte 7".to_owned()),
                || {
                    attempts += 1;
                    Err(sqlite(code))
                },
            );
            (attempts, ended.expect_err("every attempt fails").unreadable)
        };
        assert_eq!(attempts(ffi::SQLITE_IOERR_READ), (3, Some("at byte 7".to_owned())));
        assert_eq!(attempts(ffi::SQLITE_IOERR_FSYNC), (1, None));
    }
}

//! Reads the head of a database before SQLite opens it: SQLite must not recover a database that is not a Slotcast
//! store.

use super::files::{beside, file_bytes};
use super::open::{APPLICATION_ID, FORMAT_VERSION, OpenError, PAGE_BYTES, io_error, truncated};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

const HEAD_BYTES: usize = 100;
const MARK: &[u8; 16] = b"SQLite format 3\0";
/// Maximum size of a store that was never used, in bytes. An empty store with its schema is half as large.
const UNUSED_BYTES_MAX: u64 = 65_536;

/// Returns whether there is a store. There is none if the file does not exist, or if an interrupted first start created
/// the file and it was never used.
///
/// Opens the file without SQLite, so a process that has a connection to the file must not call this.
pub fn check(path: &Path) -> Result<bool, OpenError> {
    if !is_filled(path)? {
        return Ok(false);
    }
    // The log comes first: a service may be copying it into the file.
    let log_bytes = file_bytes(&beside(path, "-wal"));
    let failed = |error: io::Error| io_error(path, &error.to_string());
    if log_bytes == 0 && file_bytes(path) <= UNUSED_BYTES_MAX && is_unused(path).map_err(failed)? {
        return Ok(false);
    }
    let mut head = [0; HEAD_BYTES];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    let bytes = file_bytes(path);
    if !head.starts_with(MARK) && (read.is_ok() || head != [0; HEAD_BYTES]) {
        return Err(OpenError::NotSlotcast { path: path.to_owned(), detail: "it is not a SQLite database".into() });
    }
    read.map_err(|error| {
        let is_short = error.kind() == ErrorKind::UnexpectedEof;
        let short = || truncated(path, format!("it has {bytes} bytes, not even a head"));
        if is_short { short() } else { failed(error) }
    })?;
    let (pages, format, application) = (u64::from(number(&head, 28)), number(&head, 60), number(&head, 68));
    match application {
        APPLICATION_ID if format > FORMAT_VERSION => {
            return Err(OpenError::NewerFormat { path: path.to_owned(), found: format, known: FORMAT_VERSION });
        }
        // 0: the creation may have been interrupted. The check after opening decides.
        APPLICATION_ID | 0 => {}
        other => {
            let detail = format!("it is the SQLite database of another application ({other:#010x})");
            return Err(OpenError::NotSlotcast { path: path.to_owned(), detail });
        }
    }
    // With a log beside it, the file may be shorter than its head says: a checkpoint was interrupted.
    if log_bytes == 0 && bytes < pages * PAGE_BYTES {
        return Err(truncated(path, format!("it has {bytes} bytes of {}", pages * PAGE_BYTES)));
    }
    Ok(true)
}

/// Returns whether the file has contents. Refuses a log beside an empty file: SQLite would remove the log.
fn is_filled(path: &Path) -> Result<bool, OpenError> {
    let bytes = match std::fs::metadata(path) {
        Ok(metadata) => Some(metadata.len()),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(io_error(path, &error.to_string())),
    };
    if bytes.is_some_and(|bytes| bytes > 0) {
        return Ok(true);
    }
    let log = beside(path, "-wal");
    let what = if bytes.is_some() { "is empty" } else { "is missing" };
    match file_bytes(&log) {
        0 => Ok(false),
        bytes => {
            Err(truncated(path, format!("it {what}, but its write-ahead log {} has {bytes} bytes", log.display())))
        }
    }
}

/// Returns whether the database is marked as one without a write-ahead log, as a backup is.
pub fn is_without_log(path: &Path) -> bool {
    let mut head = [0; HEAD_BYTES];
    File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head.starts_with(MARK) && head[18] == 1
}

/// Returns whether the file contains only zeros, or the start of a database without tables and application id. A crash
/// can leave these of a first page.
fn is_unused(path: &Path) -> io::Result<bool> {
    let (bytes, journal) = (std::fs::read(path)?, read_start(&beside(path, "-journal"))?);
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    // A rollback journal with pages to restore belongs to a database that was used.
    if journal.len() >= 20 && number(&journal, 16) != 0 {
        return Ok(false);
    }
    if is_zero(&bytes) {
        return Ok(true);
    }
    if bytes.len() < PAGE_BYTES as usize {
        return Ok(false);
    }
    // Number of pages, schema version, format, application id; the number of cells of the schema. Everything behind the
    // page's header must be zero.
    let is_empty =
        number(&bytes, 28) <= 1 && [40..44, 60..64, 68..72, 103..105].into_iter().all(|at| is_zero(&bytes[at]));
    let is_of_mark = bytes.iter().zip(MARK).all(|(byte, mark)| byte == mark || *byte == 0);
    Ok(is_of_mark && is_empty && is_zero(&bytes[112..]))
}

fn read_start(path: &Path) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(32).read_to_end(&mut start).map(|_| start),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(start),
        Err(error) => Err(error),
    }
}

/// Reads a number as SQLite stores it, in big-endian order.
pub fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

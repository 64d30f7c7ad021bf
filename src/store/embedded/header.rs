//! Reads the header of a database without SQLite: before SQLite opens the file, because SQLite must not recover a
//! database that is not a Slotcast store; and while it is open, to detect that another file was written over it.
//!
//! The header is the first 100 bytes of the file: <https://www.sqlite.org/fileformat2.html#the_database_header>.

use super::files::{file_len_bytes, with_suffix};
use super::open::{APPLICATION_ID, FORMAT_VERSION, OpenError, PAGE_BYTES, io_error, truncated};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

const HEADER_BYTES: usize = 100;
/// The first bytes of every SQLite database.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Maximum size of a store that was never used, in bytes. An empty store with its schema is smaller.
const UNUSED_BYTES_MAX: u64 = 65_536;

// Offsets of the fields in the header, in bytes.
const WRITE_VERSION_AT: usize = 18;
const CHANGE_COUNTER_AT: usize = 24;
const PAGE_COUNT_AT: usize = 28;
const SCHEMA_COOKIE_AT: usize = 40;
const USER_VERSION_AT: usize = 60;
const APPLICATION_ID_AT: usize = 68;

/// The write version of a database without a write-ahead log.
const ROLLBACK_JOURNAL: u8 = 1;

/// The header of a database.
#[derive(Debug, Clone, Copy)]
pub struct DatabaseHeader([u8; HEADER_BYTES]);

impl DatabaseHeader {
    /// Reads the header of an open file. Fails with `UnexpectedEof` if the file is shorter than a header.
    pub fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; HEADER_BYTES];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Self(bytes))
    }

    /// Returns whether this is a later header of the same database: the magic string, page size, journal mode and
    /// application id are the same, and the counters of changes and schema changes have not decreased. A copy of a
    /// backup or of an earlier state has another mode or a lower counter.
    pub fn continues(&self, earlier: &Self) -> bool {
        let is_same = |from: usize, to: usize| self.0[from..to] == earlier.0[from..to];
        let does_not_decrease = |at| self.field(at) >= earlier.field(at);
        is_same(0, CHANGE_COUNTER_AT)
            && is_same(USER_VERSION_AT, APPLICATION_ID_AT + 4)
            && [CHANGE_COUNTER_AT, SCHEMA_COOKIE_AT].into_iter().all(does_not_decrease)
    }

    fn is_sqlite(&self) -> bool {
        self.0.starts_with(MAGIC)
    }

    fn field(&self, at: usize) -> u32 {
        u32_at(&self.0, at)
    }
}

/// Marks a database as one without a write-ahead log. No process may have it open, and it must not have a log.
pub fn set_rollback_mode(file: &File) -> io::Result<()> {
    // The write version, and after it the read version.
    file.write_all_at(&[ROLLBACK_JOURNAL; 2], WRITE_VERSION_AT as u64)
}

/// Returns whether there is a store. There is none if the file does not exist, or if an interrupted first start created
/// the file and it was never used.
///
/// Opens the file without SQLite, so a process that has a connection to the file must not call this.
pub fn check(path: &Path) -> Result<bool, OpenError> {
    if !is_filled(path)? {
        return Ok(false);
    }
    // The write-ahead log comes first: a server may be copying it into the file.
    let wal_bytes = file_len_bytes(&with_suffix(path, "-wal"));
    let failed = |error: io::Error| io_error(path, &error.to_string());
    if wal_bytes == 0 && file_len_bytes(path) <= UNUSED_BYTES_MAX && is_unused(path).map_err(failed)? {
        return Ok(false);
    }
    let not_sqlite = || OpenError::NotSlotcast { path: path.to_owned(), detail: "not a SQLite database".into() };
    let file = File::open(path).map_err(failed)?;
    let header = match DatabaseHeader::read(&file) {
        Ok(header) => header,
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            let start = read_start(path, HEADER_BYTES as u64).map_err(failed)?;
            let is_start_of_database = start.starts_with(MAGIC) || is_zero(&start);
            let detail = format!("it has {} bytes, less than a database header ({HEADER_BYTES} bytes)", start.len());
            return Err(if is_start_of_database { truncated(path, detail) } else { not_sqlite() });
        }
        Err(error) => return Err(failed(error)),
    };
    let bytes = file_len_bytes(path);
    if !header.is_sqlite() {
        return Err(not_sqlite());
    }
    match (header.field(APPLICATION_ID_AT), header.field(USER_VERSION_AT)) {
        (APPLICATION_ID, found) if found != FORMAT_VERSION => {
            return Err(OpenError::OtherFormat { path: path.to_owned(), found, known: FORMAT_VERSION });
        }
        // 0: the creation may have been interrupted. The check after opening decides.
        (APPLICATION_ID | 0, _) => {}
        (other, _) => {
            let detail = format!("a SQLite database of another application (application id {other:#010x})");
            return Err(OpenError::NotSlotcast { path: path.to_owned(), detail });
        }
    }
    // With a write-ahead log beside it, the file may be shorter than its header says: a checkpoint was interrupted.
    let expected_bytes = u64::from(header.field(PAGE_COUNT_AT)) * PAGE_BYTES;
    // With pages to restore in a rollback journal, an import was interrupted: SQLite rolls it back when it opens the file.
    if wal_bytes == 0 && bytes < expected_bytes && !has_pages_to_restore(path).map_err(failed)? {
        return Err(truncated(path, format!("it has {bytes} of {expected_bytes} bytes")));
    }
    Ok(true)
}

/// Returns whether the file has contents. Refuses a write-ahead log beside an empty
/// file: SQLite would remove the log.
fn is_filled(path: &Path) -> Result<bool, OpenError> {
    let bytes = match std::fs::metadata(path) {
        Ok(metadata) => Some(metadata.len()),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(io_error(path, &error.to_string())),
    };
    if bytes.is_some_and(|bytes| bytes > 0) {
        return Ok(true);
    }
    let wal = with_suffix(path, "-wal");
    let problem = if bytes.is_some() { "is empty" } else { "is missing" };
    match file_len_bytes(&wal) {
        0 => Ok(false),
        bytes => {
            Err(truncated(path, format!("it {problem}, but its write-ahead log {} has {bytes} bytes", wal.display())))
        }
    }
}

/// Returns whether the header says that the database has no write-ahead log, as the header of a backup does.
pub fn is_in_rollback_mode(path: &Path) -> bool {
    let header = File::open(path).and_then(|file| DatabaseHeader::read(&file));
    header.is_ok_and(|header| header.is_sqlite() && header.0[WRITE_VERSION_AT] == ROLLBACK_JOURNAL)
}

/// Returns whether the file contains only zeros, or the start of a database without tables and application id. A crash
/// while the first page is written can leave such a file.
fn is_unused(path: &Path) -> io::Result<bool> {
    let bytes = std::fs::read(path)?;
    // A rollback journal with pages to restore belongs to a database that was used.
    if has_pages_to_restore(path)? {
        return Ok(false);
    }
    if is_zero(&bytes) {
        return Ok(true);
    }
    if bytes.len() < PAGE_BYTES as usize {
        return Ok(false);
    }
    // The schema's page follows the header: its number of cells must be 0, and everything after its own header zero.
    let fields = [SCHEMA_COOKIE_AT, USER_VERSION_AT, APPLICATION_ID_AT];
    let is_empty = u32_at(&bytes, PAGE_COUNT_AT) <= 1
        && fields.into_iter().all(|at| u32_at(&bytes, at) == 0)
        && is_zero(&bytes[103..105])
        && is_zero(&bytes[112..]);
    let is_part_of_magic = bytes.iter().zip(MAGIC).all(|(byte, magic)| byte == magic || *byte == 0);
    Ok(is_part_of_magic && is_empty)
}

/// Returns whether the database has a rollback journal with pages that an interrupted transaction had overwritten.
pub fn has_pages_to_restore(path: &Path) -> io::Result<bool> {
    const PAGE_COUNT_AT: usize = 16;
    let journal = read_start(&with_suffix(path, "-journal"), 32)?;
    Ok(journal.len() >= PAGE_COUNT_AT + 4 && u32_at(&journal, PAGE_COUNT_AT) != 0)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Reads the first bytes of a file, at most `bytes_max`; none if it does not exist.
fn read_start(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(bytes_max).read_to_end(&mut start).map(|_| start),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(start),
        Err(error) => Err(error),
    }
}

/// Reads an integer as SQLite stores it: 32 bits, big-endian.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

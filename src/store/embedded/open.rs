//! Opening the file: the lock, the checks that refuse with a reason, the schema, the connections.

use crate::store::StoreError;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// "Slot": what tells our files from other SQLite files.
pub const APPLICATION_ID: u32 = 0x536C_6F74;
/// Raised when a file that is written by this version cannot be read by the one before.
pub const FORMAT_VERSION: u32 = 1;
pub const PAGE_BYTES: u64 = 4096;

/// Why a file was not opened, and what can be done.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "{} is already open in another process (its lock {}-lock is held); stop that one, or give this one its own file",
        path.display(), path.display()
    )]
    AlreadyOpen { path: PathBuf },
    #[error("{} is not a Slotcast file: {detail}; it was left as it is, give another path", path.display())]
    NotSlotcast { path: PathBuf, detail: String },
    #[error(
        "{} has format {found}, this program knows formats up to {known}; use the version of Slotcast that wrote it, or a newer one",
        path.display()
    )]
    NewerFormat { path: PathBuf, found: u32, known: u32 },
    #[error("{} is truncated: {detail}; it was left as it is, restore it from a backup", path.display())]
    Truncated { path: PathBuf, detail: String },
    #[error("{} is damaged: {detail}; it was not changed, restore it from a backup", path.display())]
    Corrupt { path: PathBuf, detail: String },
    #[error("{} cannot be opened: {detail}", path.display())]
    Io { path: PathBuf, detail: String },
}

/// Held as long as the store is open.
///
/// The lock lies on a file of its own beside the database: SQLite's own locks on the database are POSIX locks, which a
/// process loses as soon as it closes any handle of that file.
#[derive(Debug)]
pub struct Opened {
    pub path: PathBuf,
    pub lock: Locked,
}

/// Takes the lock and checks what can be told from outside of SQLite.
pub fn prepare(path: &Path) -> Result<Opened, OpenError> {
    let path = resolved(path)?;
    let lock = lock(&path)?;
    check_header(&path)?;
    Ok(Opened { path, lock })
}

/// The connection that commits: durable when a transaction returns. It also makes the schema.
pub fn commit_connection(path: &Path, bytes_max: Option<u64>) -> Result<Connection, OpenError> {
    let failed = |error| refused(path, &error);
    let connection = connect(path).map_err(failed)?;
    let identity = identify(path, &connection)?;
    check_size(path, &connection)?;
    configure(&connection, "FULL", bytes_max).map_err(failed)?;
    match identity {
        Identity::New => make_schema(&connection).map_err(failed)?,
        Identity::Ours => check_journal(path, &connection)?,
    }
    Ok(connection)
}

/// The fold's connection: its transactions become durable with the next commit or checkpoint.
pub fn fold_connection(path: &Path, bytes_max: Option<u64>) -> Result<Connection, OpenError> {
    let configured = connect(path).and_then(|connection| {
        configure(&connection, "NORMAL", bytes_max)?;
        Ok(connection)
    });
    configured.map_err(|error| refused(path, &error))
}

pub fn read_connection(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_MAX)?;
    connection.pragma_update(None, "cache_size", -1024)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    Ok(connection)
}

/// Inside the process writers take turns; this is for a curious `sqlite3` beside it.
pub const BUSY_MAX: Duration = Duration::from_secs(5);

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_MAX)?;
    Ok(connection)
}

/// Only for a file that is known to be ours: the journal mode is written into it.
fn configure(connection: &Connection, synchronous: &str, bytes_max: Option<u64>) -> rusqlite::Result<()> {
    connection.pragma_update(None, "page_size", PAGE_BYTES.cast_signed())?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        tracing::warn!(mode, "this file system has no shared memory for SQLite's write-ahead log");
    }
    connection.pragma_update(None, "synchronous", synchronous)?;
    // Checkpoints are the fold's work, see `checkpoint`.
    connection.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "cache_size", -8192)?;
    if let Some(bytes_max) = bytes_max {
        let pages = (bytes_max / PAGE_BYTES).max(1);
        connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
    }
    Ok(())
}

/// The same file under the same name, whatever links lead to it: the lock's name depends on it.
pub fn resolved(path: &Path) -> Result<PathBuf, OpenError> {
    if let Ok(there) = path.canonicalize() {
        return Ok(there);
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let folder = folder.canonicalize().map_err(|error| io(path, &format!("its folder: {error}")))?;
    Ok(folder.join(path.file_name().ok_or_else(|| io(path, "it names no file"))?))
}

/// A store's lock, given back when this is dropped. In so many words: closing the file alone would leave it to a child process
/// that is just being started and still has the file open.
#[derive(Debug)]
pub struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::debug!(%error, "the lock goes with the file");
        }
    }
}

pub fn lock(path: &Path) -> Result<Locked, OpenError> {
    let lock_path = beside(path, "-lock");
    let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&lock_path);
    let lock = lock.map_err(|error| io(path, &format!("its lock {}: {error}", lock_path.display())))?;
    match lock.try_lock() {
        Ok(()) => Ok(Locked(lock)),
        Err(TryLockError::WouldBlock) => Err(OpenError::AlreadyOpen { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(io(path, &format!("its lock {}: {error}", lock_path.display()))),
    }
}

/// A file that SQLite keeps beside the database, as `-wal`, or we do.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub fn file_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Reads the head of the file before SQLite touches it: what is not ours shall not even be recovered by us.
fn check_header(path: &Path) -> Result<(), OpenError> {
    let (bytes, wal_bytes) = (file_bytes(path), file_bytes(&beside(path, "-wal")));
    if bytes == 0 {
        return match wal_bytes {
            0 => Ok(()),
            _ => Err(truncated(path, format!("it is empty, but its write-ahead log has {wal_bytes} bytes"))),
        };
    }
    let mut head = [0; 100];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    if !head.starts_with(b"SQLite format 3\0") && (read.is_ok() || head != [0; 100]) {
        return Err(OpenError::NotSlotcast { path: path.to_owned(), detail: "it is no SQLite database".into() });
    }
    read.map_err(|error| {
        let is_short = error.kind() == std::io::ErrorKind::UnexpectedEof;
        let short = || truncated(path, format!("it has {bytes} bytes, not even a head"));
        if is_short { short() } else { io(path, &error.to_string()) }
    })?;
    let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (pages, format, application) = (u64::from(number(28)), number(60), number(68));
    match application {
        APPLICATION_ID if format > FORMAT_VERSION => {
            return Err(OpenError::NewerFormat { path: path.to_owned(), found: format, known: FORMAT_VERSION });
        }
        // 0: perhaps stopped while it was made; decided when it is open.
        APPLICATION_ID | 0 => {}
        other => {
            let detail = format!("it is the SQLite database of another application ({other:#010x})");
            return Err(OpenError::NotSlotcast { path: path.to_owned(), detail });
        }
    }
    // With a log beside it, the file may rightly be shorter than its head says: a checkpoint was stopped half-way.
    if wal_bytes == 0 && bytes < pages * PAGE_BYTES {
        return Err(truncated(path, format!("it has {bytes} bytes of {}", pages * PAGE_BYTES)));
    }
    Ok(())
}

/// What the file and the log hold together must be enough for the database. The slack is SQLite's own: a page that was
/// never written since it was free all along.
pub fn check_size(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    const SLACK_BYTES: u64 = 65_536;
    let count = connection.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0));
    let pages = count.map_err(|error| refused(path, &error))?.unsigned_abs();
    let (bytes, wal_bytes) = (file_bytes(path), file_bytes(&beside(path, "-wal")));
    if bytes + wal_bytes + SLACK_BYTES >= pages * PAGE_BYTES {
        return Ok(());
    }
    Err(truncated(path, format!("it has {bytes} bytes and its log {wal_bytes} of {}", pages * PAGE_BYTES)))
}

pub enum Identity {
    New,
    Ours,
}

/// Decides by what SQLite reads, the log included, and writes nothing.
pub fn identify(path: &Path, connection: &Connection) -> Result<Identity, OpenError> {
    let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, u32>(0));
    let read = || Ok((pragma("application_id")?, pragma("user_version")?, tables(connection)?));
    match read().map_err(|error| refused(path, &error))? {
        (APPLICATION_ID, found, _) if found > FORMAT_VERSION => {
            Err(OpenError::NewerFormat { path: path.to_owned(), found, known: FORMAT_VERSION })
        }
        (APPLICATION_ID, _, _) => Ok(Identity::Ours),
        (0, 0, 0) => Ok(Identity::New),
        (_, _, _) => {
            let detail = "it is a SQLite database without our mark".into();
            Err(OpenError::NotSlotcast { path: path.to_owned(), detail })
        }
    }
}

fn make_schema(connection: &Connection) -> rusqlite::Result<()> {
    // Into the file itself at once: its head tells what it is.
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT_VERSION};
         COMMIT; PRAGMA wal_checkpoint(TRUNCATE);"
    ))
}

/// Checks the pages of the journal, which are read now anyway: a damaged one could hide its last rows, and nothing else
/// would tell. The table is too large for that; its rows have checksums.
fn check_journal(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    for table in ["journal", "meta"] {
        let found = connection.query_row(&format!("PRAGMA quick_check({table})"), [], |row| row.get::<_, String>(0));
        let detail = found.map_err(|error| refused(path, &error))?;
        if detail != "ok" {
            return Err(OpenError::Corrupt { path: path.to_owned(), detail });
        }
    }
    Ok(())
}

fn tables(connection: &Connection) -> rusqlite::Result<u32> {
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
}

/// Clustered by id: the fold writes in order of ids, so that neighbours share a page.
const SCHEMA: &str = "
    CREATE TABLE journal (seq INTEGER PRIMARY KEY, batch BLOB NOT NULL) STRICT;
    CREATE TABLE inventories (
        id TEXT PRIMARY KEY NOT NULL, owner TEXT, layout TEXT NOT NULL, epoch INTEGER NOT NULL,
        revision INTEGER NOT NULL, checksum INTEGER NOT NULL, contents BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX inventories_of_owner ON inventories (owner, id) WHERE owner IS NOT NULL;
    CREATE TABLE meta (name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
";

pub fn refused(path: &Path, error: &rusqlite::Error) -> OpenError {
    let (path, detail) = (path.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::NotSlotcast { path, detail },
        Some(ErrorCode::DatabaseCorrupt) => OpenError::Corrupt { path, detail },
        Some(_) | None => OpenError::Io { path, detail },
    }
}

/// What reading the journal found.
pub fn damaged(path: &Path, error: StoreError) -> OpenError {
    let path = path.to_owned();
    match error {
        StoreError::Corrupt { detail } => OpenError::Corrupt { path, detail },
        StoreError::Full { detail } | StoreError::Unavailable { detail } => OpenError::Io { path, detail },
    }
}

fn truncated(path: &Path, detail: String) -> OpenError {
    OpenError::Truncated { path: path.to_owned(), detail }
}

fn io(path: &Path, detail: &str) -> OpenError {
    OpenError::Io { path: path.to_owned(), detail: detail.to_owned() }
}

//! Opening the file: the checks that refuse it with a reason, the schema, and the connections.

use super::files::{Locked, beside, file_bytes, folder_of, sync_folder, temporary};
use super::{header, items, log, replace};
use crate::store::StoreError;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// SQLite application id of a Slotcast file: "Slot" in ASCII.
pub const APPLICATION_ID: u32 = 0x536C_6F74;
/// Version of the file format. It increases when the previous version of Slotcast cannot read the files that this one
/// writes.
pub const FORMAT_VERSION: u32 = 1;
pub const PAGE_BYTES: u64 = 4096;

/// Why a file was not opened, and how to proceed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "{} is already open in another process (which holds its lock); stop that one, or give this one its own file",
        path.display()
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
    #[error(
        "{}-wal, the write-ahead log, is damaged at frame {} (byte {}): at least {} acknowledged commits behind it cannot \
         be read; no file was changed. Restore a backup with `slotcast restore --force`, or give these commits up with \
         `slotcast serve --accept-loss`, which gives every inventory a new epoch",
        path.display(), damage.frame, damage.offset, damage.commits
    )]
    DamagedLog { path: PathBuf, damage: log::Damage },
    #[error(
        "{}-wal, the write-ahead log, is not the log of {}: {detail}; no file was changed. If the database was copied or \
         restored by hand, use `slotcast restore --force` instead; if the log is of no use, move it away",
        path.display(), path.display()
    )]
    ForeignLog { path: PathBuf, detail: String },
    #[error(
        "{} was being replaced by a restore that was interrupted; start the service or run `slotcast restore` again, which \
         completes it",
        path.display()
    )]
    Interrupted { path: PathBuf },
    #[error("{} cannot be opened: {detail}", path.display())]
    Io { path: PathBuf, detail: String },
}

/// A store that no other process has open, checked as far as possible without SQLite.
#[derive(Debug)]
pub struct Opened {
    pub path: PathBuf,
    pub lock: Locked,
    is_new: bool,
}

/// Takes the lock, completes an interrupted restore, and makes the checks that are possible without SQLite. Changes
/// nothing else.
pub fn prepare(path: &Path) -> Result<Opened, OpenError> {
    let path = resolved(path)?;
    let mut lock = Locked::take(&path)?;
    complete_replacement(&path, &mut lock)?;
    let is_new = !header::check(&path)?;
    if !is_new {
        check_log(&path)?;
    }
    Ok(Opened { path, lock, is_new })
}

/// Completes an interrupted restore.
pub fn complete_replacement(path: &Path, lock: &mut Locked) -> Result<(), OpenError> {
    let failed = |error: std::io::Error| io_error(path, &format!("a restore was interrupted: {error}"));
    let Some(pending) = replace::pending(path).map_err(failed)? else { return Ok(()) };
    pending.complete().map_err(failed)?;
    tracing::warn!(path = %path.display(), kept = %pending.kept().display(), "completed a restore that was interrupted");
    lock.take_database()
}

impl Opened {
    /// Creates an empty store if there is none. The file is complete and durable before it gets its name, so that no
    /// crash leaves a part of a store.
    pub fn create(&mut self) -> Result<(), OpenError> {
        if !self.is_new {
            return Ok(());
        }
        let path = &self.path;
        let failed = |error: std::io::Error| io_error(path, &format!("it cannot be created: {error}"));
        let new = temporary(path, ".slotcast-new-").map_err(failed)?;
        make(new.path()).map_err(|error| refused(path, &error))?;
        new.as_file().sync_all().map_err(failed)?;
        // Left by an interrupted first start. SQLite would treat it as the new file's journal and truncate the new
        // file.
        match std::fs::remove_file(beside(path, "-journal")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            Err(_) => {}
            Ok(()) => sync_folder(path).map_err(failed)?,
        }
        new.persist(path).map_err(|persist| failed(persist.error))?;
        sync_folder(path).map_err(failed)?;
        self.is_new = false;
        self.lock.take_database()
    }
}

/// Checks that the log belongs to this database, and that all acknowledged commits in it are readable.
pub fn check_log(path: &Path) -> Result<(), OpenError> {
    let log = beside(path, "-wal");
    let failed = |error: std::io::Error| io_error(path, &format!("its write-ahead log {}: {error}", log.display()));
    let foreign = |detail| Err(OpenError::ForeignLog { path: path.to_owned(), detail });
    match log::page_bytes(&log).map_err(failed)? {
        Some(page_bytes) if u64::from(page_bytes) != PAGE_BYTES => {
            return foreign(format!("its pages have {page_bytes} bytes"));
        }
        Some(_) if header::is_without_log(path) => {
            return foreign("that one says that it has no log, as a backup does".into());
        }
        Some(_) | None => {}
    }
    match log::check(&log, path).map_err(failed)? {
        Some(log::Fault::Damaged(damage)) => Err(OpenError::DamagedLog { path: path.to_owned(), damage }),
        Some(log::Fault::Foreign { row }) => foreign(format!("journal row {row} is another one in it")),
        None => Ok(()),
    }
}

/// Opens the connection that commits: a transaction is durable when it returns. Also creates the schema, if a first
/// start was interrupted before that. Until [`trust`] is called, closing this connection leaves the log unchanged.
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

/// Ends the checks: closing the connection may now update the file and remove the log.
pub fn trust(connection: &Connection) -> rusqlite::Result<()> {
    keep_log(connection, false)
}

/// Sets whether closing the connection leaves the log unchanged.
pub fn keep_log(connection: &Connection, is_kept: bool) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, is_kept).map(drop)
}

/// Opens the fold's connection. Its transactions become durable with the next commit or checkpoint.
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

/// Opens the file alone for reading, and creates no file beside it: for a folder that is not writable. The caller must
/// ensure that no process changes the file meanwhile.
pub fn immutable_connection(path: &Path) -> rusqlite::Result<Connection> {
    use std::os::unix::ffi::OsStrExt;
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => uri.push(char::from(*byte)),
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(uri, flags)
}

/// How long to wait for another process, such as `sqlite3`, that writes to the file. Writers inside this process take
/// turns.
pub const BUSY_MAX: Duration = Duration::from_secs(5);

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_MAX)?;
    keep_log(&connection, true)?;
    Ok(connection)
}

/// Configures a connection. The file must be a Slotcast file, because the journal mode is written into it.
fn configure(connection: &Connection, synchronous: &str, bytes_max: Option<u64>) -> rusqlite::Result<()> {
    connection.pragma_update(None, "page_size", PAGE_BYTES.cast_signed())?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        tracing::warn!(mode, "this file system has no shared memory for SQLite's write-ahead log");
    }
    connection.pragma_update(None, "synchronous", synchronous)?;
    // The fold makes the checkpoints, see `checkpoint`.
    connection.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "cache_size", -8192)?;
    if let Some(bytes_max) = bytes_max {
        let pages = (bytes_max / PAGE_BYTES).max(1);
        connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
    }
    Ok(())
}

/// Resolves links, so that each file has one name: the name of the lock depends on it.
pub fn resolved(path: &Path) -> Result<PathBuf, OpenError> {
    if let Ok(there) = path.canonicalize() {
        return Ok(there);
    }
    let folder = folder_of(path).canonicalize().map_err(|error| io_error(path, &format!("its folder: {error}")))?;
    Ok(folder.join(path.file_name().ok_or_else(|| io_error(path, "it names no file"))?))
}

/// Checks that the file and the log together are large enough for the database. The slack is for SQLite: a page that
/// was always free was never written.
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

/// Decides by what SQLite reads, including the log, and writes nothing.
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

/// Creates an empty store in an empty file, without a log. The caller flushes the file as a whole.
fn make(path: &Path) -> rusqlite::Result<()> {
    let connection = connect(path)?;
    connection.pragma_update(None, "page_size", PAGE_BYTES.cast_signed())?;
    connection.query_row("PRAGMA journal_mode = OFF", [], |_| Ok(()))?;
    make_schema(&connection)?;
    connection.close().map_err(|(_, error)| error)
}

fn make_schema(connection: &Connection) -> rusqlite::Result<()> {
    // The checkpoint writes the schema into the file itself at once: the file's head identifies it.
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE; {SCHEMA} {} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT_VERSION};
         COMMIT; PRAGMA wal_checkpoint(TRUNCATE);",
        items::SCHEMA
    ))
}

/// Checks the pages of the journal, which opening reads anyway: a damaged page could hide the last rows, and no other
/// check would detect that. The table of inventories is too large for this check; its rows have checksums.
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

/// The schema. The table is clustered by id: the fold writes in order of ids, so that neighbors share a page.
///
/// Only the journal has row numbers: [`log`] distinguishes its pages from all others by them.
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
    if error.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_READONLY_ROLLBACK) {
        let journal = beside(&path, "-journal");
        let detail = format!(
            "a change to it was interrupted, which {} takes back; nothing was changed, start the service once",
            journal.display()
        );
        return OpenError::Io { path, detail };
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::NotSlotcast { path, detail },
        Some(ErrorCode::DatabaseCorrupt) => OpenError::Corrupt { path, detail },
        Some(_) | None => OpenError::Io { path, detail },
    }
}

/// Converts an error of reading the journal.
pub fn damaged(path: &Path, error: StoreError) -> OpenError {
    let path = path.to_owned();
    match error {
        StoreError::Corrupt { detail } => OpenError::Corrupt { path, detail },
        StoreError::Full { detail } | StoreError::Unavailable { detail } => OpenError::Io { path, detail },
    }
}

pub fn truncated(path: &Path, detail: String) -> OpenError {
    OpenError::Truncated { path: path.to_owned(), detail }
}

pub fn io_error(path: &Path, detail: &str) -> OpenError {
    OpenError::Io { path: path.to_owned(), detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_journal_has_row_numbers() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("slotcast.db");
        std::fs::write(&path, []).expect("an empty file");
        make(&path).expect("an empty store");
        let connection = connect(&path).expect("it opens");
        let query = "SELECT name FROM pragma_table_list WHERE type = 'table' AND wr = 0 AND name NOT LIKE 'sqlite_%'";
        let mut tables = connection.prepare(query).expect("a query");
        let tables: Vec<String> =
            tables.query_map([], |row| row.get(0)).expect("rows").map(|name| name.expect("text")).collect();
        assert_eq!(tables, ["journal"]);
    }
}

//! Opening the file: the checks that refuse it with a reason, the schema, and the connections.

use super::files::{StoreLock, create_temporary, file_len_bytes, parent_dir, sync_dir, with_suffix};
use super::{header, replace, wal};
use crate::store::StoreError;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// SQLite application id of a Slotcast file: "Slot" in ASCII.
pub const APPLICATION_ID: u32 = 0x536C_6F74;
/// Version of the file format. It increases when the previous version of Slotcast cannot read the files that this one
/// writes.
pub const FORMAT_VERSION: u32 = 2;
pub const PAGE_BYTES: u64 = 4096;

/// Why a file was not opened, and how to proceed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "{} is already open in another process, which holds its lock; stop that process or choose another file",
        path.display()
    )]
    AlreadyOpen { path: PathBuf },
    #[error("{} is not a Slotcast store: {detail}; the file was not changed; choose another path", path.display())]
    NotSlotcast { path: PathBuf, detail: String },
    #[error(
        "{} has format {found}, but this version of Slotcast reads format {known}; the file was not changed. Use the version \
         that wrote the file or, if it is older, move the inventories: `slotcast export` with that version, then `slotcast import` into a new \
         store with this one",
        path.display()
    )]
    OtherFormat { path: PathBuf, found: u32, known: u32 },
    #[error("{} is truncated: {detail}; the file was not changed; restore it from a backup", path.display())]
    Truncated { path: PathBuf, detail: String },
    #[error("{} is corrupt: {detail}; the file was not changed; restore it from a backup", path.display())]
    Corrupt { path: PathBuf, detail: String },
    #[error(
        "{}-wal, the write-ahead log, is damaged at frame {} (byte {}): at least {} acknowledged commits after it cannot \
         be read; no file was changed. Restore a backup with `slotcast restore --force`, or discard these commits with \
         `slotcast serve --accept-loss`, which gives every inventory a new epoch",
        path.display(), damage.frame, damage.offset_bytes, damage.commits_min
    )]
    DamagedWal { path: PathBuf, damage: wal::WalDamage },
    #[error(
        "{}-wal, the write-ahead log, does not belong to {}: {detail}; no file was changed. If the database was copied or \
         restored by hand, use `slotcast restore --force` instead; if the log is not needed, move it away",
        path.display(), path.display()
    )]
    ForeignWal { path: PathBuf, detail: String },
    #[error(
        "a restore of {} was interrupted; start the server or run `slotcast restore` again to complete it",
        path.display()
    )]
    Interrupted { path: PathBuf },
    #[error("cannot open {}: {detail}", path.display())]
    Io { path: PathBuf, detail: String },
}

/// A store that no other process has open, checked as far as possible without SQLite.
#[derive(Debug)]
pub struct PreparedStore {
    pub path: PathBuf,
    pub lock: StoreLock,
    is_new: bool,
}

/// Takes the lock, completes an interrupted restore, and makes the checks that are possible without SQLite. Changes
/// nothing else.
pub fn prepare(path: &Path) -> Result<PreparedStore, OpenError> {
    let path = resolve(path)?;
    let mut lock = StoreLock::acquire(&path)?;
    complete_replacement(&path, &mut lock)?;
    let is_new = !header::check(&path)?;
    if !is_new {
        check_wal(&path)?;
    }
    Ok(PreparedStore { path, lock, is_new })
}

/// Completes an interrupted restore.
pub fn complete_replacement(path: &Path, lock: &mut StoreLock) -> Result<(), OpenError> {
    let failed =
        |error: std::io::Error| io_error(path, &format!("an interrupted restore cannot be completed: {error}"));
    let Some(pending) = replace::find_pending(path).map_err(failed)? else { return Ok(()) };
    pending.complete().map_err(failed)?;
    tracing::warn!(path = %path.display(), old_store = %pending.old_store().display(), "completed an interrupted restore");
    lock.lock_database()
}

impl PreparedStore {
    /// Creates an empty store if there is none. The file is complete and durable before it gets its name, so that no
    /// crash leaves a part of a store.
    pub fn create(&mut self) -> Result<(), OpenError> {
        if !self.is_new {
            return Ok(());
        }
        let path = &self.path;
        let failed = |error: std::io::Error| io_error(path, &format!("it cannot be created: {error}"));
        let new = create_temporary(path, ".slotcast-new-").map_err(failed)?;
        create_store_file(new.path()).map_err(|error| open_error(path, &error))?;
        new.as_file().sync_all().map_err(failed)?;
        // Left by an interrupted first start. SQLite would treat it as the new file's journal and truncate the new
        // file.
        match std::fs::remove_file(with_suffix(path, "-journal")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            Err(_) => {}
            Ok(()) => sync_dir(path).map_err(failed)?,
        }
        new.persist(path).map_err(|persist| failed(persist.error))?;
        sync_dir(path).map_err(failed)?;
        self.is_new = false;
        self.lock.lock_database()
    }
}

/// Checks that the write-ahead log belongs to this database, and that all acknowledged commits in it are readable.
pub fn check_wal(path: &Path) -> Result<(), OpenError> {
    let wal_path = with_suffix(path, "-wal");
    let failed = |error: std::io::Error| io_error(path, &format!("write-ahead log {}: {error}", wal_path.display()));
    let foreign = |detail| Err(OpenError::ForeignWal { path: path.to_owned(), detail });
    match wal::page_bytes(&wal_path).map_err(failed)? {
        Some(page_bytes) if u64::from(page_bytes) != PAGE_BYTES => {
            return foreign(format!("its page size is {page_bytes} bytes instead of {PAGE_BYTES}"));
        }
        Some(_) if header::is_in_rollback_mode(path) => {
            return foreign("the database is marked as having no log, as a backup is".into());
        }
        Some(_) | None => {}
    }
    match wal::check(&wal_path, path).map_err(failed)? {
        Some(wal::WalFault::Damaged(damage)) => Err(OpenError::DamagedWal { path: path.to_owned(), damage }),
        Some(wal::WalFault::Foreign { seq }) => {
            foreign(format!("journal row {seq} differs from the same row in the database"))
        }
        None => Ok(()),
    }
}

/// Opens the connection that commits: a transaction is durable when it returns. Also creates the schema, if a first
/// start was interrupted before that. Until [`allow_checkpoint_on_close`] is called, closing this connection leaves the
/// write-ahead log unchanged.
pub fn commit_connection(path: &Path, bytes_max: Option<u64>) -> Result<Connection, OpenError> {
    let failed = |error| open_error(path, &error);
    let connection = connect(path).map_err(failed)?;
    let identity = identify(path, &connection)?;
    check_size(path, &connection)?;
    configure(&connection, "FULL", bytes_max).map_err(failed)?;
    match identity {
        Identity::Empty => create_schema(&connection).map_err(failed)?,
        Identity::Slotcast => check_journal(path, &connection)?,
    }
    Ok(connection)
}

/// Ends the checks: closing the connection may now update the file and remove the write-ahead log.
pub fn allow_checkpoint_on_close(connection: &Connection) -> rusqlite::Result<()> {
    keep_wal(connection, false)
}

/// Sets whether closing the connection leaves the write-ahead log unchanged.
pub fn keep_wal(connection: &Connection, keep: bool) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep).map(drop)
}

/// Opens the fold's connection. Its transactions become durable with the next commit or checkpoint.
pub fn fold_connection(path: &Path, bytes_max: Option<u64>) -> Result<Connection, OpenError> {
    let configured = connect(path).and_then(|connection| {
        configure(&connection, "NORMAL", bytes_max)?;
        Ok(connection)
    });
    configured.map_err(|error| open_error(path, &error))
}

pub fn read_connection(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_MAX)?;
    connection.pragma_update(None, "cache_size", -1024)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    Ok(connection)
}

/// Opens the file alone for reading, and creates no file beside it: for a directory that is not writable. The caller
/// must ensure that no process changes the file meanwhile.
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
    keep_wal(&connection, true)?;
    Ok(connection)
}

/// Configures a connection. The file must be a Slotcast file, because the journal mode is written into it.
fn configure(connection: &Connection, synchronous: &str, bytes_max: Option<u64>) -> rusqlite::Result<()> {
    connection.pragma_update(None, "page_size", PAGE_BYTES.cast_signed())?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        tracing::warn!(mode, "this file system does not support SQLite's write-ahead log");
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
pub fn resolve(path: &Path) -> Result<PathBuf, OpenError> {
    if let Ok(canonical) = path.canonicalize() {
        return Ok(canonical);
    }
    let directory = parent_dir(path).canonicalize().map_err(|error| io_error(path, &format!("directory: {error}")))?;
    Ok(directory.join(path.file_name().ok_or_else(|| io_error(path, "the path has no file name"))?))
}

/// Checks that the file and the write-ahead log together are large enough for the database. The slack is for SQLite: a
/// page that was always free was never written.
pub fn check_size(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    const SLACK_BYTES: u64 = 65_536;
    let count = connection.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0));
    let pages = count.map_err(|error| open_error(path, &error))?.unsigned_abs();
    let (bytes, wal_bytes) = (file_len_bytes(path), file_len_bytes(&with_suffix(path, "-wal")));
    if bytes + wal_bytes + SLACK_BYTES >= pages * PAGE_BYTES {
        return Ok(());
    }
    Err(truncated(
        path,
        format!(
            "it has {bytes} bytes and its write-ahead log {wal_bytes}, but the database has {} bytes",
            pages * PAGE_BYTES
        ),
    ))
}

pub enum Identity {
    Empty,
    Slotcast,
}

/// Decides by what SQLite reads, including the write-ahead log, and writes nothing.
pub fn identify(path: &Path, connection: &Connection) -> Result<Identity, OpenError> {
    let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, u32>(0));
    let read = || Ok((pragma("application_id")?, pragma("user_version")?, tables(connection)?));
    match read().map_err(|error| open_error(path, &error))? {
        (APPLICATION_ID, found, _) if found != FORMAT_VERSION => {
            Err(OpenError::OtherFormat { path: path.to_owned(), found, known: FORMAT_VERSION })
        }
        (APPLICATION_ID, _, _) => Ok(Identity::Slotcast),
        (0, 0, 0) => Ok(Identity::Empty),
        (_, _, _) => {
            let detail = "a SQLite database without the application id of Slotcast".into();
            Err(OpenError::NotSlotcast { path: path.to_owned(), detail })
        }
    }
}

/// Creates an empty store in an empty file, without a write-ahead log. The caller flushes the file as a whole.
pub fn create_store_file(path: &Path) -> rusqlite::Result<()> {
    let connection = connect(path)?;
    connection.pragma_update(None, "page_size", PAGE_BYTES.cast_signed())?;
    connection.query_row("PRAGMA journal_mode = OFF", [], |_| Ok(()))?;
    create_schema(&connection)?;
    connection.close().map_err(|(_, error)| error)
}

fn create_schema(connection: &Connection) -> rusqlite::Result<()> {
    // The checkpoint writes the schema into the file itself at once: the file's head identifies it.
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT_VERSION};
         COMMIT; PRAGMA wal_checkpoint(TRUNCATE);"
    ))
}

/// Checks the pages of the journal, which opening reads anyway: a damaged page could hide the last rows, and no other
/// check would detect that. The table of inventories is too large for this check; its rows have checksums.
fn check_journal(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    for table in ["journal", "meta"] {
        let found = connection.query_row(&format!("PRAGMA quick_check({table})"), [], |row| row.get::<_, String>(0));
        let detail = found.map_err(|error| open_error(path, &error))?;
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
/// Only the journal has rowids: [`super::wal`] distinguishes its pages from all others by them.
const SCHEMA: &str = "
    CREATE TABLE journal (seq INTEGER PRIMARY KEY, batch BLOB NOT NULL) STRICT;
    CREATE TABLE inventories (
        id TEXT PRIMARY KEY NOT NULL, owner TEXT, layout TEXT NOT NULL, epoch INTEGER NOT NULL,
        revision INTEGER NOT NULL, last INTEGER NOT NULL, checkpoint INTEGER NOT NULL, checksum INTEGER NOT NULL,
        contents BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX inventories_of_owner ON inventories (owner, id) WHERE owner IS NOT NULL;
    CREATE TABLE tombstones (
        id TEXT PRIMARY KEY NOT NULL, epoch INTEGER NOT NULL, revision INTEGER NOT NULL, last INTEGER NOT NULL,
        checkpoint INTEGER NOT NULL, checksum INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX tombstones_by_last ON tombstones (last);
    CREATE TABLE blocks (first INTEGER PRIMARY KEY NOT NULL, body BLOB NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE segments (first INTEGER PRIMARY KEY NOT NULL, head BLOB NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE supply (
        item INTEGER NOT NULL, kind INTEGER NOT NULL, added BLOB NOT NULL, removed BLOB NOT NULL, PRIMARY KEY (item, kind)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE trimmed (
        item INTEGER NOT NULL, kind INTEGER NOT NULL, added BLOB NOT NULL, removed BLOB NOT NULL, PRIMARY KEY (item, kind)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE meta (name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE items (code INTEGER PRIMARY KEY NOT NULL, id TEXT NOT NULL) STRICT, WITHOUT ROWID;
";

pub fn open_error(path: &Path, error: &rusqlite::Error) -> OpenError {
    let (path, detail) = (path.to_owned(), error.to_string());
    if error.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_READONLY_ROLLBACK) {
        let journal = with_suffix(&path, "-journal");
        let detail = format!(
            "an interrupted write must be rolled back from {}; no file was changed; start the server once, or repeat the import",
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
pub fn replay_error(path: &Path, error: StoreError) -> OpenError {
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
    fn only_the_journal_has_rowids() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("slotcast.db");
        std::fs::write(&path, []).expect("an empty file");
        create_store_file(&path).expect("an empty store");
        let connection = connect(&path).expect("it opens");
        let query = "SELECT name FROM pragma_table_list WHERE type = 'table' AND wr = 0 AND name NOT LIKE 'sqlite_%'";
        let mut tables = connection.prepare(query).expect("a query");
        let tables: Vec<String> =
            tables.query_map([], |row| row.get(0)).expect("rows").map(|name| name.expect("text")).collect();
        assert_eq!(tables, ["journal"]);
    }
}

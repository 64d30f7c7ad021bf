//! The files of a store: their names, their locks, and whether the paths still refer to the open files.

use super::header::DatabaseHeader;
use super::open::{OpenError, io_error};
use super::wal;
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Returns the path of a file beside the database: SQLite's, such as `-wal`, or one of the store's own.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Returns the length of a file, in bytes; 0 if it cannot be looked up.
pub fn file_len_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Returns the directory of a file.
pub fn parent_dir(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

/// Makes created, changed or removed names in a file's directory durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(parent_dir(path))?.sync_all()
}

/// Creates a temporary file beside `path`, which is removed unless the caller persists it. It has the permissions of
/// the store's own file.
pub fn create_temporary(path: &Path, prefix: &str) -> io::Result<tempfile::NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    let permissions = std::fs::Permissions::from_mode(0o644);
    tempfile::Builder::new().prefix(prefix).permissions(permissions).tempfile_in(parent_dir(path))
}

/// Identifies the file to which a path refers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    /// Returns the id of the file at `path`; `None` if there is no such file.
    pub fn at(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().map(|metadata| Self::of(&metadata))
    }
}

/// A store's lock, released when it is dropped. Dropping unlocks the files explicitly: closing them alone would leave
/// the lock with a child process that is being started and still has them open.
///
/// The lock consists of two files. A file beside the database is locked first: a process that finds it locked does not
/// open the database. The database file itself is locked second, so that renaming files does not circumvent the lock.
/// SQLite's locks on the database are POSIX locks, which a process loses as soon as it closes any handle of the file.
/// Therefore the database is opened here before SQLite opens it, and closed afterwards.
#[derive(Debug)]
pub struct StoreLock {
    path: PathBuf,
    lock_file: File,
    database: Option<File>,
}

impl StoreLock {
    /// Locks the store at `path`, whether or not its database exists.
    pub fn acquire(path: &Path) -> Result<Self, OpenError> {
        let lock_path = with_suffix(path, "-lock");
        let failed = |error| io_error(path, &format!("lock file {}: {error}", lock_path.display()));
        let lock_file = OpenOptions::new().write(true).create(true).truncate(false).open(&lock_path).map_err(failed)?;
        try_lock(&lock_file, path)?;
        let mut locked = Self { path: path.to_owned(), lock_file, database: None };
        locked.lock_database()?;
        Ok(locked)
    }

    /// Locks the database, if it exists.
    pub fn lock_database(&mut self) -> Result<(), OpenError> {
        self.database = match File::open(&self.path) {
            Ok(database) => Some(database),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(io_error(&self.path, &error.to_string())),
        };
        self.database.iter().try_for_each(|database| try_lock(database, &self.path))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the database file, for reading without SQLite. Opening and closing another handle would release the
    /// locks that SQLite holds on it for this process.
    pub fn database(&self) -> Option<&File> {
        self.database.as_ref()
    }
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        // The file beside the database comes last: a process that locks it expects to lock the database as well.
        for file in self.database.iter().chain([&self.lock_file]) {
            if let Err(error) = file.unlock() {
                tracing::debug!(%error, "cannot unlock the file; closing it releases the lock");
            }
        }
    }
}

fn try_lock(file: &File, path: &Path) -> Result<(), OpenError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(OpenError::AlreadyOpen { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(io_error(path, &format!("lock: {error}"))),
    }
}

/// The files of an open store, with the names by which they were opened.
#[derive(Debug)]
pub struct OpenFiles {
    lock: StoreLock,
    names: Vec<(PathBuf, FileId)>,
    header: DatabaseHeader,
    /// `None` if there is no write-ahead log. SQLite holds no locks on it that closing it would release.
    wal: Option<File>,
}

impl OpenFiles {
    /// Call it when SQLite has opened all files. `given_path` is the database's name before links were resolved.
    pub fn new(lock: StoreLock, given_path: &Path) -> io::Result<Self> {
        let database = lock.database().ok_or(ErrorKind::NotFound)?;
        let header = DatabaseHeader::read(database)?;
        let mut names = vec![
            (std::path::absolute(given_path)?, FileId::of(&database.metadata()?)),
            (with_suffix(&lock.path, "-lock"), FileId::of(&lock.lock_file.metadata()?)),
        ];
        // A file system without shared memory has neither file.
        let side_files = ["-wal", "-shm"].map(|suffix| with_suffix(&lock.path, suffix));
        names.extend(side_files.into_iter().filter_map(|name| FileId::at(&name).map(|id| (name, id))));
        let wal = match File::open(with_suffix(&lock.path, "-wal")) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            opened => Some(opened?),
        };
        Ok(Self { lock, names, header, wal })
    }

    pub fn lock(&self) -> &StoreLock {
        &self.lock
    }

    /// Checks that the paths still refer to the open files, and that the database is still the one that was opened.
    /// Takes a few microseconds. A failed lookup is only a warning, unless the file does not exist.
    pub fn check(&self) -> Result<(), String> {
        for (name, opened) in &self.names {
            match std::fs::metadata(name) {
                Ok(metadata) if FileId::of(&metadata) == *opened => {}
                Ok(_) => return Err(format!("{} was replaced by another file", name.display())),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    return Err(format!("{} was removed or renamed", name.display()));
                }
                Err(error) => {
                    tracing::warn!(path = %name.display(), %error, "cannot look up a file of the store")
                }
            }
        }
        // A second check, because the write-ahead log may have just been started.
        if self.wal.as_ref().is_some_and(|wal| !wal::has_magic(wal) && !wal::has_magic(wal)) {
            return Err(format!("{}-wal, the write-ahead log, was truncated or overwritten", self.lock.path.display()));
        }
        let Some(database) = self.lock.database() else { return Ok(()) };
        // A second check, because a checkpoint may be writing the header. A failed read does not identify another file.
        let is_same = || match DatabaseHeader::read(database) {
            Ok(header) => header.continues(&self.header),
            Err(error) => error.kind() != ErrorKind::UnexpectedEof,
        };
        if is_same() || is_same() { Ok(()) } else { Err(format!("{} was overwritten", self.lock.path.display())) }
    }
}

/// Checks files regularly on its own thread, until it is dropped.
#[derive(Debug)]
pub struct PeriodicCheck {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How often the thread checks. It bounds the time until a lost file is noticed while nothing is committed.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl PeriodicCheck {
    /// Starts the thread, which calls `check` until it returns false.
    pub fn start(mut check: impl FnMut() -> bool + Send + 'static) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let run = move || {
            while stopped.recv_timeout(CHECK_INTERVAL) == Err(RecvTimeoutError::Timeout) && check() {}
        };
        let thread = std::thread::Builder::new().name("slotcast-files".into()).spawn(run)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for PeriodicCheck {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that checks the store's files panicked");
        }
    }
}

//! A snapshot of a store, which another process may have open.

use crate::domain::{Catalog, Epoch, Inventory, InventoryId, ItemCode, Revision};
use crate::store::StoreError;
use crate::store::embedded::files::{file_len_bytes, with_suffix};
use crate::store::embedded::items::{self, CatalogError};
use crate::store::embedded::open::{self, Identity, OpenError};
use crate::store::embedded::table::{StoredInventory, StoredState};
use crate::store::embedded::{failure, header, replace, replay, table};
use rusqlite::{Connection, ErrorCode};
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The commits up to one moment; later commits do not change it.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
    // Drop order: the connection first, then the lock.
    connection: Connection,
    /// Only used where SQLite cannot lock.
    _lock: Option<File>,
}

impl Snapshot {
    /// Opens a store's file for reading, without its lock, and changes no file. SQLite may create an empty log and its
    /// index, `-shm`, if they do not exist.
    ///
    /// A process that has the store open must not call this: the file is also read without SQLite, and closing that
    /// handle releases the locks that SQLite holds for this process.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let (snapshot, damage) = Self::open_damaged(path)?;
        damage.map_or(Ok(snapshot), Err)
    }

    /// Same as [`Self::open`], but returns `None` if there is no store yet: no file, or only the remains of an
    /// interrupted first start.
    pub fn open_if_any(path: &Path) -> Result<Option<Self>, OpenError> {
        // A path that does not exist cannot be resolved.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let is_pending = matches!(replace::find_pending(&path), Ok(Some(_)));
        if !is_pending && !header::check(&path)? {
            return Ok(None);
        }
        Self::open(&path).map(Some)
    }

    /// Same as [`Self::open`], but also opens a store whose write-ahead log is damaged. Returns the readable part of
    /// the store, and the damage.
    pub fn open_damaged(path: &Path) -> Result<(Self, Option<OpenError>), OpenError> {
        let path = open::resolve(path)?;
        // The directory of another user may be unreadable.
        if matches!(replace::find_pending(&path), Ok(Some(_))) {
            return Err(OpenError::Interrupted { path });
        }
        let exists = path.exists();
        if !header::check(&path)? {
            let not_found = |detail: &str| open::io_error(&path, detail);
            return Err(not_found(if exists { "the file is empty" } else { "no such file" }));
        }
        let damage = match open::check_wal(&path) {
            Ok(()) => None,
            Err(damage @ OpenError::DamagedWal { .. }) => Some(damage),
            Err(error) => return Err(error),
        };
        let snapshot = Self::begin(path)?;
        let Self { path, connection, .. } = &snapshot;
        match open::identify(path, connection)? {
            Identity::Slotcast => {}
            Identity::Empty => {
                return Err(OpenError::NotSlotcast { path: path.clone(), detail: "the file is empty".into() });
            }
        }
        open::check_size(path, connection)?;
        Ok((snapshot, damage))
    }

    fn begin(path: PathBuf) -> Result<Self, OpenError> {
        // A transaction gets its snapshot at its first read.
        let begun = |connection: Connection| {
            connection.execute_batch("BEGIN; PRAGMA schema_version")?;
            Ok(connection)
        };
        let refused = |error| open::open_error(&path, &error);
        match open::read_connection(&path).and_then(begun) {
            Ok(connection) => Ok(Self { path, connection, _lock: None }),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::CannotOpen) => {
                let lock = lock_unwritable(&path)?;
                let connection = open::immutable_connection(&path).and_then(begun).map_err(refused)?;
                Ok(Self { path, connection, _lock: Some(lock) })
            }
            Err(error) => Err(refused(error)),
        }
    }

    /// The path of the database, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fails if the catalog gives codes of the store to other items.
    pub fn check_catalog(&self, catalog: &Catalog) -> Result<(), CatalogError> {
        items::check(&self.path, &self.connection, catalog).map(drop)
    }

    /// Reads the id of each item code that a catalog of the store has ever contained.
    pub fn item_ids(&self) -> Result<BTreeMap<ItemCode, String>, StoreError> {
        items::ids(&self.connection)
    }

    pub(in crate::store::embedded) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Size of the database in bytes, without the write-ahead log.
    pub fn bytes(&self) -> Result<u64, StoreError> {
        let pages = self.connection.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0));
        Ok(pages.map_err(|error| failure::store_error("counting pages", &error))?.unsigned_abs() * open::PAGE_BYTES)
    }

    /// Returns the newest version of an inventory, even if it was deleted; `None` if it never existed, or if its history was
    /// deleted.
    pub fn newest_state(&self, id: &InventoryId) -> Result<Option<NewestState>, StoreError> {
        let newest = self.inventories()?.find_stored(id)?;
        Ok(newest.map(|newest| match &newest.state {
            StoredState::Present(inventory) => {
                NewestState { epoch: inventory.epoch, revision: inventory.contents.revision(), exists: true }
            }
            StoredState::Deleted { epoch, revision } => {
                NewestState { epoch: *epoch, revision: *revision, exists: false }
            }
        }))
    }

    /// Returns the inventories, to find by id or to iterate in order. Keeps the states in memory that are not folded
    /// yet.
    pub fn inventories(&self) -> Result<Inventories<'_>, StoreError> {
        let unfolded = replay::unfolded(&self.connection, Err)?;
        Ok(Inventories { connection: &self.connection, unfolded: unfolded.states.into_iter().collect() })
    }
}

/// The newest version of an inventory that exists or existed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewestState {
    pub epoch: Epoch,
    pub revision: Revision,
    /// Whether it exists; otherwise this is the version of its deletion.
    pub exists: bool,
}

/// Locks a store whose directory is not writable. SQLite needs to create a file beside a store to read it. Where it
/// cannot, the store is readable if it has no log, and a lock keeps other processes from writing to it meanwhile.
fn lock_unwritable(path: &Path) -> Result<File, OpenError> {
    let failed = |detail: &str| open::io_error(path, &format!("its directory is not writable, and {detail}"));
    if file_len_bytes(&with_suffix(path, "-wal")) > 0 {
        return Err(failed("it has a write-ahead log; copy both files to another directory"));
    }
    let file = File::open(path).map_err(|error| open::io_error(path, &error.to_string()))?;
    match file.try_lock_shared() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(failed("a service has it open; run the command as the service's user")),
        Err(TryLockError::Error(error)) => Err(failed(&format!("it cannot be locked: {error}"))),
    }
}

/// The inventories in the table, combined with the states that are not folded yet.
#[derive(Debug)]
pub struct Inventories<'a> {
    pub(super) connection: &'a Connection,
    /// In order of ids.
    pub(super) unfolded: Vec<(InventoryId, StoredInventory)>,
}

impl Inventories<'_> {
    /// Counts the inventories.
    pub fn count(&self) -> Result<u64, StoreError> {
        let mut count = table::count(self.connection)?;
        for (id, state) in &self.unfolded {
            let existed = table::exists(self.connection, id)?;
            count = count + u64::from(state.inventory().is_some()) - u64::from(existed);
        }
        Ok(count)
    }

    /// Returns the inventory with this id; `None` if it does not exist.
    pub fn find(&self, id: &InventoryId) -> Result<Option<Arc<Inventory>>, StoreError> {
        Ok(self.find_stored(id)?.and_then(|stored| stored.inventory().cloned()))
    }

    /// Returns the newest state of the inventory with this id, even if it was deleted, and where its chain in the log begins;
    /// `None` if it never existed, or if its history was deleted.
    pub fn find_stored(&self, id: &InventoryId) -> Result<Option<StoredInventory>, StoreError> {
        match self.unfolded.binary_search_by(|(unfolded, _)| unfolded.cmp(id)) {
            Ok(at) => Ok(Some(self.unfolded[at].1.clone())),
            Err(_) => Ok(table::find(self.connection, id)?),
        }
    }

    /// Passes each inventory to `visit`, in order of ids. If one cannot be read, passes its id and the reason.
    pub fn each<E: From<StoreError>>(
        &self,
        mut visit: impl FnMut(Result<Arc<Inventory>, (String, String)>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.each_stored(|id, found| match found {
            Ok(stored) => stored.inventory().cloned().map_or(Ok(()), |inventory| visit(Ok(inventory))),
            Err(error) => visit(Err((id.to_owned(), error))),
        })
    }

    /// Passes the newest state of each inventory to `visit`, then each tombstone.
    pub(super) fn each_with_tombstones<E: From<StoreError>>(
        &self,
        mut visit: impl FnMut(&InventoryId, Result<StoredInventory, String>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut visit = |id: &str, found: Result<StoredInventory, String>| match InventoryId::new(id) {
            Ok(id) => visit(&id, found),
            Err(error) => {
                let detail = format!("inventory {id:?}: its id {error}");
                Err(StoreError::Corrupt { detail }.into())
            }
        };
        self.each_stored(&mut visit)?;
        table::scan_tombstones(self.connection, |id, found| {
            let is_unfolded = self.unfolded.binary_search_by(|(unfolded, _)| unfolded.as_str().cmp(id)).is_ok();
            if is_unfolded { Ok(()) } else { visit(id, found.map_err(|error| format!("its tombstone: {error}"))) }
        })
    }

    /// Passes each row of the table and each unfolded state to `visit`, in order of ids.
    fn each_stored<E: From<StoreError>>(
        &self,
        mut visit: impl FnMut(&str, Result<StoredInventory, String>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut unfolded = self.unfolded.iter().peekable();
        table::scan(self.connection, |id, row| {
            while let Some((unfolded, state)) = unfolded.next_if(|(unfolded, _)| unfolded.as_str() < id) {
                visit(unfolded.as_str(), Ok(state.clone()))?;
            }
            match unfolded.next_if(|(unfolded, _)| unfolded.as_str() == id) {
                Some((_, state)) => visit(id, Ok(state.clone())),
                None => visit(id, row.map_err(|error| error.to_string())),
            }
        })?;
        unfolded.try_for_each(|(id, state)| visit(id.as_str(), Ok(state.clone())))
    }
}

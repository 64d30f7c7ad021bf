//! One moment of a store, whoever has it open.

use crate::domain::{Catalog, Inventory, InventoryId};
use crate::store::StoreError;
use crate::store::embedded::items::{self, CatalogError};
use crate::store::embedded::open::{self, Identity, OpenError};
use crate::store::embedded::overlay::State;
use crate::store::embedded::{failure, replay, table};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What was committed at one moment; later commits do not change it.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
    connection: Connection,
}

impl Snapshot {
    /// Opens a store's file for reading, without its lock. Nothing of it is opened past SQLite: closing such a handle
    /// would take this process's locks on it away.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let path = open::resolved(path)?;
        if !path.is_file() {
            return Err(OpenError::Io { path, detail: "there is no such file".into() });
        }
        let refused = |error| open::refused(&path, &error);
        let connection = open::read_connection(&path).map_err(refused)?;
        connection.execute_batch("BEGIN").map_err(refused)?;
        match open::identify(&path, &connection)? {
            Identity::Ours => {}
            Identity::New => return Err(OpenError::NotSlotcast { path, detail: "it is empty".into() }),
        }
        open::check_size(&path, &connection)?;
        Ok(Self { path, connection })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses a catalog that gives codes of the store to other items.
    pub fn check_catalog(&self, catalog: &Catalog) -> Result<(), CatalogError> {
        items::check(&self.path, &self.connection, catalog).map(drop)
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Bytes of the database, without the write-ahead log.
    pub fn bytes(&self) -> Result<u64, StoreError> {
        let pages = self.connection.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0));
        Ok(pages.map_err(|error| failure::store_error("counting pages", &error))?.unsigned_abs() * open::PAGE_BYTES)
    }

    /// What can be asked one by one, and all of it in order. Keeps in memory what was not folded yet.
    pub fn inventories(&self) -> Result<Inventories<'_>, StoreError> {
        let unfolded = replay::unfolded(&self.connection, Err)?;
        Ok(Inventories { connection: &self.connection, unfolded: unfolded.states.into_iter().collect() })
    }
}

/// The table with what is not in it yet.
#[derive(Debug)]
pub struct Inventories<'a> {
    pub(super) connection: &'a Connection,
    /// In order of ids.
    pub(super) unfolded: Vec<(InventoryId, State)>,
}

impl Inventories<'_> {
    pub fn count(&self) -> Result<u64, StoreError> {
        let mut count = table::count(self.connection)?;
        for (id, state) in &self.unfolded {
            let was_there = table::has(self.connection, id)?;
            count = count + u64::from(state.is_some()) - u64::from(was_there);
        }
        Ok(count)
    }

    pub fn find(&self, id: &InventoryId) -> Result<State, StoreError> {
        match self.unfolded.binary_search_by(|(unfolded, _)| unfolded.cmp(id)) {
            Ok(at) => Ok(self.unfolded[at].1.clone()),
            Err(_) => Ok(table::read(self.connection, id)?),
        }
    }

    /// Hands each to `visit`, in order of ids; one that cannot be read as the reason why, with its id.
    pub fn each<E: From<StoreError>>(
        &self,
        mut visit: impl FnMut(Result<Arc<Inventory>, (String, String)>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut unfolded = self.unfolded.iter().peekable();
        table::scan(self.connection, |id, row| {
            while let Some((_, state)) = unfolded.next_if(|(unfolded, _)| unfolded.as_str() < id) {
                state.iter().try_for_each(|state| visit(Ok(state.clone())))?;
            }
            match unfolded.next_if(|(unfolded, _)| unfolded.as_str() == id) {
                Some((_, state)) => state.iter().try_for_each(|state| visit(Ok(state.clone()))),
                None => visit(row.map(Arc::new).map_err(|error| (id.to_owned(), error.to_string()))),
            }
        })?;
        unfolded.filter_map(|(_, state)| state.clone()).try_for_each(|state| visit(Ok(state)))
    }
}

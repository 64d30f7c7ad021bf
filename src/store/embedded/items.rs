//! Records which item each code was given to, so that a changed catalog cannot turn stored stacks into another item.
//!
//! The store remembers the id of every code that a catalog has ever contained, even after the item has left: stacks of
//! it may still exist. A catalog that gives such a code to another id is refused, unless it declares that the item was
//! renamed.

use super::EmbeddedStore;
use super::failure::store_error;
use crate::domain::{Catalog, Item, ItemCode};
use crate::store::StoreError;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Maximum number of conflicts that an error lists; it counts the others.
const CONFLICTS_MAX: usize = 10;

/// Why a store did not accept a catalog.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error(
        "the catalog conflicts with the store {}: {}; assign each new item a code of its own, \
         or, if an item was renamed, set its renamed_from to the id that the store has",
        path.display(), list_of_conflicts(conflicts)
    )]
    CodesReused { path: PathBuf, conflicts: Vec<CodeConflict> },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A code that belongs to another item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeConflict {
    /// The item id that the store has for the code.
    pub known_id: String,
    /// The item that the catalog gives the code to.
    pub item: Item,
}

impl std::fmt::Display for CodeConflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { known_id, item: Item { id, code, renamed_from, .. } } = self;
        write!(f, "code {} belongs to item {known_id:?}, the catalog assigns it to {id:?}", code.get())?;
        renamed_from.iter().try_for_each(|before| write!(f, ", renamed from {before:?}"))
    }
}

fn list_of_conflicts(conflicts: &[CodeConflict]) -> String {
    let mut texts: Vec<String> = conflicts.iter().take(CONFLICTS_MAX).map(ToString::to_string).collect();
    if let Some(more) = conflicts.len().checked_sub(CONFLICTS_MAX).filter(|more| *more > 0) {
        texts.push(format!("and {more} more codes"));
    }
    texts.join("; ")
}

impl EmbeddedStore {
    /// Accepts the catalog that later mutations use, and remembers the ids of its codes durably. Call it before the
    /// store is served.
    pub fn accept_catalog(&self, catalog: &Catalog) -> Result<(), CatalogError> {
        let writer = self.writer.lock();
        let _write_lock = self.inner.write_lock.lock();
        accept(&self.inner.path, &writer, catalog)
    }
}

/// Accepts the catalog over a connection that may write.
pub fn accept(path: &Path, connection: &Connection, catalog: &Catalog) -> Result<(), CatalogError> {
    let unknown = check(path, connection, catalog)?;
    if unknown.is_empty() {
        return Ok(());
    }
    remember(connection, &unknown).map_err(|error| store_error("remembering the catalog's items", &error).into())
}

/// Checks the catalog without changing anything. Returns the items whose id the store does not have yet.
pub fn check<'a>(path: &Path, connection: &Connection, catalog: &'a Catalog) -> Result<Vec<&'a Item>, CatalogError> {
    let failed = |error| CatalogError::Store(store_error("reading the known items", &error));
    let mut select = connection.prepare("SELECT id FROM items WHERE code = ?1").map_err(failed)?;
    let (mut unknown, mut conflicts) = (Vec::new(), Vec::new());
    for item in catalog.items() {
        let known_id: Option<String> =
            select.query_row([item.code.get()], |row| row.get(0)).optional().map_err(failed)?;
        match known_id {
            Some(known_id) if *known_id == *item.id => {}
            Some(known_id) if item.renamed_from.as_deref() != Some(&known_id) => {
                conflicts.push(CodeConflict { known_id, item: item.clone() });
            }
            Some(_) | None => unknown.push(item),
        }
    }
    if conflicts.is_empty() { Ok(unknown) } else { Err(CatalogError::CodesReused { path: path.to_owned(), conflicts }) }
}

/// Reads the id of each code that a catalog of the store has ever contained.
pub fn ids(connection: &Connection) -> Result<BTreeMap<ItemCode, String>, StoreError> {
    let failed = |error| store_error("reading the known items", &error);
    let mut select = connection.prepare("SELECT code, id FROM items").map_err(failed)?;
    let rows = select.query_map([], |row| Ok((row.get::<_, u32>(0)?, row.get::<_, String>(1)?))).map_err(failed)?;
    let mut ids = BTreeMap::new();
    for row in rows {
        let (code, id) = row.map_err(failed)?;
        let zero = || StoreError::Corrupt { detail: format!("item {id:?} has code 0") };
        ids.insert(ItemCode::new(code).ok_or_else(zero)?, id);
    }
    Ok(ids)
}

fn remember(connection: &Connection, items: &[&Item]) -> rusqlite::Result<()> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let mut put = transaction.prepare("INSERT OR REPLACE INTO items (code, id) VALUES (?1, ?2)")?;
    for item in items {
        put.execute(params![item.code.get(), &*item.id])?;
    }
    drop(put);
    transaction.commit()
}

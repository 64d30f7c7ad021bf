//! Loads what a batch needs from the store: inventories that are not hot, and idempotency keys.

use super::{EngineError, MutationRequest};
use crate::domain::{Inventory, InventoryId};
use crate::store::log::ChainHead;
use crate::store::{KeyStatus, Loaded, ScopedKey, Store, StoreError};
use std::collections::HashMap;
use std::sync::Arc;

/// Maximum number of failed reads in one batch before the whole batch fails; each failed read may take the disk a
/// while.
const FAILED_READS_MAX: usize = 8;

/// What the store returned for one batch.
#[derive(Default)]
pub(super) struct LoadedBatch {
    /// The status of each mutation's key.
    pub key_statuses: Vec<Result<KeyStatus, StoreError>>,
    /// Inventories that the store cannot read. Only requests that need one of them fail.
    unreadable: HashMap<InventoryId, StoreError>,
}

/// An inventory that was not hot.
#[derive(Debug)]
pub(super) struct LoadedInventory {
    pub id: InventoryId,
    /// `None` if it does not exist.
    pub inventory: Option<Arc<Inventory>>,
    /// Where the chain of its entries in the log begins.
    pub head: Option<ChainHead>,
}

/// Loads inventories and keys. If the store cannot read one of them, only the requests that need it fail.
///
/// # Errors
///
/// [`EngineError::Store`] if the store is full, or fails so often that the whole batch fails.
pub(super) fn load_batch(
    store: &dyn Store,
    ids: Vec<InventoryId>,
    keys: &[ScopedKey],
) -> Result<(Vec<LoadedInventory>, LoadedBatch), EngineError> {
    match store.load(&ids, keys) {
        Ok(Loaded { inventories, heads, key_statuses }) => {
            let key_statuses = key_statuses.into_iter().map(Ok).collect();
            let found = ids.into_iter().zip(inventories).zip(heads);
            let found = found.map(|((id, inventory), head)| LoadedInventory { id, inventory, head: Some(head) });
            Ok((found.collect(), LoadedBatch { key_statuses, ..LoadedBatch::default() }))
        }
        Err(StoreError::Corrupt { .. } | StoreError::Unavailable { .. }) => load_one_by_one(store, ids, keys),
        Err(error @ StoreError::Full { .. }) => Err(EngineError::Store(error)),
    }
}

/// Returns every inventory that a mutation may read.
pub(super) fn needed_inventories(request: &MutationRequest) -> impl Iterator<Item = &InventoryId> {
    request.mutation.inventories().chain(request.predicted.iter().map(|(id, _)| id))
}

impl LoadedBatch {
    /// Checks that the store could read all of these inventories.
    pub fn check_readable<'a>(&self, mut ids: impl Iterator<Item = &'a InventoryId>) -> Result<(), EngineError> {
        if self.unreadable.is_empty() {
            return Ok(());
        }
        ids.find_map(|id| self.unreadable.get(id)).map_or(Ok(()), |error| Err(EngineError::Store(error.clone())))
    }

    /// Returns the key status of a request, unless the request cannot run because the store cannot read its key
    /// or an inventory. A retry needs only the stored reply, so unreadable inventories do not fail it.
    pub fn runnable_key_status<'a>(
        &self,
        request: &MutationRequest,
        status: &'a Result<KeyStatus, StoreError>,
    ) -> Result<&'a KeyStatus, EngineError> {
        let status = status.as_ref().map_err(|error| EngineError::Store(error.clone()))?;
        match status {
            KeyStatus::Applied { .. } | KeyStatus::Expired | KeyStatus::TooFarAhead { .. } => {}
            KeyStatus::New => self.check_readable(needed_inventories(request))?,
        }
        Ok(status)
    }
}

fn load_one_by_one(
    store: &dyn Store,
    ids: Vec<InventoryId>,
    keys: &[ScopedKey],
) -> Result<(Vec<LoadedInventory>, LoadedBatch), EngineError> {
    let mut batch = LoadedBatch { key_statuses: Vec::with_capacity(keys.len()), ..LoadedBatch::default() };
    let mut inventories = Vec::with_capacity(ids.len());
    let mut failed_reads = 0;
    let mut may_continue = |error: &StoreError| {
        failed_reads += usize::from(!matches!(error, StoreError::Corrupt { .. }));
        failed_reads < FAILED_READS_MAX
    };
    for id in ids {
        match store.load(std::slice::from_ref(&id), &[]) {
            Ok(loaded) => {
                let (inventory, head) =
                    (loaded.inventories.into_iter().flatten().next(), loaded.heads.first().copied());
                inventories.push(LoadedInventory { id, inventory, head });
            }
            Err(error) if may_continue(&error) => {
                tracing::error!(%id, %error, "cannot read an inventory; requests that need it fail");
                batch.unreadable.insert(id, error);
            }
            Err(error) => return Err(EngineError::Store(error)),
        }
    }
    for key in keys {
        match store.load(&[], std::slice::from_ref(key)) {
            Ok(loaded) => batch.key_statuses.extend(loaded.key_statuses.into_iter().map(Ok)),
            Err(error) if may_continue(&error) => batch.key_statuses.push(Err(error)),
            Err(error) => return Err(EngineError::Store(error)),
        }
    }
    Ok((inventories, batch))
}

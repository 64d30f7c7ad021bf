//! A store in memory: as fast as the tests are, and with commits that wait on demand.

use slotcast::domain::{Fingerprint, Inventory, InventoryId};
use slotcast::store::{CommitError, Key, ListQuery, Loaded, Recall, Reply, Store, StoreError, Transaction};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
pub struct MemoryStore {
    content: Mutex<Content>,
    is_held: Mutex<bool>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct Content {
    inventories: BTreeMap<InventoryId, Arc<Inventory>>,
    keys: HashMap<Key, (Fingerprint, Reply)>,
    /// UUIDv7 keys of this time or before are not new, unless they are remembered.
    forgotten_ms: Option<u64>,
    commits: usize,
}

impl MemoryStore {
    /// Commits wait until they are released.
    pub fn hold_commits(&self) {
        *self.is_held.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    pub fn release_commits(&self) {
        *self.is_held.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.released.notify_all();
    }

    /// As if the window of all keys so far were over.
    pub fn forget_keys(&self) {
        let mut content = self.content();
        content.forgotten_ms = content.keys.keys().filter_map(|key| key.key.unix_ms()).max();
        content.keys.clear();
    }

    /// How many transactions were committed.
    pub fn commits(&self) -> usize {
        self.content().commits
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn load(&self, ids: &[InventoryId], keys: &[Key]) -> Result<Loaded, StoreError> {
        let content = self.content();
        let recall = |key: &Key| match content.keys.get(key) {
            Some((payload, reply)) => Recall::Applied { payload: *payload, reply: reply.clone() },
            None if key.key.unix_ms().is_some_and(|ms| Some(ms) <= content.forgotten_ms) => Recall::Forgotten,
            None => Recall::New,
        };
        let inventories = ids.iter().map(|id| content.inventories.get(id).cloned()).collect();
        Ok(Loaded { inventories, keys: keys.iter().map(recall).collect() })
    }

    fn commit(&self, batch: &[Transaction]) -> Result<(), CommitError> {
        let is_held = self.is_held.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.released.wait_while(is_held, |is_held| *is_held));
        let mut content = self.content();
        for Transaction { key, payload, reply, touched } in batch.iter().cloned() {
            content.keys.insert(key, (payload, reply));
            for touched in touched {
                match touched.state {
                    Some(state) => content.inventories.insert(touched.version.id, state),
                    None => content.inventories.remove(&touched.version.id),
                };
            }
            content.commits += 1;
        }
        Ok(())
    }

    fn list(&self, query: &ListQuery) -> Result<Vec<Arc<Inventory>>, StoreError> {
        let content = self.content();
        let wanted = |inventory: &&Arc<Inventory>| {
            inventory.id.as_str().starts_with(&query.prefix)
                && (query.owner.is_none() || inventory.owner == query.owner)
                && query.after.as_ref().is_none_or(|after| inventory.id > *after)
        };
        Ok(content.inventories.values().filter(wanted).take(query.limit).cloned().collect())
    }
}

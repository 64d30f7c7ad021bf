//! A store in memory whose commits can be paused.

use parking_lot::{Condvar, Mutex, MutexGuard};
use slotcast::domain::{Fingerprint, Inventory, InventoryId};
use slotcast::store::horizon::{ExpiredKeys, KeyHorizon};
use slotcast::store::log::{ChainHead, Position};
use slotcast::store::{
    CommitError, KeyStatus, ListPage, ListQuery, Loaded, MutationRecord, Reply, ScopedKey, Store, StoreError,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

/// Maximum number of callers with keys ahead of the clock.
const CALLERS_AHEAD_MAX: usize = 1_000;

#[derive(Debug, Default)]
pub struct MemoryStore {
    content: Mutex<Content>,
    is_paused: Mutex<bool>,
    resumed: Condvar,
}

#[derive(Debug)]
struct Content {
    inventories: BTreeMap<InventoryId, Arc<Inventory>>,
    heads: HashMap<InventoryId, ChainHead>,
    keys: HashMap<ScopedKey, Remembered>,
    horizon: KeyHorizon,
    commits: usize,
}

#[derive(Debug)]
struct Remembered {
    payload: Fingerprint,
    reply: Reply,
    received_ms: u64,
}

impl Default for Content {
    fn default() -> Self {
        let horizon = KeyHorizon::new(None, CALLERS_AHEAD_MAX);
        Self { inventories: BTreeMap::new(), heads: HashMap::new(), keys: HashMap::new(), horizon, commits: 0 }
    }
}

impl MemoryStore {
    /// Pauses commits until [`Self::resume_commits`].
    pub fn pause_commits(&self) {
        *self.is_paused.lock() = true;
    }

    pub fn resume_commits(&self) {
        *self.is_paused.lock() = false;
        self.resumed.notify_all();
    }

    /// Expires all keys, as if their window had ended.
    pub fn expire_keys(&self) {
        let mut content = self.content();
        let mut expired = ExpiredKeys::default();
        for (key, remembered) in content.keys.drain() {
            expired.add(remembered.received_ms, std::iter::once(&key));
        }
        content.horizon.expire(expired);
    }

    /// Returns the number of committed transactions.
    pub fn commits(&self) -> usize {
        self.content().commits
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock()
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

impl Store for MemoryStore {
    fn load(&self, ids: &[InventoryId], keys: &[ScopedKey]) -> Result<Loaded, StoreError> {
        let (content, now_ms) = (self.content(), unix_ms());
        let status = |key: &ScopedKey| match content.keys.get(key) {
            Some(Remembered { payload, reply, .. }) => KeyStatus::Applied { payload: *payload, reply: reply.clone() },
            None => content.horizon.status_of(key, now_ms),
        };
        let inventories = ids.iter().map(|id| content.inventories.get(id).cloned()).collect();
        let heads = ids.iter().map(|id| content.heads.get(id).copied().unwrap_or_default()).collect();
        Ok(Loaded { inventories, heads, key_statuses: keys.iter().map(status).collect() })
    }

    fn commit(&self, batch: &[MutationRecord]) -> Result<Vec<ChainHead>, CommitError> {
        self.resumed.wait_while(&mut self.is_paused.lock(), |is_paused| *is_paused);
        let mut content = self.content();
        let mut heads = Vec::new();
        for MutationRecord { key, payload, reply, touched, .. } in batch.iter().cloned() {
            let received_ms = unix_ms();
            content.horizon.remember(received_ms, std::iter::once(&key));
            content.keys.insert(key, Remembered { payload, reply, received_ms });
            let position = Position::new(1, content.commits as u64 + 1);
            for touched in touched {
                if touched.is_changed() {
                    let head = ChainHead { last: position, checkpoint: position };
                    content.heads.insert(touched.version.id.clone(), head);
                    heads.push(head);
                }
                match touched.state {
                    Some(state) => content.inventories.insert(touched.version.id, state),
                    None => content.inventories.remove(&touched.version.id),
                };
            }
            content.commits += 1;
        }
        Ok(heads)
    }

    fn list(&self, query: &ListQuery) -> Result<ListPage, StoreError> {
        let content = self.content();
        let matches = |inventory: &&Arc<Inventory>| {
            inventory.id.as_str().starts_with(&query.prefix)
                && (query.owner.is_none() || inventory.owner == query.owner)
                && query.after.as_ref().is_none_or(|after| inventory.id > *after)
        };
        let mut matching = content.inventories.values().filter(matches).cloned();
        let inventories: Vec<_> = matching.by_ref().take(query.limit).collect();
        let next = matching.next().and(inventories.last()).map(|last| last.id.clone());
        Ok(ListPage { inventories, next })
    }
}

//! The hot table: the newest durable state of each inventory in memory, in a `watch` channel for subscriptions.
//!
//! Only the commit loop changes states. It publishes all states of a batch under the write lock, and a subscription
//! copies its states under the read lock, so no reader sees part of a commit. Watchers are woken after the lock is
//! released.

use crate::domain::{Inventory, InventoryId};
use crate::sync::{ChangeRecord, PublishedState, TraceContext};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;
use tokio::sync::watch;

/// The inventories in memory.
#[derive(Debug, Default)]
pub(super) struct HotTable {
    entries: RwLock<HashMap<InventoryId, HotEntry>>,
}

/// An inventory in memory.
#[derive(Debug)]
struct HotEntry {
    state: watch::Sender<Arc<PublishedState>>,
    /// Whether the entry was read or written since eviction last examined it.
    used: AtomicBool,
}

/// The next state of one inventory, to be published once the batch is committed.
#[derive(Debug)]
pub(super) struct StagedState {
    /// `None` if the inventory does not exist or was deleted.
    pub inventory: Option<Arc<Inventory>>,
    pub records: Vec<ChangeRecord>,
    /// The trace context of the newest traced change, if any.
    pub trace: Option<TraceContext>,
}

impl StagedState {
    pub fn new(inventory: Option<Arc<Inventory>>) -> Self {
        Self { inventory, records: Vec::new(), trace: None }
    }
}

/// The watchers of one inventory, to be woken after the lock is released.
#[derive(Debug)]
pub(super) struct PendingWake(watch::Sender<Arc<PublishedState>>);

impl PendingWake {
    pub fn wake(self) {
        self.0.send_modify(|_| {});
    }
}

impl HotTable {
    /// Returns the inventory, `Some(None)` if it does not exist, or `None` if the table has no entry, so that it may
    /// exist in the store.
    pub fn inventory(&self, id: &InventoryId) -> Option<Option<Arc<Inventory>>> {
        let entries = self.read();
        let hot = entries.get(id)?;
        hot.used.store(true, Ordering::Relaxed);
        let inventory = hot.state.borrow().inventory.clone();
        Some(inventory)
    }

    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Returns a consistent snapshot of the states.
    pub(super) fn snapshot(&self, receivers: &[watch::Receiver<Arc<PublishedState>>]) -> Vec<Arc<PublishedState>> {
        // No batch is published while the lock is held.
        let _lock = self.read();
        receivers.iter().map(|receiver| receiver.borrow().clone()).collect()
    }

    pub(super) fn contains(&self, id: &InventoryId) -> bool {
        self.read().contains_key(id)
    }

    /// Subscribes to each inventory. Creates an entry without a state for an inventory that is not hot.
    pub(super) fn subscribe(
        &self,
        ids: &[InventoryId],
        order: &mut EvictionOrder,
    ) -> Vec<watch::Receiver<Arc<PublishedState>>> {
        let mut entries = self.write();
        let receiver = |id: &InventoryId| {
            let hot = entries.entry(id.clone()).or_insert_with(|| {
                order.0.push_back(id.clone());
                HotEntry::new(PublishedState::default())
            });
            hot.used.store(true, Ordering::Relaxed);
            hot.state.subscribe()
        };
        ids.iter().map(receiver).collect()
    }

    /// Drops receivers and removes the entries of inventories that do not exist and have no other watcher. This is safe
    /// while the commit loop runs: without an entry it also finds that the inventory does not exist.
    pub(super) fn release(&self, ids: &[InventoryId], receivers: Vec<watch::Receiver<Arc<PublishedState>>>) {
        let mut entries = self.write();
        drop(receivers);
        for id in ids {
            let is_unused = |hot: &HotEntry| hot.state.receiver_count() == 0 && hot.state.borrow().inventory.is_none();
            if entries.get(id).is_some_and(is_unused) {
                entries.remove(id);
            }
        }
    }

    /// Publishes all states atomically; returns the watchers to wake.
    pub(super) fn publish(
        &self,
        staged: impl Iterator<Item = (InventoryId, StagedState)>,
        order: &mut EvictionOrder,
    ) -> Vec<PendingWake> {
        let mut wakes = Vec::new();
        let mut entries = self.write();
        let now = Instant::now();
        for (id, StagedState { inventory, records, trace }) in staged {
            let Some(hot) = entries.get(&id) else {
                if inventory.is_some() {
                    order.0.push_back(id.clone());
                    entries.insert(id, HotEntry::new(PublishedState::new(inventory)));
                }
                continue;
            };
            let watched = hot.state.receiver_count() > 0;
            if !watched && inventory.is_none() {
                entries.remove(&id);
                continue;
            }
            hot.used.store(true, Ordering::Relaxed);
            hot.state.send_if_modified(|current| {
                // Only open streams need change records.
                let next =
                    if watched { current.followed_by(inventory, records) } else { PublishedState::new(inventory) };
                *current = Arc::new(next.superseding(current, now, trace));
                false
            });
            if watched {
                wakes.push(PendingWake(hot.state.clone()));
            }
        }
        wakes
    }

    /// Adds a change record to the current state, if the inventory has watchers.
    pub(super) fn add_record(
        &self,
        id: &InventoryId,
        record: impl FnOnce(&Inventory) -> ChangeRecord,
    ) -> Option<PendingWake> {
        // Every published change happens under the write lock.
        let entries = self.write();
        let hot = entries.get(id).filter(|hot| hot.state.receiver_count() > 0)?;
        hot.state.send_if_modified(|current| {
            if let Some(inventory) = current.inventory.clone() {
                let record = record(&inventory);
                *current = Arc::new(current.followed_by(Some(inventory), [record]));
            }
            false
        });
        Some(PendingWake(hot.state.clone()))
    }

    /// Evicts by the second-chance algorithm: examines the oldest entries until at most `hot_max` are left or a bounded
    /// number was examined. Keeps entries that are watched or were used since they were last examined.
    pub(super) fn evict(&self, hot_max: usize, order: &mut EvictionOrder) {
        let mut entries = self.write();
        let over = entries.len().saturating_sub(hot_max);
        for _ in 0..2 * over {
            if entries.len() <= hot_max {
                break;
            }
            let Some(id) = order.0.pop_front() else { break };
            let Some(hot) = entries.get(&id) else { continue };
            if hot.state.receiver_count() > 0 || hot.used.swap(false, Ordering::Relaxed) {
                order.0.push_back(id);
            } else {
                entries.remove(&id);
            }
        }
        // Remove the ids of entries that were removed elsewhere before they outnumber the others.
        if order.0.len() > 2 * entries.len() + 1_024 {
            order.0.clear();
            order.0.extend(entries.keys().cloned());
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<InventoryId, HotEntry>> {
        // Only allocation can panic under the lock, and it leaves the table consistent.
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<InventoryId, HotEntry>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HotEntry {
    fn new(published: PublishedState) -> Self {
        Self { state: watch::Sender::new(Arc::new(published)), used: AtomicBool::new(true) }
    }
}

/// The order in which eviction examines entries; owned by the commit loop.
#[derive(Debug, Default)]
pub(super) struct EvictionOrder(VecDeque<InventoryId>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Contents, Epoch, LayoutId, Revision};

    fn id(name: &str) -> InventoryId {
        InventoryId::new(name).unwrap()
    }

    fn inventory(name: &str) -> Option<Arc<Inventory>> {
        Some(Arc::new(Inventory {
            id: id(name),
            owner: None,
            layout: LayoutId::new("chest").unwrap(),
            epoch: Epoch::new(1).unwrap(),
            contents: Contents::new(3, Revision::CREATED, &[]),
        }))
    }

    fn staged(name: &str) -> (InventoryId, StagedState) {
        (id(name), StagedState::new(inventory(name)))
    }

    fn snapshot_inventories(
        table: &HotTable,
        receivers: &[watch::Receiver<Arc<PublishedState>>],
    ) -> Vec<Option<Arc<Inventory>>> {
        table.snapshot(receivers).iter().map(|state| state.inventory.clone()).collect()
    }

    #[test]
    fn eviction_keeps_watched_inventories_and_limits_the_others() {
        let (table, mut order) = (HotTable::default(), EvictionOrder::default());
        let names: Vec<String> = (0..100).map(|n| format!("inv-{n}")).collect();
        table.publish(names.iter().map(|name| staged(name)), &mut order);
        let watched = table.subscribe(&[id("inv-3")], &mut order);
        for _ in 0..20 {
            table.evict(10, &mut order);
        }
        assert_eq!(table.len(), 10);
        assert_eq!(snapshot_inventories(&table, &watched), [inventory("inv-3")]);
        assert!(table.contains(&id("inv-3")));
    }

    #[test]
    fn created_and_deleted_inventories_leave_no_entries() {
        let (table, mut order) = (HotTable::default(), EvictionOrder::default());
        for n in 0..5_000 {
            let name = format!("inv-{n}");
            table.publish([staged(&name)].into_iter(), &mut order);
            table.publish([(id(&name), StagedState::new(None))].into_iter(), &mut order);
            table.evict(10, &mut order);
        }
        assert_eq!(table.len(), 0);
        assert!(order.0.len() <= 1_025, "{}", order.0.len());
    }

    #[test]
    fn a_watcher_sees_the_new_state_before_it_is_woken() {
        let (table, mut order) = (HotTable::default(), EvictionOrder::default());
        let mut receivers = table.subscribe(&[id("a")], &mut order);
        let wakes = table.publish([staged("a")].into_iter(), &mut order);
        assert_eq!(snapshot_inventories(&table, &receivers), [inventory("a")]);
        assert!(!receivers[0].has_changed().unwrap());
        wakes.into_iter().for_each(PendingWake::wake);
        assert!(receivers[0].has_changed().unwrap());
        receivers[0].mark_unchanged();
    }
}

//! The hot table: the newest durable state of each inventory in memory, and the subscriptions that watch it.
//!
//! Only the commit loop changes states. It publishes all states of a batch under the write lock, and a subscription
//! copies its states under the read lock, so no reader sees part of a commit. Subscriptions are woken after the lock is
//! released. Change records and the time at which a state was superseded are kept only for watched inventories.

use super::waker::{SubscriptionWaker, WakeLevel};
use crate::domain::{Inventory, InventoryId};
use crate::sync::{ChangeRecord, Cursor, PublishedState, TraceContext};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

/// Number of change records of one inventory after which every subscription to it is woken, whatever its wake level is.
/// It is a fraction of the number of records that a published state keeps, so that a subscription reads them in time.
const RECORDS_UNREAD_MAX: u64 = 16;

/// The inventories in memory.
#[derive(Debug, Default)]
pub(super) struct HotTable {
    entries: RwLock<HashMap<InventoryId, HotEntry>>,
}

/// An inventory in memory.
#[derive(Debug)]
struct HotEntry {
    /// `None` if the inventory does not exist, which only entries of watched inventories remember.
    inventory: Option<Arc<Inventory>>,
    /// Whether the entry was read or written since eviction last examined it.
    used: AtomicBool,
    /// `None` while no subscription watches the inventory.
    watched: Option<Box<WatchedEntry>>,
}

/// What a watched inventory has in addition.
#[derive(Debug)]
struct WatchedEntry {
    published: Arc<PublishedState>,
    /// Not empty.
    subscriptions: Vec<Arc<SubscriptionWaker>>,
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

/// The subscriptions to wake after the lock is released.
pub(super) type PendingWakes = Vec<Arc<SubscriptionWaker>>;

impl HotTable {
    /// Returns the inventory, `Some(None)` if it does not exist, or `None` if the table has no entry, so that it may
    /// exist in the store.
    pub fn inventory(&self, id: &InventoryId) -> Option<Option<Arc<Inventory>>> {
        let entries = self.read();
        let hot = entries.get(id)?;
        hot.mark_used();
        Some(hot.inventory.clone())
    }

    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Returns a consistent snapshot of the states of watched inventories.
    pub(super) fn snapshot(&self, ids: &[InventoryId]) -> Vec<Arc<PublishedState>> {
        // No batch is published while the lock is held.
        let entries = self.read();
        ids.iter()
            .map(|id| {
                let watched = entries.get(id).and_then(|hot| hot.watched.as_ref());
                watched.map(|watched| watched.published.clone()).unwrap_or_default()
            })
            .collect()
    }

    pub(super) fn contains(&self, id: &InventoryId) -> bool {
        self.read().contains_key(id)
    }

    /// Returns whether a subscription watches the inventory. Only the commit loop adds subscriptions, so for the commit
    /// loop an inventory that is not watched stays so until it calls [`Self::subscribe`].
    pub(super) fn is_watched(&self, id: &InventoryId) -> bool {
        self.read().get(id).is_some_and(|hot| hot.watched.is_some())
    }

    /// Registers a subscription in the entry of each inventory. Creates an entry for an inventory that is not hot, which
    /// does not exist.
    pub(super) fn subscribe(&self, ids: &[InventoryId], waker: &Arc<SubscriptionWaker>, order: &mut EvictionOrder) {
        let mut entries = self.write();
        for id in ids {
            let hot = entries.entry(id.clone()).or_insert_with(|| {
                order.0.push_back(id.clone());
                HotEntry::new(None)
            });
            hot.mark_used();
            match &mut hot.watched {
                Some(watched) => watched.subscriptions.push(waker.clone()),
                None => {
                    let published = Arc::new(PublishedState::new(hot.inventory.clone()));
                    hot.watched = Some(Box::new(WatchedEntry { published, subscriptions: vec![waker.clone()] }));
                }
            }
        }
    }

    /// Ends a subscription and removes the entries of inventories that do not exist and have no other one. This is safe
    /// while the commit loop runs: without an entry it also finds that the inventory does not exist.
    pub(super) fn release(&self, ids: &[InventoryId], waker: &Arc<SubscriptionWaker>) {
        let mut entries = self.write();
        for id in ids {
            let Some(hot) = entries.get_mut(id) else { continue };
            let Some(watched) = &mut hot.watched else { continue };
            watched.subscriptions.retain(|subscription| !Arc::ptr_eq(subscription, waker));
            if watched.subscriptions.is_empty() {
                hot.watched = None;
                if hot.inventory.is_none() {
                    entries.remove(id);
                }
            }
        }
    }

    /// Publishes all states atomically; returns the subscriptions to wake.
    pub(super) fn publish(
        &self,
        staged: impl Iterator<Item = (InventoryId, StagedState)>,
        order: &mut EvictionOrder,
    ) -> PendingWakes {
        let mut wakes = PendingWakes::new();
        let mut entries = self.write();
        let now = Instant::now();
        for (id, state) in staged {
            let Some(hot) = entries.get_mut(&id) else {
                if state.inventory.is_some() {
                    order.0.push_back(id.clone());
                    entries.insert(id, HotEntry::new(state.inventory));
                }
                continue;
            };
            hot.mark_used();
            if let Some(watched) = &mut hot.watched {
                hot.inventory.clone_from(&state.inventory);
                watched.publish(state, now, &mut wakes);
            } else if state.inventory.is_some() {
                hot.inventory = state.inventory;
            } else {
                entries.remove(&id);
            }
        }
        wakes
    }

    /// Adds a change record to the current state, if the inventory is watched; returns the subscriptions to wake.
    pub(super) fn add_record(&self, id: &InventoryId, record: impl FnOnce(&Inventory) -> ChangeRecord) -> PendingWakes {
        let mut wakes = PendingWakes::new();
        // Every published change happens under the write lock.
        let mut entries = self.write();
        if let Some(HotEntry { inventory: Some(inventory), watched: Some(watched), .. }) = entries.get_mut(id) {
            let inventory = inventory.clone();
            let records = vec![record(&inventory)];
            let state = StagedState { inventory: Some(inventory), records, trace: None };
            watched.publish(state, Instant::now(), &mut wakes);
        }
        wakes
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
            if hot.watched.is_some() || hot.used.swap(false, Ordering::Relaxed) {
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
    fn new(inventory: Option<Arc<Inventory>>) -> Self {
        Self { inventory, used: AtomicBool::new(true), watched: None }
    }

    fn mark_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }
}

impl WatchedEntry {
    /// Publishes the next state, marks it as pending for each subscription and adds those to wake.
    fn publish(&mut self, state: StagedState, now: Instant, wakes: &mut PendingWakes) {
        let StagedState { inventory, records, trace } = state;
        let before = &*self.published;
        let epoch = |inventory: &Option<Arc<Inventory>>| inventory.as_deref().map(|i| Cursor::of(i).epoch);
        let records_read_by = before.records_total() / RECORDS_UNREAD_MAX;
        let records_after = (before.records_total() + records.len() as u64) / RECORDS_UNREAD_MAX;
        let concerns_all = epoch(&before.inventory) != epoch(&inventory) || records_after > records_read_by;
        for subscription in &self.subscriptions {
            let level = if concerns_all { WakeLevel::Correction } else { subscription.level_of(&records) };
            if subscription.add_pending(level) {
                wakes.push(subscription.clone());
            }
        }
        self.published = Arc::new(before.followed_by(inventory, records).superseding(before, now, trace));
    }
}

/// The order in which eviction examines entries; owned by the commit loop.
#[derive(Debug, Default)]
pub(super) struct EvictionOrder(VecDeque<InventoryId>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Caller, Contents, Epoch, LayoutId, Revision, SessionId};
    use crate::engine::delivery::RuntimeIndex;
    use crate::sync::PredictionOutcome;
    use std::task::{Context, Waker};

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

    fn snapshot_inventories(table: &HotTable, ids: &[InventoryId]) -> Vec<Option<Arc<Inventory>>> {
        table.snapshot(ids).iter().map(|state| state.inventory.clone()).collect()
    }

    fn subscribe(table: &HotTable, name: &str, order: &mut EvictionOrder) -> Arc<SubscriptionWaker> {
        let session = SessionId::new("own").ok();
        let waker = Arc::new(SubscriptionWaker::new(session, RuntimeIndex::default()));
        table.subscribe(&[id(name)], &waker, order);
        waker
    }

    fn is_pending(waker: &SubscriptionWaker) -> bool {
        waker.poll_pending(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn eviction_keeps_watched_inventories_and_limits_the_others() {
        let (table, mut order) = (HotTable::default(), EvictionOrder::default());
        let names: Vec<String> = (0..100).map(|n| format!("inv-{n}")).collect();
        table.publish(names.iter().map(|name| staged(name)), &mut order);
        let _waker = subscribe(&table, "inv-3", &mut order);
        for _ in 0..20 {
            table.evict(10, &mut order);
        }
        assert_eq!(table.len(), 10);
        assert_eq!(snapshot_inventories(&table, &[id("inv-3")]), [inventory("inv-3")]);
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
    fn a_subscription_sees_the_new_state_before_it_is_woken() {
        let (table, mut order) = (HotTable::default(), EvictionOrder::default());
        let waker = subscribe(&table, "a", &mut order);
        assert!(!is_pending(&waker));
        let wakes = table.publish([staged("a")].into_iter(), &mut order);
        assert_eq!(snapshot_inventories(&table, &[id("a")]), [inventory("a")]);
        assert!(wakes.len() == 1 && Arc::ptr_eq(&wakes[0], &waker));
        assert!(is_pending(&waker) && !is_pending(&waker));
    }

    #[test]
    fn nothing_is_published_for_an_inventory_that_is_not_watched() {
        let (table, mut order) = (HotTable::default(), EvictionOrder::default());
        table.publish([staged("a")].into_iter(), &mut order);
        assert!(!table.is_watched(&id("a")));
        let waker = subscribe(&table, "a", &mut order);
        assert!(table.is_watched(&id("a")));
        table.release(&[id("a")], &waker);
        assert!(!table.is_watched(&id("a")) && table.contains(&id("a")));
    }

    /// Publishes a change of revision `revision` with one record; returns whether the subscription is woken.
    fn change(table: &HotTable, order: &mut EvictionOrder, session: &str, outcome: PredictionOutcome) -> bool {
        let inventory = inventory("a").unwrap();
        let caller = Caller::new("test").unwrap();
        let correction = ChangeRecord::correction(SessionId::new(session).unwrap(), caller, &inventory);
        let records = vec![ChangeRecord { outcome, ..correction }];
        let state = StagedState { inventory: Some(inventory), records, trace: None };
        !table.publish([(id("a"), state)].into_iter(), order).is_empty()
    }

    #[test]
    fn a_subscription_is_woken_by_the_changes_that_its_level_names() {
        use PredictionOutcome::{Confirmed, Correction, Mispredicted, Unpredicted};
        let (table, mut order) = (HotTable::default(), EvictionOrder::default());
        table.publish([staged("a")].into_iter(), &mut order);
        let changes = [
            ("own", Confirmed, WakeLevel::Any),
            ("other", Correction, WakeLevel::Any),
            ("own", Unpredicted, WakeLevel::Echo),
            ("other", Unpredicted, WakeLevel::News),
            ("other", Confirmed, WakeLevel::News),
            ("own", Mispredicted, WakeLevel::Correction),
            ("own", Correction, WakeLevel::Correction),
        ];
        for level in [WakeLevel::Any, WakeLevel::Echo, WakeLevel::News, WakeLevel::Correction] {
            let waker = subscribe(&table, "a", &mut order);
            waker.set_level(level);
            for (session, outcome, of_change) in changes {
                let woken = change(&table, &mut order, session, outcome);
                assert_eq!(woken, of_change >= level, "{session} {outcome:?} at {level:?}");
                waker.take_pending();
            }
            table.release(&[id("a")], &waker);
        }
    }

    #[test]
    fn a_subscription_at_any_level_is_woken_by_deletion_and_creation_and_before_it_loses_records() {
        let (table, mut order) = (HotTable::default(), EvictionOrder::default());
        table.publish([staged("a")].into_iter(), &mut order);
        let waker = subscribe(&table, "a", &mut order);
        waker.set_level(WakeLevel::Correction);
        for _ in 0..3 {
            for n in 1..=RECORDS_UNREAD_MAX {
                let woken = change(&table, &mut order, "own", PredictionOutcome::Unpredicted);
                assert_eq!(woken, n == RECORDS_UNREAD_MAX);
            }
            waker.take_pending();
        }
        for state in [None, inventory("a")] {
            let wakes = table.publish([(id("a"), StagedState::new(state))].into_iter(), &mut order);
            assert_eq!(wakes.len(), 1);
            waker.take_pending();
        }
    }
}

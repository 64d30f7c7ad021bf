//! The hot table: the newest durable state of each inventory in memory, and the subscriptions that watch it.
//!
//! Only the commit loop changes states. It publishes all states of a batch under the write lock, and a subscription
//! copies its states under the read lock, so no reader sees part of a commit. Reads of inventories that are not hot may
//! insert a state ([`HotTable::end_read`]). Subscriptions are woken after the lock is released. Change records and the
//! time at which a state was superseded are kept only for watched inventories.

use super::load::LoadedInventory;
use super::waker::{SubscriptionWaker, WakeLevel};
use crate::domain::{Inventory, InventoryId};
use crate::store::log::ChainHead;
use crate::sync::{ChangeRecord, Cursor, PublishedState, TraceContext};
use foldhash::fast::RandomState;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

/// Number of change records of one inventory after which every subscription to it is woken, whatever its wake level is.
/// It is a fraction of the number of records that a published state keeps, so that a subscription reads them in time.
const RECORDS_UNREAD_MAX: u64 = 16;

/// The inventories in memory.
#[derive(Debug, Default)]
pub(super) struct HotTable {
    table: RwLock<Table>,
    /// Whether a batch is in flight: no entry that it needs may be evicted. Written under the lock.
    batch_in_flight: AtomicBool,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<InventoryId, HotEntry, RandomState>,
    /// The order in which eviction examines entries. May contain ids of entries that were removed elsewhere.
    order: VecDeque<InventoryId>,
    removals: Removals,
    /// Entries to remove when the batch in flight ends, unless their inventories exist or are watched by then.
    absent: Vec<InventoryId>,
}

/// Number of entries that were removed since the start, by a hash of their ids.
#[derive(Debug)]
struct Removals(Box<[u64; REMOVAL_COUNTERS]>);

const REMOVAL_COUNTERS: usize = 256;

/// A read of an inventory that was not in the table when it began.
#[derive(Debug)]
pub(super) struct ColdRead {
    id: InventoryId,
    /// The number of removals of entries with the same hash when the read began.
    removals: u64,
}

/// An inventory in memory.
#[derive(Debug)]
struct HotEntry {
    /// `None` if the inventory does not exist, which only entries of watched inventories remember.
    inventory: Option<Arc<Inventory>>,
    /// Where the chain of its entries in the log begins; `None` if the store has to look it up.
    head: Option<ChainHead>,
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
    /// The index of the newest change among all changes of the batch; `None` if the batch has not changed the inventory.
    pub change: Option<usize>,
    /// Where the chain of its entries in the log begins, once the batch is committed; `None` if that did not change.
    pub head: Option<ChainHead>,
    pub records: Vec<ChangeRecord>,
    /// The trace context of the newest traced change, if any.
    pub trace: Option<TraceContext>,
}

impl StagedState {
    pub fn new(inventory: Option<Arc<Inventory>>) -> Self {
        Self { inventory, change: None, head: None, records: Vec::new(), trace: None }
    }
}

/// The subscriptions to wake after the lock is released.
pub(super) type PendingWakes = Vec<Arc<SubscriptionWaker>>;

impl HotTable {
    /// Returns the inventory, `Some(None)` if it does not exist, or `None` if the table has no entry, so that it may
    /// exist in the store.
    pub fn inventory(&self, id: &InventoryId) -> Option<Option<Arc<Inventory>>> {
        let table = self.read();
        let hot = table.entries.get(id)?;
        hot.mark_used();
        Some(hot.inventory.clone())
    }

    /// Returns the inventory, or begins to read it from the store if the table has no entry.
    pub fn read_or_begin(&self, id: &InventoryId) -> Result<Option<Arc<Inventory>>, ColdRead> {
        let table = self.read();
        match table.entries.get(id) {
            Some(hot) => {
                hot.mark_used();
                Ok(hot.inventory.clone())
            }
            None => Err(ColdRead { id: id.clone(), removals: table.removals.of(id) }),
        }
    }

    /// Ends a read with the state that the store returned, and returns the state to answer with. `check` tells whether
    /// the store may be read at all; it is called if the table still has no entry.
    ///
    /// The state of an entry takes precedence over that of the store: while a batch is being committed, the store may
    /// already have a state that is not published, and every inventory of the batch has an entry until it is published.
    ///
    /// Inserts the state if the inventory exists and no entry with the hash of its id was removed since the read began.
    /// Such a state is the newest: a commit that changed the inventory after the store was read would have made an
    /// entry before, and that entry would still be there.
    pub fn end_read<E>(
        &self,
        read: ColdRead,
        found: Option<LoadedInventory>,
        check: impl FnOnce() -> Result<(), E>,
    ) -> Result<Option<Arc<Inventory>>, E> {
        let mut table = self.write();
        if let Some(hot) = table.entries.get(&read.id) {
            hot.mark_used();
            return Ok(hot.inventory.clone());
        }
        check()?;
        let (found, head) = found.map_or((None, None), |loaded| (loaded.inventory, loaded.head));
        if found.is_some() && table.removals.of(&read.id) == read.removals {
            table.insert(read.id, found.clone(), head);
        }
        Ok(found)
    }

    pub fn len(&self) -> usize {
        self.read().entries.len()
    }

    /// Returns a consistent snapshot of the states of watched inventories.
    pub(super) fn snapshot(&self, ids: &[InventoryId]) -> Vec<Arc<PublishedState>> {
        // No batch is published while the lock is held.
        let table = self.read();
        ids.iter()
            .map(|id| {
                let watched = table.entries.get(id).and_then(|hot| hot.watched.as_ref());
                watched.map(|watched| watched.published.clone()).unwrap_or_default()
            })
            .collect()
    }

    /// Begins a batch, which ends with the next call of [`Self::evict`]. Returns those of the inventories that are not
    /// hot, each once. Until the batch ends, no entry is evicted.
    pub(super) fn begin_batch<'a>(&self, ids: impl Iterator<Item = &'a InventoryId>) -> Vec<InventoryId> {
        let mut seen: HashSet<&InventoryId, RandomState> = HashSet::default();
        let table = self.read();
        self.batch_in_flight.store(true, Ordering::Relaxed);
        ids.filter(|id| !table.entries.contains_key(*id) && seen.insert(id)).cloned().collect()
    }

    #[cfg(test)]
    pub(super) fn contains(&self, id: &InventoryId) -> bool {
        self.read().entries.contains_key(id)
    }

    /// Returns whether a subscription watches the inventory, and where the chain of its entries in the log begins; `None` if
    /// the store has to look that up. Only the commit loop adds subscriptions, so for the commit loop an inventory that is not
    /// watched stays so until it calls [`Self::subscribe`].
    pub(super) fn watched_and_head(&self, id: &InventoryId) -> (bool, Option<ChainHead>) {
        self.read().entries.get(id).map_or((false, None), |hot| (hot.watched.is_some(), hot.head))
    }

    /// Returns whether a subscription watches the inventory.
    pub(super) fn is_watched(&self, id: &InventoryId) -> bool {
        self.watched_and_head(id).0
    }

    /// Registers a subscription in the entry of each inventory. Creates an entry for an inventory that is not hot, which
    /// does not exist.
    pub(super) fn subscribe(&self, ids: &[InventoryId], waker: &Arc<SubscriptionWaker>) {
        let mut table = self.write();
        for id in ids {
            let hot = table.entry(id);
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
        let mut table = self.write();
        for id in ids {
            let Some(hot) = table.entries.get_mut(id) else { continue };
            let Some(watched) = &mut hot.watched else { continue };
            watched.subscriptions.retain(|subscription| !Arc::ptr_eq(subscription, waker));
            if watched.subscriptions.is_empty() {
                hot.watched = None;
                if hot.inventory.is_none() {
                    table.absent.push(id.clone());
                }
            }
        }
        if !self.batch_in_flight.load(Ordering::Relaxed) {
            table.remove_absent();
        }
    }

    /// Makes an entry for each inventory that the batch needs and that was not hot, with the state of the store. An entry
    /// of an inventory that does not exist stays until the batch ends, so that no read returns what the batch makes of
    /// it before that is published.
    pub(super) fn insert_loaded(&self, loaded: impl IntoIterator<Item = LoadedInventory>) {
        let mut table = self.write();
        for LoadedInventory { id, inventory, head } in loaded {
            // A read may have inserted it meanwhile, with the same state.
            if !table.entries.contains_key(&id) {
                if inventory.is_none() {
                    table.absent.push(id.clone());
                }
                table.insert(id, inventory, head);
            }
        }
    }

    /// Publishes all states atomically; returns the subscriptions to wake.
    pub(super) fn publish(&self, staged: impl Iterator<Item = (InventoryId, StagedState)>) -> PendingWakes {
        let mut wakes = PendingWakes::new();
        let mut table = self.write();
        let now = Instant::now();
        for (id, state) in staged {
            let Some(hot) = table.entries.get_mut(&id) else {
                if state.inventory.is_some() {
                    table.insert(id, state.inventory, state.head);
                }
                continue;
            };
            hot.mark_used();
            hot.head = state.head.or(hot.head);
            if let Some(watched) = &mut hot.watched {
                hot.inventory.clone_from(&state.inventory);
                watched.publish(state, now, &mut wakes);
            } else {
                let is_absent = state.inventory.is_none();
                hot.inventory = state.inventory;
                if is_absent {
                    table.absent.push(id);
                }
            }
        }
        wakes
    }

    /// Adds a change record to the current state, if the inventory is watched; returns the subscriptions to wake.
    pub(super) fn add_record(&self, id: &InventoryId, record: impl FnOnce(&Inventory) -> ChangeRecord) -> PendingWakes {
        let mut wakes = PendingWakes::new();
        // Every published change happens under the write lock.
        let mut table = self.write();
        if let Some(HotEntry { inventory: Some(inventory), watched: Some(watched), .. }) = table.entries.get_mut(id) {
            let inventory = inventory.clone();
            let records = vec![record(&inventory)];
            let state = StagedState { records, ..StagedState::new(Some(inventory)) };
            watched.publish(state, Instant::now(), &mut wakes);
        }
        wakes
    }

    /// Ends a batch: removes the entries of inventories that do not exist and evicts what is above `hot_max`.
    pub(super) fn evict(&self, hot_max: usize) {
        let mut table = self.write();
        self.batch_in_flight.store(false, Ordering::Relaxed);
        table.remove_absent();
        table.evict(hot_max);
    }

    /// Evicts what is above `hot_max`, unless a batch is in flight, which does it when it ends.
    pub(super) fn evict_between_batches(&self, hot_max: usize) {
        let mut table = self.write();
        if !self.batch_in_flight.load(Ordering::Relaxed) {
            table.evict(hot_max);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        // Only allocation can panic under the lock, and it leaves the table consistent.
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ColdRead {
    pub fn id(&self) -> &InventoryId {
        &self.id
    }
}

impl Table {
    /// Evicts by the second-chance algorithm: examines the oldest entries until at most `hot_max` are left or a bounded
    /// number was examined. Keeps entries that are watched or were used since they were last examined.
    fn evict(&mut self, hot_max: usize) {
        let over = self.entries.len().saturating_sub(hot_max);
        for _ in 0..2 * over {
            if self.entries.len() <= hot_max {
                break;
            }
            let Some(id) = self.order.pop_front() else { break };
            let Some(hot) = self.entries.get(&id) else { continue };
            if hot.watched.is_some() || hot.used.swap(false, Ordering::Relaxed) {
                self.order.push_back(id);
            } else {
                self.remove(&id);
            }
        }
        // Remove the ids of entries that were removed elsewhere before they outnumber the others.
        let Self { entries, order, .. } = self;
        if order.len() > 2 * entries.len() + 1_024 {
            order.clear();
            order.extend(entries.keys().cloned());
        }
    }

    fn insert(&mut self, id: InventoryId, inventory: Option<Arc<Inventory>>, head: Option<ChainHead>) {
        self.order.push_back(id.clone());
        self.entries.insert(id, HotEntry::new(inventory, head));
    }

    /// Returns the entry of an inventory; makes one for an inventory that is not hot, which does not exist.
    fn entry(&mut self, id: &InventoryId) -> &mut HotEntry {
        let order = &mut self.order;
        self.entries.entry(id.clone()).or_insert_with(|| {
            order.push_back(id.clone());
            HotEntry::new(None, None)
        })
    }

    fn remove_absent(&mut self) {
        for id in std::mem::take(&mut self.absent) {
            if self.entries.get(&id).is_some_and(|hot| hot.inventory.is_none() && hot.watched.is_none()) {
                self.remove(&id);
            }
        }
    }

    fn remove(&mut self, id: &InventoryId) {
        if self.entries.remove(id).is_some() {
            self.removals.add(id);
        }
    }
}

impl Default for Removals {
    fn default() -> Self {
        Self(Box::new([0; REMOVAL_COUNTERS]))
    }
}

impl Removals {
    fn of(&self, id: &InventoryId) -> u64 {
        self.0[Self::counter(id)]
    }

    fn add(&mut self, id: &InventoryId) {
        self.0[Self::counter(id)] += 1;
    }

    /// Ids with the same counter only prevent each other's insertion, so the hash needs no secret.
    fn counter(id: &InventoryId) -> usize {
        let hash = id.as_str().bytes().fold(0_usize, |hash, byte| hash.wrapping_mul(31) ^ usize::from(byte));
        hash % REMOVAL_COUNTERS
    }
}

impl HotEntry {
    fn new(inventory: Option<Arc<Inventory>>, head: Option<ChainHead>) -> Self {
        Self { inventory, head, used: AtomicBool::new(true), watched: None }
    }

    fn mark_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }
}

impl WatchedEntry {
    /// Publishes the next state, marks it as pending for each subscription and adds those to wake.
    fn publish(&mut self, state: StagedState, now: Instant, wakes: &mut PendingWakes) {
        let StagedState { inventory, records, trace, .. } = state;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PredictionOutcome;
    use crate::domain::{Caller, Contents, Epoch, LayoutId, Revision, SessionId};
    use crate::engine::delivery::RuntimeIndex;
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

    fn subscribe(table: &HotTable, name: &str) -> Arc<SubscriptionWaker> {
        let session = SessionId::new("own").ok();
        let waker = Arc::new(SubscriptionWaker::new(session, RuntimeIndex::default()));
        table.subscribe(&[id(name)], &waker);
        waker
    }

    fn is_pending(waker: &SubscriptionWaker) -> bool {
        waker.poll_pending(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn eviction_keeps_watched_inventories_and_limits_the_others() {
        let table = HotTable::default();
        let names: Vec<String> = (0..100).map(|n| format!("inv-{n}")).collect();
        table.publish(names.iter().map(|name| staged(name)));
        let _waker = subscribe(&table, "inv-3");
        for _ in 0..20 {
            table.evict(10);
        }
        assert_eq!(table.len(), 10);
        assert_eq!(snapshot_inventories(&table, &[id("inv-3")]), [inventory("inv-3")]);
        assert!(table.contains(&id("inv-3")));
    }

    #[test]
    fn created_and_deleted_inventories_leave_no_entries() {
        let table = HotTable::default();
        for n in 0..5_000 {
            let name = format!("inv-{n}");
            table.publish([staged(&name)].into_iter());
            table.publish([(id(&name), StagedState::new(None))].into_iter());
            table.evict(10);
        }
        assert_eq!(table.len(), 0);
        assert!(table.read().order.len() <= 1_025, "{}", table.read().order.len());
    }

    #[test]
    fn a_subscription_sees_the_new_state_before_it_is_woken() {
        let table = HotTable::default();
        let waker = subscribe(&table, "a");
        assert!(!is_pending(&waker));
        let wakes = table.publish([staged("a")].into_iter());
        assert_eq!(snapshot_inventories(&table, &[id("a")]), [inventory("a")]);
        assert!(wakes.len() == 1 && Arc::ptr_eq(&wakes[0], &waker));
        assert!(is_pending(&waker) && !is_pending(&waker));
    }

    #[test]
    fn nothing_is_published_for_an_inventory_that_is_not_watched() {
        let table = HotTable::default();
        table.publish([staged("a")].into_iter());
        assert!(!table.is_watched(&id("a")));
        let waker = subscribe(&table, "a");
        assert!(table.is_watched(&id("a")));
        table.release(&[id("a")], &waker);
        assert!(!table.is_watched(&id("a")) && table.contains(&id("a")));
    }

    /// Publishes a change of revision `revision` with one record; returns whether the subscription is woken.
    fn change(table: &HotTable, session: &str, outcome: PredictionOutcome) -> bool {
        let inventory = inventory("a").unwrap();
        let caller = Caller::new("test").unwrap();
        let correction = ChangeRecord::correction(SessionId::new(session).unwrap(), caller, &inventory);
        let records = vec![ChangeRecord { outcome, ..correction }];
        let state = StagedState { records, ..StagedState::new(Some(inventory)) };
        !table.publish([(id("a"), state)].into_iter()).is_empty()
    }

    #[test]
    fn a_subscription_is_woken_by_the_changes_that_its_level_names() {
        use PredictionOutcome::{Confirmed, Correction, Mispredicted, Unpredicted};
        let table = HotTable::default();
        table.publish([staged("a")].into_iter());
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
            let waker = subscribe(&table, "a");
            waker.set_level(level);
            for (session, outcome, of_change) in changes {
                let woken = change(&table, session, outcome);
                assert_eq!(woken, of_change >= level, "{session} {outcome:?} at {level:?}");
                waker.take_pending();
            }
            table.release(&[id("a")], &waker);
        }
    }

    #[test]
    fn a_subscription_at_any_level_is_woken_by_deletion_and_creation_and_before_it_loses_records() {
        let table = HotTable::default();
        table.publish([staged("a")].into_iter());
        let waker = subscribe(&table, "a");
        waker.set_level(WakeLevel::Correction);
        for _ in 0..3 {
            for n in 1..=RECORDS_UNREAD_MAX {
                let woken = change(&table, "own", PredictionOutcome::Unpredicted);
                assert_eq!(woken, n == RECORDS_UNREAD_MAX);
            }
            waker.take_pending();
        }
        for state in [None, inventory("a")] {
            let wakes = table.publish([(id("a"), StagedState::new(state))].into_iter());
            assert_eq!(wakes.len(), 1);
            waker.take_pending();
        }
    }
}

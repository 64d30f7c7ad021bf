//! Committed changes that are not in the table yet, in two generations: the active one grows with each commit; the fold
//! writes the frozen one, which no longer changes. Reads look in the active generation, then in the frozen one, then in
//! the table.

use super::table::{StoredInventory, StoredState};
use crate::domain::{Inventory, InventoryId, PlayerId, Transition};
use crate::store::log::ChainHead;
use crate::store::supply::SupplyTotals;
use crate::store::{ListQuery, MutationRecord};
use foldhash::fast::RandomState;
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

/// Number of created ids that a list examines for each inventory that it may return.
const EXAMINED_PER_RESULT: usize = 4;

/// Committed states that are not in the table yet, by inventory (a memtable).
#[derive(Debug, Default)]
pub struct Generation {
    pub states: HashMap<InventoryId, StoredInventory, RandomState>,
    /// Ids that were created in this generation: only these can be missing from the table. Sorted, for lists.
    pub created_ids: BTreeSet<InventoryId>,
    created_ids_by_owner: BTreeSet<(PlayerId, InventoryId)>,
    /// The flows of the records.
    pub supply: SupplyTotals,
    pub records: usize,
    /// Time of the first change, by the store's clock.
    pub first_change_at: Option<Duration>,
}

/// The two generations of unfolded states.
#[derive(Debug, Default)]
pub struct Overlay {
    /// Gets every commit.
    pub active: Generation,
    /// The generation that the fold is writing, if any.
    pub frozen: Option<Arc<Generation>>,
    /// Number of generations that were folded and dropped since the store was opened.
    pub generations_folded: u64,
}

impl Generation {
    pub fn with_capacity(inventories: usize) -> Self {
        Self { states: HashMap::with_capacity_and_hasher(inventories, RandomState::default()), ..Self::default() }
    }

    /// Adds committed mutations; `heads` are the new heads of the changed inventories.
    pub fn add(&mut self, batch: &[MutationRecord], heads: &[ChainHead], now: Duration) {
        let mut heads = heads.iter();
        for mutation in batch {
            self.supply
                .add_flows(&mutation.flows, |operation| mutation.operations.get(usize::from(operation)).copied());
            for touched in &mutation.touched {
                let (state, created) = match touched.transition() {
                    Transition::Unchanged => continue,
                    Transition::Updated { after, .. } => (StoredState::Present(after.clone()), false),
                    Transition::Created { after } | Transition::Recreated { after, .. } => {
                        (StoredState::Present(after.clone()), true)
                    }
                    Transition::Deleted { .. } => {
                        let (epoch, revision) = (touched.version.epoch, touched.version.revision);
                        (StoredState::Deleted { epoch, revision }, false)
                    }
                };
                let head = heads.next().copied().unwrap_or_default();
                self.put(&touched.version.id, StoredInventory { state, head }, created);
            }
        }
        self.records += batch.len();
        self.first_change_at.get_or_insert(now);
    }

    pub fn put(&mut self, id: &InventoryId, state: StoredInventory, created: bool) {
        if let Some(inventory) = state.inventory().filter(|_| created) {
            self.created_ids.insert(id.clone());
            if let Some(owner) = &inventory.owner {
                self.created_ids_by_owner.insert((owner.clone(), id.clone()));
            }
        }
        match self.states.get_mut(id) {
            Some(current) => *current = state,
            None => {
                self.states.insert(id.clone(), state);
            }
        }
    }

    /// Created ids that may be on a page, in order. An inventory may have been deleted or have another owner since.
    fn candidates<'a>(&'a self, query: &'a ListQuery) -> Box<dyn Iterator<Item = &'a InventoryId> + 'a> {
        let after = query.after.as_ref().filter(|after| after.as_str() >= query.prefix.as_str());
        let in_prefix = |id: &&InventoryId| id.as_str().starts_with(&query.prefix);
        let first = match after {
            Some(after) => Bound::Excluded(after.clone()),
            None => InventoryId::new(&query.prefix).map_or(Bound::Unbounded, Bound::Included),
        };
        match &query.owner {
            None => Box::new(self.created_ids.range((first, Bound::Unbounded)).take_while(in_prefix)),
            Some(owner) => {
                let with_owner = |id| (owner.clone(), id);
                let first = match first {
                    Bound::Included(id) => Bound::Included(with_owner(id)),
                    Bound::Excluded(id) => Bound::Excluded(with_owner(id)),
                    // The smallest possible id: ids contain no control characters.
                    Bound::Unbounded => match InventoryId::new(" ") {
                        Ok(least) => Bound::Included(with_owner(least)),
                        Err(_) => Bound::Unbounded,
                    },
                };
                let of_owner =
                    self.created_ids_by_owner.range((first, Bound::Unbounded)).take_while(move |(of, _)| of == owner);
                Box::new(of_owner.map(|(_, id)| id).take_while(in_prefix))
            }
        }
    }
}

impl Overlay {
    /// Finds the newest state. The outer `None` means that the state is in the table.
    pub fn find(&self, id: &InventoryId) -> Option<&StoredInventory> {
        self.active.states.get(id).or_else(|| self.frozen.as_ref()?.states.get(id))
    }

    /// Number of records and inventories that are not folded. An inventory in both generations counts twice.
    pub fn unfolded(&self) -> (usize, usize) {
        let frozen = self.frozen.as_deref();
        let records = self.active.records + frozen.map_or(0, |frozen| frozen.records);
        (records, self.active.states.len() + frozen.map_or(0, |frozen| frozen.states.len()))
    }

    /// Returns the next ids that were created here and exist, at most `limit`, and the last id that was examined if
    /// there may be more. Examines a bounded number of ids, because callers hold the lock.
    pub fn created_ids(&self, query: &ListQuery, limit: usize) -> (Vec<InventoryId>, Option<InventoryId>) {
        let mut active = self.active.candidates(query).peekable();
        let mut frozen = self.frozen.iter().flat_map(|frozen| frozen.candidates(query)).peekable();
        let mut ids: Vec<InventoryId> = Vec::new();
        let mut examined: Option<&InventoryId> = None;
        for _ in 0..limit.saturating_mul(EXAMINED_PER_RESULT) {
            let next = match (active.peek(), frozen.peek()) {
                (None, None) => return (ids, None),
                (Some(one), Some(other)) if one <= other => active.next(),
                (Some(_), None) => active.next(),
                (_, Some(_)) => frozen.next(),
            };
            let Some(id) = next.filter(|id| examined != Some(*id)) else { continue };
            let is_match = |state: &StoredInventory| state.inventory().is_some_and(|state| matches_owner(query, state));
            if self.find(id).is_some_and(is_match) {
                if ids.len() == limit {
                    break;
                }
                ids.push(id.clone());
            }
            examined = Some(id);
        }
        (ids, examined.cloned())
    }
}

pub fn matches_owner(query: &ListQuery, inventory: &Inventory) -> bool {
    query.owner.is_none() || inventory.owner == query.owner
}

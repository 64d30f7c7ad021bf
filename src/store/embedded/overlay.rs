//! What is committed and not yet in the table. Two generations: one that grows with each commit, and one that the fold
//! is writing and that nobody changes. Reading looks at the growing one first, then at the other, then at the table.

use crate::domain::{Change, Inventory, InventoryId, PlayerId};
use crate::store::{ListQuery, Transaction};
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

/// A committed state; none: deleted.
pub type State = Option<Arc<Inventory>>;

#[derive(Debug, Default)]
pub struct Generation {
    pub states: HashMap<InventoryId, State>,
    /// Ids that were created in it: the only ones that the table may lack. In order, for lists.
    pub born: BTreeSet<InventoryId>,
    born_of: BTreeSet<(PlayerId, InventoryId)>,
    pub records: usize,
    /// When the first change came, by the store's clock.
    pub since: Option<Duration>,
}

#[derive(Debug, Default)]
pub struct Overlay {
    pub growing: Generation,
    pub folding: Option<Arc<Generation>>,
    /// How many generations have been folded and dropped since the store was opened.
    pub folds: u64,
}

impl Generation {
    pub fn with_capacity(inventories: usize) -> Self {
        Self { states: HashMap::with_capacity(inventories), ..Self::default() }
    }

    pub fn add(&mut self, batch: &[Transaction], now: Duration) {
        for transaction in batch {
            for touched in transaction.touched.iter().filter(|touched| !touched.changes.is_empty()) {
                let created = touched.changes.iter().any(|change| matches!(change, Change::Created(_)));
                self.put(&touched.version.id, touched.state.clone(), created);
            }
        }
        self.records += batch.len();
        self.since.get_or_insert(now);
    }

    pub fn put(&mut self, id: &InventoryId, state: State, created: bool) {
        if let Some(inventory) = state.as_ref().filter(|_| created) {
            self.born.insert(id.clone());
            if let Some(owner) = &inventory.owner {
                self.born_of.insert((owner.clone(), id.clone()));
            }
        }
        match self.states.get_mut(id) {
            Some(there) => *there = state,
            None => {
                self.states.insert(id.clone(), state);
            }
        }
    }

    /// Created ids that may be on a page, in order; they may have been deleted or have changed hands since.
    fn candidates<'a>(&'a self, query: &'a ListQuery) -> Box<dyn Iterator<Item = &'a InventoryId> + 'a> {
        let after = query.after.as_ref().filter(|after| after.as_str() >= query.prefix.as_str());
        let in_prefix = |id: &&InventoryId| id.as_str().starts_with(&query.prefix);
        let first = match after {
            Some(after) => Bound::Excluded(after.clone()),
            None => InventoryId::new(&query.prefix).map_or(Bound::Unbounded, Bound::Included),
        };
        match &query.owner {
            None => Box::new(self.born.range((first, Bound::Unbounded)).take_while(in_prefix)),
            Some(owner) => {
                let with_owner = |id| (owner.clone(), id);
                let first = match first {
                    Bound::Included(id) => Bound::Included(with_owner(id)),
                    Bound::Excluded(id) => Bound::Excluded(with_owner(id)),
                    // The least id there can be: ids have no control characters.
                    Bound::Unbounded => match InventoryId::new(" ") {
                        Ok(least) => Bound::Included(with_owner(least)),
                        Err(_) => Bound::Unbounded,
                    },
                };
                let of_owner = self.born_of.range((first, Bound::Unbounded)).take_while(move |(of, _)| of == owner);
                Box::new(of_owner.map(|(_, id)| id).take_while(in_prefix))
            }
        }
    }
}

impl Overlay {
    /// The outer none: ask the table.
    pub fn find(&self, id: &InventoryId) -> Option<&State> {
        self.growing.states.get(id).or_else(|| self.folding.as_ref()?.states.get(id))
    }

    /// Records and inventories that are not folded; an inventory in both generations counts twice.
    pub fn unfolded(&self) -> (usize, usize) {
        let folding = self.folding.as_deref();
        let records = self.growing.records + folding.map_or(0, |folding| folding.records);
        (records, self.growing.states.len() + folding.map_or(0, |folding| folding.states.len()))
    }

    /// The next `limit` ids that were created here and are alive, and whether these are all.
    pub fn born(&self, query: &ListQuery, limit: usize) -> (Vec<InventoryId>, bool) {
        let mut growing = self.growing.candidates(query).peekable();
        let mut folding = self.folding.iter().flat_map(|folding| folding.candidates(query)).peekable();
        let mut ids: Vec<InventoryId> = Vec::new();
        loop {
            let next = match (growing.peek(), folding.peek()) {
                (None, None) => return (ids, true),
                (Some(one), Some(other)) if one <= other => growing.next(),
                (Some(_), None) => growing.next(),
                (_, Some(_)) => folding.next(),
            };
            let Some(id) = next.filter(|id| ids.last() != Some(id)) else { continue };
            let is_wanted = |state: &State| state.as_ref().is_some_and(|state| matches_owner(query, state));
            if self.find(id).is_some_and(is_wanted) {
                if ids.len() == limit {
                    return (ids, false);
                }
                ids.push(id.clone());
            }
        }
    }
}

pub fn matches_owner(query: &ListQuery, inventory: &Inventory) -> bool {
    query.owner.is_none() || inventory.owner == query.owner
}

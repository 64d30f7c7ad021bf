//! Supply: how many of each item exist, and how many came and went by kind of change.

use crate::domain::{Flow, ItemCode, OperationKind};
use crate::store::log::LogRecord;
use foldhash::fast::RandomState;
use std::collections::HashMap;

/// How many of an item came and went. 128 bits, because 2^32 items an operation at 50,000 operations a second exceed 63 bits
/// within half a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amounts {
    pub added: u128,
    pub removed: u128,
}

/// The flows of many mutations, added up by item and kind of operation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SupplyTotals {
    amounts: HashMap<(ItemCode, OperationKind), Amounts, RandomState>,
}

impl SupplyTotals {
    pub fn is_empty(&self) -> bool {
        self.amounts.is_empty()
    }

    pub fn add(&mut self, item: ItemCode, kind: OperationKind, amounts: Amounts) {
        let total = self.amounts.entry((item, kind)).or_default();
        total.added += amounts.added;
        total.removed += amounts.removed;
    }

    pub fn add_flows(&mut self, flows: &[Flow], kind_of: impl Fn(u8) -> Option<OperationKind>) {
        for Flow { operation, item, added, removed } in flows {
            if let Some(kind) = kind_of(*operation) {
                self.add(*item, kind, Amounts { added: u128::from(*added), removed: u128::from(*removed) });
            }
        }
    }

    pub fn add_record(&mut self, record: &LogRecord) {
        self.add_flows(&record.flows, |operation| record.kind_of(operation));
    }

    /// Takes back the flows of a record that was added.
    pub fn subtract_record(&mut self, record: &LogRecord) {
        for Flow { operation, item, added, removed } in &record.flows {
            let Some(kind) = record.kind_of(*operation) else { continue };
            let total = self.amounts.entry((*item, kind)).or_default();
            total.added = total.added.saturating_sub(u128::from(*added));
            total.removed = total.removed.saturating_sub(u128::from(*removed));
        }
    }

    pub fn add_all(&mut self, other: &Self) {
        other.amounts.iter().for_each(|((item, kind), amounts)| self.add(*item, *kind, *amounts));
    }

    /// Returns the amounts in order of items and kinds.
    pub fn sorted(&self) -> Vec<(ItemCode, OperationKind, Amounts)> {
        let mut sorted: Vec<_> = self.amounts.iter().map(|((item, kind), amounts)| (*item, *kind, *amounts)).collect();
        sorted.sort_unstable_by_key(|(item, kind, _)| (*item, *kind));
        sorted
    }

    /// Returns how many of each item exist: added minus removed. An item of which all have gone is not listed.
    ///
    /// # Errors
    ///
    /// An item of which more were removed than added.
    pub fn existing(&self) -> Result<HashMap<ItemCode, u128>, ItemCode> {
        let mut totals: HashMap<ItemCode, Amounts> = HashMap::new();
        for ((item, _), amounts) in &self.amounts {
            let total = totals.entry(*item).or_default();
            total.added += amounts.added;
            total.removed += amounts.removed;
        }
        let mut existing = HashMap::new();
        for (item, Amounts { added, removed }) in totals {
            match added.checked_sub(removed) {
                Some(0) => {}
                Some(count) => drop(existing.insert(item, count)),
                None => return Err(item),
            }
        }
        Ok(existing)
    }
}

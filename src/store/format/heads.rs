//! Where the chains of inventories begin while a batch is encoded: each change points to the one before it.

use crate::domain::InventoryId;
use crate::store::log::ChainHead;
use crate::store::{HeadBefore, MutationRecord};
use std::collections::{HashMap, HashSet};

/// The heads of the inventories that a batch changes.
#[derive(Debug, Default)]
pub struct ChainHeads<'a> {
    /// The heads after the changes so far, in their order.
    after: Vec<ChainHead>,
    /// The current heads by inventory, if some mutation of the batch does not know them.
    by_id: Option<HashMap<&'a InventoryId, ChainHead>>,
}

impl<'a> ChainHeads<'a> {
    /// Prepares for a batch. Calls `look_up` for the inventories whose heads its mutations do not know, each once.
    pub fn new<E>(
        batch: &'a [MutationRecord],
        look_up: impl FnOnce(&[&'a InventoryId]) -> Result<Vec<ChainHead>, E>,
    ) -> Result<Self, E> {
        let is_known = |mutation: &MutationRecord| {
            mutation.heads.len() == mutation.touched.len() && !mutation.heads.contains(&HeadBefore::Unknown)
        };
        let after = Vec::with_capacity(batch.len());
        if batch.iter().all(is_known) {
            return Ok(Self { after, by_id: None });
        }
        let ids: HashSet<&InventoryId> =
            batch.iter().flat_map(|mutation| &mutation.touched).map(|touched| &touched.version.id).collect();
        let ids: Vec<&InventoryId> = ids.into_iter().collect();
        let heads = look_up(&ids)?;
        Ok(Self { after, by_id: Some(ids.into_iter().zip(heads).collect()) })
    }

    /// Returns the head of an inventory before a change.
    pub fn before(&self, id: &InventoryId, before: HeadBefore) -> ChainHead {
        match (before, &self.by_id) {
            (HeadBefore::Known(head), None) => head,
            (HeadBefore::InBatch(index), None) => self.after.get(index).copied().unwrap_or_default(),
            (HeadBefore::Unknown, None) => ChainHead::default(),
            (_, Some(by_id)) => by_id.get(id).copied().unwrap_or_default(),
        }
    }

    /// Adds the head of an inventory after a change.
    pub fn push(&mut self, id: &'a InventoryId, head: ChainHead) {
        self.after.push(head);
        if let Some(by_id) = &mut self.by_id {
            by_id.insert(id, head);
        }
    }

    /// Returns the heads after all changes, in their order.
    pub fn into_vec(self) -> Vec<ChainHead> {
        self.after
    }
}

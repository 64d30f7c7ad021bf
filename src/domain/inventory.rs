//! Inventories whose slots are stamped with revisions.
//!
//! Each slot stores the revision that last changed it and the revision that last changed its *identity*. One scan over
//! the slots therefore finds all changes since any revision; no change log has to be kept, cleared or compacted.

use super::digest::Digest;
use super::ids::{Epoch, InventoryId, LayoutId, PlayerId, Revision, Slot};
use super::stack::Stack;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The content of one slot, stamped with the revisions that changed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    pub stack: Option<Stack>,
    /// The revision that last changed this slot in any way.
    pub changed_at: Revision,
    /// The revision that last changed the slot's identity: its item, its attributes, or whether it is empty.
    pub identity_changed_at: Revision,
}

/// The new content of one slot; `None` empties the slot.
pub type Edit = (Slot, Option<Stack>);

/// The slots of an inventory at one revision, with their stamps and digest. Both the server's inventory and a reader's
/// replica use this type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    revision: Revision,
    digest: Digest,
    slots: Vec<SlotState>,
}

impl Contents {
    /// Creates `slots` slots, applies `edits` and stamps all slots with `revision`. Edits beyond the last slot are
    /// ignored.
    pub fn new(slots: usize, revision: Revision, edits: &[Edit]) -> Self {
        let empty = SlotState { stack: None, changed_at: revision, identity_changed_at: revision };
        let mut contents = Self { revision, digest: Digest::EMPTY, slots: vec![empty; slots] };
        contents.set(revision, edits);
        contents
    }

    /// Restores stored slots. Computes the digest from scratch, so that the caller can compare it with the stored
    /// digest.
    pub fn restored(revision: Revision, slots: Vec<SlotState>) -> Self {
        let mut digest = Digest::EMPTY;
        for (index, state) in slots.iter().enumerate() {
            digest = digest.plus(Slot(index as u16), state.stack.as_ref());
        }
        Self { revision, digest, slots }
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn digest(&self) -> Digest {
        self.digest
    }

    pub fn slots(&self) -> &[SlotState] {
        &self.slots
    }

    /// Returns the stack in a slot, or `None` if the slot is empty or does not exist.
    pub fn stack(&self, slot: Slot) -> Option<&Stack> {
        self.slots.get(slot.index())?.stack.as_ref()
    }

    /// Returns the filled slots, in ascending order.
    pub fn stacks(&self) -> impl Iterator<Item = (Slot, &Stack)> {
        self.slots.iter().enumerate().filter_map(|(index, state)| Some((Slot(index as u16), state.stack.as_ref()?)))
    }

    /// Returns a copy at `revision` with the edits applied: stamps the edited slots and updates the digest.
    #[must_use]
    pub fn advanced(&self, revision: Revision, edits: &[Edit]) -> Self {
        let mut next = self.clone();
        next.set(revision, edits);
        next
    }

    fn set(&mut self, revision: Revision, edits: &[Edit]) {
        self.revision = revision;
        for (slot, stack) in edits {
            let Some(state) = self.slots.get_mut(slot.index()) else { continue };
            self.digest = self.digest.minus(*slot, state.stack.as_ref()).plus(*slot, stack.as_ref());
            state.changed_at = revision;
            if !same_identity(state.stack.as_ref(), stack.as_ref()) {
                state.identity_changed_at = revision;
            }
            state.stack.clone_from(stack);
        }
    }
}

fn same_identity(one: Option<&Stack>, other: Option<&Stack>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => one.is_same_kind(other.item, &other.attributes),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

/// Slots of one layout under an id, with an owner or none (for example, a chest). Immutable: each change creates a new
/// value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    pub id: InventoryId,
    pub owner: Option<PlayerId>,
    pub layout: LayoutId,
    pub epoch: Epoch,
    pub contents: Contents,
}

impl Inventory {
    pub fn version(&self) -> Version {
        Version {
            id: self.id.clone(),
            epoch: self.epoch,
            revision: self.contents.revision,
            digest: self.contents.digest,
        }
    }

    /// Returns the inventory at the next revision with the edits applied.
    #[must_use]
    pub fn advanced(&self, edits: &[Edit]) -> Self {
        Self {
            id: self.id.clone(),
            owner: self.owner.clone(),
            layout: self.layout.clone(),
            epoch: self.epoch,
            contents: self.contents.advanced(self.contents.revision.next(), edits),
        }
    }

    /// Same as [`Self::advanced`], but in place, for a store that replays many revisions of an inventory.
    pub fn advance(&mut self, edits: &[Edit]) {
        self.contents.set(self.contents.revision.next(), edits);
    }
}

/// Identifies a state of one inventory; the digest lets a reader verify that it has this state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub id: InventoryId,
    pub epoch: Epoch,
    pub revision: Revision,
    pub digest: Digest,
}

/// An uncommitted copy of an inventory: the base and the slots that the mutation has edited so far.
#[derive(Debug, Clone)]
pub struct Draft {
    base: Arc<Inventory>,
    edits: BTreeMap<Slot, Option<Stack>>,
}

impl Draft {
    pub fn new(base: Arc<Inventory>) -> Self {
        Self { base, edits: BTreeMap::new() }
    }

    /// Returns the committed state that the draft started from.
    pub fn base(&self) -> &Arc<Inventory> {
        &self.base
    }

    pub fn slots(&self) -> impl ExactSizeIterator<Item = Slot> + use<> {
        (0..self.base.contents.slots.len() as u16).map(Slot)
    }

    /// Returns the stack in a slot after the edits so far.
    pub fn stack(&self, slot: Slot) -> Option<&Stack> {
        match self.edits.get(&slot) {
            Some(edited) => edited.as_ref(),
            None => self.base.contents.stack(slot),
        }
    }

    pub fn set(&mut self, slot: Slot, stack: Option<Stack>) {
        self.edits.insert(slot, stack);
    }

    /// Returns the slots that differ from the base; empty if the mutation changed nothing.
    pub fn into_edits(self) -> Vec<Edit> {
        let base = self.base;
        self.edits.into_iter().filter(|(slot, stack)| base.contents.stack(*slot) != stack.as_ref()).collect()
    }
}
